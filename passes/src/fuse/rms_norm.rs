//! Normalisation by the root of the mean square, from its parts, then scaled. Squares and roots in
//! any of their spellings. Numbers change by rounding only.
//!
//! ```text
//! %q = mul %x, %x
//! %v = reduce %q {op=mean, axes=[2], keep_dims=true}
//! %e = add %v, 1e-6
//! %s = sqrt %e
//! %r = reciprocal %s
//! %n = mul %x, %r
//! %y = mul %gamma, %n      ->  %y = rms_norm %x, %gamma {epsilon=1e-6}
//! ```

use super::norm;
use crate::pattern::private;
use fqc_ir::{Graph, NodeId, Op, Patch};

/// The normalised value, with a scale of ones.
pub fn core(graph: &Graph, id: NodeId) -> Option<Patch> {
    let norm::Core { centred, epsilon, inside } = norm::core(graph, id)?;
    if !private(graph, id, &inside) {
        return None;
    }
    norm::with_ones(graph, id, centred, Op::RmsNorm { epsilon })
}

/// `rms_norm(x, ones) * gamma`.
pub fn scale(graph: &Graph, id: NodeId) -> Option<Patch> {
    norm::scale(graph, id, |op| matches!(op, Op::RmsNorm { .. }))
}
