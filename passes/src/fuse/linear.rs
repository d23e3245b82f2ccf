//! A product with a constant matrix becomes a linear layer, and a bias after it its first epilogue.
//! The numbers stay the same.
//!
//! ```text
//! %m = matmul %x, %w
//! %y = add %m, %bias       ->  %y = gemm %x, %w, %bias {epilogue=add(arg0, arg1)}
//! ```

use super::norm;
use crate::facts::Facts;
use crate::pattern::{constant, only_reader, ty};
use crate::rule::{Rule, RulePass};
use fqc_ir::{BinaryOp, Elem, Expr, Graph, NodeId, Op, Patch, Value};

pub const PASS: RulePass = RulePass {
    name: "linear",
    rules: &[Rule { name: "matmul-to-gemm", find: product }, Rule { name: "bias", find: bias }],
    needs: Facts::NONE,
    gives: Facts::NONE,
    breaks: Facts::CANONICAL,
};

/// Both operands of an f32 product with a constant matrix.
pub fn weights(graph: &Graph, id: NodeId) -> Option<(NodeId, NodeId)> {
    if graph.node(id).op != Op::MatMul || ty(graph, id).elem != Elem::F32 {
        return None;
    }
    let (x, w) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    (constant(graph, w)?.shape.len() == 2).then_some((x, w))
}

fn product(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (x, w) = weights(graph, id)?;
    let mut patch = Patch::new();
    let op = Op::Gemm { epilogue: Expr::arg(0), out: None };
    let gemm = patch.add(&graph.node(id).name, op, &[x.into(), w.into()]);
    patch.replace(id, gemm);
    Some(patch)
}

fn bias(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (gemm, row) = norm::with_row(graph, id, BinaryOp::Add)?;
    let Op::Gemm { epilogue, out: None } = &graph.node(gemm).op else { return None };
    constant(graph, row)?;
    if !only_reader(graph, gemm, id) {
        return None;
    }
    let mut operands: Vec<Value> = graph.operands(gemm).into_iter().map(Value::from).collect();
    let mut patch = Patch::new();
    operands.push(norm::row(graph, &mut patch, row, "bias", id));
    let epilogue = Expr::binary(BinaryOp::Add, epilogue.clone(), Expr::arg(operands.len() - 2));
    let op = Op::Gemm { epilogue, out: None };
    let biased = patch.add(&graph.node(id).name, op, &operands);
    patch.replace(id, biased);
    Some(patch)
}
