//! `cargo xtask test`: everything the tests need, then all of them, counted.

use crate::{fetch, shell, system};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// Passed and failed tests of a run of `cargo test`.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    /// Adds the closing line of one test binary: `test result: ok. 3 passed; 0 failed; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for part in result.split(['.', ';']) {
            match part.split_whitespace().collect::<Vec<_>>().as_slice() {
                [n, "passed"] => self.passed += n.parse::<u64>().unwrap_or(0),
                [n, "failed"] => self.failed += n.parse::<u64>().unwrap_or(0),
                _ => {}
            }
        }
    }
}

/// Installs, fetches, checks `fqc` without its CPU backend, and runs `cargo test --release --workspace` (the
/// profile of the demo, so that everything is built once); `extra` is passed on to it.
pub fn test(extra: &[&str]) -> Result<()> {
    system::install()?;
    fetch::fetch(&["all"])?;
    fetch::golden(fetch::Golden::Cached)?;
    // Checked and not built: other features of what lies below would have all of it built again.
    let mut check = shell::cargo();
    check.args(["check", "--release", "--package", "fqc", "--no-default-features"]);
    shell::run(&mut check)?;
    let mut command = shell::cargo();
    command.args(["test", "--release", "--workspace", "--no-fail-fast"]).args(extra);
    command.env("FQC_CACHE", shell::cache()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo")?;
    let mut count = Count::default();
    let stdout = child.stdout.take().expect("the output was asked for as a pipe");
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what cargo prints")?;
        println!("{line}");
        count.add(&line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} tests passed, {} failed; cargo ended with {status}", count.passed, count.failed);
    }
    if count.passed == 0 {
        bail!("cargo ran no test");
    }
    println!("{} tests passed", count.passed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn closing_lines_are_added_up() {
        let mut count = Count::default();
        count.add("running 3 tests");
        count.add("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out");
        count.add("test result: FAILED. 40 passed; 2 failed; 0 ignored; finished in 0.10s");
        assert_eq!((count.passed, count.failed), (43, 2));
    }
}
