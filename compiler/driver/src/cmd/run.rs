//! `fqc run`: one inference.

use super::{InputArgs, RunArgs, load, print, print_json, quiet};
use crate::data::{infer, model_inputs};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::npz;
use fqrt::{Session, Tensor};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The compiled model (or an .onnx, which then runs in float)
    pub model: PathBuf,
    #[command(flatten)]
    pub input: InputArgs,
    /// Where the outputs go
    #[arg(long, value_name = "OUT.npz")]
    pub outputs: Option<PathBuf>,
    #[command(flatten)]
    pub run: RunArgs,
    /// A line of JSON for each output
    #[arg(long)]
    pub json: bool,
}

/// One output in short.
#[derive(Serialize)]
struct Summary<'a> {
    output: &'a str,
    elem: &'static str,
    shape: &'a [usize],
    first: Vec<f32>,
}

pub fn main(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    let options = args.run.session(interrupt);
    let model = load(&args.model, &args.run, &mut quiet(interrupt, options.threads))?;
    let batch = args.input.batch(&model_inputs(&model))?;
    let mut session = Session::new(&model, options)?;
    let outputs = infer(&mut session, &batch)?;
    if let Some(path) = &args.outputs {
        let arrays: Vec<(&str, &Tensor)> = outputs.iter().collect();
        npz::write(path, &arrays)?;
    }
    for (name, tensor) in outputs.iter() {
        let first =
            tensor.numbers::<f32>().map_or(Vec::new(), |v| v.iter().take(6).copied().collect());
        let summary =
            Summary { output: name, elem: tensor.elem().name(), shape: tensor.shape(), first };
        if args.json {
            print_json(&summary)?;
        } else {
            print(&format!("{name}: {}{:?} {:?}", summary.elem, summary.shape, summary.first))?;
        }
    }
    Ok(())
}
