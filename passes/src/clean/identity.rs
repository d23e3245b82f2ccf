//! What gives its operand unchanged is that operand: reshapes, broadcasts and casts to the same type,
//! transposes that move nothing, slices of everything, concatenations of one value, empty padding.
//!
//! ```text
//! %y: f32[n] = cast %x: f32[n] {to=f32}          ->  %x
//! ```

use fqc_ir::{Graph, NodeId, Patch, verify};

pub fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    if !verify::is_identity(graph, id) {
        return None;
    }
    Some(Patch::alias(id, graph.operand(id, 0)?))
}
