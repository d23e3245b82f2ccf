//! `fqc analyze`: what quantisation does to each group of linears, as a table, as JSON, and as a page
//! with plots.

use super::experiment::ExperimentArgs;
use super::{check_folder, print, print_json};
use crate::analyze::{self, Analysis, Curve};
use crate::evaluate::Scores;
use crate::exit::Failure;
use crate::experiment::{Experiment, Outcome};
use crate::html;
use crate::interrupt::Interrupt;
use crate::settings::{Method, Rounding, Scheme};
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// How to quantise [default: flattenquant]
    #[arg(long, value_enum)]
    pub method: Option<Method>,
    /// Bits of weights and activations [default: w8a8]
    #[arg(long, value_enum)]
    pub scheme: Option<Scheme>,
    /// A text to evaluate on, for the curve over the share of INT4: what `compile --int4-share` gives
    #[arg(long, value_name = "F.txt")]
    pub eval: Option<PathBuf>,
    /// Points of the curve: shares of the linear layers' work in INT4, in percent
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 25.0, 50.0, 75.0, 100.0])]
    pub shares: Vec<f64>,
    /// Widths of the curve's INT4 layers
    #[arg(long, value_enum, default_value = "w4a8")]
    pub low: Scheme,
    /// Write a page with plots, one file without anything outside
    #[arg(long, value_name = "F.html")]
    pub html: Option<PathBuf>,
    /// Lines of the table
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    pub lines: usize,
}

pub fn main(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    args.experiment.check()?;
    if let Some(path) = &args.html {
        check_folder(path)?;
    }
    if !args.shares.iter().all(|s| (0.0..=100.0).contains(s)) {
        return Err(Failure::usage("`--shares` are percentages from 0 to 100"));
    }
    if args.low == Scheme::W8a8 {
        return Err(Failure::usage("`--low` is the bits of INT4 layers: w4a8 or w4a4"));
    }
    let mut settings = args.experiment.settings()?;
    settings.method = args.method.unwrap_or(settings.method);
    settings.scheme = args.scheme.unwrap_or(settings.scheme);
    let text = args.eval.as_deref().map(|file| args.experiment.text(file)).transpose()?;
    let mut cx = args.experiment.context(interrupt);
    let (float, data, calibration) = args.experiment.calibrated(&mut cx)?;
    let statistics = data.statistics.unwrap_or_default();
    let groups = analyze::groups(&float, &statistics, &data.batches, &settings, &mut cx)?;
    let curve = match (text, &args.eval) {
        (Some(text), Some(file)) => {
            let experiment = Experiment::new(float, statistics, data.batches, text, &mut cx)?;
            let shares: Vec<f64> = args.shares.iter().map(|s| s / 100.0).collect();
            let activations = args.low.widths().activations;
            let points = experiment.curve(&settings, activations, &shares, &mut cx)?;
            let text = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Some(Curve { low: args.low, text, points })
        }
        _ => None,
    };
    let note = (settings.rounding() == Rounding::Gptq).then_some(analyze::WEIGHTS);
    let analysis = Analysis {
        note,
        producer: concat!("fqc ", env!("CARGO_PKG_VERSION")),
        model: args.experiment.model.display().to_string(),
        settings,
        calibration,
        groups,
        curve,
    };
    if let Some(path) = &args.html {
        let page = html::page(&analysis);
        std::fs::write(path, page).map_err(|e| Failure::io("write", path, &e))?;
    }
    if args.experiment.json {
        return print_json(&analysis);
    }
    print(&analyze::table(&analysis.groups, args.lines))?;
    if let Some(note) = analysis.note {
        print(note)?;
    }
    analysis.curve.as_ref().map_or(Ok(()), |curve| print(&lines(curve)))
}

/// The curve in words.
fn lines(curve: &Curve) -> String {
    let point = |o: &Outcome| {
        let scores = match &o.scores {
            Scores::Language(s) => {
                let kl = s.against.map_or(f64::NAN, |a| a.kl);
                format!("perplexity {:.3}, KL {kl:.5}", s.perplexity)
            }
            Scores::Encoder(outputs) => {
                let one = |c: &crate::evaluate::Cosines| {
                    format!("{} cosine {:.5}, {:.5}", c.output, c.min, c.mean)
                };
                outputs.iter().map(one).collect::<Vec<_>>().join("; ")
            }
        };
        format!("{:5.1} % of the work in {}: {scores}", 100.0 * o.int4_share, curve.low.widths())
    };
    let lines: Vec<String> = curve.points.iter().map(point).collect();
    format!("\non {}:\n{}", curve.text, lines.join("\n"))
}
