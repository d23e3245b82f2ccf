"""A few lines round onnx.helper that the two converters share."""
import numpy as np
from onnx import helper, numpy_helper


class Graph:
    """Collects nodes and initializers; each method returns the name of the value it makes."""

    def __init__(self):
        self.nodes = []
        self.initializers = []

    def constant(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def ints(self, name, values):
        return self.constant(name, np.array(values, np.int64))

    def op(self, kind, inputs, out=None, **attributes):
        out = out or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out

    def model(self, name, inputs, outputs, opset):
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", opset)]
        return helper.make_model(
            graph, opset_imports=imports, ir_version=8, producer_name="fqc-tools"
        )
