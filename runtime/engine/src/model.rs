//! A loaded model: a verified program, its weights, and its code for one CPU level. It is
//! immutable, `Send` and `Sync`; sessions share it through an `Arc`.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use fqbin::{ByteLen, CodeImage, Layout, Level, Program, Trust};

use crate::code::Code;
use crate::cpu;
use crate::error::{Error, Result};
use crate::memory::{AlignedBytes, FileBytes, Weights};

/// Name of the target that this runtime executes.
pub const CPU_TARGET: &str = "cpu";

/// How the bytes of a file get into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Load {
    /// Map it; weights stay on the page cache and are shared between processes. The file must
    /// not be truncated or rewritten in place while it is loaded; replace it by a rename.
    #[default]
    Map,
    /// Read it into memory, for files that others may change.
    Read,
}

/// What a model runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(u32),
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct Options {
    pub device: Device,
    /// The code level to use; `None` takes the best one that the file has and the machine runs.
    pub level: Option<Level>,
    /// Whose code may run.
    pub trust: Trust,
    pub load: Load,
}

impl Options {
    pub fn new(trust: Trust) -> Options {
        Options { device: Device::Cpu, level: None, trust, load: Load::Map }
    }

    pub fn level(self, level: Option<Level>) -> Options {
        Options { level, ..self }
    }

    pub fn device(self, device: Device) -> Options {
        Options { device, ..self }
    }
}

/// Code that is ready to run.
pub(crate) enum Loaded {
    Cpu {
        code: Code,
        level: Level,
    },
    #[cfg(feature = "cuda")]
    Cuda {
        on: crate::cuda::Loaded,
        target: String,
    },
}

/// A loaded model.
pub struct Model {
    program: Program,
    weights: Weights,
    code: Loaded,
    manifest: Vec<u8>,
    content_id: Option<[u8; 32]>,
}

impl Model {
    /// Loads and validates a file. Nothing of it runs before its signature is checked.
    pub fn load(path: &Path, options: &Options) -> Result<Arc<Model>> {
        let in_file = |source| Error::File { path: path.to_path_buf(), source };
        let bytes = read(path, options.load)?;
        let layout = Layout::validate(&bytes).map_err(in_file)?;
        layout.check_trust(&options.trust).map_err(in_file)?;
        let parts = match options.device {
            Device::Cpu => cpu_code(&layout, &bytes, options.level),
            Device::Cuda(ordinal) => cuda_code(&layout, &bytes, ordinal),
        };
        // Sections do not know their file.
        let (program, code, weights) = parts.map_err(|e| match e {
            Error::File { source, .. } => in_file(source),
            other => other,
        })?;
        let range = |i: usize| layout.table.sections[i].range().map_err(in_file);
        let manifest = match layout.manifest {
            Some(i) => bytes[range(i)?].to_vec(),
            None => Vec::new(),
        };
        let content_id = Some(layout.table.content_id);
        let weights = match weights {
            Some(section) => Weights::File(bytes, range(section)?),
            None => Weights::Owned(AlignedBytes::default()),
        };
        Ok(Arc::new(Model { program, weights, code, manifest, content_id }))
    }

    /// Makes a model from parts that were made in this process, without a file.
    pub fn from_parts(
        program: Program,
        weights: &fqbin::Weights,
        code: &[CodeImage],
        level: Option<Level>,
    ) -> Result<Arc<Model>> {
        let target = CPU_TARGET.to_string();
        fqbin::verify(&program, weights.len() as u64).map_err(|faults| {
            Error::Program(fqbin::Error::Program { target, faults }.to_string())
        })?;
        let (chosen, level) = choose(code.iter().map(|c| c.level.as_str()), level)?;
        let code = Code::from_image(&code[chosen], program.kernels.len())?;
        let code = Loaded::Cpu { code, level };
        let mut block = AlignedBytes::zeroed(weights.len())?;
        weights.copy_to(block.as_mut_slice());
        let weights = Weights::Owned(block);
        let (manifest, content_id) = (Vec::new(), None);
        Ok(Arc::new(Model { program, weights, code, manifest, content_id }))
    }

    /// A verified program with what is already on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(program: Program, on: crate::cuda::Loaded, target: String) -> Arc<Model> {
        let (code, weights) =
            (Loaded::Cuda { on, target }, Weights::Owned(AlignedBytes::default()));
        Arc::new(Model { program, weights, code, manifest: Vec::new(), content_id: None })
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The level of the loaded code; `None` for code of a GPU.
    pub fn level(&self) -> Option<Level> {
        match &self.code {
            Loaded::Cpu { level, .. } => Some(*level),
            #[cfg(feature = "cuda")]
            Loaded::Cuda { .. } => None,
        }
    }

    /// What the loaded code is for: a CPU level, or a GPU target such as `cuda:sm_90a`.
    pub fn target(&self) -> &str {
        match &self.code {
            Loaded::Cpu { level, .. } => level.name(),
            #[cfg(feature = "cuda")]
            Loaded::Cuda { target, .. } => target,
        }
    }

    /// The JSON manifest of the file; empty for a model without a file.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// The content id of the file, if the model has one.
    pub fn content_id(&self) -> Option<[u8; 32]> {
        self.content_id
    }

    pub(crate) fn weights(&self) -> &[u8] {
        &self.weights
    }

    pub(crate) fn code(&self) -> &Loaded {
        &self.code
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({} steps, {})", self.program.steps.len(), self.target())
    }
}

/// A program, its code, and the index of its weights' section.
type Parts = (Program, Loaded, Option<usize>);

fn cpu_code(layout: &Layout, bytes: &[u8], level: Option<Level>) -> Result<Parts> {
    let target = layout.target(CPU_TARGET).ok_or_else(|| {
        let names: Vec<&str> = layout.targets.iter().map(|t| t.name.as_str()).collect();
        let have = names.join("`, `");
        Error::CannotRun(format!(
            "the file has code for `{have}` only; compile it with `--target cpu`"
        ))
    })?;
    let sections = &layout.table.sections;
    let names = target.code.iter().map(|&i| sections[i].level.as_str());
    let (chosen, level) = choose(names, level)?;
    let section = &sections[target.code[chosen]];
    let payload = &bytes[section.range().map_err(in_code)?];
    let code = Code::from_section(section, payload, target.program.kernels.len())?;
    Ok((target.program.clone(), Loaded::Cpu { code, level }, target.weights))
}

#[cfg(feature = "cuda")]
fn cuda_code(layout: &Layout, bytes: &[u8], ordinal: u32) -> Result<Parts> {
    let (context, target) = crate::cuda::open(layout, ordinal)?;
    let sections = &layout.table.sections;
    let section = |index: usize| {
        let section = &sections[index];
        let payload = &bytes[section.range().map_err(in_code)?];
        fqbin::check_hash(section, payload).map_err(in_code)?;
        Ok::<&[u8], Error>(payload)
    };
    let code = *target.code.first().ok_or_else(|| {
        Error::Program(format!("target `{}` has no code", fqbin::printable(&target.name)))
    })?;
    let kernels = target.program.kernels.len();
    let view = fqbin::CodeView::decode("", section(code)?, kernels).map_err(in_code)?;
    let weights = target.weights.map_or(Ok(&[][..]), section)?;
    let on = crate::cuda::load(&context, &target.program, &view, weights)?;
    let code = Loaded::Cuda { on, target: target.name.clone() };
    Ok((target.program.clone(), code, None))
}

#[cfg(not(feature = "cuda"))]
fn cuda_code(_layout: &Layout, _bytes: &[u8], _ordinal: u32) -> Result<Parts> {
    Err(Error::CannotRun("this program was built without CUDA; run on `cpu`".into()))
}

fn in_code(source: fqbin::Error) -> Error {
    Error::File { path: "(code)".into(), source }
}

/// Reads or maps a regular file.
fn read(path: &Path, load: Load) -> Result<FileBytes> {
    let io = |action| move |source| Error::Io { action, path: path.to_path_buf(), source };
    // Looked at before it is opened, because opening a pipe would wait.
    let meta = std::fs::metadata(path).map_err(io("open"))?;
    if !meta.is_file() {
        let what = "it is not a regular file".to_string();
        return Err(Error::File { path: path.into(), source: fqbin::Error::NotFqbin(what) });
    }
    let mut file = File::open(path).map_err(io("open"))?;
    if meta.len() > fqbin::LIMITS.file_bytes {
        return Err(Error::Limit(format!("`{}` has {} bytes", path.display(), meta.len())));
    }
    if load == Load::Map && meta.len() > 0 {
        return FileBytes::map(&file).map_err(io("map"));
    }
    let len = ByteLen::new(meta.len()).to_usize().map_err(|e| Error::Limit(e.to_string()))?;
    let mut bytes = AlignedBytes::zeroed(len)?;
    file.read_exact(bytes.as_mut_slice()).map_err(io("read"))?;
    Ok(FileBytes::Read(bytes))
}

/// Picks a code section by level: the forced one, or the best that can run. Returns its position.
fn choose<'a>(
    levels: impl Iterator<Item = &'a str>,
    forced: Option<Level>,
) -> Result<(usize, Level)> {
    let names: Vec<&str> = levels.collect();
    let have = names.join("`, `");
    let mut known: Vec<(Level, usize)> =
        names.iter().enumerate().filter_map(|(i, name)| Some((name.parse().ok()?, i))).collect();
    known.sort();
    if let Some(level) = forced {
        let Some(&(level, index)) = known.iter().find(|(l, _)| *l == level) else {
            let what = format!("the file has no code for CPU level `{level}`, only for `{have}`");
            return Err(Error::CannotRun(what));
        };
        let missing = cpu::missing_features(level);
        if !missing.is_empty() {
            let missing = missing.join(", ");
            let what = format!("CPU level `{level}` was asked for, but this CPU lacks {missing}");
            return Err(Error::CannotRun(what));
        }
        return Ok((index, level));
    }
    match known.iter().rev().find(|(level, _)| cpu::level_available(*level)) {
        Some(&(level, index)) => Ok((index, level)),
        None => {
            let lacks = known.first().map_or_else(String::new, |(level, _)| {
                format!(
                    "; for `{level}` this CPU lacks {}",
                    cpu::missing_features(*level).join(", ")
                )
            });
            let what = format!("the file has code for CPU levels `{have}`{lacks}");
            Err(Error::CannotRun(what))
        }
    }
}
