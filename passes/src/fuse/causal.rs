//! A mask that hides exactly the keys after each query becomes the attention's own `causal`, which
//! does not even look at them. It is known to be one if it chooses by comparing two counters; a
//! mask that also depends on data stays. Every query sees itself, so a hidden weight is zero either
//! way while scores stay below 1e8.
//!
//! ```text
//! %i = iota {len=s}
//! %row = reshape %i {shape=[s, 1]}
//! %column = reshape %i {shape=[1, s]}
//! %after: bool[s,s] = gt %column, %row
//! %mask: f32[s,s] = select %after, -1e9, 0.0
//! %y = attention %q, %k, %v, %mask {scale=0.125, causal=false}
//!     ->
//! %y = attention %q, %k, %v {scale=0.125, causal=true}
//! ```

use crate::pattern::{mirrored, scalar, ty};
use crate::position::position;
use fqc_ir::{BinaryOp, Dim, Graph, NodeId, Op, Patch, UnaryOp, Value};

/// A mask value at or below this hides.
const HIDDEN: f32 = -1e8;

pub fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Attention { scale, causal: false } = graph.node(id).op else { return None };
    let [q, k, v, mask]: [NodeId; 4] = graph.operands(id).try_into().ok()?;
    let (queries, keys) = (&ty(graph, q).shape[2], &ty(graph, k).shape[2]);
    let (_, mask_sizes) = ty(graph, mask).shape.split_last_chunk::<2>()?;
    if mask_sizes != &[queries.clone(), keys.clone()] {
        return None;
    }
    if hidden_after(graph, mask)? != keys.clone() - queries.clone() {
        return None;
    }
    let mut patch = Patch::new();
    let values: [Value; 3] = [q.into(), k.into(), v.into()];
    let op = Op::Attention { scale, causal: true };
    let attention = patch.add(&graph.node(id).name, op, &values);
    patch.replace(id, attention);
    Some(patch)
}

/// The value without reshapes that add axes of size one in front, and broadcasts of those.
fn bare(graph: &Graph, id: NodeId) -> Option<NodeId> {
    match graph.node(id).op {
        Op::Reshape(_) | Op::Broadcast(_) => {
            let x = graph.operand(id, 0)?;
            let (inner, outer) = (&ty(graph, x).shape, &ty(graph, id).shape);
            let in_front = outer.len().checked_sub(inner.len())?;
            let same = inner[..] == outer[in_front..];
            if same { bare(graph, x) } else { None }
        }
        _ => Some(id),
    }
}

/// The d for which the mask hides key j from query i exactly where `j > i + d`.
fn hidden_after(graph: &Graph, mask: NodeId) -> Option<Dim> {
    let mask = bare(graph, mask)?;
    if graph.node(mask).op != Op::Select {
        return None;
    }
    let [condition, a, b]: [NodeId; 3] = graph.operands(mask).try_into().ok()?;
    let (a, b) = (scalar(graph, a)?, scalar(graph, b)?);
    let (after, bound) = compared(graph, condition)?;
    let hides = |hidden: f32, shown: f32| hidden <= HIDDEN && shown == 0.0;
    let (hidden, shown) = if after { (a, b) } else { (b, a) };
    hides(hidden, shown).then_some(bound)
}

/// Reads `j > i + d` as (true, d) and `j <= i + d` as (false, d).
fn compared(graph: &Graph, id: NodeId) -> Option<(bool, Dim)> {
    let id = bare(graph, id)?;
    let op = match graph.node(id).op {
        Op::Unary(UnaryOp::Not) => {
            return compared(graph, graph.operand(id, 0)?).map(|(after, d)| (!after, d));
        }
        Op::Binary(op) => op,
        _ => return None,
    };
    let (x, y) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    let straight = index(graph, x, 1).zip(index(graph, y, 2));
    let swapped = || index(graph, y, 1).zip(index(graph, x, 2));
    let (op, (j, i)) = match straight {
        Some(found) => (op, found),
        None => (mirrored(op)?, swapped()?),
    };
    let d = i - j;
    match op {
        BinaryOp::Gt => Some((true, d)),
        BinaryOp::Ge => Some((true, d - Dim::one())),
        BinaryOp::Le => Some((false, d)),
        BinaryOp::Lt => Some((false, d - Dim::one())),
        _ => None,
    }
}

/// The d for which the integer value is the index along the axis `from_end` plus d, everywhere.
fn index(graph: &Graph, id: NodeId, from_end: usize) -> Option<Dim> {
    let position = position(graph, id)?;
    (position.as_index()? + from_end == ty(graph, id).rank()).then_some(position.first)
}
