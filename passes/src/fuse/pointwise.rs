//! Trees of element-wise nodes of one shape become one node: one pass over memory instead of several.
//! The numbers stay the same.
//!
//! ```text
//! %a = silu %gate
//! %y = mul %a, %up         ->  %y = pointwise %gate, %up {expr=mul(silu(arg0), arg1)}
//! ```

use super::elementwise::{Args, expr_of};
use crate::facts::Facts;
use crate::pattern::{only_reader, ty};
use crate::rule::{Rule, RulePass};
use fqc_ir::{Expr, Graph, NodeId, Op, Patch, Type, Value, infer};

const MAX_ARGS: usize = 8;
const MAX_SIZE: usize = 32;

pub const PASS: RulePass = RulePass {
    name: "pointwise",
    rules: &[Rule { name: "pointwise", find }],
    needs: Facts::NONE,
    gives: Facts::NONE,
    breaks: Facts::CANONICAL,
};

fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    let outer = expr_of(graph, id)?;
    let operands = graph.operands(id);
    operands.iter().find_map(|&inner| absorb(graph, id, &outer, &operands, inner))
}

/// The node with the expression of one operand put in.
fn absorb(
    graph: &Graph,
    id: NodeId,
    outer: &Expr,
    operands: &[NodeId],
    inner: NodeId,
) -> Option<Patch> {
    expr_of(graph, inner)?;
    if ty(graph, inner).shape != ty(graph, id).shape || !only_reader(graph, inner, id) {
        return None;
    }
    let mut args = Args::default();
    let mut reads = Vec::with_capacity(operands.len());
    for &operand in operands {
        let inlined = if operand == inner { args.inline(graph, inner) } else { None };
        reads.push(inlined.unwrap_or_else(|| args.read(graph, operand)));
    }
    let expr = outer.map_args(&|i| reads[i].clone());
    if args.0.len() > MAX_ARGS || expr.size() > MAX_SIZE {
        return None;
    }
    let op = Op::Pointwise(expr);
    let types: Vec<&Type> = args.0.iter().map(|&x| ty(graph, x)).collect();
    if infer::infer(&op, &types).ok()? != *ty(graph, id) {
        return None;
    }
    let values: Vec<Value> = args.0.iter().map(|&x| x.into()).collect();
    let mut patch = Patch::new();
    let fused = patch.add(&graph.node(id).name, op, &values);
    patch.replace(id, fused);
    Some(patch)
}
