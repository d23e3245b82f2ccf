"""Times encoders and decoders of the shapes of MiniLM and SmolLM2 with random weights, torch FP16 in a
CUDA graph, as it is and compiled: what `examples/devices time` of fqrt is to be compared with."""
import sys, torch, torch.nn.functional as F

class Bert(torch.nn.Module):
    def __init__(s, layers=6, h=384, heads=12, f=1536, vocab=30522):
        super().__init__()
        L = torch.nn.Linear
        s.heads, s.h = heads, h
        s.word, s.pos, s.kind = (torch.nn.Embedding(n, h) for n in (vocab, 512, 2))
        s.norm = torch.nn.LayerNorm(h)
        s.layers = torch.nn.ModuleList([torch.nn.ModuleDict(dict(
            qkv=L(h, 3 * h), out=L(h, h), n1=torch.nn.LayerNorm(h), up=L(h, f), down=L(f, h), n2=torch.nn.LayerNorm(h))) for _ in range(layers)])
    def forward(s, ids, mask):
        b, t = ids.shape
        x = s.norm(s.word(ids) + s.pos(torch.arange(t, device=ids.device))[None] + s.kind(torch.zeros_like(ids)))
        bias = ((1 - mask.to(x.dtype)) * -1e4)[:, None, None, :].expand(b, s.heads, t, t)
        for l in s.layers:
            q, k, v = l["qkv"](x).view(b, t, 3, s.heads, -1).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(b, t, s.h)
            x = l["n1"](x + l["out"](a))
            x = l["n2"](x + l["down"](F.gelu(l["up"](x))))
        m = mask.to(x.dtype)[:, :, None]
        e = (x * m).sum(1) / m.sum(1)
        return x, F.normalize(e)

class Llama(torch.nn.Module):
    def __init__(s, layers=30, h=576, heads=9, groups=3, f=1536, vocab=49152):
        super().__init__()
        L = lambda a, b: torch.nn.Linear(a, b, bias=False)
        s.heads, s.groups, s.h, d = heads, groups, h, h // heads
        s.word = torch.nn.Embedding(vocab, h)
        s.layers = torch.nn.ModuleList([torch.nn.ModuleDict(dict(
            qkv=L(h, h + 2 * groups * d), out=L(h, h), n1=torch.nn.RMSNorm(h, 1e-5), up=L(h, 2 * f), down=L(f, h), n2=torch.nn.RMSNorm(h, 1e-5))) for _ in range(layers)])
        s.norm, s.head = torch.nn.RMSNorm(h, 1e-5), L(h, vocab)
    def forward(s, ids, mask):
        b, t = ids.shape
        d = s.h // s.heads
        x = s.word(ids)
        freq = 1 / 10000 ** (torch.arange(0, d, 2, device=ids.device) / d)
        angle = torch.arange(t, device=ids.device)[:, None] * freq
        cos, sin = angle.cos().repeat(1, 2).to(x.dtype), angle.sin().repeat(1, 2).to(x.dtype)
        turn = lambda z: z * cos + torch.cat([-z[..., d // 2:], z[..., :d // 2]], -1) * sin
        for l in s.layers:
            y = l["qkv"](l["n1"](x)).view(b, t, s.heads + 2 * s.groups, d).transpose(1, 2)
            q, k, v = y[:, :s.heads], y[:, s.heads:s.heads + s.groups], y[:, s.heads + s.groups:]
            a = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=True)
            x = x + l["out"](a.transpose(1, 2).reshape(b, t, s.h))
            g, u = l["up"](l["n2"](x)).chunk(2, -1)
            x = x + l["down"](F.silu(g) * u)
        return s.head(s.norm(x))

def timed(f, *args):
    s = torch.cuda.Stream()
    with torch.cuda.stream(s), torch.no_grad():
        for _ in range(5): f(*args)
        s.synchronize()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g, stream=s): f(*args)
        for _ in range(100): g.replay()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(401)]
        for i in range(400):
            marks[i].record(); g.replay()
        marks[400].record(); s.synchronize()
    t = sorted(a.elapsed_time(b) * 1e3 for a, b in zip(marks, marks[1:]))
    return t[200]

for name, make in (("minilm", Bert), ("smollm2", Llama)):
    if len(sys.argv) > 1 and name not in sys.argv[1:]: continue
    model = make().cuda().half().eval()
    for b, t in ((1, 16), (1, 128), (8, 128), (32, 128)) if name == "minilm" else ((1, 128), (1, 1024), (1, 2048), (8, 128), (32, 128)):
        ids = torch.randint(5, 9000, (b, t), device="cuda"); mask = torch.ones_like(ids)
        plain = timed(model, ids, mask)
        torch._dynamo.reset()
        best = timed(torch.compile(model, dynamic=False), ids, mask)
        print(f"{name} {b}x{t} torch fp16 graph {plain:.1f} us, compiled {best:.1f} us", flush=True)
