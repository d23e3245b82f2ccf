//! Running on an NVIDIA GPU, through its driver alone. Reading order: [`driver`] (the driver behind
//! safe types), [`model`] (kernels and weights on the device), [`maps`] (how kernels see their operands),
//! [`attention`], [`engine`] (a session's runs).

mod attention;
mod driver;
mod engine;
mod maps;
mod model;

pub(crate) use engine::{Engine, OnDevice, Ports};
pub(crate) use model::Loaded;

use std::sync::Arc;

use fqbin::{CodeView, Layout, Program, Target, TargetImage};

use crate::error::{Error, Result};
use crate::model::Model;
use driver::{Context, Memory};

/// Name and compute capability of the GPU of a number, if a file with code for it would run there.
pub fn gpu(ordinal: u32) -> Result<String> {
    let context = Context::open(ordinal)?;
    let (major, minor) = context.capability;
    Ok(format!("{}, compute capability {major}.{minor}", context.name))
}

/// An open GPU, for code that was made in this process.
pub struct Gpu(Arc<Context>);

impl Gpu {
    /// Opens the GPU of a number.
    pub fn open(ordinal: u32) -> Result<Gpu> {
        Context::open(ordinal).map(Gpu)
    }

    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its compute capability, major and minor.
    pub fn capability(&self) -> (i32, i32) {
        self.0.capability
    }

    /// The newest CUDA that its driver runs, major and minor.
    pub fn cuda(&self) -> (i32, i32) {
        self.0.cuda
    }

    /// Makes a model from an image of this process, without a file.
    pub fn model(&self, image: TargetImage) -> Result<Arc<Model>> {
        let weights = Memory::of(&self.0, &image.weights.to_vec())?;
        self.load(image, Arc::new(weights))
    }

    /// The same from an image with the weights of a model that this value made: they are not copied
    /// again. That they are the same is the caller's word; their number is checked.
    pub fn model_beside(&self, image: TargetImage, other: &Model) -> Result<Arc<Model>> {
        let weights = match other.code() {
            crate::model::Loaded::Cuda { on, .. } => Arc::clone(&on.weights),
            crate::model::Loaded::Cpu { .. } => return self.model(image),
        };
        if !Arc::ptr_eq(weights.context(), &self.0) {
            return Err(Error::Program("the model is not of this GPU".to_owned()));
        }
        let (have, want) = (weights.len(), image.weights.len());
        if have != want {
            let what = format!("the model has {have} bytes of weights, the image {want}");
            return Err(Error::Program(what));
        }
        self.load(image, weights)
    }

    fn load(&self, image: TargetImage, weights: Arc<Memory>) -> Result<Arc<Model>> {
        let TargetImage { target, program, weights: own, code } = image;
        fqbin::verify(&program, own.len() as u64).map_err(|faults| {
            Error::Program(fqbin::Error::Program { target: target.clone(), faults }.to_string())
        })?;
        if fit(&target, self.0.capability).is_none() {
            let name = &self.0.name;
            return Err(Error::CannotRun(format!("`{name}` does not run code for `{target}`")));
        }
        let code = code.into_iter().next().unwrap_or_default();
        fqbin::check_entries(&code.entries, code.bytes.len(), program.kernels.len())
            .map_err(|e| Error::Program(e.to_string()))?;
        let view = CodeView { level: code.level, entries: code.entries, bytes: &code.bytes };
        let on = Loaded::new(&program, &view, weights)?;
        Ok(Model::on_gpu(program, on, target))
    }
}

/// Opens a GPU and picks the target of a file that it runs best.
pub(crate) fn open(layout: &Layout, ordinal: u32) -> Result<(Arc<Context>, &Target)> {
    let names: Vec<&str> = layout.targets.iter().map(|t| t.name.as_str()).collect();
    if !names.iter().any(|name| name.starts_with("cuda:")) {
        let have = names.join("`, `");
        return Err(Error::CannotRun(format!(
            "the file has code for `{have}` only; compile it with `--target cpu,cuda`"
        )));
    }
    let context = Context::open(ordinal)?;
    match names.iter().enumerate().filter_map(|(i, n)| Some((fit(n, context.capability)?, i))).max()
    {
        Some((_, index)) => Ok((context, &layout.targets[index])),
        None => {
            let (major, minor) = context.capability;
            let remedy = match (major, minor) {
                (..=7, _) => "fqc has code for 8.0 and later".to_owned(),
                (8, 0 | 6 | 9) => format!("compile it with `--target cuda:sm_{major}{minor}`"),
                (9, 0) => "compile it with `--target cuda:sm_90a`".to_owned(),
                _ => "compile it with `--target cuda:ptx`, which the driver compiles".to_owned(),
            };
            Err(Error::CannotRun(format!(
                "the file has code for `{}`; `{}` has compute capability {major}.{minor}: {remedy}",
                names.join("`, `"),
                context.name
            )))
        }
    }
}

/// Loads a program whose signature was checked, and uploads its weights.
pub(crate) fn load(
    context: &Arc<Context>,
    program: &Program,
    code: &CodeView<'_>,
    weights: &[u8],
) -> Result<Loaded> {
    Loaded::new(program, code, Arc::new(Memory::of(context, weights)?))
}

/// How well code of a target fits a GPU, if it runs there at all: code of an architecture runs on
/// later ones of its generation; what ends in `a` runs on that one alone. PTX runs on all later ones,
/// and is the last resort.
fn fit(target: &str, (major, minor): (i32, i32)) -> Option<(i32, bool)> {
    if let Some(number) = target.strip_prefix("cuda:compute_") {
        let number: i32 = number.parse().ok()?;
        return (number <= major * 10 + minor).then_some((0, false));
    }
    let name = target.strip_prefix("cuda:sm_")?;
    let (number, own) = match name.strip_suffix('a') {
        Some(number) => (number, true),
        None => (name, false),
    };
    let number: i32 = number.parse().ok()?;
    let runs =
        number / 10 == major && if own { number % 10 == minor } else { number % 10 <= minor };
    runs.then_some((number, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_its_generation_and_the_closest_is_best() {
        assert_eq!(fit("cuda:sm_90a", (9, 0)), Some((90, true)));
        assert_eq!(fit("cuda:sm_90a", (10, 0)), None);
        assert_eq!(fit("cuda:sm_80", (8, 9)), Some((80, false)));
        assert_eq!(fit("cuda:sm_89", (8, 6)), None);
        assert_eq!(fit("cpu", (9, 0)), None);
        assert_eq!(fit("cuda:compute_80", (12, 0)), Some((0, false)));
        assert_eq!(fit("cuda:compute_80", (7, 5)), None);
        assert!(fit("cuda:sm_80", (8, 0)) > fit("cuda:compute_80", (8, 0)));
        assert!(fit("cuda:sm_86", (8, 9)) > fit("cuda:sm_80", (8, 9)));
    }

    #[test]
    fn a_machine_without_a_driver_or_such_a_gpu_says_so() {
        match Context::open(4096) {
            Err(Error::CannotRun(what)) => {
                let known = what.contains("driver") || what.contains("GPU");
                assert!(known, "{what}");
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("no machine has so many GPUs"),
        }
    }
}
