"""Writes one decoder layer as ONNX, with random weights and calibration data: what `fqc compile` makes of it is
timed beside the layers of `torch_baseline.py`.

    python3 tests/cuda/decoder_layer.py OPT-6.7B|OPT-66B|Llama-7B FOLDER

FOLDER gets `layer.onnx` with its weights in `layer.onnx.data`, and `calib.npz`. Inputs are `hidden`
[batch, seq, width] and, of Llama, `cos` and `sin` [batch, seq, width / heads], which all layers of a model share; f32.
The operators are those that exporters write at opset 17. Of what each linear layer reads about 4 % of the channels
are 8 to 40 times larger than the others, so that there is something to flatten. Random values repeat after a prime
number of them: a gigabyte of weights is written at the speed of the disk, and is as large as any other.
"""

import os
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Name: kind, width, heads, inner width. The small ones are for comparing GPU and CPU, the wide ones for doing so
# with the tiles of large layers.
LAYERS = {
    "OPT-6.7B": ("opt", 4096, 32, 16384),
    "OPT-66B": ("opt", 9216, 72, 36864),
    "Llama-7B": ("llama", 4096, 32, 11008),
    "opt-small": ("opt", 512, 4, 2048),
    "llama-small": ("llama", 512, 4, 1344),
    "opt-wide": ("opt", 2048, 16, 1024),
    "llama-wide": ("llama", 2048, 16, 1024),
}
LARGE_SHARE = 0.04
PERIOD = 8_388_593
SAMPLES, TOKENS = 4, 96


class Layer:
    def __init__(self, folder):
        self.random = np.random.default_rng(1)
        self.pattern = self.random.standard_normal(PERIOD, dtype=np.float32)
        self.nodes, self.constants = [], []
        self.folder, self.written = folder, 0
        self.data = open(os.path.join(folder, "layer.onnx.data"), "wb")

    def op(self, kind, *inputs, **attributes):
        out = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def const(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def large(self, width):
        """A factor for each channel."""
        factors = np.ones(width, np.float32)
        which = self.random.choice(width, max(1, int(width * LARGE_SHARE)), replace=False)
        factors[which] = self.random.uniform(8, 40, which.size)
        return factors

    def weight(self, name, k, n, factors=None):
        """[k, n], written row by row; `factors` are of the columns."""
        rows = max(1, (16 << 20) // n)
        for first in range(0, k, rows):
            count = min(rows, k - first)
            at = (first * n + self.written) % PERIOD
            values = np.resize(np.roll(self.pattern, -at), (count, n)) / np.float32(np.sqrt(k))
            self.data.write((values if factors is None else values * factors).astype(np.float32).tobytes())
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[k, n])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "layer.onnx.data"), ("offset", self.written), ("length", 4 * k * n)):
            tensor.external_data.add(key=key, value=str(value))
        self.constants.append(tensor)
        self.written += 4 * k * n
        return name

    def linear(self, x, name, k, n, bias, factors=None):
        y = self.op("MatMul", x, self.weight(f"{name}.weight", k, n, factors))
        if not bias:
            return y
        values = self.random.uniform(-0.1, 0.1, n).astype(np.float32)
        return self.op("Add", self.const(f"{name}.bias", values), y)

    def norm(self, kind, x, name, width):
        gamma = self.const(f"{name}.weight", self.random.uniform(0.5, 1.5, width).astype(np.float32))
        if kind == "opt":
            beta = self.const(f"{name}.bias", self.random.uniform(-0.1, 0.1, width).astype(np.float32))
            return self.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-5)
        mean = self.op("ReduceMean", self.op("Pow", x, "two"), axes=[-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, "eps"))
        return self.op("Mul", self.op("Div", x, root), gamma)

    def rotate(self, x, half):
        low = self.op("Slice", x, "start", "half", "last")
        high = self.op("Slice", x, "half", "end", "last")
        turned = self.op("Concat", self.op("Neg", high), low, axis=-1)
        return self.op("Add", self.op("Mul", x, "cos_of_heads"), self.op("Mul", turned, "sin_of_heads"))

    def causal_mask(self):
        length = self.op("Gather", self.op("Shape", "hidden"), "one", axis=0)
        place = self.op("Range", "zero", length, "one")
        after = self.op("Greater", self.op("Unsqueeze", place, "start"), self.op("Unsqueeze", place, "axis1"))
        return self.op("Where", after, "hidden_score", "no_score")


def build(name, folder):
    kind, width, heads, inner = LAYERS[name]
    dim = width // heads
    layer = Layer(folder)
    op, const, bias = layer.op, layer.const, kind == "opt"
    for key, value in (
        ("two", np.float32(2)), ("eps", np.float32(1e-5)), ("zero", np.int64(0)), ("one", np.int64(1)),
        ("start", np.int64([0])), ("half", np.int64([dim // 2])), ("end", np.int64([1 << 40])),
        ("last", np.int64([-1])), ("axis1", np.int64([1])), ("heads_shape", np.int64([0, 0, heads, dim])),
        ("merged_shape", np.int64([0, 0, width])), ("scale", np.float32(dim**-0.5)),
        ("hidden_score", np.float32(np.finfo(np.float32).min)), ("no_score", np.float32(0)),
    ):
        const(key, value)
    mask = layer.causal_mask()
    ports = [("hidden", ["batch", "seq", width])]
    if kind == "llama":
        for table in ("cos", "sin"):
            ports.append((table, ["batch", "seq", dim]))
            layer.nodes.append(helper.make_node("Unsqueeze", [table, "axis1"], [f"{table}_of_heads"]))

    x = "hidden"
    y = layer.norm(kind, x, "input_layernorm", width)
    parts = []
    for part in "qkv":
        factors = layer.large(width) if part == "v" else None
        z = layer.linear(y, f"self_attn.{part}_proj", width, width, bias, factors)
        z = op("Transpose", op("Reshape", z, "heads_shape"), perm=[0, 2, 1, 3])
        parts.append(layer.rotate(z, dim // 2) if kind == "llama" and part != "v" else z)
    q, k, v = parts
    scores = op("Mul", op("MatMul", q, op("Transpose", k, perm=[0, 1, 3, 2])), "scale")
    attended = op("MatMul", op("Softmax", op("Add", scores, mask), axis=-1), v)
    merged = op("Reshape", op("Transpose", attended, perm=[0, 2, 1, 3]), "merged_shape")
    x = op("Add", x, layer.linear(merged, "self_attn.out_proj", width, width, bias))
    y = layer.norm(kind, x, "post_attention_layernorm", width)
    if kind == "opt":
        y = op("Relu", layer.linear(y, "mlp.fc1", width, inner, bias, layer.large(inner)))
    else:
        gate = layer.linear(y, "mlp.gate_proj", width, inner, bias)
        up = layer.linear(y, "mlp.up_proj", width, inner, bias, layer.large(inner))
        y = op("Mul", op("Mul", gate, op("Sigmoid", gate)), up)
    down = layer.linear(y, "mlp.down_proj", inner, width, bias)
    layer.nodes.append(helper.make_node("Add", [x, down], ["out"]))
    layer.data.close()

    def port(port_name, shape):
        return helper.make_tensor_value_info(port_name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        layer.nodes, name, [port(*p) for p in ports], [port("out", ["batch", "seq", width])], layer.constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, os.path.join(folder, "layer.onnx"))
    calibrate(kind, width, dim, layer.random, folder)


def calibrate(kind, width, dim, random, folder):
    """Samples, one a row of the leading axis, with the large channels of fqrt's `examples/devices`."""
    factors = np.where(np.arange(width) % 25 == 7, np.float32(20), np.float32(1))
    arrays = {"hidden": random.standard_normal((SAMPLES, TOKENS, width), dtype=np.float32) * factors}
    if kind == "llama":
        angles = np.arange(TOKENS)[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)
        angles = np.concatenate([angles, angles], 1)
        for table, values in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            arrays[table] = np.tile(values.astype(np.float32), (SAMPLES, 1, 1))
    np.savez(os.path.join(folder, "calib.npz"), **arrays)


if __name__ == "__main__":
    os.makedirs(sys.argv[2], exist_ok=True)
    build(sys.argv[1], sys.argv[2])
