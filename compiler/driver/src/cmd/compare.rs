//! `fqc compare`: how far a compiled model is from its float graph, per output and per layer.

use super::{InputArgs, RunArgs, load, print, print_json, quiet};
use crate::data::{model_inputs, views};
use crate::exit::{Exit, Failure};
use crate::interrupt::Interrupt;
use crate::metrics::{Distance, distance};
use crate::pipeline;
use fqrt::{Model, Session};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The float model, .onnx
    pub model: PathBuf,
    /// The compiled model
    pub compiled: PathBuf,
    #[command(flatten)]
    pub input: InputArgs,
    #[command(flatten)]
    pub run: RunArgs,
    /// Fail with exit code 4 if an output's smallest row cosine is below this
    #[arg(long, value_name = "COSINE")]
    pub min_cosine: Option<f64>,
    /// A line of JSON for each value
    #[arg(long)]
    pub json: bool,
}

/// The distance of one value.
#[derive(Serialize)]
struct Line<'a> {
    value: &'a str,
    output: bool,
    #[serde(flatten)]
    distance: Distance,
}

pub fn main(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    let options = args.run.session(interrupt);
    let mut cx = quiet(interrupt, options.threads);
    let compiled = load(&args.compiled, &args.run, &mut cx)?;
    let float = pipeline::import(&args.model, &mut cx)?;
    let target = pipeline::float_target(&float, &mut cx)?;
    let float = Model::from_parts(target.program, &target.weights, &target.code, None)?;
    let batch = args.input.batch(&model_inputs(&compiled))?;

    let mut wanted: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut session = Session::new(&float, options.clone())?;
    let float_outputs = session.run_observed(&views(&batch), &mut |seen| {
        if seen.elem == fqbin::Elem::F32 {
            wanted.insert(seen.name.to_owned(), floats(seen.data));
        }
    })?;
    let mut session = Session::new(&compiled, options)?;
    let mut layers: Vec<(String, Distance)> = Vec::new();
    let outputs = session.run_observed(&views(&batch), &mut |seen| {
        if let Some(want) = wanted.get(seen.name)
            && seen.elem == fqbin::Elem::F32
            && want.len() * 4 == seen.data.len()
        {
            let width = seen.shape.last().copied().unwrap_or(1);
            layers.push((seen.name.to_owned(), distance(&floats(seen.data), want, width)));
        }
    })?;

    let mut worst = 1.0f64;
    for (name, distance) in layers.iter().filter(|(n, _)| outputs.get(n).is_none()) {
        line(args, &Line { value: name, output: false, distance: *distance })?;
    }
    for (name, tensor) in outputs.iter() {
        let (Some(got), Some(want)) =
            (tensor.numbers::<f32>(), float_outputs.get(name).and_then(|t| t.numbers::<f32>()))
        else {
            continue;
        };
        let distance = distance(got, want, tensor.shape().last().copied().unwrap_or(1));
        worst = worst.min(distance.min_row_cosine);
        line(args, &Line { value: name, output: true, distance })?;
    }
    match args.min_cosine {
        Some(bound) if worst < bound => Err(Failure::new(
            Exit::Gate,
            format!("the smallest row cosine of an output is {worst:.6}, below {bound}"),
        )),
        _ => Ok(()),
    }
}

fn line(args: &Args, line: &Line<'_>) -> Result<(), Failure> {
    if args.json {
        return print_json(line);
    }
    let (d, kind) = (&line.distance, if line.output { "output" } else { "layer " });
    print(&format!(
        "{kind} {:40} SQNR {:6.1} dB  cosine {:.6} (row min {:.6})  max {:.3e}",
        line.value, d.sqnr_db, d.cosine, d.min_row_cosine, d.max_abs
    ))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
