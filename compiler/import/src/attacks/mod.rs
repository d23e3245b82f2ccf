//! Hostile and broken models: whatever the bytes, the importer answers with a list of problems,
//! soon, and without taking memory that only the file says it needs.

mod bombs;
mod external;
mod files;
mod operators;

use crate::{ImportError, ImportOptions, import_bytes};
use fqc_ir::Graph;
use prost::Message;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// A fixed sequence of numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }
}

pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: inputs.iter().map(|s| (*s).into()).collect(),
        output: outputs.iter().map(|s| (*s).into()).collect(),
        ..Default::default()
    }
}

pub(crate) fn with(mut node: NodeProto, attribute: AttributeProto) -> NodeProto {
    node.attribute.push(attribute);
    node
}

pub(crate) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i, ..Default::default() }
}

fn graph_attribute(name: &str, graph: GraphProto) -> AttributeProto {
    let r#type = AttributeType::Graph as i32;
    AttributeProto { name: name.into(), r#type, g: Some(graph), ..Default::default() }
}

pub(crate) fn value(name: &str, elem: i32, shape: &[i64]) -> ValueInfoProto {
    let dim = |&d: &i64| {
        let value = if d == -7 { Value::DimParam("n".into()) } else { Value::DimValue(d) };
        Dimension { value: Some(value), ..Default::default() }
    };
    let shape = Some(TensorShapeProto { dim: shape.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: elem, shape };
    let value = Some(type_proto::Value::TensorType(tensor));
    let r#type = Some(TypeProto { value, ..Default::default() });
    ValueInfoProto { name: name.into(), r#type, ..Default::default() }
}

pub(crate) fn i64s(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: 7,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

/// A model of one f32 input `x` and one output `y`.
pub(crate) fn model(
    shape: &[i64],
    initializers: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
) -> ModelProto {
    let graph = GraphProto {
        name: "g".into(),
        node: nodes,
        initializer: initializers,
        input: vec![value("x", 1, shape)],
        output: vec![value("y", 1, &[])],
        ..Default::default()
    };
    let opset = OperatorSetIdProto { domain: String::new(), version: 17 };
    ModelProto {
        ir_version: 8,
        opset_import: vec![opset],
        graph: Some(graph),
        ..Default::default()
    }
}

pub(crate) fn try_import(model: &ModelProto) -> Result<Graph, ImportError> {
    import_bytes(&model.encode_to_vec(), None, &ImportOptions::default())
}

/// The messages of the problems that the model must have.
fn refused(model: &ModelProto) -> String {
    match try_import(model) {
        Ok(graph) => panic!("imported, with {} nodes", graph.len()),
        Err(error) => error.to_string(),
    }
}
