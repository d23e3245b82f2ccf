//! Of two casts the first goes where it lost nothing.
//!
//! ```text
//! %a: i64[n] = cast %m: bool[n]
//! %y: f32[n] = cast %a                           ->  %y: f32[n] = cast %m
//! ```

use crate::pattern::ty;
use fqc_ir::{Elem, Graph, NodeId, Op, Patch};

pub fn of_cast(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Cast(to) = graph.node(id).op else { return None };
    let inner = graph.operand(id, 0)?;
    let Op::Cast(through) = graph.node(inner).op else { return None };
    let x = graph.operand(inner, 0)?;
    if !holds_all(through, ty(graph, x).elem) {
        return None;
    }
    let mut patch = Patch::new();
    let cast = patch.add(&graph.node(id).name, Op::Cast(to), &[x.into()]);
    patch.replace(id, cast);
    Some(patch)
}

/// Whether `wide` represents every value of `narrow`.
fn holds_all(wide: Elem, narrow: Elem) -> bool {
    if wide == narrow || narrow == Elem::Bool {
        return true;
    }
    if wide == Elem::Bool {
        return false;
    }
    if narrow.is_float() {
        return match narrow {
            Elem::F16 | Elem::BF16 => matches!(wide, Elem::F32 | Elem::F64),
            _ => wide == Elem::F64,
        };
    }
    let narrow_bits = narrow.bits() - u32::from(narrow.is_signed());
    let wide_bits = match wide {
        Elem::F16 => 11,
        Elem::BF16 => 8,
        Elem::F32 => 24,
        Elem::F64 => 53,
        _ => wide.bits() - u32::from(wide.is_signed()),
    };
    narrow_bits <= wide_bits && (wide.is_signed() || !narrow.is_signed())
}
