//! Whole graphs: binding of sizes, limits, memory, observers, and agreement with single nodes.

use super::{count_up, dims, eval, f32, floats, i64};
use fqc_interp::{Binding, EvalError, Tensor, bind, evaluate, evaluate_with};
use fqc_ir::graph::Limit;
use fqc_ir::op::ReduceOp;
use fqc_ir::{BinaryOp, Const, Dim, Elem, Graph, Op, Type, UnaryOp};

/// `relu(x @ w + b)` with x f32[n, s, 3], and its sum over s.
fn model() -> Graph {
    let mut g = Graph::new("t");
    let add = |g: &mut Graph, name: &str, op, operands: &[_]| {
        g.add(name, op, operands).expect("the test graph is well typed")
    };
    let shape = vec![Dim::sym("n"), Dim::sym("s"), Dim::from(3i64)];
    let x = add(&mut g, "x", Op::Input(Type::f32(shape)), &[]);
    let w = add(&mut g, "w", Op::Const(Const::f32(vec![3, 2], &[1., -1., 2., 0., 0., 3.])), &[]);
    let b = add(&mut g, "b", Op::Const(Const::f32(vec![2], &[0.5, -10.0])), &[]);
    let mm = add(&mut g, "mm", Op::MatMul, &[x, w]);
    let sum = add(&mut g, "sum", Op::Binary(BinaryOp::Add), &[mm, b]);
    let y = add(&mut g, "y", Op::Unary(UnaryOp::Relu), &[sum]);
    let reduce = Op::Reduce { op: ReduceOp::Sum, axes: vec![1], keep_dims: false };
    let z = add(&mut g, "z", reduce, &[y]);
    g.add_output("hidden", y);
    g.add_output("pooled", z);
    g
}

#[test]
fn a_graph_is_its_nodes_in_order() {
    let g = model();
    let x = count_up(&[2, 2, 3]);
    let out = evaluate(&g, &[("x", x.clone())]).expect("the inputs fit");
    let (w, b) = (f32(&[3, 2], &[1., -1., 2., 0., 0., 3.]), f32(&[2], &[0.5, -10.0]));
    let mm = eval(Op::MatMul, &[&x, &w]);
    let y = eval(Op::Unary(UnaryOp::Relu), &[&eval(Op::Binary(BinaryOp::Add), &[&mm, &b])]);
    assert_eq!(out[0], ("hidden".to_owned(), y));
    assert_eq!(out[1].0, "pooled");
    assert_eq!(floats(&out[1].1, &[2, 2]), [14.0, 2.0, 50.0, 22.0]);
}

#[test]
fn the_observer_sees_every_value_once() {
    let g = model();
    let mut seen = Vec::new();
    let inputs = [("x", count_up(&[1, 2, 3]))];
    evaluate_with(&g, &inputs, 1 << 20, &mut |id, t| {
        seen.push((g.node(id).name.clone(), t.shape().to_vec()));
    })
    .expect("the inputs fit");
    seen.sort();
    let names: Vec<&str> = seen.iter().map(|s| s.0.as_str()).collect();
    assert_eq!(names, ["b", "mm", "sum", "w", "x", "y", "z"]);
    assert_eq!(seen[1].1, [1, 2, 2]);
}

fn message(g: &Graph, inputs: &[(&str, Tensor)]) -> String {
    evaluate(g, inputs).expect_err("the inputs do not fit").to_string()
}

#[test]
fn wrong_inputs_are_named() {
    let g = model();
    assert_eq!(message(&g, &[]), "input `x`: is missing, it is f32[n,s,3]");
    let bad = message(&g, &[("x", i64(&[1, 1, 3], &[1; 3]))]);
    assert_eq!(bad, "input `x`: is i64[1,1,3], the graph wants f32[n,s,3]");
    let bad = message(&g, &[("x", count_up(&[1, 1, 4]))]);
    assert_eq!(bad, "input `x`: axis 2 has size 4, the graph wants 3");
    let bad = message(&g, &[("x", count_up(&[1, 1, 3])), ("y", count_up(&[1]))]);
    assert_eq!(bad, "input `y`: the graph has no such input, only `x`");
}

#[test]
fn expressions_of_sizes_are_checked_after_the_symbols() {
    let mut g = Graph::new("t");
    let (past, s) = (Dim::sym("past"), Dim::sym("s"));
    let total = past.clone() + s.clone();
    let mask = g.add("mask", Op::Input(Type::f32(vec![total.clone()])), &[]).expect("an input");
    g.add("k", Op::Input(Type::f32(vec![past])), &[]).expect("an input");
    g.add("q", Op::Input(Type::f32(vec![s])), &[]).expect("an input");
    g.add_output("y", mask);
    g.add_limit(Limit::AtMost(total, 8));
    let inputs = |m: usize, k: usize, q: usize| {
        [("mask", count_up(&[m])), ("k", count_up(&[k])), ("q", count_up(&[q]))]
    };
    let wanted: Binding = [("past", 3), ("s", 2)].into_iter().collect();
    assert_eq!(bind(&g, &inputs(5, 3, 2)), Ok(wanted));
    let bad = message(&g, &inputs(6, 3, 2));
    assert_eq!(bad, "input `mask`: axis 0 has size 6, the graph wants `past+s` = 5");
    let bad = message(&g, &inputs(9, 5, 4));
    assert!(bad.ends_with("`past+s` is 9, at most 8 is allowed"), "{bad}");
}

#[test]
fn errors_name_the_node() {
    let mut g = Graph::new("t");
    let at = g.add("at", Op::Input(Type::new(Elem::I64, dims(&[1]))), &[]).expect("an input");
    let table =
        g.add("table", Op::Const(Const::f32(vec![2], &[1.0, 2.0])), &[]).expect("a constant");
    let y = g.add("y", Op::Gather { axis: 0 }, &[table, at]).expect("well typed");
    g.add_output("y", y);
    let bad = message(&g, &[("at", i64(&[1], &[2]))]);
    assert_eq!(bad, "node `y` (gather): index 2 is outside an axis of size 2");
}

#[test]
fn memory_is_bounded_and_freed() {
    let mut g = Graph::new("t");
    let x = g.add("x", Op::Input(Type::f32(vec![Dim::sym("n")])), &[]).expect("an input");
    let mut y = x;
    for i in 0..100 {
        y = g.add(format!("y{i}"), Op::Unary(UnaryOp::Neg), &[y]).expect("well typed");
    }
    g.add_output("y", y);
    let inputs = [("x", count_up(&[1000]))];
    assert!(evaluate_with(&g, &inputs, 8000, &mut |_, _| {}).is_ok());
    let error = evaluate_with(&g, &inputs, 7999, &mut |_, _| {}).expect_err("two do not fit");
    assert!(matches!(&error, EvalError::Node { node, .. } if node == "y0"), "{error}");
}
