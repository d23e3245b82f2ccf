//! What a file can be compiled for, and the images of several targets from one plan.

use crate::exit::{Exit, Failure};
use crate::host;
use crate::key;
use crate::pipeline::{self, Context};
use crate::settings::Settings;
use fqbin::TargetImage;
use fqc_codegen::cuda::{self, Arch, Cache, Compiler, Nvrtc, Tuning};
use fqc_ir::plan::Plan;
use std::fmt;
use std::rc::Rc;

/// One target of `--target`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    Cpu,
    Cuda(Arch),
}

impl Target {
    /// `cpu`, `cuda` or `cuda:ARCH`, `ptx` included.
    pub fn parse(name: &str) -> Result<Target, String> {
        match name.split_once(':') {
            None if name == "cpu" => Ok(Target::Cpu),
            None if name == "cuda" => Ok(Target::Cuda(Arch::Sm90a)),
            Some(("cuda", arch)) => Ok(Target::Cuda(arch.parse()?)),
            _ => Err(format!("no target `{name}`; there are `cpu`, `cuda` and `cuda:ARCH`")),
        }
    }

    /// Whether activations of four bits are multiplied as such, and not as eight.
    pub fn multiplies_int4(self) -> bool {
        matches!(self, Target::Cuda(arch) if arch.multiplies_int4())
    }
}

/// As [`Target::parse`] reads it.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Cpu => f.write_str("cpu"),
            Target::Cuda(Arch::Ptx) => f.write_str("cuda:ptx"),
            Target::Cuda(arch) => write!(f, "cuda:{arch}"),
        }
    }
}

/// A target and what compiles for it.
pub enum Toolchain {
    Cpu,
    Cuda(Arch, Rc<Compiler>),
}

/// What compiles for the targets, found before anything long begins.
pub fn toolchains(targets: &[Target]) -> Result<Vec<Toolchain>, Failure> {
    let mut compiler: Option<Rc<Compiler>> = None;
    let first = |i: usize| !targets[..i].contains(&targets[i]);
    let targets = targets.iter().enumerate().filter(|(i, _)| first(*i)).map(|(_, t)| t);
    let one = |target: &Target| match (*target, &compiler) {
        (Target::Cpu, _) => host::wants("`--target cpu`").map(|()| Toolchain::Cpu),
        (Target::Cuda(arch), Some(compiler)) => Ok(Toolchain::Cuda(arch, compiler.clone())),
        (Target::Cuda(arch), None) => {
            Ok(Toolchain::Cuda(arch, compiler.insert(Rc::new(nvrtc()?)).clone()))
        }
    };
    targets.map(one).collect()
}

/// The images of all targets, in the order they were asked for.
pub fn images(
    plan: &Plan,
    toolchains: &[Toolchain],
    settings: &Settings,
    tuning: &Tuning,
    cx: &Context<'_>,
) -> Result<Vec<TargetImage>, Failure> {
    let image = |toolchain: &Toolchain| match toolchain {
        Toolchain::Cpu => pipeline::cpu_image(plan, settings, cx),
        Toolchain::Cuda(arch, compiler) => {
            cx.interrupt.check()?;
            cuda::generate_tuned(plan, *arch, tuning, compiler).map_err(|e| failure(&e))
        }
    };
    toolchains.iter().map(image).collect()
}

/// NVRTC, with its cubins kept in the user's folder.
pub fn nvrtc() -> Result<Compiler, Failure> {
    let nvrtc = Nvrtc::load().map_err(|e| failure(&e))?;
    Ok(match key::folder() {
        Some(folder) => Compiler::Cached(Cache::new(folder.join("cubins"), nvrtc)),
        None => Compiler::Direct(nvrtc),
    })
}

/// How a command ends over a failure of the CUDA backend.
pub fn failure(error: &cuda::Error) -> Failure {
    let exit = match error {
        cuda::Error::Unsupported(_) => Exit::Model,
        cuda::Error::NoNvrtc(_) | cuda::Error::Library { .. } => Exit::CannotRun,
        cuda::Error::Cache { .. } => Exit::Io,
        cuda::Error::TooLarge => Exit::Limit,
        cuda::Error::Compile { .. } | cuda::Error::Slow { .. } => Exit::Internal,
    };
    Failure::new(exit, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_names() {
        assert_eq!(Target::parse("cpu"), Ok(Target::Cpu));
        assert_eq!(Target::parse("cuda"), Ok(Target::Cuda(Arch::Sm90a)));
        assert_eq!(Target::parse("cuda:sm_86"), Ok(Target::Cuda(Arch::Sm86)));
        assert_eq!(Target::parse("cuda:ptx"), Ok(Target::Cuda(Arch::Ptx)));
        for name in ["cpu", "cuda:sm_89", "cuda:ptx"] {
            let target = Target::parse(name).expect("a target");
            assert_eq!(target.to_string(), name);
            assert_eq!(target.multiplies_int4(), name == "cuda:sm_89");
        }
        assert!(Target::parse("cuda:sm_70").unwrap_err().contains("sm_90a"));
        assert!(Target::parse("tpu").unwrap_err().contains("`cuda:ARCH`"));
    }
}
