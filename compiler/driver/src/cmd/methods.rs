//! `fqc methods`: every method at every width side by side, with one calibration and one text.

use super::experiment::ExperimentArgs;
use super::{print, print_json};
use crate::analyze::SCHEMES;
use crate::evaluate::Scores;
use crate::exit::Failure;
use crate::experiment::{Experiment, Outcome};
use crate::interrupt::Interrupt;
use crate::settings::{Method, Scheme, Settings};
use serde::Serialize;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pub experiment: ExperimentArgs,
    /// The text to evaluate on
    #[arg(long, value_name = "F.txt")]
    pub eval: PathBuf,
    /// Methods to compare [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub method: Vec<Method>,
    /// Widths to compare [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub scheme: Vec<Scheme>,
}

/// One row of the table.
#[derive(Serialize)]
struct Row<'a> {
    method: Method,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheme: Option<Scheme>,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

const METHODS: [Method; 4] = [Method::None, Method::Rtn, Method::Smoothquant, Method::Flattenquant];

pub fn main(args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    args.experiment.check()?;
    let base = args.experiment.settings()?;
    let text = args.experiment.text(&args.eval)?;
    let mut cx = args.experiment.context(interrupt);
    let (float, data, _) = args.experiment.calibrated(&mut cx)?;
    let statistics = data.statistics.unwrap_or_default();
    let experiment = Experiment::new(float, statistics, data.batches, text, &mut cx)?;
    let methods = if args.method.is_empty() { METHODS.to_vec() } else { args.method.clone() };
    let schemes = if args.scheme.is_empty() { SCHEMES.to_vec() } else { args.scheme.clone() };
    let mut first = true;
    for method in methods {
        // Float has no widths.
        let schemes = if method == Method::None { &schemes[..1] } else { &schemes[..] };
        for &scheme in schemes {
            let settings = Settings { method, scheme, groups: Vec::new(), ..base.without_aim() };
            let outcome = experiment.run(&settings, &mut cx)?;
            let scheme = (method != Method::None).then_some(scheme);
            let row = Row { method, scheme, outcome: &outcome };
            if args.experiment.json {
                print_json(&row)?;
                continue;
            }
            if std::mem::take(&mut first) {
                print(&head(&outcome.scores))?;
            }
            print(&line(&row))?;
        }
    }
    Ok(())
}

fn head(scores: &Scores) -> String {
    let scores = match scores {
        Scores::Language(_) => "perplexity        KL   top-1".to_owned(),
        Scores::Encoder(outputs) => {
            let names: Vec<&str> = outputs.iter().map(|o| o.output.as_str()).collect();
            format!("cosine min, mean of {}", names.join("; "))
        }
    };
    format!("method        bits   extra  weights  {scores}")
}

fn line(row: &Row<'_>) -> String {
    let o = row.outcome;
    let scores = match &o.scores {
        Scores::Language(s) => {
            let (kl, top1) = s.against.map_or((f64::NAN, f64::NAN), |a| (a.kl, a.top1));
            format!("{:>10.3}  {kl:>8.5}  {top1:.4}", s.perplexity)
        }
        Scores::Encoder(outputs) => {
            let pair = |c: &crate::evaluate::Cosines| format!("{:.5}, {:.5}", c.min, c.mean);
            outputs.iter().map(pair).collect::<Vec<_>>().join("; ")
        }
    };
    let method = format!("{:?}", row.method).to_lowercase();
    let bits = row.scheme.map_or("f32".to_owned(), |s| s.widths().to_string());
    format!(
        "{method:12}  {bits:4}  {:4.1} %  {:4.0} MB  {scores}",
        100.0 * o.extra_channels,
        o.weight_bytes as f64 / 1e6
    )
}
