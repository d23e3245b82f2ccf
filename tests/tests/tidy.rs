//! The architecture as a test: who may depend on whom, and where outside names may appear.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Crate, folder, and the crates of this workspace it may name.
const TABLE: [(&str, &str, &[&str]); 12] = [
    ("fqc-ir", "compiler/ir", &[]),
    ("fqc-import", "compiler/import", &["fqc-ir"]),
    ("fqc-interp", "compiler/interp", &["fqc-ir"]),
    ("fqc-kernels", "kernels", &["fqc-ir"]),
    ("fqc-passes", "passes", &["fqc-ir", "fqc-interp", "fqc-kernels"]),
    ("fqbin", "runtime/format", &[]),
    ("fqc-codegen", "codegen", &["fqc-ir", "fqc-kernels", "fqbin"]),
    ("fqrt", "runtime/engine", &["fqbin"]),
    ("fqc", "compiler/driver", ALL),
    ("fqc-tests", "tests", ALL),
    ("fqc-cuda-bench", "tests/cuda", &["fqc-ir", "fqc-kernels", "fqc-codegen"]),
    ("xtask", "xtask", &[]),
];

const ALL: &[&str] = &[
    "fqc-ir",
    "fqc-import",
    "fqc-interp",
    "fqc-kernels",
    "fqc-passes",
    "fqbin",
    "fqc-codegen",
    "fqrt",
    "fqc",
];

/// Outside packages and the one crate that may depend on each.
const FENCED: [(&str, &str); 5] = [
    ("petgraph", "fqc-ir"),
    ("tract-onnx", "fqc-import"),
    ("prost", "fqc-import"),
    ("inkwell", "fqc-codegen"),
    ("tokenizers", "fqc"),
];

/// Lines that a source file may have.
const MAX_LINES: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the root").to_owned()
}

/// The packages in the `[dependencies]` of a manifest (not those for tests and benches).
fn dependencies(folder: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
    let mut section = "";
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = if line == "[dependencies]" { "dependencies" } else { "" };
        } else if section == "dependencies"
            && let Some(name) = line.split(['.', ' ', '=']).next().filter(|n| !n.is_empty())
        {
            names.push(name.to_owned());
        }
    }
    names
}

#[test]
fn crates_depend_on_each_other_only_as_the_table_says() {
    let own: Vec<&str> = TABLE.iter().map(|row| row.0).collect();
    let mut faults = Vec::new();
    for (name, folder, allowed) in TABLE {
        for dependency in dependencies(folder) {
            if own.contains(&dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
                faults.push(format!("{name} depends on {dependency}"));
            }
            let owner = FENCED.iter().find(|(package, _)| *package == dependency);
            if let Some((package, owner)) = owner.filter(|(_, owner)| *owner != name) {
                faults.push(format!("{name} depends on {package}, which belongs to {owner}"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// All Rust sources of the workspace.
fn sources() -> BTreeMap<PathBuf, String> {
    let mut out = BTreeMap::new();
    let mut folders: Vec<PathBuf> = TABLE.iter().map(|row| root().join(row.1)).collect();
    folders.push(root().join("fuzz"));
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && name != "target" && name != "models" {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a readable source");
                out.insert(path, text);
            }
        }
    }
    out
}

#[test]
fn petgraph_and_llvm_are_named_in_one_place_each() {
    for (path, text) in sources() {
        let shown = path.display().to_string();
        if text.contains(concat!("use pet", "graph")) {
            assert!(shown.ends_with("compiler/ir/src/graph.rs"), "{shown} names petgraph");
        }
        if text.contains(concat!("use ink", "well")) {
            assert!(shown.contains("/codegen/"), "{shown} names LLVM");
        }
    }
}

#[test]
fn only_the_command_line_names_its_commands() {
    let driver = root().join("compiler/driver/src");
    let mut looked_at = 0;
    for (path, text) in sources() {
        let Ok(inside) = path.strip_prefix(&driver) else { continue };
        looked_at += 1;
        let commands = inside.starts_with("cmd") || inside.ends_with("main.rs");
        assert!(commands || !text.contains("cmd::"), "{} names a command", path.display());
    }
    assert!(looked_at > 30, "{looked_at} files of the driver");
}

#[test]
fn every_file_says_what_it_is_and_stays_small() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        let shown = path.display();
        if !text.starts_with("//!") && !text.starts_with("#![no_main]") {
            faults.push(format!("{shown} does not open with `//!`"));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            faults.push(format!("{shown} has {lines} lines, at most {MAX_LINES}"));
        }
        // Spelled in two parts, so that this file does not find itself.
        for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("#[ig", "nore")] {
            if text.contains(word) {
                faults.push(format!("{shown} has `{word}`"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_driver_names_the_cpu_backend_in_one_place() {
    for (path, text) in sources() {
        let shown = path.display().to_string();
        if shown.contains("/compiler/driver/src/") && text.contains("fqc_codegen::cpu") {
            assert!(shown.ends_with("/host.rs"), "{shown} names the CPU backend");
        }
    }
}

#[test]
fn codegen_never_sees_the_graph() {
    for (path, text) in sources() {
        let shown = path.display().to_string();
        if shown.contains("/codegen/src/") {
            assert!(!text.contains("Graph"), "{shown} names the graph");
        }
    }
}

#[test]
fn unsafe_code_stays_in_named_modules() {
    const NAMED: [&str; 11] = [
        "memory.rs",
        "code.rs",
        "launch.rs",
        "launch/apart.rs",
        "pool.rs",
        "cpu.rs",
        "mmap.rs",
        "cuda/driver.rs",
        "cuda/maps.rs",
        // These two hand on what the caller of `Session::enqueue` promises.
        "cuda/engine.rs",
        "session/gpu.rs",
    ];
    for (path, text) in sources() {
        let shown = path.display().to_string();
        let runtime = shown.contains("/runtime/engine/src/") || shown.contains("/compiler/");
        let named = NAMED.iter().any(|name| shown.ends_with(name));
        let word = concat!("uns", "afe {");
        assert!(!runtime || named || !text.contains(word), "{shown} has unsafe code");
    }
}
