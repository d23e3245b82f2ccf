//! Small files that ask for much: sizes are arithmetic, never memory.

use super::*;
use std::time::{Duration, Instant};
use tract_onnx::pb::FunctionProto;

/// Imports within a time that leaves room for a slow machine.
fn quickly(model: &ModelProto) -> Result<Graph, ImportError> {
    let start = Instant::now();
    let outcome = try_import(model);
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
    outcome
}

#[test]
fn huge_results_are_refused_without_being_made() {
    let huge = i64s("s", &[1 << 36, 1 << 10]);
    let zeros = model(&[2], vec![huge.clone()], vec![node("ConstantOfShape", &["s"], &["y"])]);
    assert!(quickly(&zeros).is_err());
    let expand = model(&[1], vec![huge], vec![node("Expand", &["x", "s"], &["y"])]);
    assert!(quickly(&expand).is_err());
    let repeats = i64s("r", &[i64::MAX]);
    let tile = model(&[2], vec![repeats], vec![node("Tile", &["x", "r"], &["y"])]);
    assert!(quickly(&tile).is_err());
    let pads = i64s("p", &[i64::MAX, i64::MAX]);
    let pad = model(&[2], vec![pads], vec![node("Pad", &["x", "p"], &["y"])]);
    assert!(quickly(&pad).is_err());
    let bounds = [("a", 0), ("b", i64::MAX), ("c", 1)];
    let scalar = |&(n, v): &(&str, i64)| TensorProto { dims: vec![], ..i64s(n, &[v]) };
    let range = model(
        &[2],
        bounds.iter().map(scalar).collect(),
        vec![node("Range", &["a", "b", "c"], &["y"])],
    );
    assert!(quickly(&range).is_err());
}

#[test]
fn doubling_sizes_are_arithmetic() {
    let mut nodes: Vec<NodeProto> = (0..50)
        .map(|i| {
            let (from, to) = (format!("v{i}"), format!("v{}", i + 1));
            with(node("Concat", &[&from, &from], &[&to]), int("axis", 0))
        })
        .collect();
    nodes[0].input = vec!["x".into(), "x".into()];
    nodes.push(node("Relu", &["v50"], &["y"]));
    assert!(quickly(&model(&[2], vec![], nodes.clone())).is_err());
    assert!(quickly(&model(&[-7], vec![], nodes)).is_ok(), "a symbolic size has no bound");
}

#[test]
fn sizes_that_grow_as_expressions_are_refused() {
    // n, then n*n + n, squared again and again.
    let mut nodes = vec![node("Shape", &["x"], &["v0"])];
    for i in 0..40 {
        let [from, square, to] = [format!("v{i}"), format!("q{i}"), format!("v{}", i + 1)];
        nodes.push(node("Mul", &[&from, &from], &[&square]));
        nodes.push(node("Add", &[&square, &from], &[&to]));
    }
    nodes.push(node("ConstantOfShape", &["v40"], &["y"]));
    assert!(quickly(&model(&[-7], vec![], nodes)).is_err());
}

#[test]
fn long_chains_and_wide_nodes_are_linear() {
    let chain = |n: usize| {
        let mut nodes: Vec<NodeProto> =
            (0..n).map(|i| node("Relu", &[&format!("v{i}")], &[&format!("v{}", i + 1)])).collect();
        nodes[0].input = vec!["x".into()];
        nodes[n - 1].output = vec!["y".into()];
        model(&[2], vec![], nodes)
    };
    assert!(quickly(&chain(50_000)).is_ok());
    let all = vec!["x"; 50_000];
    assert!(quickly(&model(&[2], vec![], vec![node("Sum", &all, &["y"])])).is_ok());
}

/// `f{i}` calls `f{i+1}` twice; the last one is what `last` says.
fn doubling(depth: usize, last: &str) -> ModelProto {
    let function = |i: usize| {
        let callee = if i + 1 == depth { last.to_owned() } else { format!("f{}", i + 1) };
        let mut calls = vec![node(&callee, &["a"], &["t"]), node(&callee, &["t"], &["b"])];
        for call in calls.iter_mut().filter(|c| c.op_type.starts_with('f')) {
            call.domain = "local".into();
        }
        FunctionProto {
            name: Some(format!("f{i}")),
            domain: Some("local".into()),
            input: vec!["a".into()],
            output: vec!["b".into()],
            node: calls,
            opset_import: vec![
                OperatorSetIdProto { domain: String::new(), version: 17 },
                OperatorSetIdProto { domain: "local".into(), version: 1 },
            ],
            ..Default::default()
        }
    };
    let mut call = node("f0", &["x"], &["y"]);
    call.domain = "local".into();
    let mut m = model(&[2], vec![], vec![call]);
    m.opset_import.push(OperatorSetIdProto { domain: "local".into(), version: 1 });
    m.functions = (0..depth).map(function).collect();
    m
}

#[test]
fn functions_are_inlined_within_bounds() {
    let graph = quickly(&doubling(4, "Relu")).expect("sixteen nodes");
    assert_eq!(graph.len(), 17);
    assert!(quickly(&doubling(40, "Relu")).is_err());
    let error = quickly(&doubling(2, "f0")).expect_err("endless");
    assert!(error.to_string().contains("does a function call itself"), "{error}");
}

#[test]
fn nested_branches_are_bounded() {
    let mut graph = GraphProto {
        node: vec![node("Relu", &["x"], &["y"])],
        output: vec![value("y", 1, &[])],
        ..Default::default()
    };
    for _ in 0..12 {
        let branch = |name: &str| graph_attribute(name, graph.clone());
        let inner =
            with(with(node("If", &["c"], &["y"]), branch("then_branch")), branch("else_branch"));
        graph =
            GraphProto { node: vec![inner], output: graph.output.clone(), ..Default::default() };
    }
    let yes =
        TensorProto { data_type: 9, int64_data: vec![], int32_data: vec![1], ..i64s("c", &[1]) };
    let nodes = std::mem::take(&mut graph.node);
    assert!(quickly(&model(&[2], vec![yes.clone()], nodes.clone())).is_ok());
    // A condition that is an input is asked for.
    let mut open = model(&[2], vec![], nodes);
    open.graph.as_mut().expect("made above").input.push(value("c", 9, &[]));
    assert_eq!(quickly(&open).expect_err("open").needs, ["c"]);
}
