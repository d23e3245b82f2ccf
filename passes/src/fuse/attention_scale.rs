//! Queries or keys that are scaled before they are split into heads leave the scaling to the
//! attention. Numbers change by rounding only.
//!
//! ```text
//! %s = mul %x, 0.25
//! %h = reshape %s {shape=[b, s, 4, 16]}
//! %q = transpose %h {perm=[0, 2, 1, 3]}
//! %y = attention %q, %k, %v {scale=1.0, …}
//!     ->
//! %h = reshape %x {shape=[b, s, 4, 16]}
//! %q = transpose %h {perm=[0, 2, 1, 3]}
//! %y = attention %q, %k, %v {scale=0.25, …}
//! ```

use crate::pattern::{only_reader, with_scalar};
use fqc_ir::{BinaryOp, Graph, NodeId, Op, Patch, Value};

pub fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Attention { scale, causal } = graph.node(id).op else { return None };
    let operands = graph.operands(id);
    (0..2).find_map(|slot| {
        let (x, c, moves) = scaled(graph, id, operands[slot])?;
        let scale = Some((f64::from(scale) * c) as f32).filter(|s| s.is_finite())?;
        let mut patch = Patch::new();
        let mut value = Value::from(x);
        for node in moves.into_iter().rev() {
            let node = graph.node(node);
            value = patch.add(&node.name, node.op.clone(), &[value]);
        }
        let mut values: Vec<Value> = operands.iter().map(|&o| o.into()).collect();
        values[slot] = value;
        let op = Op::Attention { scale, causal };
        let attention = patch.add(&graph.node(id).name, op, &values);
        patch.replace(id, attention);
        Some(patch)
    })
}

/// A value times a scalar under reshapes and transposes that only `reader` reads in the end: the
/// value, the scalar, and the moves from the last to the first.
fn scaled(graph: &Graph, reader: NodeId, id: NodeId) -> Option<(NodeId, f64, Vec<NodeId>)> {
    let (mut reader, mut at, mut moves) = (reader, id, Vec::new());
    while let Op::Reshape(_) | Op::Transpose(_) = graph.node(at).op {
        if !only_reader(graph, at, reader) {
            return None;
        }
        moves.push(at);
        reader = at;
        at = graph.operand(at, 0)?;
    }
    let product = with_scalar(graph, at, BinaryOp::Mul).map(|(x, c)| (x, f64::from(c)));
    let quotient = || with_scalar(graph, at, BinaryOp::Div).map(|(x, c)| (x, f64::from(c).recip()));
    let (x, c) = product.or_else(quotient).filter(|_| only_reader(graph, at, reader))?;
    Some((x, c, moves))
}
