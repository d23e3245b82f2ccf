//! Channel smoothing: divides the channels of a group's input and multiplies the rows of its weights,
//! so that their product stays.
//!
//! ```text
//! %y: f32[m,3] = matmul %x, %w
//! ----
//! %x.smooth: f32[m,2] = mul %x, %inv        ; %inv = 1/s
//! %y: f32[m,3] = matmul %x.smooth, %ws      ; %ws = diag(s) w
//! ```
//!
//! The multiplication is not paid for at run time: quantisation takes it into its multiplier, which is
//! one for a channel instead of one for all. Folding the factors into the gain of a norm, into v_proj,
//! up_proj or fc1 instead would give the same codes (a scale for each output channel takes a factor of
//! the column) and the same time, and would not be legal everywhere: measured on MiniLM, where `rtn`
//! has one multiplier and `smoothquant` one a channel, and all else is equal, the fastest of 20 runs of
//! the norms took 1.48 ms with either, and the quantisations 0.30 and 0.29 ms, of 70 ms.

use super::groups::{Group, linear};
use fqc_ir::{BinaryOp, Const, Graph, NodeId, Op, Patch};

/// The patch for one group; `None` if every factor is one.
pub fn smooth(graph: &Graph, group: &Group, factors: &[f32]) -> Option<Patch> {
    if factors.iter().all(|&s| s == 1.0) {
        return None;
    }
    let name = &graph.node(group.input).name;
    let mut patch = Patch::new();
    let inverse = multipliers(factors);
    let table = Const::f32(vec![inverse.len()], &inverse);
    let table = patch.add(format!("{name}.unsmooth"), Op::Const(table), &[]);
    let x = patch.add(
        format!("{name}.smooth"),
        Op::Binary(BinaryOp::Mul),
        &[group.input.into(), table],
    );
    for &id in &group.linears {
        let (_, w) = linear(graph, id)?;
        let scaled = scale_rows(graph, w, factors)?;
        let weight = patch.add(format!("{}.smooth", graph.node(w).name), Op::Const(scaled), &[]);
        let product = patch.add(&graph.node(id).name, Op::MatMul, &[x, weight]);
        patch.replace(id, product);
    }
    Some(patch)
}

/// What the channels are multiplied by: the factors' reciprocals.
pub fn multipliers(factors: &[f32]) -> Vec<f32> {
    factors.iter().map(|s| 1.0 / s).collect()
}

fn scale_rows(graph: &Graph, w: NodeId, factors: &[f32]) -> Option<Const> {
    let Op::Const(value) = &graph.node(w).op else { return None };
    let n = *value.shape.get(1)?;
    let mut values = value.to_f32()?;
    for (row, s) in values.chunks_exact_mut(n.max(1)).zip(factors) {
        row.iter_mut().for_each(|v| *v *= s);
    }
    Some(Const::f32(value.shape.clone(), &values))
}
