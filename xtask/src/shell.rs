//! Running other programs, and the few places everything here agrees on.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the root of the repository").to_path_buf()
}

/// The folder for everything that is fetched or computed: `$FQC_CACHE`, or `.cache` of the root.
pub fn cache() -> PathBuf {
    match std::env::var_os("FQC_CACHE") {
        Some(folder) => std::path::absolute(&folder).unwrap_or_else(|_| folder.into()),
        None => root().join(".cache"),
    }
}

/// The folder that cargo builds into: this program itself lies in `<target>/<profile>`.
pub fn target() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where xtask itself lies")?;
    let folder = program.ancestors().nth(2).context("xtask lies in no target folder")?;
    Ok(folder.to_path_buf())
}

/// The cargo that started this program.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A command from a program and its arguments.
pub fn command<P, A>(program: P, arguments: impl IntoIterator<Item = A>) -> Command
where
    P: AsRef<OsStr>,
    A: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a command to its end; its failure is an error that names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", text(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", text(command));
    }
    Ok(())
}

fn text(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|w| w.to_string_lossy()).collect();
    format!("`{}`", words.join(" "))
}
