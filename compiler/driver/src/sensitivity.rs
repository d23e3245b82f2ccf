//! What an error of each group costs the model: the outputs with one group disturbed at a time against
//! those of the undisturbed float graph, on the first calibration batch.

use crate::data::Batch;
use crate::exit::Failure;
use crate::npz;
use crate::parts::{self, Part, Walk};
use crate::pipeline::Context;
use crate::progress::Stage;
use fqc_ir::{Elem, Graph, NodeId};
use fqc_passes::quant::groups::Heads;
use fqc_passes::quant::parallel;
use fqc_passes::quant::passes::Choices;
use fqc_passes::quant::probe::{Probe, probe};
use fqc_passes::quant::search::Sensitivity;
use fqc_passes::quant::stats::Statistics;
use fqrt::Tensor;
use std::collections::{BTreeMap, BTreeSet};

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
    if probes.is_empty() {
        return Ok(Sensitivity::new());
    }
    let is_float = |id: &NodeId| graph.node(*id).ty.elem == Elem::F32;
    let outputs: BTreeSet<NodeId> = graph.outputs().iter().map(|o| o.1).filter(is_float).collect();
    let parts = parts::cut(&graph, &outputs.into_iter().collect::<Vec<_>>())?;
    // A probe's run is the plain one until a part reads its gate.
    let opened = |part: &Part| -> Vec<usize> {
        (0..probes.len()).filter(|&i| part.reads(&probes[i].gate)).collect()
    };
    let opened: Vec<Vec<usize>> = parts.iter().map(opened).collect();
    let batches = &batches[..batches.len().min(BATCHES)];
    let runs = opened.iter().rev().zip(1..).map(|(new, left)| new.len() * left).sum::<usize>();
    let mut stage = Stage::new("sensitivity", (runs * batches.len()) as u64, cx.verbosity);
    let mut losses = vec![0.0; probes.len()];
    for batch in batches {
        let open = std::iter::once(None).chain(probes.iter().map(Some));
        let gated = open.map(|open| with_gates(batch, &probes, open));
        let gated = gated.collect::<Result<Vec<Batch>, Failure>>()?;
        let mut walk = Walk::new(&gated[..1])?;
        let mut order: Vec<usize> = Vec::new();
        for (part, new) in parts.iter().zip(&opened) {
            new.iter().for_each(|&probe| walk.fork(0, &gated[1 + probe]));
            order.extend(new.iter().copied());
            let mut want: BTreeMap<String, Vec<f32>> = BTreeMap::new();
            let threads = cx.threads;
            walk.run(part, &part.observed, true, cx, &mut |index, values| {
                for (name, tensor) in values {
                    let got = tensor.numbers::<f32>().unwrap_or_default();
                    let width = tensor.shape().last().copied().unwrap_or(1);
                    match (index, want.get(*name)) {
                        (0, _) => drop(want.insert((*name).to_owned(), got.to_vec())),
                        (_, None) => {}
                        (run, Some(want)) => {
                            let probe = order[run - 1];
                            losses[probe] += divergence(want, got, width, threads);
                        }
                    }
                }
                if index > 0 {
                    stage.step();
                }
                Ok(())
            })?;
        }
    }
    let count = batches.len().max(1) as f64;
    let each = probes.into_iter().zip(losses);
    Ok(each.map(|(p, loss)| (p.group, loss / count / p.error)).collect())
}

/// A batch with one gate open, or none.
fn with_gates(batch: &Batch, probes: &[Probe], open: Option<&Probe>) -> Result<Batch, Failure> {
    let copy = |tensor: &Tensor| {
        npz::filled(tensor.elem(), tensor.shape(), tensor.bytes()).map_err(Failure::internal)
    };
    let mut gated = Batch::new();
    for (name, tensor) in batch {
        gated.push((name.clone(), copy(tensor)?));
    }
    for probe in probes {
        let gate = f32::from(u8::from(Some(probe) == open)).to_le_bytes();
        let gate = npz::filled(fqbin::Elem::F32, &[1], &gate).map_err(Failure::internal)?;
        gated.push((probe.gate.clone(), gate));
    }
    Ok(gated)
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
