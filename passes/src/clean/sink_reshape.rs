//! Reshapes that merge axes move down, past what works on the merged axes one by one: exporters wrap
//! a linear layer, or a transpose, in a reshape to fewer axes and one back, and the two meet again.
//!
//! ```text
//! %a: f32[b*s,64] = reshape %x: f32[b,s,64]
//! %c: f32[b*s,192] = matmul %a, %w               ->  %y: f32[b,s,192] = matmul %x, %w
//! %y: f32[b,s,192] = reshape %c
//! ```

use crate::pattern::{constant, only_reader, row_length, ty};
use fqc_ir::{Dim, Graph, NodeId, Op, Patch, Value, dim};
use std::ops::Range;

pub fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    match &graph.node(id).op {
        Op::Unary(_) | Op::Cast(_) => past_unary(graph, id),
        Op::Binary(_) => past_binary(graph, id),
        Op::MatMul => past_matmul(graph, id),
        Op::Transpose(perm) => past_transpose(graph, id, perm),
        _ => None,
    }
}

/// The value before a merging reshape that only `user` reads, and its axes that make up each axis
/// after it.
fn merged(graph: &Graph, id: NodeId, user: NodeId) -> Option<(NodeId, Vec<Range<usize>>)> {
    let Op::Reshape(to) = &graph.node(id).op else { return None };
    let x = graph.operand(id, 0)?;
    let from = &ty(graph, x).shape;
    if from.len() <= to.len() || !only_reader(graph, id, user) {
        return None;
    }
    Some((x, groups(from, to)?))
}

/// For each size in `to` the consecutive sizes in `from` whose product it is.
fn groups(from: &[Dim], to: &[Dim]) -> Option<Vec<Range<usize>>> {
    let mut groups = Vec::with_capacity(to.len());
    let mut next = 0;
    for size in to {
        let begin = next;
        let mut product = from.get(next)?.clone();
        next += 1;
        while product != *size {
            product = product * from.get(next)?.clone();
            next += 1;
        }
        groups.push(begin..next);
    }
    let rest_is_one = dim::product(&from[next..]).as_const() == Some(1);
    let last = groups.last_mut()?;
    last.end = from.len();
    (rest_is_one || next == from.len()).then_some(groups)
}

/// The patch that computes `op` on values of more axes and reshapes the result to `id`'s shape.
fn reshaped(graph: &Graph, id: NodeId, op: Op, operands: &[Value]) -> Option<Patch> {
    let node = graph.node(id);
    let mut patch = Patch::new();
    let inner = patch.add(format!("{}.inner", node.name), op, operands);
    let outer = patch.add(&node.name, Op::Reshape(node.ty.shape.clone()), &[inner]);
    patch.replace(id, outer);
    Some(patch)
}

fn past_unary(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (x, _) = merged(graph, graph.operand(id, 0)?, id)?;
    reshaped(graph, id, graph.node(id).op.clone(), &[x.into()])
}

/// Past an operation with a constant of one element or one row, or between two reshapes alike.
fn past_binary(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (left, right) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    if ty(graph, left).shape != ty(graph, id).shape {
        return None;
    }
    let (x, groups) = merged(graph, left, id)?;
    let op = graph.node(id).op.clone();
    if let Some((y, _)) = merged(graph, right, id) {
        let alike = ty(graph, y).shape == ty(graph, x).shape;
        return if alike { reshaped(graph, id, op, &[x.into(), y.into()]) } else { None };
    }
    let value = constant(graph, right)?;
    let per_row = row_length(&ty(graph, right).shape).is_some() && groups.last()?.len() == 1;
    if value.count() != 1 && !per_row {
        return None;
    }
    reshaped(graph, id, op, &[x.into(), right.into()])
}

/// Past a product with a matrix.
fn past_matmul(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (left, w) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    let (x, groups) = merged(graph, left, id)?;
    if ty(graph, w).rank() != 2 || groups.last()?.len() != 1 {
        return None;
    }
    reshaped(graph, id, Op::MatMul, &[x.into(), w.into()])
}

/// Past a transpose, which then moves whole groups of axes.
fn past_transpose(graph: &Graph, id: NodeId, perm: &[usize]) -> Option<Patch> {
    let (x, groups) = merged(graph, graph.operand(id, 0)?, id)?;
    let inner = perm.iter().flat_map(|&p| groups[p].clone()).collect();
    reshaped(graph, id, Op::Transpose(inner), &[x.into()])
}
