//! Of a chain of reshapes only the last stays.
//!
//! ```text
//! %a: f32[2,6] = reshape %x: f32[3,4]
//! %y: f32[12] = reshape %a                ->  %y: f32[12] = reshape %x
//! ```

use fqc_ir::{Graph, NodeId, Op, Patch};

pub fn of_reshape(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Reshape(shape) = &graph.node(id).op else { return None };
    let inner = graph.operand(id, 0)?;
    let Op::Reshape(_) = graph.node(inner).op else { return None };
    let mut patch = Patch::new();
    let x = graph.operand(inner, 0)?;
    let reshape = patch.add(&graph.node(id).name, Op::Reshape(shape.clone()), &[x.into()]);
    patch.replace(id, reshape);
    Some(patch)
}
