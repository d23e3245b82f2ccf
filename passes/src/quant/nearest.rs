//! Weights to nearest, each output channel's scale by search: largest weights may be cut off where a finer
//! step for the others is worth more on the calibrated inputs.

use super::choose::Choice;
use super::groups::{self, Heads, linear};
use super::insert_qdq::RoundedWeights;
use super::parallel;
use super::passes::Choices;
use super::round::{Granularity, Rounded, best_scale, rint};
use super::stats::{ChannelStats, Statistics};
use fqc_ir::quant::q_max;
use fqc_ir::{Graph, Op};
use std::sync::Arc;

/// Channels that never fired count so much of the mean.
const LITTLE: f32 = 0.01;

/// The weights of all groups that have a choice and statistics.
pub fn clipped(
    graph: &Graph,
    heads: Heads,
    choices: &Choices,
    statistics: &Statistics,
    granularity: Granularity,
    threads: usize,
) -> RoundedWeights {
    let mut jobs = Vec::new();
    for group in groups::find(graph, heads) {
        let name = &graph.node(group.input).name;
        let (Some(choice), Some(stats)) = (choices.get(name), statistics.get(name)) else {
            continue;
        };
        jobs.extend(group.linears.into_iter().map(|id| (id, choice, stats)));
    }
    let rounded = parallel::map(&jobs, threads, |&(id, choice, stats)| {
        let (_, w) = linear(graph, id)?;
        let Op::Const(value) = &graph.node(w).op else { return None };
        let (mut values, n) = (value.to_f32()?, value.shape[1]);
        for (row, s) in values.chunks_exact_mut(n.max(1)).zip(&choice.smooth) {
            row.iter_mut().for_each(|v| *v *= s);
        }
        let rounded = round(&values, n, choice, &importance(stats, choice), granularity);
        Some((graph.node(id).name.clone(), rounded))
    });
    Arc::new(rounded.into_iter().flatten().collect())
}

/// `Σ_t ω_t x_tj²` of the smoothed inputs over the sampled tokens, with the ω of
/// [`trial`](super::trial).
fn importance(stats: &ChannelStats, choice: &Choice) -> Vec<f32> {
    let mut energy = vec![0.0f32; stats.channels()];
    for row in stats.sample() {
        let size: f32 = row.iter().map(|v| v * v).sum();
        let omega = 1.0 / (size + choice.typical_energy);
        for ((e, x), s) in energy.iter_mut().zip(row).zip(&choice.smooth) {
            *e += omega * (x / s).powi(2);
        }
    }
    let little = LITTLE * energy.iter().sum::<f32>() / energy.len().max(1) as f32;
    let little = if little > 0.0 { little } else { 1.0 };
    energy.iter_mut().for_each(|e| *e = e.max(little));
    energy
}

/// The codes of smoothed weights \[base, n\] with a row for every flattened channel: the copies of a
/// channel are the same.
fn round(
    weights: &[f32],
    n: usize,
    choice: &Choice,
    importance: &[f32],
    granularity: Granularity,
) -> Rounded {
    let bits = choice.widths.weights;
    let scales = match granularity {
        Granularity::PerChannel => {
            let column = |c: usize| -> Vec<f32> {
                weights.iter().skip(c).step_by(n.max(1)).copied().collect()
            };
            (0..n).map(|c| best_scale(&column(c), importance, bits)).collect::<Vec<f32>>()
        }
        Granularity::PerTensor => {
            let each = |e: &f32| std::iter::repeat_n(*e, n);
            let importance: Vec<f32> = importance.iter().flat_map(each).collect();
            vec![best_scale(weights, &importance, bits); n]
        }
    };
    let q = q_max(bits, true) as f32;
    let mut codes = vec![0i8; choice.map.padded as usize * n];
    for (i, row) in codes.chunks_exact_mut(n.max(1)).enumerate() {
        let Some((channel, _)) = choice.map.source(i) else { continue };
        for ((code, w), scale) in row.iter_mut().zip(&weights[channel * n..]).zip(&scales) {
            *code = rint((w / scale).clamp(-q, q)) as i8;
        }
    }
    Rounded { codes, scales }
}

#[cfg(test)]
mod tests {
    use super::super::widths::Widths;
    use super::*;
    use fqc_ir::FlattenMap;

    fn choice(tail: &[(u32, u16)]) -> Choice {
        Choice {
            alpha: 0.0,
            smooth: vec![1.0; 4],
            threshold: 1.0,
            map: Arc::new(FlattenMap { base: 4, tail: tail.into(), padded: 8 }),
            signed: true,
            widths: Widths::W4A8,
            typical_energy: 1.0,
            error: 0.0,
        }
    }

    /// Column 0 has a large weight on a channel that hardly fires: it is cut off. In column 1 the same
    /// weight is on a channel that fires.
    #[test]
    fn a_large_weight_is_cut_off_where_that_costs_little() {
        let weights = [2.0, 0.3, 0.3, 0.21, 0.21, 0.1, 0.1, 2.0];
        let importance = [1e-4, 1.0, 1.0, 1.0];
        let rounded = round(&weights, 2, &choice(&[(1, 2)]), &importance, Granularity::PerChannel);
        assert!(rounded.scales[0] < 0.8 * 2.0 / 7.0, "{:?}", rounded.scales);
        assert!(rounded.scales[1] > 0.9 * 2.0 / 7.0, "{:?}", rounded.scales);
        let row = |i: usize| &rounded.codes[2 * i..2 * i + 2];
        assert_eq!(row(0)[0], 7);
        assert_eq!(row(4), row(1), "copies are the same");
        assert!(rounded.codes[10..].iter().all(|c| *c == 0), "padding");
        let whole = round(&weights, 2, &choice(&[]), &importance, Granularity::PerTensor);
        assert_eq!(whole.scales[0], whole.scales[1]);
    }

    #[test]
    fn importance_is_that_of_the_smoothed_input() {
        let mut stats = ChannelStats::new(4);
        stats.update(&[1.0, 2.0, 0.0, 0.0]).expect("finite");
        let smoothed = Choice { smooth: vec![1.0, 2.0, 1.0, 1.0], ..choice(&[]) };
        let found = importance(&stats, &smoothed);
        assert_eq!(found[0], found[1]);
        assert!((found[0] - 1.0 / 6.0).abs() < 1e-6 && found[2] > 0.0 && found[2] < 0.01);
    }
}
