//! A table that rows are looked up in, embeddings above all, is kept in f16.
//!
//! ```text
//! %t: f32[v,d] = const
//! %y: f32[n,d] = gather %t, %i {axis=0}
//! ----
//! %h: f16[v,d] = const
//! %rows: f16[n,d] = gather %h, %i {axis=0}
//! %y: f32[n,d] = cast %rows
//! ```
//!
//! Values change by 1/2048 of themselves at most, those below 6e-5 by 3e-8. A table with a value beyond
//! 65504 stays, and one that other rows are looked up in too.

use fqc_ir::{Const, Elem, Graph, NodeId, Op, Patch};
use half::f16;

/// The rewrite at one `gather`.
pub fn narrow(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Gather { axis: 0 } = graph.node(id).op else { return None };
    let (table, rows) = (*graph.operands(id).first()?, *graph.operands(id).get(1)?);
    let Op::Const(value) = &graph.node(table).op else { return None };
    let looked_up = |(user, slot): &(NodeId, usize)| {
        *slot == 0 && matches!(graph.node(*user).op, Op::Gather { .. })
    };
    let readers = graph.users(table).iter().filter(|user| looked_up(user)).count();
    if value.elem != Elem::F32 || value.shape.len() < 2 || readers != 1 {
        return None;
    }
    let narrowed = in_f16(value)?;
    let mut patch = Patch::new();
    let name = &graph.node(id).name;
    let table = patch.add(&graph.node(table).name, Op::Const(narrowed), &[]);
    let gathered = patch.add(name, Op::Gather { axis: 0 }, &[table, rows.into()]);
    let wide = patch.add(name, Op::Cast(Elem::F32), &[gathered]);
    patch.replace(id, wide);
    Some(patch)
}

/// The values rounded; `None` if one is too large or not a number.
fn in_f16(value: &Const) -> Option<Const> {
    let mut bytes = Vec::with_capacity(2 * value.count());
    for four in value.bytes.as_slice().as_chunks::<4>().0 {
        let rounded = f16::from_f32(f32::from_le_bytes(*four));
        bytes.extend(rounded.is_finite().then_some(rounded)?.to_le_bytes());
    }
    value.bytes.release();
    Const::new(Elem::F16, value.shape.clone(), bytes)
}
