//! What rounding one group costs, by running it: the linears of the group on sampled rows of their
//! input, once in float and once through the codes of a choice. Unlike the measures that the search
//! goes by, nothing is taken as independent here.

use super::choose::Choice;
use super::groups::{Group, linear};
use super::insert_qdq::{Format, round_weight};
use super::round::Granularity;
use super::smooth::multipliers;
use super::stats::ChannelStats;
use fqc_ir::quant::{digit, q_max, wide_code};
use fqc_ir::{Const, Graph, Op, Scale};

/// Mean over the rows of `‖y' - y‖² / ‖y‖²`, for outputs `y` of all linears of the group side by side.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Loss {
    /// Input and weights rounded, weights to nearest.
    pub total: f64,
    /// Only the input rounded.
    pub activations: f64,
}

/// A group ready to be measured.
pub struct Measure {
    /// Sampled rows \[rows, K\].
    rows: Vec<f32>,
    k: usize,
    linears: Vec<Linear>,
}

struct Linear {
    /// \[K, N\].
    weight: Vec<f32>,
    n: usize,
    /// Outputs in float \[rows, N\].
    outputs: Vec<f32>,
}

impl Measure {
    /// Runs at most so many rows, evenly from the sample. `None` if nothing was seen of the group, or
    /// it is not a group of the graph.
    pub fn new(graph: &Graph, group: &Group, stats: &ChannelStats, rows: usize) -> Option<Measure> {
        let k = stats.channels();
        let step = stats.sample().count().div_ceil(rows.max(1)).max(1);
        let rows: Vec<f32> = stats.sample().step_by(step).flatten().copied().collect();
        if rows.is_empty() {
            return None;
        }
        let one = |&id: &_| {
            let (_, w) = linear(graph, id)?;
            let Op::Const(value) = &graph.node(w).op else { return None };
            let weight = value.to_f32()?;
            let n = value.shape[1];
            if value.shape[0] != k {
                return None;
            }
            let outputs = product(&rows, &weight, k, n);
            Some(Linear { weight, n, outputs })
        };
        let linears = group.linears.iter().map(one).collect::<Option<Vec<Linear>>>()?;
        Some(Measure { rows, k, linears })
    }

    /// The loss of a choice; `None` if it is another group's, or a weight cannot be rounded.
    pub fn loss(&self, choice: &Choice, granularity: Granularity) -> Option<Loss> {
        if choice.smooth.len() != self.k || choice.map.base as usize != self.k {
            return None;
        }
        let rounded = self.rounded(choice);
        let count = self.rows.len() / self.k.max(1);
        let (mut total, mut activations) = (vec![0.0; count], vec![0.0; count]);
        let mut energy = vec![0.0; count];
        let format = Format { widths: choice.widths, signed: choice.signed, granularity };
        for linear in &self.linears {
            let mut smoothed = linear.weight.clone();
            for (row, s) in smoothed.chunks_exact_mut(linear.n.max(1)).zip(&choice.smooth) {
                row.iter_mut().for_each(|v| *v *= s);
            }
            let codes = through_codes(&smoothed, self.k, linear.n, format)?;
            add(&mut energy, &linear.outputs, None, linear.n);
            let outputs = product(&rounded, &smoothed, self.k, linear.n);
            add(&mut activations, &outputs, Some(&linear.outputs), linear.n);
            let outputs = product(&rounded, &codes, self.k, linear.n);
            add(&mut total, &outputs, Some(&linear.outputs), linear.n);
        }
        let mean = |errors: &[f64]| {
            let ratios = errors.iter().zip(&energy).filter(|(_, y)| **y > 0.0);
            let ratios: Vec<f64> = ratios.map(|(e, y)| e / y).collect();
            ratios.iter().sum::<f64>() / ratios.len().max(1) as f64
        };
        Some(Loss { total: mean(&total), activations: mean(&activations) })
    }

    /// The rows after smoothing and rounding, as `insert-qdq` does it.
    fn rounded(&self, choice: &Choice) -> Vec<f32> {
        let scale = choice.scale();
        let q = q_max(choice.widths.activations, choice.signed);
        let inverse: Vec<f32> = multipliers(&choice.smooth).iter().map(|f| f / scale).collect();
        let mut digits = vec![1u32; self.k];
        for &(channel, _) in choice.map.tail.iter() {
            digits[channel as usize] += 1;
        }
        let mut out = self.rows.clone();
        for row in out.chunks_exact_mut(self.k.max(1)) {
            for ((x, inverse), digits) in row.iter_mut().zip(&inverse).zip(&digits) {
                let wide = wide_code(*x, *inverse, choice.signed);
                *x = (1..=*digits).map(|d| digit(wide, d, q)).sum::<i32>() as f32 * scale;
            }
        }
        out
    }
}

/// Weights \[K, N\] rounded to codes and back.
fn through_codes(weight: &[f32], k: usize, n: usize, format: Format) -> Option<Vec<f32>> {
    let (codes, quant) = round_weight(&Const::f32(vec![k, n], weight), format)?;
    let scale = |column: usize| match &quant.scale {
        Scale::Tensor(scale) => *scale,
        Scale::Axis { scales, .. } => scales[column],
    };
    let scales: Vec<f32> = (0..n).map(scale).collect();
    let codes = codes.to_i64()?;
    Some(codes.iter().enumerate().map(|(i, c)| *c as f32 * scales[i % n]).collect())
}

/// `x w` for rows `x` \[rows, K\] and `w` \[K, N\].
fn product(x: &[f32], w: &[f32], k: usize, n: usize) -> Vec<f32> {
    /// Rows for which a row of `w` is read once.
    const BLOCK: usize = 8;
    let (k, n) = (k.max(1), n.max(1));
    let mut out = vec![0.0; x.len() / k * n];
    for (x, out) in x.chunks(BLOCK * k).zip(out.chunks_mut(BLOCK * n)) {
        for (j, w) in w.chunks_exact(n).enumerate() {
            for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
                let factor = x[j];
                out.iter_mut().zip(w).for_each(|(y, w)| *y += factor * w);
            }
        }
    }
    out
}

/// Adds the squared distance of each row from another, or from zero.
fn add(sums: &mut [f64], rows: &[f32], others: Option<&[f32]>, n: usize) {
    for (i, (sum, row)) in sums.iter_mut().zip(rows.chunks_exact(n.max(1))).enumerate() {
        let square = |(j, v): (usize, &f32)| {
            let other = others.map_or(0.0, |o| o[i * n + j]);
            f64::from(v - other).powi(2)
        };
        *sum += row.iter().enumerate().map(square).sum::<f64>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::groups::{Heads, find};
    use crate::quant::widths::Widths;
    use fqc_ir::{FlattenMap, text};
    use std::sync::Arc;

    fn graph() -> Graph {
        let lines = [
            "graph @g {",
            "  %x: f32[2,2] = input",
            "  %w: f32[2,2] = const {dense=[1.0, 0.0, 0.0, 1.0]}",
            "  %v: f32[2,1] = const {dense=[0.5, 0.5]}",
            "  %y: f32[2,2] = matmul %x, %w",
            "  %z: f32[2,1] = matmul %x, %v",
            "  return %y as y, %z as z",
            "}",
        ];
        text::parse(&lines.join("\n"), &text::Blobs::new()).expect("a graph")
    }

    fn measured(choice: &Choice) -> Loss {
        let graph = graph();
        let groups = find(&graph, Heads::Quantized);
        let mut stats = ChannelStats::new(2);
        stats.update(&[1.27, 0.01, -1.27, 2.54]).expect("finite");
        let measure = Measure::new(&graph, &groups[0], &stats, 64).expect("a group");
        measure.loss(choice, Granularity::PerChannel).expect("its choice")
    }

    fn choice(threshold: f32, tail: &[(u32, u16)], smooth: [f32; 2]) -> Choice {
        let padded = 2 + tail.len() as u32;
        Choice {
            alpha: 0.0,
            smooth: smooth.to_vec(),
            threshold,
            map: Arc::new(FlattenMap { base: 2, tail: tail.into(), padded }),
            signed: true,
            widths: Widths::W8A8,
            typical_energy: 1.0,
            error: 0.0,
        }
    }

    #[test]
    fn what_codes_hold_exactly_costs_nothing() {
        let loss = measured(&choice(2.54, &[], [1.0, 1.0]));
        assert!(loss.total > 1e-7, "0.01 is half a step of 0.02: {loss:?}");
        let loss = measured(&choice(1.27, &[(1, 2)], [1.0, 1.0]));
        assert!(loss.total < 1e-12 && loss.activations < 1e-12, "{loss:?}");
    }

    #[test]
    fn a_cut_channel_costs_what_is_cut() {
        // Row 0 is exact. Of row 1, (-1.27, 2.54), the second channel comes out as 1.27: the outputs
        // (-1.27, 2.54, 0.635) are off by (0, 1.27, 0.635).
        let loss = measured(&choice(1.27, &[], [1.0, 1.0]));
        let of = |v: [f64; 3]| v.iter().map(|v| v * v).sum::<f64>();
        let want = 0.5 * of([0.0, 1.27, 0.635]) / of([-1.27, 2.54, 0.635]);
        assert!((loss.total - want).abs() < 1e-6 && (loss.activations - want).abs() < 1e-6);
        // Smoothing makes room instead: (-1.27, 1.27).
        let loss = measured(&choice(1.27, &[], [1.0, 2.0]));
        assert!(loss.activations < 1e-4 && loss.activations < want / 100.0, "{loss:?}");
    }
}
