"""Times PyTorch's FP16 attention, as fqc-cuda-bench times its own, and PyTorch's compiled FP16 decoder layers beside
those that fqc compiled.

    python3 tests/cuda/torch_baseline.py attention layers >> results.jsonl
    python3 tests/cuda/torch_baseline.py compiled DEVICES FOLDER >> results.jsonl
    python3 tests/cuda/torch_baseline.py compare results.jsonl

One JSON object a line. Everything is replayed from CUDA graphs after 100 ms of warm-up; medians. DEVICES is fqrt's
example of that name, FOLDER has what `fqc compile` made of the layers that `decoder_layer.py` writes, as
`Llama-7B.NAME.fqbin`. `compare` prints how much faster these are.
"""

import glob
import json
import math
import os
import re
import statistics
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = "cuda"


def time_graph(work, repeats):
    """Median milliseconds of one of `repeats` calls of `work(i)` in a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(3):
            work(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(repeats):
            work(i)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def once():
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    times = []
    for _ in range(2):
        warm = 0.0
        while warm < 100.0:
            warm += once()
        times += [once() / repeats for _ in range(5)]
    return sorted(times)[len(times) // 2]


# (batch, heads, query heads of a key head, queries, keys, dim), causal
ATTENTION = [
    (1, 32, 1, 2048, 2048, 128),
    (8, 32, 1, 256, 256, 128),
    (4, 32, 1, 2048, 2048, 128),
    (4, 32, 4, 2048, 2048, 64),
]


def attention():
    for shape in ATTENTION:
        batch, heads, group, queries, keys, dim = shape
        elements = batch * dim * heads * (queries + keys // group)
        sets = min(24, max(2, (160 << 20) // (4 * elements)))

        def make(length, count):
            values = torch.randn(batch, length, count, dim, device=DEVICE, dtype=torch.float16)
            return values.transpose(1, 2)

        inputs = [(make(queries, heads), make(keys, heads // group), make(keys, heads // group)) for _ in range(sets)]
        options = {"is_causal": True, "enable_gqa": group > 1}
        repeats = max(1, 40 // sets) * sets
        best = {}
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            try:
                with sdpa_kernel(backend):
                    best[backend.name] = time_graph(
                        lambda i: F.scaled_dot_product_attention(*inputs[i % sets], **options), repeats
                    )
            except Exception as error:
                print(backend.name, str(error).splitlines()[0], file=sys.stderr)
        name = min(best, key=best.get)
        times = {key: round(ms * 1e3, 2) for key, ms in best.items()}
        print(
            json.dumps({"attention": shape, "causal": True, "name": f"torch {name}", "us": times[name], "all": times}),
            flush=True,
        )


class Opt(torch.nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.heads = heads
        self.norms = torch.nn.ModuleList([torch.nn.LayerNorm(width) for _ in range(2)])
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.up = torch.nn.Linear(width, inner)
        self.down = torch.nn.Linear(inner, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            t.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for t in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.relu(self.up(self.norms[1](x))))


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


class Llama(torch.nn.Module):
    def __init__(self, width, heads, inner):
        super().__init__()
        self.heads = heads
        self.norms = torch.nn.ModuleList([torch.nn.RMSNorm(width, eps=1e-5) for _ in range(2)])
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.out = torch.nn.Linear(width, width, bias=False)
        self.gate_up = torch.nn.Linear(width, 2 * inner, bias=False)
        self.down = torch.nn.Linear(inner, width, bias=False)

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        q, k, v = (
            t.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for t in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.gate_up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


# Name, kind, width, heads, inner width.
LAYERS = [
    ("OPT-6.7B", Opt, 4096, 32, 16384),
    ("OPT-66B", Opt, 9216, 72, 36864),
    ("Llama-7B", Llama, 4096, 32, 11008),
]
SHAPES = [(1, 2048), (8, 256), (4, 2048)]


@torch.no_grad()
def layers():
    for name, kind, width, heads, inner in LAYERS:
        with torch.device(DEVICE):
            layer = kind(width, heads, inner).half().eval()
        weight_bytes = sum(p.numel() * 2 for p in layer.parameters())
        for batch, length in SHAPES:
            extra = ()
            if kind is Llama:
                angles = torch.rand(length, width // heads, device=DEVICE) * math.tau
                extra = (angles.cos().half(), angles.sin().half())
            inputs = [torch.randn(batch, length, width, device=DEVICE).half() for _ in range(2)]
            # The faster of the attention kernels that it may choose from.
            best = math.inf
            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
                torch._dynamo.reset()
                compiled = torch.compile(layer, dynamic=False)
                with sdpa_kernel(backend):
                    best = min(best, time_graph(lambda i: compiled(inputs[i % 2], *extra), 4))
            print(
                json.dumps(
                    {"layer": name, "batch": batch, "length": length, "name": "torch FP16 compiled",
                     "us": round(best * 1e3, 1), "weight_bytes": weight_bytes}
                ),
                flush=True,
            )


def compiled(devices, folder):
    """Times what fqc compiled: files `LAYER.NAME.fqbin` of the layers above, by fqrt's example `devices`."""
    shapes = [f"{batch}x{length}" for batch, length in SHAPES]
    for path in sorted(glob.glob(os.path.join(folder, "*.fqbin"))):
        layer, name = os.path.basename(path).removesuffix(".fqbin").rsplit(".", 1)
        lines = subprocess.run([devices, path, "time", *shapes], capture_output=True, text=True, check=True).stdout
        weight_bytes = int(lines.split()[0])
        for (batch, length), us in zip(SHAPES, re.findall(r"median ([0-9.]+) us", lines)):
            print(
                json.dumps(
                    {"layer": layer, "batch": batch, "length": length, "name": f"fqc {name}",
                     "us": float(us), "weight_bytes": weight_bytes}
                ),
                flush=True,
            )


def compare(path):
    """How much faster each compiled layer is than torch's, and how much less memory its weights take."""
    layers = {}
    for line in open(path):
        record = json.loads(line)
        if "layer" in record:
            shape = (record["layer"], record["batch"], record["length"])
            layers.setdefault(shape, {}).setdefault(record["name"], []).append(record)
    for (layer, batch, length), named in layers.items():
        torch_fp16 = named.pop("torch FP16 compiled")
        median = {name: statistics.median(r["us"] for r in records) for name, records in named.items()}
        for name, records in named.items():
            print(
                json.dumps(
                    {"layer": layer, "batch": batch, "length": length, "name": name,
                     "speedup": round(statistics.median(r["us"] for r in torch_fp16) / median[name], 3),
                     "less_memory": round(torch_fp16[0]["weight_bytes"] / records[0]["weight_bytes"], 3)}
                )
            )


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        compare(sys.argv[2])
    elif sys.argv[1] == "compiled":
        compiled(*sys.argv[2:])
    else:
        for part in sys.argv[1:]:
            {"attention": attention, "layers": layers}[part]()
