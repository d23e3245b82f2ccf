//! Slices of slices become one, and a slice that is one part of a concatenation is that part.
//!
//! ```text
//! %a: f32[8] = slice %x {start=[4], len=[8], step=[1]}
//! %y: f32[2] = slice %a {start=[1], len=[2], step=[1]}   ->  %y = slice %x {start=[5], len=[2], step=[1]}
//! %c: f32[6] = concat %p: f32[2], %q: f32[4] {axis=0}
//! %z: f32[4] = slice %c {start=[2], len=[4], step=[1]}   ->  %q
//! ```

use crate::pattern::ty;
use fqc_ir::{Dim, Graph, NodeId, Op, Patch};

pub fn of_slice(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Slice { start, len, step } = &graph.node(id).op else { return None };
    let middle = graph.operand(id, 0)?;
    let Op::Slice { start: from, step: by, .. } = &graph.node(middle).op else { return None };
    let x = graph.operand(middle, 0)?;
    let pairs = start.iter().zip(from.iter().zip(by));
    let start = pairs.map(|(s, (f, &b))| f.clone() + s.clone() * Dim::from(b)).collect();
    let step = step.iter().zip(by).map(|(s, b)| s.checked_mul(*b)).collect::<Option<_>>()?;
    let mut patch = Patch::new();
    let slice = Op::Slice { start, len: len.clone(), step };
    let slice = patch.add(&graph.node(id).name, slice, &[x.into()]);
    patch.replace(id, slice);
    Some(patch)
}

pub fn of_concat(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Slice { start, step, .. } = &graph.node(id).op else { return None };
    let concat = graph.operand(id, 0)?;
    let Op::Concat { axis } = graph.node(concat).op else { return None };
    let others_from_zero =
        start.iter().enumerate().all(|(i, d)| i == axis || d.as_const() == Some(0));
    if !others_from_zero || step.iter().any(|&s| s != 1) {
        return None;
    }
    let mut offset = Dim::zero();
    for part in graph.operands(concat) {
        if start[axis] == offset && ty(graph, part) == ty(graph, id) {
            return Some(Patch::alias(id, part));
        }
        offset = offset + ty(graph, part).shape[axis].clone();
    }
    None
}
