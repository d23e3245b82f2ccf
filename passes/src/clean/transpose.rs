//! Chains of transposes become one, and one that only moves axes of size one is a reshape.
//!
//! ```text
//! %a = transpose %x {perm=[0,2,1,3]}
//! %y = transpose %a {perm=[0,1,3,2]}              ->  %y = transpose %x {perm=[0,2,3,1]}
//! %y: f32[b,1,s] = transpose %x: f32[1,b,s] …     ->  %y: f32[b,1,s] = reshape %x
//! ```

use crate::pattern::ty;
use fqc_ir::{Graph, NodeId, Op, Patch};

pub fn of_transpose(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Transpose(outer) = &graph.node(id).op else { return None };
    let middle = graph.operand(id, 0)?;
    let Op::Transpose(inner) = &graph.node(middle).op else { return None };
    let x = graph.operand(middle, 0)?;
    let perm = outer.iter().map(|&p| inner[p]).collect();
    let mut patch = Patch::new();
    let transpose = patch.add(&graph.node(id).name, Op::Transpose(perm), &[x.into()]);
    patch.replace(id, transpose);
    Some(patch)
}

pub fn of_ones(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Transpose(perm) = &graph.node(id).op else { return None };
    let x = graph.operand(id, 0)?;
    let shape = &ty(graph, x).shape;
    let big: Vec<usize> =
        perm.iter().copied().filter(|&axis| shape[axis].as_const() != Some(1)).collect();
    if !big.is_sorted() {
        return None;
    }
    let mut patch = Patch::new();
    let to = Op::Reshape(ty(graph, id).shape.clone());
    let reshape = patch.add(&graph.node(id).name, to, &[x.into()]);
    patch.replace(id, reshape);
    Some(patch)
}
