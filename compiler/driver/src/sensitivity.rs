//! What an error of each group costs the model: the outputs with one group disturbed at a time against
//! those of the undisturbed float graph, on the first calibration batch.

use crate::data::Batch;
use crate::exit::{Exit, Failure};
use crate::pipeline::{self, Context};
use crate::progress::Stage;
use fqc_ir::Graph;
use fqc_passes::quant::groups::Heads;
use fqc_passes::quant::parallel;
use fqc_passes::quant::passes::Choices;
use fqc_passes::quant::probe::{Probe, probe};
use fqc_passes::quant::search::Sensitivity;
use fqc_passes::quant::stats::Statistics;
use fqrt::{Model, Session, SessionOptions, TensorView};

/// An output with rows at least so wide is one of logits.
const LOGITS: usize = 4096;

/// Batches that are run for each group.
const BATCHES: usize = 1;

/// Loss for a unit of error, for each group.
pub fn measure(
    float: &Graph,
    heads: Heads,
    choices: &Choices,
    statistics: &Statistics,
    batches: &[Batch],
    cx: &mut Context<'_>,
) -> Result<Sensitivity, Failure> {
    let (graph, probes) = probe(float, heads, choices, statistics).map_err(Failure::internal)?;
    let target = pipeline::float_target(&graph, cx)?;
    let model = Model::from_parts(target.program, &target.weights, &target.code, None)?;
    let cancel = Some(cx.interrupt.flag());
    let options = SessionOptions { threads: cx.threads, cancel, ..Default::default() };
    let mut session = Session::new(&model, options)?;
    let mut stage = Stage::new("sensitivity", probes.len() as u64, cx.verbosity);
    let mut outputs = |batch: &Batch, open: Option<&Probe>| {
        let (closed, opened) = ([0.0f32], [1.0f32]);
        let mut inputs: Vec<(&str, TensorView<'_>)> =
            batch.iter().map(|(name, t)| (name.as_str(), t.view())).collect();
        for probe in &probes {
            let gate = if Some(probe) == open { &opened } else { &closed };
            inputs.push((&probe.gate, TensorView::of(&[1], gate)));
        }
        let outputs = session.run(&inputs).map_err(|e| {
            cx.interrupt
                .check()
                .err()
                .unwrap_or_else(|| Failure::new(Exit::Data, format!("a calibration sample: {e}")))
        })?;
        let floats = outputs.iter().filter_map(|(_, tensor)| {
            let width = tensor.shape().last().copied().unwrap_or(1);
            Some((width, tensor.numbers::<f32>()?.to_vec()))
        });
        Ok::<Vec<(usize, Vec<f32>)>, Failure>(floats.collect())
    };
    let batches = &batches[..batches.len().min(BATCHES)];
    let mut losses = vec![0.0; probes.len()];
    for batch in batches {
        let want = outputs(batch, None)?;
        for (probe, sum) in probes.iter().zip(&mut losses) {
            let got = outputs(batch, Some(probe))?;
            for ((width, want), (_, got)) in want.iter().zip(&got) {
                *sum += divergence(want, got, *width, cx.threads);
            }
            stage.step();
        }
    }
    let count = batches.len().max(1) as f64;
    let each = probes.into_iter().zip(losses);
    Ok(each.map(|(p, loss)| (p.group, loss / count / p.error)).collect())
}

/// Mean over the rows: of the Kullback-Leibler divergence where they are logits, of the squared error
/// over the squared size otherwise.
fn divergence(want: &[f32], got: &[f32], width: usize, threads: usize) -> f64 {
    let width = width.max(1);
    let rows: Vec<(&[f32], &[f32])> =
        want.chunks_exact(width).zip(got.chunks_exact(width)).collect();
    let of_row = |(want, got): &(&[f32], &[f32])| {
        if width >= LOGITS { kullback_leibler(want, got) } else { relative(want, got) }
    };
    parallel::map(&rows, threads, of_row).iter().sum::<f64>() / rows.len().max(1) as f64
}

fn relative(want: &[f32], got: &[f32]) -> f64 {
    let off: f32 = want.iter().zip(got).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f32 = want.iter().map(|a| a * a).sum();
    if size > 0.0 { f64::from(off / size) } else { 0.0 }
}

/// Between the softmaxes of two rows.
fn kullback_leibler(want: &[f32], got: &[f32]) -> f64 {
    let log_sum = |row: &[f32]| {
        let largest = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
        let sum: f64 = row.iter().map(|v| f64::from((v - largest).exp())).sum();
        f64::from(largest) + sum.ln()
    };
    let (a, b) = (log_sum(want), log_sum(got));
    let term = |(p, q): (&f32, &f32)| {
        let log = f64::from(*p) - a;
        log.exp() * (log - (f64::from(*q) - b))
    };
    want.iter().zip(got).map(term).sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_of_simple_rows() {
        let even = [0.0f32; 2];
        let odd = [3.0f32.ln(), 0.0];
        // Σ ½ ln(½ / ¾) + ½ ln(½ / ¼)
        let want = 0.5 * (2.0f64 / 3.0).ln() + 0.5 * 2.0f64.ln();
        assert!((kullback_leibler(&even, &odd) - want).abs() < 1e-6);
        assert!(kullback_leibler(&odd, &[1.0 + 3.0f32.ln(), 1.0]) < 1e-6);
        assert_eq!(divergence(&[3.0, 4.0], &[3.0, 5.0], 2, 1), f64::from(1.0f32 / 25.0));
    }
}
