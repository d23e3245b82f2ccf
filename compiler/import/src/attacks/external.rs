//! External data must lie inside the model's folder, in regular files, within their sizes.

use super::*;
use crate::import;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tract_onnx::pb::StringStringEntryProto;

/// A model whose only weight is 16 bytes of external data with these entries.
fn external(entries: &[(&str, &str)]) -> ModelProto {
    let entry = |&(k, v): &(&str, &str)| StringStringEntryProto { key: k.into(), value: v.into() };
    let w = TensorProto {
        name: "w".into(),
        dims: vec![4],
        data_type: 1,
        data_location: Some(1),
        external_data: entries.iter().map(entry).collect(),
        ..Default::default()
    };
    model(&[4], vec![w], vec![node("Add", &["x", "w"], &["y"])])
}

fn outcome(dir: &Path, entries: &[(&str, &str)]) -> String {
    let path = dir.join("model.onnx");
    fs::write(&path, external(entries).encode_to_vec()).expect("the folder is ours");
    match import(&path, &ImportOptions::default()) {
        Ok(_) => "ok".into(),
        Err(error) => error.to_string(),
    }
}

/// A folder `m` with data files of all kinds in and around it.
fn folder() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    let dir = root.path().join("m");
    fs::create_dir_all(dir.join("sub")).expect("ours");
    fs::write(root.path().join("secret"), [0; 16]).expect("ours");
    fs::write(dir.join("w.bin"), [0; 16]).expect("ours");
    fs::write(dir.join("sub/w.bin"), [0; 32]).expect("ours");
    symlink(root.path().join("secret"), dir.join("leak")).expect("ours");
    symlink(root.path(), dir.join("up")).expect("ours");
    symlink("w.bin", dir.join("inside")).expect("ours");
    root
}

#[test]
fn data_inside_the_folder_is_mapped() {
    let root = folder();
    let dir = root.path().join("m");
    assert_eq!(outcome(&dir, &[("location", "w.bin")]), "ok");
    assert_eq!(outcome(&dir, &[("location", "./w.bin"), ("length", "16")]), "ok");
    assert_eq!(outcome(&dir, &[("location", "sub/w.bin"), ("offset", "16")]), "ok");
    assert_eq!(outcome(&dir, &[("location", "inside")]), "ok");
}

#[test]
fn data_outside_of_the_folder_is_refused() {
    let root = folder();
    let dir = root.path().join("m");
    let absolute = root.path().join("secret").display().to_string();
    for location in [
        "../secret",
        "sub/../../secret",
        "leak",
        "up/secret",
        absolute.as_str(),
        "C:\\secret",
        "\\\\?\\secret",
        "file:///etc/passwd",
        "",
        ".",
        "w.bin\0",
    ] {
        let text = outcome(&dir, &[("location", location)]);
        assert!(text.contains("not a path inside the model's folder"), "{location:?}: {text}");
    }
    let bytes = external(&[("location", "w.bin")]).encode_to_vec();
    let text = import_bytes(&bytes, None, &ImportOptions::default()).expect_err("no folder");
    assert!(text.to_string().contains("the model has no folder"));
}

#[test]
fn only_regular_files_are_read() {
    let root = folder();
    let dir = root.path().join("m");
    assert!(outcome(&dir, &[("location", "sub")]).contains("not a regular file"));
    assert!(outcome(&dir, &[("location", "missing.bin")]).contains("cannot read external data"));
    let fifo = std::process::Command::new("mkfifo").arg(dir.join("pipe")).status();
    if fifo.is_ok_and(|s| s.success()) {
        assert!(outcome(&dir, &[("location", "pipe")]).contains("not a regular file"));
    }
}

#[test]
fn ranges_are_checked() {
    let root = folder();
    let dir = root.path().join("m");
    let at = |more: &[(&str, &str)]| outcome(&dir, &[&[("location", "w.bin")], more].concat());
    assert!(at(&[("offset", "1")]).contains("16 bytes at offset 1 of `w.bin`, which has 16"));
    assert!(at(&[("offset", "17")]).contains("offset 17"));
    assert!(at(&[("length", "8")]).contains("8 bytes in `w.bin`, the shape needs 16"));
    assert!(at(&[("offset", "18446744073709551615")]).contains("offset"));
    for number in ["-64", "0x10", "1e3", " 5", "", "99999999999999999999"] {
        assert!(at(&[("offset", number)]).contains("not a number of bytes"), "{number:?}");
    }
    assert!(at(&[("location", "w.bin")]).contains("`location` twice"));
    assert!(at(&[("colour", "red")]).contains("unknown external-data entry `colour`"));
    assert!(outcome(&dir, &[]).contains("without a `location`"));
}
