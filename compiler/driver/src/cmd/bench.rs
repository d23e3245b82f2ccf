//! `fqc bench`: median, spread, and of each kernel its time, its rate, and how near that is to what
//! the machine can do.

use super::{RunArgs, load, print, print_json, quiet};
use crate::data::{Batch, model_inputs, views};
use crate::exit::Failure;
use crate::host;
use crate::interrupt::Interrupt;
use crate::rates::Rates;
use crate::shapes;
use fqrt::{Session, SessionOptions, Slices, TensorViewMut};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The compiled model (or an .onnx, which then runs in float)
    pub model: PathBuf,
    /// Shape of an input, such as `input_ids=1x128`; inputs not named take the first one's
    #[arg(long, value_name = "NAME=AxB", required = true)]
    pub shape: Vec<String>,
    /// Timed runs
    #[arg(long, default_value_t = 20)]
    pub runs: usize,
    /// Runs before timing begins
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    /// A line for each step instead of one for each kernel family
    #[arg(long)]
    pub steps: bool,
    /// Neither kernels nor what the machine can do: the runs alone
    #[arg(long, conflicts_with = "steps")]
    pub runs_alone: bool,
    /// Items of a slice of the batch on a CPU, 0 for no slices; by default as the caches want it
    #[arg(long, value_name = "ITEMS")]
    pub slice: Option<usize>,
    #[command(flatten)]
    pub run: RunArgs,
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Times in milliseconds.
#[derive(Serialize)]
struct Timing {
    model: String,
    level: String,
    threads: usize,
    shapes: Vec<String>,
    runs: usize,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    load_ms: f64,
    first_run_ms: f64,
    /// What the machine reached in the same process; on a CPU only, and with a code generator.
    machine: Option<Rates>,
    kernels: Vec<KernelTime>,
}

/// The time of one kernel family in one run.
#[derive(Serialize)]
struct KernelTime {
    family: String,
    steps: usize,
    /// Each step at its fastest.
    ms: f64,
    share: f64,
    /// Arithmetic operations a second, in units of 10^9.
    gops: f64,
    /// Bytes a second that must be read or written, in units of 10^9.
    gb_s: f64,
    /// Time that the machine's rates allow, in relation to the time taken.
    of_ceiling: Option<f64>,
}

pub fn main(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    if args.runs == 0 {
        return Err(Failure::usage("`--runs` is at least 1"));
    }
    let slices = match args.slice {
        None => Slices::Fit,
        Some(0) => Slices::Whole,
        Some(items) => Slices::Of(items),
    };
    let options = SessionOptions { slices, ..args.run.session(interrupt) };
    let threads = options.threads;
    let start = Instant::now();
    let model = load(&args.model, &args.run, &mut quiet(interrupt, threads))?;
    let load_ms = ms(start);
    let batch = shapes::inputs(&args.shape, &model_inputs(&model))?;
    let mut session = Session::new(&model, options)?;
    let start = Instant::now();
    let mut outputs = session.run(&views(&batch))?.into_vec();
    let first_run_ms = ms(start);
    let mut times = Vec::with_capacity(args.runs);
    for run in 0..args.warmup + args.runs {
        let mut views_out: Vec<(&str, TensorViewMut<'_>)> =
            outputs.iter_mut().map(|(n, t)| (n.as_str(), t.view_mut())).collect();
        let start = Instant::now();
        session.run_into(&views(&batch), &mut views_out)?;
        if run >= args.warmup {
            times.push(ms(start));
        }
    }
    times.sort_by(f64::total_cmp);
    let (mut machine, mut kernels) = (None, Vec::new());
    if !args.runs_alone {
        machine = model.level().map(|level| host::rates(level, threads)).transpose()?.flatten();
        kernels = self::kernels(&mut session, &batch, args.steps, machine.as_ref())?;
    }
    let result = Timing {
        model: args.model.display().to_string(),
        level: model.target().to_owned(),
        threads,
        shapes: batch.iter().map(|(n, t)| format!("{n}={:?}", t.shape())).collect(),
        runs: args.runs,
        median_ms: times[times.len() / 2],
        min_ms: times[0],
        max_ms: times[times.len() - 1],
        load_ms,
        first_run_ms,
        kernels,
        machine,
    };
    if args.json { print_json(&result) } else { print(&text(&result)) }
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Profiled runs, of which each step counts by its fastest.
const PROFILED: usize = 10;

/// Times of the kernels by family or by step, the longest first.
fn kernels(
    session: &mut Session,
    batch: &Batch,
    by_step: bool,
    machine: Option<&Rates>,
) -> Result<Vec<KernelTime>, Failure> {
    let (_, mut best) = session.run_profiled(&views(batch))?;
    for _ in 1..PROFILED {
        let (_, times) = session.run_profiled(&views(batch))?;
        best.iter_mut().zip(times).for_each(|(best, time)| *best = time.min(*best));
    }
    let model = session.model().clone();
    let name = |step: &fqbin::Step| match by_step {
        true => format!("{} {}", step.family, step.name),
        false => step.family.clone(),
    };
    let binding = session.binding();
    let mut families: BTreeMap<String, Sum> = BTreeMap::new();
    for (step, &ns) in model.program().steps.iter().zip(&best) {
        let value = |expr| binding.map_or(0.0, |b| b.value(expr) as f64);
        let (ops, bytes) = (value(step.ops), value(step.bytes));
        let floor = machine.map_or(0.0, |m| m.floor_ns(&step.family, ops, bytes));
        families.entry(name(step)).or_default().add(ns as f64, ops, bytes, floor);
    }
    let total: f64 = best.iter().sum::<u64>().max(1) as f64;
    let time = |(family, sum): (String, Sum)| {
        let ns = sum.ns.max(1.0);
        KernelTime {
            family,
            steps: sum.steps,
            ms: sum.ns / 1e6,
            share: sum.ns / total,
            gops: sum.ops / ns,
            gb_s: sum.bytes / ns,
            of_ceiling: machine.map(|_| sum.floor_ns / ns),
        }
    };
    let mut out: Vec<KernelTime> = families.into_iter().map(time).collect();
    out.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    Ok(out)
}

/// What the steps of one line add up to.
#[derive(Default)]
struct Sum {
    steps: usize,
    ns: f64,
    ops: f64,
    bytes: f64,
    floor_ns: f64,
}

impl Sum {
    fn add(&mut self, ns: f64, ops: f64, bytes: f64, floor_ns: f64) {
        self.steps += 1;
        self.ns += ns;
        self.ops += ops;
        self.bytes += bytes;
        self.floor_ns += floor_ns;
    }
}

fn text(r: &Timing) -> String {
    let mut out = format!(
        "{} at {}, {} threads: median {:.2} ms ({:.2} to {:.2}) over {} runs; load {:.1} ms, \
         first run {:.1} ms",
        r.shapes.join(" "),
        r.level,
        r.threads,
        r.median_ms,
        r.min_ms,
        r.max_ms,
        r.runs,
        r.load_ms,
        r.first_run_ms
    );
    if let Some(machine) = &r.machine {
        out.push_str(&format!("\n  {machine}"));
    }
    for k in &r.kernels {
        let of_ceiling = k.of_ceiling.map(|of| format!("{:6.1} % of what is possible", 100.0 * of));
        out.push_str(&format!(
            "\n  {:18} {:4} steps {:9.3} ms {:5.1} % {:8.1} GOP/s {:7.1} GB/s {}",
            k.family,
            k.steps,
            k.ms,
            100.0 * k.share,
            k.gops,
            k.gb_s,
            of_ceiling.unwrap_or_default()
        ));
    }
    out
}
