//! Files with code for GPUs, on a machine that may have none.

mod world;

use std::fs;
use world::{World, expect, text};

#[test]
fn one_file_holds_the_code_of_several_targets() {
    let w = World::new();
    let (both, gpu) =
        (w.compiled_for("both.fqbin", "cpu,cuda"), w.compiled_for("gpu.fqbin", "cuda:sm_80"));
    let done = w.fqc(&["inspect", text(&both), "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let names: Vec<&str> = shown["targets"]
        .as_array()
        .expect("targets")
        .iter()
        .filter_map(|t| t["target"].as_str())
        .collect();
    assert_eq!(names, ["cpu", "cuda:sm_90a"]);
    // The same bytes again, from the cache of cubins and without it.
    let again = w.compiled_for("again.fqbin", "cpu,cuda");
    assert!(
        fs::read(&both).expect("reads") == fs::read(&again).expect("reads"),
        "the files differ"
    );
    // The CPU's part runs here. The GPU's runs, or says what is missing; nothing else runs instead.
    let shape = ["--shape", "input_ids=1x8", "--runs", "1"];
    let bench = |model: &str, device: &str| {
        let mut args = vec!["bench", model, "--device", device];
        args.extend(shape);
        w.fqc(&args)
    };
    let done = bench(text(&both), "cpu");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let done = bench(text(&both), "cuda");
    if !done.status.success() {
        let message = String::from_utf8_lossy(&done.stderr).into_owned();
        let known = ["NVIDIA driver", "no NVIDIA GPU", "compute capability", "there is no GPU"];
        assert_eq!(done.status.code(), Some(5), "{message}");
        assert!(known.iter().any(|k| message.contains(k)), "{message}");
    }
    expect(&bench(text(&gpu), "cpu"), 5, "`cuda:sm_80` only; compile it with `--target cpu`");
}
