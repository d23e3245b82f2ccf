//! `fqc tune`: times the tiles that each gemm of a compiled model could take, on a GPU, and keeps the
//! fastest in a file that `fqc compile --tuned` reads.
//!
//! Each gemm is timed alone first (`tiles.rs`), then those that are faster than what the model of their time takes,
//! within the whole model (`whole.rs`). A file of tiles is never slower than none, as far as it was measured.

use super::{check_folder, context, device, print, print_json};
use crate::exit::{Exit, Failure, file_failure};
use crate::file;
use crate::fqcal::DataFile;
use crate::interrupt::Interrupt;
use crate::progress::Stage;
use crate::report::GemmReport;
use crate::target;
use crate::tiles::{Tried, Tuner};
use crate::tuned::{Measured, MeasuredGemm, MeasuredRows, MeasuredWhole};
use crate::whole::{self, Taken};
use fqbin::TargetImage;
use fqc_codegen::cuda::trial;
use fqc_codegen::cuda::tuning::BUCKETS;
use fqc_codegen::cuda::{Arch, Layer};
use fqrt::{Device, Gpu};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Bytes of weights beyond which no L2 holds anything of the last round.
const ROTATION: usize = 96 << 20;

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
    let (layers, image) = read(&args.model)?;
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
    let bytes = layers.iter().map(|(layer, n)| trial::weight_bytes(layer).saturating_mul(*n));
    let reach = bytes.fold(0, usize::saturating_add).min(ROTATION);
    let tuner = Tuner { gpu: &gpu, compiler: &compiler, reach, cx: &cx };
    let kinds: BTreeSet<String> = layers.iter().map(|(l, _)| l.in_blocks().to_string()).collect();
    let mut stage = Stage::new("tune", (kinds.len() * rows.len()) as u64, cx.verbosity);
    let mut alike: BTreeMap<String, Vec<Tried>> = BTreeMap::new();
    let mut tried = Vec::new();
    for (layer, _) in layers {
        let kind = layer.in_blocks().to_string();
        if !alike.contains_key(&kind) {
            let mut results = Vec::new();
            for &rows in &rows {
                results.push(tuner.measure(&layer, rows)?);
                stage.step();
            }
            alike.insert(kind.clone(), results);
        }
        let results = alike[&kind].iter().map(|tried| tried.of_layer(&layer)).collect();
        tried.push((layer, results));
    }
    let (taken, whole) = whole::settle(&gpu, &image, &tried, &cx)?;
    let gemms = tried.iter().enumerate().map(|(i, tried)| measured(i, tried, &taken)).collect();
    let ((major, minor), nvrtc) = (gpu.cuda(), compiler.nvrtc().version());
    let measured = Measured {
        tool: concat!("fqc ", env!("CARGO_PKG_VERSION")).to_owned(),
        gpu: gpu.name().to_owned(),
        driver: format!("CUDA {major}.{minor}"),
        nvrtc: format!("{}.{}", nvrtc.0, nvrtc.1),
        arch: Arch::Sm90a.to_string(),
        gemms,
        whole,
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
    tuned: Option<DataFile>,
}

/// The different gemms of a compiled model, how many steps are of each, and its image for Hopper.
fn read(path: &Path) -> Result<(Vec<(Layer, usize)>, TargetImage), Failure> {
    let bytes = std::fs::read(path).map_err(|e| Failure::io("read", path, &e))?;
    let in_file = |e: fqbin::Error| file_failure(&e, format!("`{}`: {e}", path.display()));
    let file = fqbin::File::open(&bytes).map_err(in_file)?;
    let bad = |what: String| Failure::new(Exit::Model, format!("`{}`: {what}", path.display()));
    let manifest: Manifest = serde_json::from_slice(file.manifest().map_err(in_file)?)
        .map_err(|e| bad(format!("the manifest: {e}")))?;
    let name = format!("cuda:{}", Arch::Sm90a);
    let target = match file.layout().target(&name) {
        Some(target) if !manifest.gemms.is_empty() => target,
        _ => {
            return Err(bad(format!(
                "there are no gemms for `{name}` in its manifest; compile it with \
                 `--target cuda`, by this version"
            )));
        }
    };
    if let Some(DataFile { name, .. }) = &manifest.tuned {
        return Err(bad(format!(
            "it has tiles of `{name}` already, with which none can be compared; compile it without \
             `--tuned`"
        )));
    }
    let gemms = manifest.gemms.iter().enumerate();
    let layers = gemms.map(|(i, GemmReport { gemm, steps })| {
        let layer = gemm.parse().map_err(|e| bad(format!("gemms[{i}] in the manifest: {e}")))?;
        Ok((layer, *steps))
    });
    let image = file.image(target).map_err(in_file)?;
    Ok((layers.collect::<Result<_, Failure>>()?, image))
}

/// What the file says of a gemm.
fn measured(index: usize, (layer, tried): &(Layer, Vec<Tried>), taken: &Taken) -> MeasuredGemm {
    let rows = |tried: &Tried| MeasuredRows {
        rows: tried.rows,
        tile: taken.get(&(index, tried.rows)).unwrap_or(&tried.model).to_string(),
        model: tried.model.to_string(),
        us: tried.timed.iter().map(|t| (t.tile.to_string(), (t.us * 1e3).round() / 1e3)).collect(),
    };
    MeasuredGemm { gemm: layer.to_string(), rows: tried.iter().map(rows).collect() }
}

/// A line for each gemm and number of rows: what was chosen, beside what the model of its time takes.
fn table(measured: &Measured) -> String {
    let mut out = format!("{}\n", measured.gpu);
    for MeasuredWhole { rows, inputs, model_us, us, taken } in &measured.whole {
        let inputs = inputs.first().map_or("", String::as_str);
        let kept = if *taken { "" } else { ": not taken" };
        let _ = writeln!(
            out,
            "whole, {rows:5} rows ({inputs}) {us:8.1} us, {model_us:.1} without this file{kept}"
        );
    }
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
