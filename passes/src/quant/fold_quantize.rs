//! A quantisation goes into the node that makes its operand, so that the floats are never written:
//! into a norm, an element-wise tree, or the epilogue of a gemm.
//!
//! ```text
//! %n: f32[m,64] = layer_norm %x, %g, %b {epsilon=1e-5}
//! %q: i8[m,64] !q0 = quantize %n {…}
//! ----
//! %q: i8[m,64] !q0 = layer_norm_quantize %x, %g, %b {epsilon=1e-5, …}
//! ```
//!
//! A norm whose floats are wanted too keeps both forms; lowering computes them in one step. An
//! element-wise tree or gemm is folded only if the quantisation is its one reader, and a gemm only if
//! its epilogue reads nothing but per-column constants: flattening repeats the gemm's columns.

use fqc_ir::{Expr, Graph, NodeId, Op, Patch};
use std::sync::Arc;

/// The rewrite at one `quantize` node.
pub fn fold(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Quantize(quantizer) = &graph.node(id).op else { return None };
    let producer = *graph.operands(id).first()?;
    let alone = graph.use_count(producer) == 1;
    let out = Arc::clone(quantizer);
    let op = match &graph.node(producer).op {
        Op::LayerNorm { epsilon } => Op::LayerNormQuantize { epsilon: *epsilon, out },
        Op::RmsNorm { epsilon } => Op::RmsNormQuantize { epsilon: *epsilon, out },
        Op::Pointwise(expr) if alone && same_shape(graph, producer) => {
            Op::PointwiseQuantize { expr: expr.clone(), out }
        }
        Op::Unary(op) if alone => {
            Op::PointwiseQuantize { expr: Expr::unary(*op, Expr::arg(0)), out }
        }
        Op::Binary(op) if alone && same_shape(graph, producer) => {
            Op::PointwiseQuantize { expr: Expr::binary(*op, Expr::arg(0), Expr::arg(1)), out }
        }
        Op::Gemm { epilogue, out: None } if alone && per_column_only(graph, producer) => {
            Op::Gemm { epilogue: epilogue.clone(), out: Some(out) }
        }
        _ => return None,
    };
    let mut patch = Patch::new();
    let operands: Vec<_> = graph.operands(producer).into_iter().map(Into::into).collect();
    let fused = patch.add(&graph.node(id).name, op, &operands);
    patch.replace(id, fused);
    Some(patch)
}

/// Whether some operand has the result's shape, so that the width of a row stays visible.
fn same_shape(graph: &Graph, id: NodeId) -> bool {
    let shape = &graph.node(id).ty.shape;
    graph.operands(id).iter().all(|&o| graph.node(o).ty.elem == fqc_ir::Elem::F32)
        && graph.operands(id).iter().any(|&o| graph.node(o).ty.shape == *shape)
}

fn per_column_only(graph: &Graph, gemm: NodeId) -> bool {
    graph.operands(gemm)[2..].iter().all(|&extra| {
        let node = graph.node(extra);
        matches!(node.op, Op::Const(_)) && node.ty.rank() == 1
    })
}
