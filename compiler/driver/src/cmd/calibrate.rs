//! `fqc calibrate`: what calibration sees of a model, kept in a file. After an interrupt the samples
//! seen so far are in a file beside it, from which `--resume` goes on.

use super::calib::{CalibArgs, OBSERVED};
use super::{check_folder, context, print};
use crate::calibrate::{self, Progress};
use crate::exit::{Exit, Failure};
use crate::fqcal::Calibration;
use crate::hash;
use crate::interrupt::Interrupt;
use crate::pipeline;
use fqc_ir::Graph;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A killed process loses no more than this of its work.
const BETWEEN_SAVES: Duration = Duration::from_secs(30);

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model
    pub model: PathBuf,
    /// The file of statistics
    #[arg(short, long, value_name = "MODEL.fqcal")]
    pub output: PathBuf,
    #[command(flatten)]
    pub calib: CalibArgs,
    /// Go on from what an interrupted run left, if there is any
    #[arg(long)]
    pub resume: bool,
    /// Threads; all processors by default
    #[arg(long)]
    pub threads: Option<usize>,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

pub fn main(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    check(args)?;
    let mut cx = context(interrupt, args.quiet, args.threads);
    let float = pipeline::import(&args.model, &mut cx)?;
    let batches = args.calib.batches(&float)?;
    let rare = args.calib.rare(&float, &batches)?;
    let mut calibration = Calibration {
        graph_hash: hash::graph(&float),
        origin: args.calib.origin()?,
        done: 0,
        total: batches.len() + rare.batches.len(),
        statistics: Default::default(),
    };
    let part = beside(&args.output);
    let mut progress = match args.resume && part.exists() {
        true => seen(&part, &calibration, &float)?,
        false => Progress::default(),
    };
    let mut save = |progress: &Progress, path: &Path| {
        calibration.done = progress.done;
        calibration.statistics.clone_from(&progress.statistics);
        calibration.write(path)
    };
    let mut saved = Instant::now();
    let mut after = |progress: &Progress| {
        if saved.elapsed() >= BETWEEN_SAVES {
            save(progress, &part)?;
            saved = Instant::now();
        }
        Ok(())
    };
    let result =
        calibrate::resume(&float, OBSERVED, &batches, &rare, &mut progress, &mut after, &mut cx);
    if let Err(failure) = result {
        let stopped = matches!(failure.exit, Exit::Interrupted | Exit::Terminated);
        if !stopped || progress.done == 0 {
            return Err(failure);
        }
        save(&progress, &part)?;
        let total = batches.len() + rare.batches.len();
        let (done, part) = (progress.done, part.display());
        let message = format!(
            "interrupted after {done} of {total} samples; they are in `{part}`, go on with `--resume`"
        );
        return Err(Failure::new(failure.exit, message));
    }
    save(&progress, &args.output)?;
    if part.exists() {
        fs::remove_file(&part).map_err(|e| Failure::io("remove", &part, &e))?;
    }
    print(&format!(
        "wrote `{}`: {} values over {} samples",
        args.output.display(),
        progress.statistics.len(),
        progress.done
    ))
}

fn check(args: &Args) -> Result<(), Failure> {
    args.calib.check()?;
    check_folder(&args.output)?;
    let extension = |path: &Path| path.extension().is_some_and(|e| e == "fqcal");
    if !extension(&args.output) {
        return Err(Failure::usage(
            "the output's name ends in `.fqcal`, by which `--calib` knows it",
        ));
    }
    if args.calib.calib.iter().any(|c| extension(c)) {
        return Err(Failure::usage("`fqc calibrate` wants samples, not statistics (.fqcal)"));
    }
    Ok(())
}

/// Where the samples seen so far are kept.
fn beside(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// What an interrupted run of the same model and data has seen.
fn seen(part: &Path, now: &Calibration, float: &Graph) -> Result<Progress, Failure> {
    let then = Calibration::read(part)?;
    let same =
        then.graph_hash == now.graph_hash && then.origin == now.origin && then.total == now.total;
    if !same {
        return Err(Failure::data(format!(
            "`{}` is of another model or other data; remove it, or leave out `--resume`",
            part.display()
        )));
    }
    calibrate::check(float, OBSERVED, &then.statistics)
        .map_err(|e| Failure::data(format!("`{}` {e}", part.display())))?;
    Ok(Progress { done: then.done, statistics: then.statistics })
}
