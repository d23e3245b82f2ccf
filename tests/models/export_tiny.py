#!/usr/bin/env python3
"""Exports the graphs of tests/models/tiny: small random models of transformers, real exporters.

usage: export_tiny.py OUT [--only NAME]...
`ts` is torch's TorchScript exporter, `dy` the newer one, `op17` the opset, `eager` or `sdpa` the
attention of transformers; llama_kv_* have past and present keys and values. Every exported graph
is run in ONNX Runtime at a second size and compared with torch.
Needs torch==2.15.0, transformers, onnx, onnxscript, onnxruntime. The plain wheel of torch wants
gigabytes of CUDA: `pip install --no-deps torch==2.15.0`, its pure-Python needs, and then
`stub_cuda_for_torch.py SITE_PACKAGES/torch/lib` make one that does arithmetic on the CPU.
"""
import argparse
import contextlib
import io
import os
import pathlib
import warnings

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"

import onnxruntime
import torch
import transformers
from transformers import DynamicCache

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS = 512, 64, 2, 4, 2
POSITIONS, INNER, GATED_INNER = 512, 256, 176
MODES = ["ts-17-eager", "dy-18-sdpa", "dy-23-sdpa"]
LLAMA = dict(
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    intermediate_size=GATED_INNER,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    max_position_embeddings=POSITIONS,
)


def configurations():
    """Name, model class, configuration and export modes of each plain model."""
    t = transformers
    sizes = dict(vocab_size=VOCABULARY, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    sizes |= dict(hidden_size=HIDDEN, max_position_embeddings=POSITIONS)
    opt = t.OPTConfig(**sizes, ffn_dim=INNER, word_embed_proj_dim=HIDDEN)
    gpt2 = t.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=POSITIONS
    )
    yield "opt4", t.OPTForCausalLM, opt, MODES
    yield "llama4", t.LlamaForCausalLM, t.LlamaConfig(**LLAMA, tie_word_embeddings=False), MODES
    yield "gpt2", t.GPT2LMHeadModel, gpt2, MODES
    yield "bert", t.BertModel, t.BertConfig(**sizes, intermediate_size=INNER), MODES
    yield "qwen2", t.Qwen2ForCausalLM, t.Qwen2Config(**LLAMA), MODES[:2]


class Plain(torch.nn.Module):
    """input_ids, attention_mask -> logits, or the last hidden state."""

    def __init__(self, model):
        super().__init__()
        self.m = model

    def forward(self, input_ids, attention_mask, position_ids=None):
        options = {} if isinstance(self.m, transformers.BertModel) else {"use_cache": False}
        rotary = (transformers.LlamaForCausalLM, transformers.Qwen2ForCausalLM)
        if isinstance(self.m, rotary):
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            options["position_ids"] = positions.unsqueeze(0).expand(input_ids.shape[0], -1)
        out = self.m(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **options
        )
        return out.logits if hasattr(out, "logits") else out.last_hidden_state


class WithCache(torch.nn.Module):
    """A decoder step: input_ids [B,S], attention_mask [B,P+S], past -> logits, present."""

    def __init__(self, model):
        super().__init__()
        self.m = model

    def forward(self, input_ids, attention_mask, *past):
        cache = DynamicCache(config=self.m.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        positions = torch.arange(input_ids.shape[1]) + past[0].shape[2]
        out = self.m(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions.unsqueeze(0).expand(input_ids.shape[0], -1),
            past_key_values=cache,
            use_cache=True,
        )
        present = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
        return (out.logits, *present)


def export(model, example, path, opset, inputs, outputs, axes):
    """`axes` is the exporter's description of the dynamic axes: a dict by name for `ts`."""
    options = dict(opset_version=opset, input_names=inputs, output_names=outputs)
    if isinstance(axes, dict):
        options |= dict(dynamic_axes=axes, dynamo=False)
    else:
        options |= dict(dynamic_shapes=axes, dynamo=True, external_data=False)
    noise = io.StringIO()
    with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise), torch.no_grad():
        torch.onnx.export(model, example, path, **options)


def report(model, path, inputs, second):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(None, {n: t.numpy() for n, t in zip(inputs, second)})
    with torch.no_grad():
        wanted = model(*second)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    error = max(float(abs(a - b.numpy()).max()) for a, b in zip(got, wanted))
    print(f"{path.name}: {path.stat().st_size} bytes, difference to torch {error:.1e}", flush=True)


def plain(out, name, cls, configuration, mode):
    torch.manual_seed(0)
    exporter, opset, attention = mode.split("-")
    configuration._attn_implementation = attention
    model = Plain(cls(configuration)).eval()
    ids = torch.randint(0, VOCABULARY, (2, 24))
    inputs = ["input_ids", "attention_mask"]
    if exporter == "ts":
        axes = {n: {0: "batch", 1: "seq"} for n in [*inputs, "out"]}
    else:
        batch = torch.export.Dim("batch", min=1, max=64)
        seq = torch.export.Dim("seq", min=2, max=512)
        axes = ({0: batch, 1: seq}, {0: batch, 1: seq})
    path = out / f"{name}_{exporter}_op{opset}_{attention}.onnx"
    export(model, (ids, torch.ones_like(ids)), path, int(opset), inputs, ["out"], axes)
    ids = torch.randint(0, VOCABULARY, (3, 37))
    report(model, path, inputs, (ids, torch.ones_like(ids)))


def with_cache(out, exporter):
    configuration = transformers.LlamaConfig(**LLAMA)
    configuration._attn_implementation = "eager"
    torch.manual_seed(0)
    model = WithCache(transformers.LlamaForCausalLM(configuration)).eval()

    def example(batch, past, seq):
        ids = torch.randint(0, VOCABULARY, (batch, seq))
        mask = torch.ones(batch, past + seq, dtype=torch.long)
        head = HIDDEN // HEADS
        cached = [torch.randn(batch, KV_HEADS, past, head) for _ in range(2 * LAYERS)]
        return (ids, mask, *cached)

    parts = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    past, present = [f"past.{p}" for p in parts], [f"present.{p}" for p in parts]
    inputs = ["input_ids", "attention_mask", *past]
    if exporter == "ts":
        axes = {"input_ids": {0: "b", 1: "s"}, "attention_mask": {0: "b", 1: "t"}}
        axes |= {n: {0: "b", 2: "p"} for n in past} | {n: {0: "b", 2: "t"} for n in present}
    else:
        auto = torch.export.Dim.AUTO
        axes = ({0: auto, 1: auto}, {0: auto, 1: auto}, tuple({0: auto, 2: auto} for _ in past))
    path = out / f"llama_kv_{exporter}.onnx"
    opset = 17 if exporter == "ts" else 18
    export(model, example(2, 7, 3), path, opset, inputs, ["logits", *present], axes)
    report(model, path, inputs, example(3, 11, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", action="append", help="a model's name, as bert or llama_kv")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, cls, configuration, modes in configurations():
        if not args.only or name in args.only:
            for mode in modes:
                plain(args.out, name, cls, configuration, mode)
    if not args.only or "llama_kv" in args.only:
        for exporter in ("ts", "dy"):
            with_cache(args.out, exporter)


if __name__ == "__main__":
    main()
