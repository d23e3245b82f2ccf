//! Broken files and broken structure.

use super::*;
use crate::Kind;

fn small() -> ModelProto {
    let w = TensorProto {
        name: "w".into(),
        dims: vec![2, 2],
        data_type: 1,
        float_data: vec![1.0, 2.0, 3.0, 4.0],
        ..Default::default()
    };
    let gemm = with(node("Gemm", &["x", "w"], &["h"]), int("transB", 1));
    model(&[-7, 2], vec![w], vec![gemm, node("Relu", &["h"], &["y"])])
}

#[test]
fn every_truncation_is_refused() {
    let bytes = small().encode_to_vec();
    assert!(import_bytes(&bytes, None, &ImportOptions::default()).is_ok());
    for len in 0..bytes.len() {
        let cut = import_bytes(&bytes[..len], None, &ImportOptions::default());
        assert!(cut.is_err(), "{len} of {} bytes", bytes.len());
    }
}

#[test]
fn mutations_never_panic() {
    let (good, mut random) = (small().encode_to_vec(), Random(7));
    for _ in 0..30_000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random.below(8) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = random.next() as u8,
                _ => drop(bytes.remove(at)),
            }
        }
        let _ = import_bytes(&bytes, None, &ImportOptions::default());
    }
}

#[test]
fn random_bytes_are_refused() {
    let mut random = Random(11);
    for _ in 0..5_000 {
        let bytes: Vec<u8> = (0..random.below(300)).map(|_| random.next() as u8).collect();
        assert!(import_bytes(&bytes, None, &ImportOptions::default()).is_err());
    }
}

#[test]
fn files_that_are_something_else_are_named() {
    for (bytes, name) in [
        (&b"\x1f\x8b\x08\x00"[..], "gzip"),
        (b"PK\x03\x04....", "PyTorch"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"GGUF\x03\x00", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ] {
        let error = import_bytes(bytes, None, &ImportOptions::default()).expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error.kind(), Kind::Invalid);
    }
}

#[test]
fn broken_graphs_name_the_value() {
    let cycle =
        model(&[2], vec![], vec![node("Add", &["x", "b"], &["a"]), node("Relu", &["a"], &["b"])]);
    assert!(refused(&cycle).contains("reads `b`, which nothing before it makes"));
    let itself = model(&[2], vec![], vec![node("Add", &["x", "y"], &["y"])]);
    assert!(refused(&itself).contains("reads `y`"));
    let twice =
        model(&[2], vec![], vec![node("Relu", &["x"], &["y"]), node("Abs", &["x"], &["y"])]);
    assert!(refused(&twice).contains("`y` is defined twice"));
    let shadow = model(&[2], vec![], vec![node("Relu", &["x"], &["x"])]);
    assert!(refused(&shadow).contains("`x` is defined twice"));
    let w = || i64s("w", &[1]);
    let initializers = model(&[2], vec![w(), w()], vec![node("Relu", &["x"], &["y"])]);
    assert!(refused(&initializers).contains("initializer `w` twice"));
    assert!(refused(&model(&[2], vec![], vec![])).contains("no node makes the output `y`"));
    let mut none = small();
    none.graph.as_mut().expect("made above").output.clear();
    assert!(refused(&none).contains("no outputs"));
    none.graph = None;
    assert!(refused(&none).contains("no graph"));
}

#[test]
fn every_problem_is_reported_in_one_run() {
    let nodes = vec![
        node("Frobnicate", &["x"], &["a"]),
        node("Relu", &["a"], &["b"]),
        with(node("Relu", &["x"], &["c"]), int("colour", 3)),
        node("Wobble", &["c"], &["y"]),
    ];
    let text = refused(&model(&[2], vec![], nodes));
    for part in ["`Frobnicate`", "`Wobble`", "attribute `colour` is not known"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn versions_and_names_are_checked() {
    let mut m = small();
    m.opset_import[0].version = 9999;
    assert!(refused(&m).contains("opset 9999 is not supported"));
    m.opset_import.clear();
    assert!(refused(&m).contains("imports no opset"));
    let mut m = small();
    m.graph.as_mut().expect("made above").node[0].name = "evil\u{1b}[2J\u{202e}".repeat(1000);
    m.graph.as_mut().expect("made above").node[0].op_type = "No\u{7}pe".into();
    let text = refused(&m);
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}') && !text.contains('\u{7}'));
    assert!(text.len() < 2000);
}

#[test]
fn tensors_must_fit_their_shapes() {
    let odd = |change: &dyn Fn(&mut TensorProto)| {
        let mut m = small();
        change(&mut m.graph.as_mut().expect("made above").initializer[0]);
        refused(&m)
    };
    assert!(odd(&|t| t.dims = vec![3, 2]).contains("16 bytes of data, the shape needs 24"));
    assert!(odd(&|t| t.dims = vec![-4, -1]).contains("a size of -4"));
    assert!(odd(&|t| t.dims = vec![1 << 62, 4]).contains("too many elements"));
    assert!(odd(&|t| t.dims = vec![1 << 20, 1 << 30]).contains("too many elements"));
    assert!(odd(&|t| t.dims = vec![1; 65]).contains("65 axes"));
    assert!(odd(&|t| t.raw_data = vec![0; 16]).contains("data in `raw_data` and `float_data`"));
    assert!(odd(&|t| t.data_type = 999).contains("element type 999"));
    assert!(odd(&|t| t.data_type = 8).contains("`string`"));
    assert!(odd(&|t| t.data_type = 7).contains("`i64` in `float_data`"));
}
