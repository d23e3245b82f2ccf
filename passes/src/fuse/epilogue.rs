//! What is computed element by element from a linear layer's result moves into it: activation,
//! residual, gate. The other operands must be rows, of the result's shape, or scalars. The numbers
//! stay the same.
//!
//! ```text
//! %m = gemm %x, %w, %bias {epilogue=add(arg0, arg1)}
//! %g = gelu %m
//! %y = add %g, %res        ->  %y = gemm %x, %w, %bias, %res {epilogue=add(gelu(add(arg0, arg1)), arg2)}
//! ```

use super::elementwise::{Args, expr_of};
use super::norm;
use crate::facts::Facts;
use crate::pattern::{only_reader, row_length, ty};
use crate::rule::{Rule, RulePass};
use fqc_ir::{Elem, Expr, Graph, NodeId, Op, Patch, Value};

const MAX_EXTRAS: usize = 4;
const MAX_SIZE: usize = 24;

pub const PASS: RulePass = RulePass {
    name: "epilogue",
    rules: &[Rule { name: "epilogue", find }],
    needs: Facts::NONE,
    gives: Facts::NONE,
    breaks: Facts::CANONICAL,
};

fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    let outer = expr_of(graph, id)?;
    graph.operands(id).into_iter().find_map(|gemm| absorb(graph, id, &outer, gemm))
}

/// The linear layer with the node put into its epilogue.
fn absorb(graph: &Graph, id: NodeId, outer: &Expr, gemm: NodeId) -> Option<Patch> {
    let Op::Gemm { epilogue, out: None } = &graph.node(gemm).op else { return None };
    if ty(graph, gemm) != ty(graph, id) || !only_reader(graph, gemm, id) {
        return None;
    }
    // The weights stand in for argument 0, the accumulator: they have the place before the extras.
    let mut args = Args(graph.operands(gemm)[1..].to_vec());
    let known = args.0.len();
    let operands = graph.operands(id);
    let reads: Vec<Expr> = operands
        .iter()
        .map(|&x| if x == gemm { epilogue.clone() } else { args.read(graph, x) })
        .collect();
    let fused = outer.map_args(&|i| reads[i].clone());
    let weights_as_extra = operands.contains(&args.0[0]);
    if weights_as_extra || args.0.len() - 1 > MAX_EXTRAS || fused.size() > MAX_SIZE {
        return None;
    }
    let mut patch = Patch::new();
    let mut values: Vec<Value> = vec![graph.operand(gemm, 0)?.into()];
    values.extend(args.0[..known].iter().map(|&x| Value::from(x)));
    for &extra in &args.0[known..] {
        values.push(as_extra(graph, &mut patch, extra, id)?);
    }
    let op = Op::Gemm { epilogue: fused, out: None };
    let gemm = patch.add(&graph.node(id).name, op, &values);
    patch.replace(id, gemm);
    Some(patch)
}

/// The value as an operand of an epilogue: of the result's shape, or a row.
fn as_extra(graph: &Graph, patch: &mut Patch, x: NodeId, id: NodeId) -> Option<Value> {
    let (have, result) = (ty(graph, x), ty(graph, id));
    if have == result {
        return Some(x.into());
    }
    let is_row = have.elem == Elem::F32
        && have.quant.is_none()
        && row_length(&have.shape) == result.shape.last();
    is_row.then(|| norm::row(graph, patch, x, "row", id))
}
