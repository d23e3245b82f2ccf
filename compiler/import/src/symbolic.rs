//! Tests of shapes with symbols in them: what is solved, what is taken for granted, what is asked for.

use crate::attacks::{i64s, int, model, node, try_import, value, with};
use crate::{ImportOptions, import_bytes};
use fqc_ir::{Const, Dim, Graph};
use prost::Message;
use tract_onnx::pb::{ModelProto, TensorProto};

fn output(graph: &Graph) -> String {
    graph.node(graph.outputs()[0].1).ty.to_string()
}

fn imported(model: &ModelProto) -> Graph {
    try_import(model).unwrap_or_else(|e| panic!("{e}"))
}

/// Renames axis `axis` of input `i`.
fn rename(model: &mut ModelProto, i: usize, axis: usize, name: &str) {
    use tract_onnx::pb::{tensor_shape_proto::dimension::Value, type_proto};
    let graph = model.graph.as_mut().expect("a test's model has a graph");
    let ty = graph.input[i].r#type.as_mut().and_then(|t| t.value.as_mut());
    let Some(type_proto::Value::TensorType(t)) = ty else { panic!("a tensor") };
    let shape = t.shape.as_mut().expect("a shape");
    shape.dim[axis].value = Some(Value::DimParam(name.into()));
}

#[test]
fn a_slice_up_to_a_symbol_records_a_limit() {
    let table = TensorProto { dims: vec![1, 512], ..i64s("t", &[7; 512]) };
    let constants = [table, i64s("zero", &[0]), i64s("one", &[1])];
    let nodes = vec![
        with(node("Shape", &["x"], &["n"]), int("start", 0)),
        node("Slice", &["t", "zero", "n", "one", "one"], &["y"]),
    ];
    let graph = imported(&model(&[-7], constants.into(), nodes));
    assert_eq!(output(&graph), "i64[1,n]");
    let limits: Vec<String> = graph.limits().map(|l| format!("{l:?}")).collect();
    assert_eq!(limits.len(), 1, "{limits:?}");
    assert!(limits[0].ends_with("512)"), "{limits:?}");
}

#[test]
fn sizes_that_meet_are_solved() {
    let mut m = model(&[-7, 4], vec![], vec![node("Add", &["x", "z"], &["y"])]);
    m.graph.as_mut().expect("made above").input.push(value("z", 1, &[-7, 4]));
    rename(&mut m, 1, 0, "m");
    let graph = imported(&m);
    assert_eq!(output(&graph), "f32[m,4]");
    let names: Vec<String> = graph.symbols().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["m"], "of two names the first stays");
    rename(&mut m, 1, 0, "n + 1");
    let error = try_import(&m).expect_err("n is never n + 1");
    assert!(error.to_string().contains("n"), "{error}");
}

#[test]
fn a_reshape_keeps_symbols() {
    let to = i64s("s", &[0, -1, 2, 8]);
    let m = model(&[-7, 5, 16], vec![to], vec![node("Reshape", &["x", "s"], &["y"])]);
    assert_eq!(output(&imported(&m)), "f32[n,5,2,8]");
    let to = i64s("s", &[-1, 8]);
    let m = model(&[-7, 5, 16], vec![to], vec![node("Reshape", &["x", "s"], &["y"])]);
    assert_eq!(output(&imported(&m)), "f32[10*n,8]");
}

#[test]
fn an_input_that_decides_a_shape_can_be_bound() {
    let mut m = model(&[2, 3], vec![], vec![node("Reshape", &["x", "s"], &["y"])]);
    m.graph.as_mut().expect("made above").input.push(value("s", 7, &[2]));
    let error = try_import(&m).expect_err("the shape is an input");
    assert_eq!(error.needs, ["s"]);
    let mut options = ImportOptions::default();
    options.bind.insert("s".into(), Const::i64(vec![2], &[3, -1]));
    let graph = import_bytes(&m.encode_to_vec(), None, &options).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(output(&graph), "f32[3,2]");
    assert_eq!(graph.inputs().len(), 1, "a bound input is gone");
}

#[test]
fn no_arithmetic_on_sizes_is_left() {
    let nodes = vec![
        node("Shape", &["x"], &["s"]),
        with(node("Gather", &["s", "zero"], &["n"]), int("axis", 0)),
        node("Mul", &["n", "two"], &["m"]),
        with(node("Concat", &["m", "minus"], &["to"]), int("axis", 0)),
        node("Reshape", &["x", "to"], &["y"]),
    ];
    let constants = vec![i64s("zero", &[0]), i64s("two", &[2]), i64s("minus", &[-1])];
    let graph = imported(&model(&[-7, 6], constants, nodes));
    assert_eq!(graph.len(), 2, "the input and the reshape");
    let two_n = Dim::sym("n") * Dim::from(2i64);
    assert_eq!(graph.node(graph.outputs()[0].1).ty.shape, [two_n, Dim::from(3i64)]);
}
