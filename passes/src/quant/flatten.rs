//! Flattening, before any rounding: large channels of a group's input are cut into slices that lie in
//! channels of their own, and the matching rows of the weights are repeated. The product is the same:
//! the slices of a channel add up to it.
//!
//! ```text
//! %y: f32[m,3] = matmul %x, %w
//! ----
//! %x.flat: f32[m,4] = flatten %x {threshold=1.0, base=2, tail=[1:2], padded=4}
//! %y: f32[m,3] = matmul %x.flat, %wf        ; %wf = rows 0, 1, 1 of w and a row of zeros
//! ```

use super::groups::{Group, linear};
use fqc_ir::{Const, FlattenMap, Graph, NodeId, Op, Patch};
use std::sync::Arc;

/// The patch for one group.
pub fn flatten(
    graph: &Graph,
    group: &Group,
    threshold: f32,
    map: &Arc<FlattenMap>,
) -> Option<Patch> {
    let name = &graph.node(group.input).name;
    let mut patch = Patch::new();
    let op = Op::Flatten { threshold, map: map.clone() };
    let x = patch.add(format!("{name}.flat"), op, &[group.input.into()]);
    for &id in &group.linears {
        let (_, w) = linear(graph, id)?;
        let repeated = repeat_rows(graph, w, map)?;
        let weight = patch.add(format!("{}.flat", graph.node(w).name), Op::Const(repeated), &[]);
        let product = patch.add(&graph.node(id).name, Op::MatMul, &[x, weight]);
        patch.replace(id, product);
    }
    Some(patch)
}

fn repeat_rows(graph: &Graph, w: NodeId, map: &FlattenMap) -> Option<Const> {
    let Op::Const(value) = &graph.node(w).op else { return None };
    let n = *value.shape.get(1)?;
    let values = value.to_f32()?;
    let width = map.padded as usize;
    let mut out = vec![0.0; width * n];
    for (i, row) in out.chunks_exact_mut(n.max(1)).enumerate() {
        if let Some((j, _)) = map.source(i) {
            row.copy_from_slice(values.get(j * n..(j + 1) * n)?);
        }
    }
    Some(Const::f32(vec![width, n], &out))
}
