//! Layer normalisation from its parts: mean, difference, variance, root, quotient; then scale and
//! shift. Squares and roots in any of their spellings. Numbers change by rounding only.
//!
//! ```text
//! %m = reduce %x {op=mean, axes=[2], keep_dims=true}
//! %d = sub %x, %m
//! %q = mul %d, %d
//! %v = reduce %q {op=mean, axes=[2], keep_dims=true}
//! %e = add %v, 1e-5
//! %s = sqrt %e
//! %n = div %d, %s
//! %g = mul %n, %gamma
//! %y = add %g, %beta       ->  %y = layer_norm %x, %gamma, %beta {epsilon=1e-5}
//! ```

use super::norm;
use crate::pattern::{binary, mean_of_last, only_reader, private};
use fqc_ir::{BinaryOp, Graph, NodeId, Op, Patch};

/// The normalised value, with a scale of ones.
pub fn core(graph: &Graph, id: NodeId) -> Option<Patch> {
    let norm::Core { centred, epsilon, mut inside } = norm::core(graph, id)?;
    let (x, mean) = binary(graph, centred, BinaryOp::Sub)?;
    if mean_of_last(graph, mean)? != x {
        return None;
    }
    inside.extend([centred, mean]);
    if !private(graph, id, &inside) {
        return None;
    }
    norm::with_ones(graph, id, x, Op::LayerNorm { epsilon })
}

/// `layer_norm(x, ones) * gamma`.
pub fn scale(graph: &Graph, id: NodeId) -> Option<Patch> {
    norm::scale(graph, id, |op| matches!(op, Op::LayerNorm { .. }))
}

/// `layer_norm(x, gamma) + beta`.
pub fn shift(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (n, beta) = norm::with_row(graph, id, BinaryOp::Add)?;
    let op @ Op::LayerNorm { .. } = &graph.node(n).op else { return None };
    if !only_reader(graph, n, id) {
        return None;
    }
    let [x, gamma]: [NodeId; 2] = graph.operands(n).try_into().ok()?;
    let mut patch = Patch::new();
    let beta = norm::row(graph, &mut patch, beta, "beta", id);
    let shifted = patch.add(&graph.node(id).name, op.clone(), &[x.into(), gamma.into(), beta]);
    patch.replace(id, shifted);
    Some(patch)
}
