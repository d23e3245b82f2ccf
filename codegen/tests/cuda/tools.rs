//! The compiler and the disassembler.

use fqc_codegen::cuda::{Arch, Nvrtc};
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn nvrtc() -> Nvrtc {
    Nvrtc::load().unwrap_or_else(|error| panic!("{error}"))
}

/// The assembly of a kernel, which must compile without spills.
pub fn assembly(nvrtc: &Nvrtc, name: &str, source: &str, arch: Arch) -> String {
    let compiled = nvrtc.compile(name, source, arch).unwrap_or_else(|error| panic!("{error}"));
    disassemble(nvrtc, &compiled.cubin)
}

/// The assembly, from the disassembler beside NVRTC or of a toolkit.
pub fn disassemble(nvrtc: &Nvrtc, cubin: &[u8]) -> String {
    let beside = nvrtc.folder().join("../bin/cuobjdump");
    let tool: PathBuf =
        if beside.exists() { beside } else { Path::new("/usr/local/cuda/bin/cuobjdump").into() };
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), cubin).expect("a written cubin");
    let output = Command::new(&tool).arg("-sass").arg(file.path()).output();
    let output = output.unwrap_or_else(|e| {
        panic!("{} does not start: {e}; run `cargo xtask fetch nvrtc`", tool.display())
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
