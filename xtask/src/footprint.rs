//! `cargo xtask footprint`: how large the runtime is by itself: a service of 40 lines around it,
//! stripped, and the crates it depends on.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;

/// Most bytes of the stripped program.
const MOST_BYTES: u64 = 4 << 20;

/// Builds `fqrt`'s example `serve`, without CUDA, and prints the figures; fails if it is too large.
pub fn footprint() -> Result<()> {
    let build = ["build", "--release", "--package", "fqrt", "--example", "serve"];
    shell::run(shell::cargo().args(build))?;
    let program = shell::target()?.join("release/examples/serve");
    let stripped = program.with_extension("stripped");
    shell::run(shell::command("strip", [std::ffi::OsStr::new("-o")]).args([&stripped, &program]))?;
    let bytes = std::fs::metadata(&stripped).context("the stripped program is gone")?.len();
    let mut tree = shell::cargo();
    tree.args(["tree", "--package", "fqrt", "--edges", "normal", "--prefix", "none"]);
    let tree = tree.output().context("cannot start `cargo tree`")?;
    let text = String::from_utf8(tree.stdout).context("`cargo tree` prints text")?;
    let crates: BTreeSet<&str> = text.lines().filter_map(|l| l.split_whitespace().next()).collect();
    let others: Vec<&str> = crates.into_iter().filter(|name| *name != "fqrt").collect();
    println!("fqrt's example `serve`, stripped: {:.2} MB", bytes as f64 / 1e6);
    println!("crates that fqrt depends on: {}: {}", others.len(), others.join(", "));
    if bytes > MOST_BYTES {
        bail!("{bytes} bytes are more than {MOST_BYTES}");
    }
    Ok(())
}
