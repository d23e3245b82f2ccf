#!/usr/bin/env python3
"""The transformer subset of ONNX's operator tests: which of the 1,765 cases it has, one name a line.

usage: onnx_node_list.py CASES OUT.txt, with CASES the unpacked onnx/backend/test/data/node
A case belongs to the subset when its model, subgraphs included, uses nothing but the 46 operators
below (and Constant) of the default domain, and when its inputs, outputs and constants are tensors
of the usual element types. Thus the expanded form of an operator outside the list belongs to it
too, as long as the expansion stays inside the list.
"""
import argparse
import pathlib

import onnx
from onnx import AttributeProto, TensorProto

OPERATORS = set(
    # products, and the operators of quantised graphs
    "MatMul Gemm MatMulInteger QLinearMatMul QuantizeLinear DequantizeLinear DynamicQuantizeLinear "
    # the parts of a block that have operators of their own
    "Softmax LayerNormalization RMSNormalization Attention RotaryEmbedding Gelu "
    # elementwise
    "Erf Tanh Sigmoid Relu Sqrt Neg Sin Cos Cast Identity Add Sub Mul Div Pow Equal And Where "
    # reductions, masks
    "ReduceMean ReduceSum Trilu "
    # moves
    "Gather GatherElements Reshape Transpose Concat Split Slice Squeeze Unsqueeze Expand "
    # shape arithmetic
    "Shape Range".split()
)
assert len(OPERATORS) == 46

ELEMENTS = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
}


def nodes_and_constants(graph):
    """All nodes and all constant tensors of a graph and of the graphs inside it."""
    nodes, constants = list(graph.node), list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                constants.append(attribute.t)
            elif attribute.type == AttributeProto.GRAPH:
                inner = nodes_and_constants(attribute.g)
                nodes += inner[0]
                constants += inner[1]
    return nodes, constants


def belongs(model):
    nodes, constants = nodes_and_constants(model.graph)
    values = list(model.graph.input) + list(model.graph.output)
    return (
        all(n.domain in ("", "ai.onnx") for n in nodes)
        and {n.op_type for n in nodes} <= OPERATORS | {"Constant"}
        and all(v.type.HasField("tensor_type") for v in values)
        and all(v.type.tensor_type.elem_type in ELEMENTS for v in values)
        and all(c.data_type in ELEMENTS for c in constants)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    models = sorted(args.cases.glob("*/model.onnx"))
    names = [m.parent.name for m in models if belongs(onnx.load(m))]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(names) + "\n")
    expanded = sum("_expanded" in n for n in names)
    print(f"{args.out}: {len(names)} of {len(models)} cases, {expanded} of them expanded")


if __name__ == "__main__":
    main()
