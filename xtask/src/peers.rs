//! `cargo xtask peers`: MiniLM or SmolLM2 on ONNX Runtime, OpenVINO and fqc, side by side on this
//! machine.

use crate::{demo, fetch, shell, system};
use anyhow::Result;

const PACKAGES: &[&str] = &["openvino==2026.4.1", "nncf==3.4.0"];

/// Prepares the peers and benchmarks them: `--save` adds a line to tests/bench/results.jsonl, `--no-fqc`
/// leaves fqc out, and everything else goes to the script.
pub fn peers(options: &[&str]) -> Result<()> {
    let model = if options.contains(&"smollm2") { "smollm2" } else { "minilm" };
    fetch::fetch(&[model, "austen"])?;
    fetch::python_runtime()?;
    fetch::python_packages("peers", PACKAGES)?;
    let mut bench = fetch::tool("bench_peers.py");
    bench.arg(shell::cache());
    if !options.contains(&"--no-fqc") {
        system::install()?;
        bench.arg("--fqc").arg(demo::build_fqc()?);
    }
    for option in options.iter().filter(|o| **o != "--no-fqc") {
        bench.arg(option);
        if *option == "--save" {
            bench.arg(shell::root().join("tests/bench/results.jsonl"));
        }
    }
    shell::run(&mut bench)
}
