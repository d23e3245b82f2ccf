//! The packages of Debian that the build and the Python tools need, found by the files they bring.

use crate::shell;
use anyhow::{Result, bail};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What the build of the workspace needs beyond Rust and its linker, each with a file of it.
const BUILD: [(&str, &str); 2] = [
    ("llvm-22-dev", "/usr/lib/llvm-22/include/llvm-c/Core.h"),
    ("llvm-22-dev", "/usr/lib/llvm-22/bin/llvm-config"),
];

/// Installs what the build of the workspace needs and the machine lacks.
pub fn install() -> Result<()> {
    let missing = BUILD.iter().filter(|(_, file)| !Path::new(file).exists());
    install_packages(missing.map(|&(package, _)| package).collect())
}

/// Makes sure that `python3 -m venv` works.
pub fn install_python() -> Result<()> {
    let mut probe = shell::command("python3", ["-c", "import ensurepip, venv"]);
    match probe.output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => install_packages(vec!["python3", "python3-venv"]),
    }
}

/// Brings the lists of Debian's packages up to date where that is allowed and has not been done.
pub fn package_lists() -> Result<()> {
    if is_root() && !has_lists() {
        shell::run(&mut shell::command("apt-get", ["update", "-q"]))?;
    }
    Ok(())
}

fn install_packages(mut packages: Vec<&str>) -> Result<()> {
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("this machine has no apt-get; install what Debian calls `{list}`, then try again");
    }
    if !is_root() {
        bail!(
            "packages are missing; run `sudo apt-get update && sudo apt-get install -y {list}`, then try again"
        );
    }
    println!("installing {list}");
    shell::run(&mut shell::command("apt-get", ["update", "-q"]))?;
    let mut install = shell::command("apt-get", ["install", "-y", "-q", "--no-install-recommends"]);
    install.args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    shell::run(&mut install)
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

fn has_lists() -> bool {
    let lists = std::fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    lists.map(|f| f.file_name()).any(|name| name.to_string_lossy().contains("_Packages"))
}
