//! One smoothing of a group, and what each step of the activation's codes costs at each number of
//! copies.
//!
//! The measure is the expected squared error of the group's outputs, each token relative to its own
//! size, with the errors of different channels taken as independent:
//! `Σ_j Σ_t ω_t e_tj² · ‖w_j‖²` for the activation plus the same with `x_tj² · ‖w_j - q(w_j)‖²` for
//! weights rounded per output channel, where `ω_t = 1 / (‖x_t‖² + τ)` and τ is the median of `‖x_t‖²`.
//! Without ω, a few tokens with massive activations decide everything, and those are the ones that a
//! norm behind them divides by their size.

use super::choose::{Settings, Weights};
use super::round::{Granularity, rint};
use super::stats::{ChannelStats, Peak};
use super::widths::Widths;
use fqc_ir::quant::q_max;

/// Smoothing factors stay within this factor of their geometric mean.
const FACTOR: f32 = 1e4;

/// Activations that never exceed this count as zero.
const SMALLEST: f32 = 1e-18;

/// Codes beyond this are all the same to the search.
const WIDE: f32 = 4_194_304.0;

/// τ at least, so that its reciprocal is a number in f32 too.
const LEAST_ENERGY: f64 = 1e-30;

/// What does not depend on smoothing.
pub struct Base<'a> {
    pub stats: &'a ChannelStats,
    pub weights: &'a Weights,
    pub widths: Widths,
    row_max: Vec<f32>,
    /// ω of each row of the sample, summing up to one.
    omega: Vec<f64>,
    /// Their τ.
    pub tau: f64,
    /// `Σ_t ω_t x_tj²`.
    energy: Vec<f64>,
    /// `‖w_j‖²`.
    norms: Vec<f64>,
    pub signed: bool,
    /// How many scales the weights have.
    granularity: Granularity,
    /// How far unseen values may exceed a maximum, equally likely each.
    ratios: Vec<f32>,
    /// What the errors are divided by: the output's own energy in the same measure.
    total: f64,
}

impl<'a> Base<'a> {
    pub fn new(stats: &'a ChannelStats, weights: &'a Weights, widths: Widths) -> Self {
        let row_max: Vec<f32> =
            weights.rows().map(|r| r.iter().fold(0.0f32, |m, v| m.max(v.abs()))).collect();
        let mut sizes: Vec<f64> =
            stats.sample().map(|r| r.iter().map(|v| f64::from(*v).powi(2)).sum()).collect();
        let rows: Vec<f64> = sizes.clone();
        sizes.sort_by(f64::total_cmp);
        let tau = sizes[sizes.len() / 2].max(LEAST_ENERGY);
        let share = 1.0 / rows.len() as f64;
        let omega: Vec<f64> = rows.iter().map(|size| share / (size + tau)).collect();
        let mut energy = vec![0.0; stats.channels()];
        for (row, w) in stats.sample().zip(&omega) {
            for (e, x) in energy.iter_mut().zip(row) {
                *e += w * f64::from(*x).powi(2);
            }
        }
        let squares = |r: &[f32]| r.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let norms: Vec<f64> = weights.rows().map(squares).collect();
        let total = energy.iter().zip(&norms).map(|(e, n)| e * n).sum::<f64>();
        let signed = !stats.non_negative();
        let total = total.max(f64::MIN_POSITIVE);
        let ratios = stats.record_ratios();
        let granularity = Granularity::PerChannel;
        Base {
            stats,
            weights,
            widths,
            row_max,
            omega,
            tau,
            energy,
            norms,
            signed,
            granularity,
            ratios,
            total,
        }
    }

    /// The same for weights with so many scales.
    pub fn with(self, granularity: Granularity) -> Self {
        Base { granularity, ..self }
    }

    /// The largest code of one digit.
    pub fn q(&self) -> f32 {
        q_max(self.widths.activations, self.signed) as f32
    }

    /// Whether a channel was ever seen, and any weight reads it.
    pub fn fires(&self, j: usize) -> bool {
        self.stats.absmax()[j] > SMALLEST && self.row_max[j] > 0.0
    }

    /// `Σ_t ω_t x_tj²`.
    pub fn energy(&self, j: usize) -> f64 {
        self.energy[j]
    }

    /// `‖w_j‖²` over the total.
    pub fn row_energy(&self, j: usize) -> f64 {
        self.norms[j] / self.total
    }

    /// What rounding each channel to multiples of its step costs, nothing cut off.
    pub fn rounding(&self, steps: &[f32]) -> Vec<f64> {
        let inverse: Vec<f32> = steps.iter().map(|s| 1.0 / s).collect();
        let mut squares = vec![0.0f32; steps.len()];
        let low = if self.signed { -WIDE } else { 0.0 };
        for (row, w) in self.stats.sample().zip(&self.omega) {
            let w = *w as f32;
            let steps = steps.iter().zip(&inverse);
            for ((square, x), (step, inverse)) in squares.iter_mut().zip(row).zip(steps) {
                let off = x - rint((x * inverse).clamp(low, WIDE)) * step;
                *square += w * off * off;
            }
        }
        squares.iter().enumerate().map(|(j, e)| f64::from(*e) * self.row_energy(j)).collect()
    }

    /// The largest weight under each scale, when row `j` is multiplied by `factors[j]`.
    fn largest_weights(&self, factors: &[f32]) -> Vec<f32> {
        let mut largest = vec![0.0f32; self.weights.n];
        for (row, s) in self.weights.rows().zip(factors) {
            for (m, v) in largest.iter_mut().zip(row) {
                *m = m.max((v * s).abs());
            }
        }
        if self.granularity == Granularity::PerTensor {
            let all = largest.iter().fold(0.0f32, |m, v| m.max(*v));
            largest.fill(all);
        }
        largest
    }

    /// Squared step of the weights' codes over twelve, of all columns together and over the total, when
    /// row `j` is multiplied by `steps[j]`.
    pub fn weight_noise(&self, steps: &[f32]) -> f64 {
        let largest = self.largest_weights(steps);
        let q = f64::from(q_max(self.widths.weights, true));
        largest.iter().map(|m| (f64::from(*m) / q).powi(2)).sum::<f64>() / (12.0 * self.total)
    }

    /// What cutting channel `j` off costs, for any limit.
    pub fn tail(&self, j: usize) -> Tail {
        let stats = self.stats;
        let peaks = &stats.peaks()[j];
        let omega = |p: &Peak| 1.0 / (f64::from(p.row_energy) + self.tau);
        let rows = stats.rows() as f64;
        let mut values: Vec<(f32, f64)> =
            peaks.iter().map(|p| (p.value, omega(p) / rows)).collect();
        // Below the peaks, the sample stands for all.
        if (peaks.len() as u64) < stats.rows() {
            let least = peaks.last().map_or(0.0, |p| p.value);
            let below = stats.sample().zip(&self.omega).map(|(row, w)| (row[j].abs(), *w));
            values.extend(below.filter(|(v, _)| *v < least));
        }
        // A record in unseen data, about one in as many rows as calibration saw.
        let records = self.ratios.len() as f64 * rows;
        values.extend(self.ratios.iter().map(|r| {
            let value = r * stats.absmax()[j];
            (value, 1.0 / ((f64::from(value).powi(2) + 2.0 * self.tau) * records))
        }));
        let rare = stats.rare();
        let each = rare.share / rare.rows().max(1) as f64;
        let peaks = rare.peaks().get(j).into_iter().flatten();
        values.extend(peaks.map(|p| (p.value, each * omega(p))));
        Tail::new(values, self.row_energy(j))
    }

    /// The ω of a peak's row.
    fn peak_omega(&self, peak: &Peak) -> f64 {
        1.0 / (f64::from(peak.row_energy) + self.tau) / self.stats.rows() as f64
    }
}

/// Values of a channel with their weights, largest first, and the sums of what is as large.
pub struct Tail {
    /// Value `v`, and `Σ w`, `Σ w v`, `Σ w v²` down to it.
    sums: Vec<(f32, [f64; 3])>,
}

impl Tail {
    fn new(mut values: Vec<(f32, f64)>, factor: f64) -> Tail {
        values.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut sum = [0.0; 3];
        let add = |(v, w): (f32, f64)| {
            let (wide, w) = (f64::from(v), w * factor);
            sum = [sum[0] + w, sum[1] + w * wide, sum[2] + w * wide * wide];
            (v, sum)
        };
        Tail { sums: values.into_iter().map(add).collect() }
    }

    /// `Σ w (v - limit)²` over the values beyond the limit.
    pub fn beyond(&self, limit: f32) -> f64 {
        let count = self.sums.partition_point(|(v, _)| *v > limit);
        let Some((_, [w, wv, wvv])) = count.checked_sub(1).map(|last| self.sums[last]) else {
            return 0.0;
        };
        let limit = f64::from(limit);
        (wvv - 2.0 * limit * wv + limit * limit * w).max(0.0)
    }
}

/// One exponent: everything that does not depend on the step.
pub struct Trial<'a> {
    base: &'a Base<'a>,
    pub alpha: f32,
    pub smooth: Vec<f32>,
    /// Channel maxima after smoothing.
    maxima: Vec<f32>,
    /// `‖w_j‖²` after smoothing, over the total.
    row_energy: Vec<f64>,
    pub weight_error: f64,
}

/// What a threshold costs.
pub struct Cost {
    /// Error with one copy of every channel.
    pub plain: f64,
    /// What each extra copy takes off it, most first: channel and amount.
    pub gains: Vec<(u32, f64)>,
}

impl<'a> Trial<'a> {
    pub fn new(base: &'a Base<'a>, alpha: f32) -> Self {
        let absmax = base.stats.absmax();
        let smooth = smoothing(absmax, &base.row_max, alpha);
        // A channel that no weight reads may be cut off.
        let read = |m: f32, w: f32| if w > 0.0 { m } else { 0.0 };
        let maxima: Vec<f32> = absmax
            .iter()
            .zip(&base.row_max)
            .zip(&smooth)
            .map(|((m, w), s)| read(*m, *w) / s)
            .collect();
        let energy = |r: &[f32]| r.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let row_energy: Vec<f64> = base
            .weights
            .rows()
            .zip(&smooth)
            .map(|(r, s)| energy(r) * f64::from(*s).powi(2) / base.total)
            .collect();
        let weight_error = weight_error(base, &smooth) / base.total;
        Trial { base, alpha, smooth, maxima, row_energy, weight_error }
    }

    pub fn signed(&self) -> bool {
        self.base.signed
    }

    /// Largest value after smoothing.
    pub fn largest(&self) -> f32 {
        self.maxima.iter().fold(0.0f32, |m, v| m.max(*v))
    }

    /// Thresholds to try, largest first.
    pub fn thresholds(&self, settings: &Settings) -> Vec<f32> {
        let largest = self.largest();
        if largest <= SMALLEST {
            return vec![1.0];
        }
        if !settings.flatten {
            return vec![largest];
        }
        let fence = fence(&self.maxima, settings.lowest_beta).max(largest * 1e-4);
        let ratio = settings.ratio;
        let mut out = vec![largest];
        while out[out.len() - 1] > fence && out.len() < 80 {
            out.push(out[out.len() - 1] / ratio);
        }
        out
    }

    /// What rounding to multiples of a scale costs, nothing cut off.
    fn rounding(&self, scale: f32) -> f64 {
        let steps: Vec<f32> = self.smooth.iter().map(|s| s * scale).collect();
        self.base.rounding(&steps).iter().sum()
    }

    /// What a threshold costs, and what copies take off it.
    pub fn cost(&self, threshold: f32, settings: &Settings) -> Cost {
        let q = q_max(self.base.widths.activations, self.base.signed);
        let mut plain = self.rounding(threshold / q as f32) + self.weight_error;
        let mut gains = Vec::new();
        let furthest = self.base.ratios.last().map_or(1.0, |r| r.max(1.0));
        for j in 0..self.maxima.len() {
            let rare = self.base.stats.rare().peaks().get(j).and_then(|peaks| peaks.first());
            let rare = rare.map_or(0.0, |p| p.value / self.smooth[j]);
            let largest = (self.maxima[j] * furthest).max(rare);
            if largest <= threshold || !settings.flatten {
                continue;
            }
            // Cut off beyond `n` copies: the peaks, and below them the sample.
            let over = self.over(j, threshold);
            let cut = |n: usize| {
                let limit = threshold * n as f32;
                let off = |(value, w): &(f32, f64)| w * f64::from((value - limit).max(0.0)).powi(2);
                over.iter().map(off).sum::<f64>() * self.row_energy[j]
            };
            let mut before = cut(1);
            plain += before;
            let mut n = 1;
            while before > 0.0 && n < 4096 {
                let after = cut(n + 1);
                gains.push((j as u32, before - after));
                (before, n) = (after, n + 1);
            }
        }
        gains.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Cost { plain, gains }
    }

    /// What channel `j` has above the threshold, with weights.
    fn over(&self, j: usize, threshold: f32) -> Vec<(f32, f64)> {
        let factor = 1.0 / self.smooth[j];
        let peaks = &self.base.stats.peaks()[j];
        let mut over: Vec<(f32, f64)> =
            peaks.iter().map(|p| (p.value * factor, self.base.peak_omega(p))).collect();
        let all_kept = (peaks.len() as u64) == self.base.stats.rows();
        let least = peaks.last().map_or(0.0, |p| p.value);
        if !all_kept && least * factor > threshold {
            let below = self.base.stats.sample().zip(&self.base.omega);
            let below = below.map(|(row, w)| (row[j].abs(), *w)).filter(|(v, _)| *v < least);
            over.extend(below.map(|(v, w)| (v * factor, w)));
        }
        // A record in unseen data, about one in as many rows as calibration saw.
        let records = self.base.ratios.len() as f64 * self.base.stats.rows() as f64;
        over.extend(self.base.ratios.iter().map(|r| {
            let value = r * self.maxima[j];
            let row = f64::from(value * self.smooth[j]).powi(2) + 2.0 * self.base.tau;
            (value, 1.0 / (row * records))
        }));
        let rare = self.base.stats.rare();
        let weight = rare.share / rare.rows().max(1) as f64;
        over.extend(rare.peaks().get(j).into_iter().flatten().map(|p| {
            (p.value / self.smooth[j], weight / (f64::from(p.row_energy) + self.base.tau))
        }));
        over.retain(|(v, _)| *v > threshold);
        over
    }
}

/// Tukey's upper fence on the channel maxima: `Q3 + β (Q3 - Q1)`.
fn fence(maxima: &[f32], beta: f32) -> f32 {
    let (q1, q3) = quartiles(maxima);
    q3 + beta * (q3 - q1)
}

/// `max(m_j^α / w_j^(1-α), 1e-5)` scaled to a geometric mean of one, or ones for α = 0. Channels that
/// never fired, or whose weights are zero, keep 1.
fn smoothing(maxima: &[f32], row_max: &[f32], alpha: f32) -> Vec<f32> {
    if alpha == 0.0 {
        return vec![1.0; maxima.len()];
    }
    let raw: Vec<Option<f32>> = maxima
        .iter()
        .zip(row_max)
        .map(|(&m, &w)| {
            (m > 0.0 && w > 0.0).then(|| (m.powf(alpha) / w.powf(1.0 - alpha)).max(1e-5))
        })
        .collect();
    let logs: Vec<f32> = raw.iter().flatten().map(|s| s.ln()).collect();
    let mean = (logs.iter().sum::<f32>() / logs.len().max(1) as f32).exp();
    let bounded = |s: f32| (s / mean).clamp(1.0 / FACTOR, FACTOR);
    raw.into_iter().map(|s| s.map_or(1.0, bounded)).collect()
}

/// What rounding the weights to nearest costs, with a scale for each column or one for all:
/// `Σ_j Σ_t ω_t x_tj² · ‖w_j - q(w_j)‖²`.
fn weight_error(base: &Base<'_>, smooth: &[f32]) -> f64 {
    let q = q_max(base.widths.weights, true) as f32;
    let steps: Vec<f32> = base.largest_weights(smooth).iter().map(|m| m / q).collect();
    let inverse: Vec<f32> =
        steps.iter().map(|s| if *s >= f32::MIN_POSITIVE { 1.0 / s } else { 0.0 }).collect();
    let mut error = 0.0;
    for ((row, s), energy) in base.weights.rows().zip(smooth).zip(&base.energy) {
        let mut squares = 0.0f32;
        for ((v, step), inverse) in row.iter().zip(&steps).zip(&inverse) {
            let code = v * s * inverse;
            let off = (code - rint(code)) * step;
            squares += off * off;
        }
        error += f64::from(squares) * energy / f64::from(*s).powi(2);
    }
    error
}

/// First and third quartile, linearly interpolated.
fn quartiles(values: &[f32]) -> (f32, f32) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let at = |q: f32| {
        let position = q * (sorted.len() - 1) as f32;
        let (low, part) = (position as usize, position.fract());
        let high = sorted[(low + 1).min(sorted.len() - 1)];
        sorted[low] + part * (high - sorted[low])
    };
    (at(0.25), at(0.75))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_sum_over_what_is_cut() {
        let values = vec![(1.0, 0.5), (3.0, 0.25), (2.0, 1.0)];
        let tail = Tail::new(values.clone(), 2.0);
        for limit in [0.0f32, 0.5, 1.0, 1.5, 2.5, 3.0, 4.0] {
            let off = |(v, w): &(f32, f64)| 2.0 * w * f64::from((v - limit).max(0.0)).powi(2);
            let want: f64 = values.iter().map(off).sum();
            assert!((tail.beyond(limit) - want).abs() < 1e-12, "{limit}");
        }
    }
}
