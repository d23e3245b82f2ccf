//! SiLU from its parts. Numbers change by rounding only.
//!
//! ```text
//! %s = sigmoid %x
//! %y = mul %x, %s          ->  %y = silu %x
//! ```

use crate::pattern::{either, only_reader, unary};
use fqc_ir::{BinaryOp, Graph, NodeId, Op, Patch, UnaryOp};

pub fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    let pairs = either(graph, id, BinaryOp::Mul);
    let (x, _) = pairs.into_iter().find(|&(x, gate)| {
        unary(graph, gate, UnaryOp::Sigmoid) == Some(x) && only_reader(graph, gate, id)
    })?;
    let mut patch = Patch::new();
    let silu = patch.add(&graph.node(id).name, Op::Unary(UnaryOp::Silu), &[x.into()]);
    patch.replace(id, silu);
    Some(patch)
}
