//! `fqc tune`: times the tiles that each gemm of a compiled model could take, on a GPU, and keeps the
//! fastest in a file that `fqc compile --tuned` reads.
//!
//! A tile is timed as the kernel that a model gets, launched as a model launches it: in a graph, over as
//! many weights as the model's gemms have together (or what any L2 holds), so that they come from where
//! the model's come from. Nothing of the model runs, and its weights do not matter.

use super::{check_folder, context, device, print, print_json, views};
use crate::exit::{Exit, Failure, file_failure};
use crate::file;
use crate::interrupt::Interrupt;
use crate::pipeline::Context;
use crate::progress::Stage;
use crate::report::GemmReport;
use crate::target;
use crate::tuned::{Measured, MeasuredGemm, MeasuredRows};
use fqbin::{Elem, Expr, ExprId, Program};
use fqc_codegen::cuda::trial::{self, Trial};
use fqc_codegen::cuda::tuning::{BUCKETS, Tile};
use fqc_codegen::cuda::{Arch, Compiler, Error, Layer};
use fqrt::{Device, Gpu, Session, SessionOptions, Tensor};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of weights beyond which no L2 holds anything of the last round.
const ROTATION: usize = 160 << 20;

/// Nanoseconds of a replay, about, and of those before the timed ones.
const REPLAY_NS: f64 = 2e6;
const WARM_NS: u64 = 10_000_000;

/// Timed replays, in each of the rounds.
const TIMED: usize = 5;
const ROUNDS: usize = 2;

/// Tiles that the model of their time finds so many times slower than its best are not tried.
const HOPELESS: f64 = 2.0;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The compiled model, with code for `cuda:sm_90a`
    pub model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "TUNED.json")]
    pub output: PathBuf,
    /// GPU to measure on: `cuda` or `cuda:N`
    #[arg(long, default_value = "cuda")]
    pub device: String,
    /// Rows (batch times tokens) up to which a tile is chosen; the last one stands for all that are more
    #[arg(long, value_delimiter = ',', default_values_t = BUCKETS)]
    pub rows: Vec<usize>,
    /// What was measured as JSON, too, to standard output
    #[arg(long)]
    pub json: bool,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

pub fn main(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    check_folder(&args.output)?;
    let mut rows = args.rows.clone();
    rows.sort_unstable();
    rows.dedup();
    if let Some(other) = rows.iter().find(|rows| !BUCKETS.contains(rows)) {
        return Err(Failure::usage(format!("no tile is chosen for {other} rows, but {BUCKETS:?}")));
    }
    let Device::Cuda(ordinal) = device(&args.device)? else {
        return Err(Failure::usage("`--device` is `cuda` or `cuda:N`: tiles are those of a GPU"));
    };
    let layers = layers(&args.model)?;
    let compiler = target::nvrtc()?;
    let gpu = Gpu::open(ordinal)?;
    if gpu.capability() != (9, 0) {
        let ((major, minor), name) = (gpu.capability(), gpu.name());
        return Err(Failure::new(
            Exit::CannotRun,
            format!(
                "`{name}` has compute capability {major}.{minor}; tiles are chosen for 9.0 \
                 (`{}`), elsewhere there is one",
                Arch::Sm90a
            ),
        ));
    }
    let cx = context(interrupt, args.quiet, None);
    let reach: usize = layers.iter().map(|(layer, n)| trial::weight_bytes(layer) * n).sum();
    let tuner = Tuner { gpu: &gpu, compiler: &compiler, reach: reach.min(ROTATION), cx: &cx };
    let mut stage = Stage::new("tune", (layers.len() * rows.len()) as u64, cx.verbosity);
    let mut gemms = Vec::new();
    for (layer, _) in &layers {
        let mut measured = Vec::new();
        for &rows in &rows {
            measured.push(tuner.measure(layer, rows)?);
            stage.step();
        }
        gemms.push(MeasuredGemm { gemm: layer.to_string(), rows: measured });
    }
    let ((major, minor), nvrtc) = (gpu.cuda(), compiler.nvrtc().version());
    let measured = Measured {
        tool: concat!("fqc ", env!("CARGO_PKG_VERSION")).to_owned(),
        gpu: gpu.name().to_owned(),
        driver: format!("CUDA {major}.{minor}"),
        nvrtc: format!("{}.{}", nvrtc.0, nvrtc.1),
        arch: Arch::Sm90a.to_string(),
        gemms,
    };
    let text = serde_json::to_string_pretty(&measured).map_err(Failure::internal)?;
    file::write(&args.output, (text + "\n").as_bytes())?;
    if args.json { print_json(&measured) } else { print(table(&measured).trim_end()) }
}

/// Of a manifest, what is looked at.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    gemms: Vec<GemmReport>,
}

/// The different gemms of a compiled model, and how many steps are of each.
fn layers(path: &Path) -> Result<Vec<(Layer, usize)>, Failure> {
    let bytes = std::fs::read(path).map_err(|e| Failure::io("read", path, &e))?;
    let in_file = |e: fqbin::Error| file_failure(&e, format!("`{}`: {e}", path.display()));
    let file = fqbin::File::open(&bytes).map_err(in_file)?;
    let bad = |what: String| Failure::new(Exit::Model, format!("`{}`: {what}", path.display()));
    let manifest: Manifest = serde_json::from_slice(file.manifest().map_err(in_file)?)
        .map_err(|e| bad(format!("the manifest: {e}")))?;
    if manifest.gemms.is_empty() {
        return Err(bad(format!(
            "there are no gemms for `cuda:{}` in its manifest; compile it with `--target cuda`, \
             by this version",
            Arch::Sm90a
        )));
    }
    let gemms = manifest.gemms.iter().enumerate();
    gemms
        .map(|(i, GemmReport { gemm, steps })| {
            let layer =
                gemm.parse().map_err(|e| bad(format!("gemms[{i}] in the manifest: {e}")))?;
            Ok((layer, *steps))
        })
        .collect()
}

struct Tuner<'a> {
    gpu: &'a Gpu,
    compiler: &'a Compiler,
    /// Bytes of weights that a replay goes through at least.
    reach: usize,
    cx: &'a Context<'a>,
}

/// One tile that is timed.
struct Contender {
    tile: Tile,
    session: Session,
    launches: usize,
    ns: Vec<u64>,
}

impl Contender {
    /// Microseconds of a launch and of the step before it.
    fn us(&mut self) -> f64 {
        self.ns.sort_unstable();
        self.ns[self.ns.len() / 2] as f64 / self.launches as f64 / 1e3
    }
}

impl Tuner<'_> {
    /// Times the tiles of a gemm for so many rows.
    fn measure(&self, layer: &Layer, rows: usize) -> Result<MeasuredRows, Failure> {
        let ranked = layer.ranked(rows);
        let (model, best) = ranked[0];
        let hopeful = ranked.iter().filter(|(_, us)| *us <= HOPELESS * best).map(|(t, _)| *t);
        let weights = (self.reach / trial::weight_bytes(layer)).max(1);
        let launches = weights.max((REPLAY_NS / 1e3 / best).clamp(4.0, 200.0) as usize);
        let trial = Trial { rows, weights, launches };
        let mut contenders = self.contenders(layer, &hopeful.collect::<Vec<_>>(), trial)?;
        for _ in 0..ROUNDS {
            // Forth and back, so that nobody always follows the same neighbour.
            contenders.reverse();
            for contender in &mut contenders {
                self.cx.interrupt.check()?;
                let mut warm = 0;
                while warm < WARM_NS {
                    warm += contender.session.time_on_device(1)?.iter().sum::<u64>().max(1);
                }
                contender.ns.extend(contender.session.time_on_device(TIMED)?);
            }
        }
        let mut us = BTreeMap::new();
        let mut fastest = (f64::INFINITY, model);
        for contender in &mut contenders {
            let time = (contender.us() * 1e3).round() / 1e3;
            us.insert(contender.tile.to_string(), time);
            if time < fastest.0 {
                fastest = (time, contender.tile);
            }
        }
        Ok(MeasuredRows { rows, tile: fastest.1.to_string(), model: model.to_string(), us })
    }

    /// Compiles the tiles, on all processors, and loads them. Those that no kernel can have are left out.
    fn contenders(
        &self,
        layer: &Layer,
        tiles: &[Tile],
        trial: Trial,
    ) -> Result<Vec<Contender>, Failure> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut made = Vec::new();
            while let Some(&tile) = tiles.get(next.fetch_add(1, Ordering::Relaxed)) {
                made.push((tile, trial::program(layer, tile, trial, self.compiler)));
            }
            made
        };
        let mut made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.cx.threads.max(1)).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap_or_default()).collect()
        });
        made.sort_by_key(|(tile, _)| (tile.tokens, tile.split));
        let mut contenders = Vec::new();
        let (mut refused, mut given) = (None, Vec::new());
        for (tile, image) in made {
            let image = match image {
                Ok(image) => image,
                Err(e @ (Error::Unsupported(_) | Error::Slow { .. })) => {
                    refused = Some(e);
                    continue;
                }
                Err(e) => return Err(target::failure(&e)),
            };
            let model = self.gpu.model(image)?;
            let cancel = Some(self.cx.interrupt.flag());
            let mut session =
                Session::new(&model, SessionOptions { cancel, ..Default::default() })?;
            if given.is_empty() {
                given = inputs(model.program())?;
            }
            session.run(&views(&given))?;
            contenders.push(Contender { tile, session, launches: trial.launches, ns: Vec::new() });
        }
        match refused {
            Some(e) if contenders.is_empty() => Err(target::failure(&e)),
            _ => Ok(contenders),
        }
    }
}

/// Values for a trial's inputs: any weights do, and floats from 0.5 up to 2 of either sign.
fn inputs(program: &Program) -> Result<Vec<(String, Tensor)>, Failure> {
    let mut state = 1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let size = |&dim: &ExprId| match program.exprs.get(dim.index()) {
        Some(&Expr::Const(size)) => usize::try_from(size).map_err(Failure::internal),
        _ => Err(Failure::internal("a trial of open sizes")),
    };
    let mut inputs = Vec::new();
    for port in &program.inputs {
        let shape = port.shape.iter().map(size).collect::<Result<Vec<_>, _>>()?;
        let mut tensor = Tensor::zeros(port.elem, &shape)?;
        for word in tensor.bytes_mut().chunks_mut(8) {
            word.copy_from_slice(&next().to_le_bytes()[..word.len()]);
        }
        if port.elem != Elem::U8 {
            let highest = tensor.bytes_mut().chunks_exact_mut(port.elem.bytes());
            highest.filter_map(|float| float.last_mut()).for_each(|b| *b = *b & 0x80 | 0x3f);
        }
        inputs.push((port.name.clone(), tensor));
    }
    Ok(inputs)
}

/// A line for each gemm and number of rows: what was chosen, beside what the model of its time takes.
fn table(measured: &Measured) -> String {
    let mut out = format!("{}\n", measured.gpu);
    for MeasuredGemm { gemm, rows } in &measured.gemms {
        let _ = writeln!(out, "{gemm}");
        for MeasuredRows { rows, tile, model, us } in rows {
            let time = |tile: &String| us.get(tile).copied().unwrap_or(f64::NAN);
            let _ = write!(out, "  {rows:5} rows  {tile:11} {:8.2} us", time(tile));
            let _ = match tile == model {
                true => writeln!(out),
                false => writeln!(out, ", {:.2} with {model}", time(model)),
            };
        }
    }
    out
}
