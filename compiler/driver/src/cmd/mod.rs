//! The commands, one file each; what they share about models and inputs.

pub mod analyze;
pub mod bench;
pub mod calib;
pub mod calibrate;
pub mod compare;
pub mod compile;
pub mod doctor;
pub mod eval;
pub mod experiment;
pub mod inspect;
pub mod memory;
pub mod methods;
pub mod run;
pub mod tune;

use crate::data::{self, Batch, Wanted};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::pipeline::{self, Context};
use crate::progress::Verbosity;
use crate::{key, npz, text};
use fqrt::{Device, Model, Options, SessionOptions};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where inputs come from.
#[derive(clap::Args, Clone, Debug)]
pub struct InputArgs {
    /// Inputs by name
    #[arg(long, value_name = "IN.npz", conflicts_with = "text")]
    pub inputs: Option<PathBuf>,
    /// A text as input; may be repeated, one row each
    #[arg(long, value_name = "TEXT", requires = "tokenizer")]
    pub text: Vec<String>,
    /// Tokenizer of a text model
    #[arg(long, value_name = "TOKENIZER.json")]
    pub tokenizer: Option<PathBuf>,
}

/// How a model runs.
#[derive(clap::Args, Clone, Debug)]
pub struct RunArgs {
    /// Threads; all processors by default
    #[arg(long)]
    pub threads: Option<usize>,
    /// Run code that is not signed by this user's key; a stranger's file is a stranger's program
    #[arg(long)]
    pub trust: bool,
    /// Device to run on: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    pub device: String,
}

impl RunArgs {
    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| SessionOptions::default().threads)
    }

    /// A session's options.
    pub fn session(&self, interrupt: &Interrupt) -> SessionOptions {
        let cancel = Some(interrupt.flag());
        SessionOptions { threads: self.threads(), cancel, ..Default::default() }
    }
}

/// `cpu`, `cuda` or `cuda:N`.
fn device(name: &str) -> Result<Device, Failure> {
    let unknown =
        || Failure::usage(format!("no device `{name}`; there are `cpu`, `cuda` and `cuda:N`"));
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        None if name == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", n)) => n.parse().map(Device::Cuda).map_err(|_| unknown()),
        _ => Err(unknown()),
    }
}

impl InputArgs {
    /// The inputs of one run.
    pub fn batch(&self, wanted: &[Wanted]) -> Result<Batch, Failure> {
        if let Some(path) = &self.inputs {
            return npz::read(path);
        }
        let tokenizer = self.tokenizer.as_deref().filter(|_| !self.text.is_empty());
        let path = tokenizer.ok_or_else(|| {
            Failure::usage("no inputs: give `--inputs IN.npz`, or `--text` with `--tokenizer`")
        })?;
        let tokenizer = text::load_tokenizer(path)?;
        let mut rows = Vec::new();
        for text in &self.text {
            let encoding = tokenizer
                .encode(text.as_str(), true)
                .map_err(|e| Failure::data(format!("`{text}` cannot be tokenized: {e}")))?;
            rows.push(encoding.get_ids().iter().map(|&id| i64::from(id)).collect());
        }
        data::fill(&rows, wanted)
    }
}

/// Loads a compiled file, or compiles an ONNX model in float, in memory.
pub fn load(path: &Path, args: &RunArgs, cx: &mut Context<'_>) -> Result<Arc<Model>, Failure> {
    let device = device(&args.device)?;
    let level = pipeline::forced_level()?;
    if path.extension().is_some_and(|e| e == "onnx") {
        if device != Device::Cpu {
            return Err(Failure::usage(
                "an .onnx runs on `cpu` only; compile it with `--target cuda` first",
            ));
        }
        let float = pipeline::import(path, cx)?;
        let target = pipeline::float_target(&float, cx)?;
        return Ok(Model::from_parts(target.program, &target.weights, &target.code, level)?);
    }
    let options = Options::new(key::trust(args.trust)?).level(level).device(device);
    Ok(Model::load(path, &options)?)
}

/// That the folder of an output is there, before anything long begins.
pub fn check_folder(output: &Path) -> Result<(), Failure> {
    let folder = output.parent().filter(|d| !d.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    if folder.is_dir() {
        return Ok(());
    }
    let message = format!("`{}` is not a folder; make it first", folder.display());
    Err(Failure::new(crate::Exit::Io, message))
}

/// A context for commands that do not show progress.
pub fn quiet(interrupt: &Interrupt, threads: usize) -> Context<'_> {
    Context::new(interrupt, Verbosity::Quiet, threads)
}

/// The context of a command with these options.
pub fn context(interrupt: &Interrupt, quiet: bool, threads: Option<usize>) -> Context<'_> {
    let verbosity = if quiet { Verbosity::Quiet } else { Verbosity::Normal };
    Context::new(interrupt, verbosity, threads.unwrap_or_else(|| SessionOptions::default().threads))
}

/// Prints to standard output; a closed pipe ends the command quietly.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(crate::Exit::Io, format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Prints a value as one line of JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string(value).map_err(Failure::internal)?)
}
