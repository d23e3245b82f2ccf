//! What depends on constants alone is computed now, by the interpreter, unless that would make the
//! model larger. Weights behind a reshape share their bytes, a matrix behind a transpose is copied
//! once; nothing else touches a mapped weight.
//!
//! ```text
//! %w.t: f32[8,4] = transpose %w {perm=[1,0]}     ->  %w.t: f32[8,4] = const …
//! ```

use crate::pattern::constant;
use fqc_interp::{Binding, Tensor, eval_node_within};
use fqc_ir::{Const, Graph, NodeId, Op, Patch, verify};

pub fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    if !verify::is_foldable(graph, id) {
        return None;
    }
    let value = fold(graph, id)?;
    if value.ty() != graph.node(id).ty {
        return None;
    }
    let mut patch = Patch::new();
    let folded = patch.add(&graph.node(id).name, Op::Const(value), &[]);
    patch.replace(id, folded);
    Some(patch)
}

fn fold(graph: &Graph, id: NodeId) -> Option<Const> {
    let node = graph.node(id);
    let ids = graph.operands(id);
    let operands: Vec<&Const> = ids.iter().map(|&x| constant(graph, x)).collect::<Option<_>>()?;
    let plain = operands.iter().all(|c| c.quant.is_none());
    match (&node.op, &operands[..]) {
        (Op::Reshape(_), [x]) if plain => {
            Const::new(x.elem, node.ty.const_shape()?, x.bytes.clone())
        }
        (Op::Transpose(perm), [x]) if plain && perm == &[1, 0] && x.elem.bits() >= 8 => {
            transpose(x)
        }
        _ => {
            let tensors: Vec<Tensor> = operands.iter().map(|&c| Tensor::from_const(c)).collect();
            let refs: Vec<&Tensor> = tensors.iter().collect();
            let value = eval_node_within(&node.op, &refs, &Binding::new(), u64::MAX);
            Some(value.ok()?.to_const())
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
    x.bytes.release();
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
