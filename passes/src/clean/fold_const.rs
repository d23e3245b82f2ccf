//! What depends on constants alone is computed now, by the interpreter, unless that would make the
//! model larger. Weights behind a reshape share their bytes, a matrix behind a transpose is copied
//! once; nothing else touches a mapped weight.
//!
//! ```text
//! %w.t: f32[8,4] = transpose %w {perm=[1,0]}     ->  %w.t: f32[8,4] = const …
//! ```

use crate::pattern::constant;
use fqc_interp::{Binding, FOLD_BYTES, Tensor, eval_node};
use fqc_ir::{Const, Graph, NodeId, Op, Patch};

/// A result up to this many bytes is folded even if it is larger than the operands.
const SMALL_BYTES: usize = 64 << 10;

pub fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    let op = &graph.node(id).op;
    if !foldable(op) {
        return None;
    }
    let ids = graph.operands(id);
    let operands: Vec<&Const> =
        ids.iter().map(|&x| constant(graph, x)).collect::<Option<_>>()?;
    if operands.iter().any(|c| c.quant.is_some()) || broadcasts_for_free(graph, id) {
        return None;
    }
    let value = fold(graph, id, op, &operands)?;
    let mut patch = Patch::new();
    let folded = patch.add(&graph.node(id).name, Op::Const(value), &[]);
    patch.replace(id, folded);
    Some(patch)
}

/// Not what defines a value, and nothing that belongs to quantisation.
fn foldable(op: &Op) -> bool {
    match op {
        Op::Input(_) | Op::Const(_) => false,
        Op::Flatten { .. } | Op::Quantize(_) | Op::Dequantize => false,
        Op::Gemm { .. } | Op::GemmAccumulate => false,
        Op::LayerNormQuantize { .. } | Op::RmsNormQuantize { .. } => false,
        Op::PointwiseQuantize { .. } => false,
        _ => true,
    }
}

/// Whether this is a broadcast whose reader broadcasts by itself.
fn broadcasts_for_free(graph: &Graph, id: NodeId) -> bool {
    let elementwise = |op: &Op| {
        matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) | Op::Pointwise(_))
    };
    matches!(graph.node(id).op, Op::Broadcast(_))
        && graph.users(id).iter().any(|&(user, _)| elementwise(&graph.node(user).op))
}

fn fold(graph: &Graph, id: NodeId, op: &Op, operands: &[&Const]) -> Option<Const> {
    let ty = &graph.node(id).ty;
    let shape = ty.const_shape()?;
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let bytes = count.checked_mul(ty.elem.bits() as usize)?.div_ceil(8);
    match (op, operands) {
        (Op::Reshape(_), [x]) => Const::new(x.elem, shape, x.bytes.clone()),
        (Op::Transpose(perm), [x]) if perm == &[1, 0] && x.elem.bits() % 8 == 0 => transpose(x),
        _ => {
            let given: usize = operands.iter().map(|c| c.bytes.as_slice().len()).sum();
            if bytes > SMALL_BYTES.max(given) || bytes as u64 > FOLD_BYTES {
                return None;
            }
            let tensors: Vec<Tensor> = operands.iter().map(|&c| Tensor::from_const(c)).collect();
            let refs: Vec<&Tensor> = tensors.iter().collect();
            Some(eval_node(op, &refs, &Binding::new()).ok()?.to_const())
        }
    }
}

/// A transposed copy of a matrix.
fn transpose(x: &Const) -> Option<Const> {
    let &[rows, columns] = x.shape.as_slice() else { return None };
    let bytes = x.bytes.as_slice();
    let out = match x.elem.bits() {
        8 => transposed::<1>(bytes, rows, columns),
        16 => transposed::<2>(bytes, rows, columns),
        32 => transposed::<4>(bytes, rows, columns),
        _ => transposed::<8>(bytes, rows, columns),
    };
    Const::new(x.elem, vec![columns, rows], out)
}

/// In tiles, so that a large matrix is not read a cache line an element.
fn transposed<const SIZE: usize>(bytes: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    const TILE: usize = 32;
    let (from, _) = bytes.as_chunks::<SIZE>();
    let mut out = vec![0; bytes.len()];
    let (to, _) = out.as_chunks_mut::<SIZE>();
    for row in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            for r in row..rows.min(row + TILE) {
                for c in column..columns.min(column + TILE) {
                    to[c * rows + r] = from[r * columns + c];
                }
            }
        }
    }
    out
}
