//! `cargo xtask`: fetches the models and texts, runs the tests, the demo and the benchmarks.
//! It depends on nothing but the standard library and anyhow, so that it builds in seconds on a
//! machine that has only Rust, and installs what the rest of the workspace needs.
#![forbid(unsafe_code)]

mod demo;
mod fetch;
mod footprint;
mod peers;
mod shell;
mod suite;
mod system;

use anyhow::{Result, bail};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test                 install what is missing, fetch, and run every test of the workspace
  demo                 compile all-MiniLM-L6-v2 and compare it with its float build
  fetch [THING]...     minilm, smollm2, austen, onnx-node-tests, nvrtc or all (the default)
  golden [--bless]     outputs of ONNX Runtime for the test models; --bless renews the committed ones
  onnx-cases           renew tests/onnx/transformer-cases.txt
  peers [OPTION]...    benchmark beside ONNX Runtime and OpenVINO: --save, --no-fqc, and those of
                       xtask/tools/bench_peers.py, such as --model smollm2, --isa avx512-vnni
  footprint            size and dependencies of the runtime by itself
  system               install the system packages that the build needs

Everything fetched lies under .cache of the repository, or under $FQC_CACHE.
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "error: {}",
                error.chain().map(|e| e.to_string()).collect::<Vec<_>>().join(": ")
            );
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["test", rest @ ..] => suite::test(rest),
        ["demo"] => demo::demo(),
        ["fetch", things @ ..] => fetch::fetch(things),
        ["golden"] => fetch::golden(fetch::Golden::Cached),
        ["golden", "--bless"] => fetch::golden(fetch::Golden::Committed),
        ["onnx-cases"] => fetch::onnx_cases(),
        ["footprint"] => footprint::footprint(),
        ["peers", rest @ ..] => peers::peers(rest),
        ["system"] => system::install(),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        [other, ..] => {
            bail!("`{other}` is no command of xtask, or has other options; see `cargo xtask help`")
        }
    }
}
