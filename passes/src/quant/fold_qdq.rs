//! A matrix product between dequantised values becomes a gemm on the codes.
//!
//! ```text
//! %a: f32[m,64] = dequantize %x
//! %b: f32[64,3] = dequantize %w
//! %y: f32[m,3] = matmul %a, %b
//! ----
//! %y: f32[m,3] = gemm %x, %w {epilogue=arg0}
//! ```
//!
//! The sum is then exact in integers and multiplied by both scales once.

use fqc_ir::{Expr, Graph, NodeId, Op, Patch, Scale};

/// The rewrite at one node.
pub fn fold(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::MatMul = graph.node(id).op else { return None };
    let operands = graph.operands(id);
    let codes = |i: usize| match graph.node(operands[i]).op {
        Op::Dequantize => graph.operands(operands[i]).first().copied(),
        _ => None,
    };
    let (x, w) = (codes(0)?, codes(1)?);
    let Op::Const(_) = graph.node(w).op else { return None };
    let per_tensor = |id: NodeId| {
        graph.node(id).ty.quant.as_ref().is_some_and(|q| matches!(q.scale, Scale::Tensor(_)))
    };
    let per_column = |id: NodeId| {
        graph
            .node(id)
            .ty
            .quant
            .as_ref()
            .is_some_and(|q| matches!(q.scale, Scale::Tensor(_) | Scale::Axis { axis: 1, .. }))
    };
    if !per_tensor(x) || !per_column(w) || graph.node(w).ty.rank() != 2 {
        return None;
    }
    let mut patch = Patch::new();
    let op = Op::Gemm { epilogue: Expr::arg(0), out: None };
    let gemm = patch.add(&graph.node(id).name, op, &[x.into(), w.into()]);
    patch.replace(id, gemm);
    Some(patch)
}
