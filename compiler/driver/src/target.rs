//! What a file can be compiled for, and the images of several targets from one plan.

use crate::exit::{Exit, Failure};
use crate::key;
use crate::pipeline::Context;
use fqbin::TargetImage;
use fqc_codegen::cuda::{self, Arch, Cache, Compiler, Nvrtc};
use fqc_ir::plan::Plan;

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
}

/// Refuses targets whose compiler is missing, before anything long begins.
pub fn check(targets: &[Target]) -> Result<(), Failure> {
    let cuda = targets.iter().any(|target| matches!(target, Target::Cuda(_)));
    if cuda { nvrtc().map(drop) } else { Ok(()) }
}

/// The images of all targets, in the order they were asked for; `cpu` is that of the CPU.
pub fn images(
    cpu: TargetImage,
    plan: &Plan,
    targets: &[Target],
    cx: &Context<'_>,
) -> Result<Vec<TargetImage>, Failure> {
    let mut cpu = Some(cpu);
    let mut compiler = None;
    let mut images: Vec<TargetImage> = Vec::new();
    for target in targets {
        cx.interrupt.check()?;
        let image = match target {
            Target::Cpu => cpu.take(),
            Target::Cuda(arch) => {
                let compiler = match &compiler {
                    Some(compiler) => compiler,
                    None => compiler.insert(nvrtc()?),
                };
                Some(cuda::generate(plan, *arch, compiler).map_err(|e| failure(&e))?)
            }
        };
        images.extend(image.filter(|i| images.iter().all(|other| other.target != i.target)));
    }
    Ok(images)
}

/// NVRTC, with its cubins kept in the user's folder.
fn nvrtc() -> Result<Compiler, Failure> {
    let nvrtc = Nvrtc::load().map_err(|e| failure(&e))?;
    Ok(match key::folder() {
        Some(folder) => Compiler::Cached(Cache::new(folder.join("cubins"), nvrtc)),
        None => Compiler::Direct(nvrtc),
    })
}

fn failure(error: &cuda::Error) -> Failure {
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
        assert!(Target::parse("cuda:sm_70").unwrap_err().contains("sm_90a"));
        assert!(Target::parse("tpu").unwrap_err().contains("`cuda:ARCH`"));
    }
}
