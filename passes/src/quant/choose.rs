//! Smoothing factors and threshold of one group, by search. The measure is the expected squared error
//! of the group's outputs, with the errors of different channels taken as independent:
//! `Σ_j mean(e_j²) · ‖w_j‖²` for the activation plus `Σ_j mean(x_j²) · ‖w_j - q(w_j)‖²` for weights
//! rounded per output channel, both over the sampled rows. Sources: smoothing as SmoothQuant's,
//! threshold as Tukey's upper fence on the channel maxima (FlattenQuant's boxplot), both searched here.

use super::stats::ChannelStats;
use super::widths::Widths;
use fqc_ir::quant::{FlattenMap, digit, q_max, wide_code};
use std::sync::Arc;

/// What the search may do.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Exponents of the activation maximum in the smoothing factor; 0 is no smoothing. With 0, and with
    /// more than a half, a layer's own error is often lower, but that of the whole model is not.
    pub alphas: Vec<f32>,
    /// Coefficients of the interquartile range above the third quartile.
    pub betas: Vec<f32>,
    /// Extra channels at most, as a share of the channels.
    pub max_extra: f32,
    /// Among choices whose error is at most this share above the least, the one with the fewest
    /// extra channels wins: they cost time in every run.
    pub tolerance: f32,
    /// Calibrated maxima are taken this much larger when copies are counted.
    pub headroom: f32,
    /// Multiple of the flattened width.
    pub align: usize,
    /// Whether large channels are spread over copies at all.
    pub flatten: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            alphas: vec![0.3, 0.4, 0.5],
            betas: vec![0.25, 0.5, 0.75, 1.0, 1.3, 1.5, 2.0, 3.0],
            max_extra: 0.10,
            tolerance: 0.4,
            headroom: 1.1,
            align: 64,
            flatten: true,
        }
    }
}

/// The search's answer for one group.
#[derive(Clone, PartialEq, Debug)]
pub struct Choice {
    /// Exponent and coefficient that won; the coefficient is `None` if the cap set the threshold.
    pub alpha: f32,
    pub beta: Option<f32>,
    /// Channel `j` of the input is divided by `smooth[j]`, row `j` of the weights multiplied.
    pub smooth: Vec<f32>,
    /// Largest real value of one digit, after smoothing.
    pub threshold: f32,
    pub map: Arc<FlattenMap>,
    pub signed: bool,
    pub widths: Widths,
    /// The measure above.
    pub error: f64,
}

impl Choice {
    /// The static scale of the activation.
    pub fn scale(&self) -> f32 {
        self.threshold / q_max(self.widths.activations, self.signed) as f32
    }
}

/// The weights of a group side by side, row-major \[K, ΣN\].
pub struct Weights {
    pub k: usize,
    pub n: usize,
    pub values: Vec<f32>,
}

/// Smoothing factors stay within this factor of their geometric mean.
const FACTOR: f32 = 1e4;

/// Activations or weights beyond this are not quantised; sums of them would overflow.
const LARGEST: f32 = 1e18;

/// Activations that never exceed this count as zero.
const SMALLEST: f32 = 1e-18;

/// The best choice for a group; `None` if nothing was seen of it, or if its values or weights are out
/// of bounds.
pub fn choose(
    stats: &ChannelStats,
    weights: &Weights,
    widths: Widths,
    settings: &Settings,
) -> Option<Choice> {
    assert_eq!(stats.channels(), weights.k, "statistics and weights have the same channels");
    let bounded = |values: &[f32]| values.iter().all(|v| v.abs() <= LARGEST);
    let empty = weights.values.is_empty() || stats.rows() == 0;
    if empty || !bounded(stats.absmax()) || !bounded(&weights.values) {
        return None;
    }
    let mut choices = Vec::new();
    for &alpha in &settings.alphas {
        let trial = Trial::new(stats, weights, alpha, widths);
        let thresholds = trial.thresholds(settings);
        choices.extend(thresholds.into_iter().map(|t| trial.evaluate(t, settings)));
    }
    let least = choices.iter().map(|c| c.error).min_by(f64::total_cmp)?;
    let enough = least * f64::from(1.0 + settings.tolerance);
    choices
        .into_iter()
        .filter(|c| c.error <= enough)
        .min_by(|a, b| (a.map.tail.len().cmp(&b.map.tail.len())).then(a.error.total_cmp(&b.error)))
}

/// One exponent: everything that does not depend on the threshold.
struct Trial<'a> {
    stats: &'a ChannelStats,
    widths: Widths,
    alpha: f32,
    smooth: Vec<f32>,
    /// Channel maxima after smoothing.
    maxima: Vec<f32>,
    /// `‖w_j‖²` after smoothing.
    row_energy: Vec<f64>,
    weight_error: f64,
    signed: bool,
}

impl<'a> Trial<'a> {
    fn new(stats: &'a ChannelStats, w: &Weights, alpha: f32, widths: Widths) -> Self {
        let rows: Vec<&[f32]> = w.values.chunks_exact(w.n.max(1)).collect();
        let row_max: Vec<f32> =
            rows.iter().map(|r| r.iter().fold(0.0f32, |m, v| m.max(v.abs()))).collect();
        let smooth = smoothing(stats.absmax(), &row_max, alpha);
        // A channel that no weight reads may be cut off.
        let read = |m: f32, w: f32| if w > 0.0 { m } else { 0.0 };
        let maxima: Vec<f32> = stats
            .absmax()
            .iter()
            .zip(&row_max)
            .zip(&smooth)
            .map(|((m, w), s)| read(*m, *w) / s)
            .collect();
        let energy = |r: &[f32]| r.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let row_energy: Vec<f64> =
            rows.iter().zip(&smooth).map(|(r, s)| energy(r) * f64::from(*s).powi(2)).collect();
        let weight_error = weight_error(stats, &rows, &smooth, widths.weights);
        let signed = !stats.non_negative();
        Trial { stats, widths, alpha, smooth, maxima, row_energy, weight_error, signed }
    }

    /// Candidate thresholds, each with its coefficient, that keep to the cap.
    fn thresholds(&self, settings: &Settings) -> Vec<(Option<f32>, f32)> {
        let largest = self.maxima.iter().fold(0.0f32, |m, v| m.max(*v));
        if largest <= SMALLEST {
            return vec![(None, 1.0)];
        }
        let whole = (None, largest * settings.headroom);
        if !settings.flatten {
            return vec![(None, largest)];
        }
        let (q1, q3) = quartiles(&self.maxima);
        let cap = (settings.max_extra * self.maxima.len() as f32) as usize;
        let mut out = vec![whole];
        let fits = |t: f32| self.copies(t, settings).len() <= cap;
        for &beta in &settings.betas {
            let t = q3 + beta * (q3 - q1);
            if q3 > q1 && t < largest && fits(t) {
                out.push((Some(beta), t));
            }
        }
        // The smallest threshold that the cap allows.
        let (mut low, mut high) = (largest * 1e-4, largest);
        for _ in 0..30 {
            let middle = 0.5 * (low + high);
            if fits(middle) { high = middle } else { low = middle }
        }
        out.push((None, high));
        out
    }

    /// The extra copies `(channel, digit)` that a threshold asks for:
    /// `n_j = max(1, ceil(rint(m_j * headroom / s_x) / q_max))`. A channel below the threshold gets no
    /// copy for headroom's sake alone.
    fn copies(&self, threshold: f32, settings: &Settings) -> Vec<(u32, u16)> {
        let q = q_max(self.widths.activations, self.signed);
        let scale = threshold / q as f32;
        let mut tail = Vec::new();
        for (j, &m) in self.maxima.iter().enumerate() {
            if !settings.flatten || m <= threshold {
                continue;
            }
            let code = (m * settings.headroom / scale).round_ties_even();
            let n = (code / q as f32).ceil().clamp(1.0, 4096.0) as u16;
            tail.extend((2..=n).map(|k| (j as u32, k)));
        }
        tail
    }

    fn evaluate(&self, (beta, threshold): (Option<f32>, f32), settings: &Settings) -> Choice {
        let base = self.maxima.len();
        let tail = self.copies(threshold, settings);
        let mut copy_count = vec![1u32; base];
        for &(j, _) in &tail {
            copy_count[j as usize] += 1;
        }
        let q = q_max(self.widths.activations, self.signed);
        let scale = threshold / q as f32;
        let mut squares = vec![0.0f64; base];
        let mut count = 0u32;
        for row in self.stats.sample() {
            for (j, &x) in row.iter().enumerate() {
                let smoothed = x / self.smooth[j];
                let c = wide_code(smoothed, 1.0 / scale, self.signed);
                let code: i32 = (1..=copy_count[j]).map(|k| digit(c, k, q)).sum();
                squares[j] += f64::from(smoothed - code as f32 * scale).powi(2);
            }
            count += 1;
        }
        let rows = f64::from(count.max(1));
        let x_error: f64 = squares.iter().zip(&self.row_energy).map(|(e, w)| e / rows * w).sum();
        let padded = (base + tail.len()).next_multiple_of(settings.align) as u32;
        Choice {
            alpha: self.alpha,
            beta,
            smooth: self.smooth.clone(),
            threshold,
            map: Arc::new(FlattenMap { base: base as u32, tail: tail.into(), padded }),
            signed: self.signed,
            widths: self.widths,
            error: x_error + self.weight_error,
        }
    }
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

/// What rounding the weights, a scale for each column, costs: `Σ_j mean(x_j²) · ‖w_j - q(w_j)‖²`.
fn weight_error(stats: &ChannelStats, rows: &[&[f32]], smooth: &[f32], bits: u8) -> f64 {
    let q = q_max(bits, true) as f32;
    let mut steps = vec![0.0f32; rows.first().map_or(0, |r| r.len())];
    for (row, s) in rows.iter().zip(smooth) {
        for (step, v) in steps.iter_mut().zip(*row) {
            *step = step.max((v * s).abs() / q);
        }
    }
    let inverse: Vec<f32> =
        steps.iter().map(|s| if *s >= f32::MIN_POSITIVE { 1.0 / s } else { 0.0 }).collect();
    let mut energy = vec![0.0f64; smooth.len()];
    let mut count = 0u32;
    for row in stats.sample() {
        for ((e, x), s) in energy.iter_mut().zip(row).zip(smooth) {
            *e += f64::from(x / s).powi(2);
        }
        count += 1;
    }
    let mut error = 0.0;
    for ((row, s), energy) in rows.iter().zip(smooth).zip(&energy) {
        let mut squares = 0.0f32;
        for ((v, step), inverse) in row.iter().zip(&steps).zip(&inverse) {
            let code = v * s * inverse;
            let off = (code - code.round_ties_even()) * step;
            squares += off * off;
        }
        error += f64::from(squares) * energy / f64::from(count.max(1));
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

    fn outlier_stats(channels: usize) -> ChannelStats {
        let mut stats = ChannelStats::new(channels);
        let mut state = 1u64;
        for _ in 0..64 {
            let row: Vec<f32> = (0..channels)
                .map(|j| {
                    state =
                        state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let u = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                    if j == 3 { 40.0 * u } else { 2.0 * u }
                })
                .collect();
            stats.update(&row).expect("finite");
        }
        stats
    }

    #[test]
    fn an_outlier_channel_is_spread_and_the_error_falls() {
        let stats = outlier_stats(64);
        let values = (0..64 * 8).map(|i| ((i * 37 % 101) as f32 - 50.0) / 500.0).collect();
        let weights = Weights { k: 64, n: 8, values };
        let only = |flatten| Settings {
            alphas: vec![0.0],
            flatten,
            max_extra: 0.5,
            ..Settings::default()
        };
        let flat = choose(&stats, &weights, Widths::W8A8, &only(true)).expect("in bounds");
        let plain = choose(&stats, &weights, Widths::W8A8, &only(false)).expect("in bounds");
        let of_3 = flat.map.tail.iter().filter(|t| t.0 == 3).count();
        assert!(of_3 >= 9 && 2 * of_3 > flat.map.tail.len(), "{:?}", flat.map.tail);
        assert!(flat.error < 0.5 * plain.error, "{} against {}", flat.error, plain.error);
        assert_eq!(flat.map.padded % 64, 0);
        assert!(plain.map.tail.is_empty());
    }

    #[test]
    fn the_cap_holds() {
        let stats = outlier_stats(64);
        let weights = Weights { k: 64, n: 1, values: vec![1.0; 64] };
        let choice =
            choose(&stats, &weights, Widths::W8A8, &Settings::default()).expect("in bounds");
        assert!(choice.map.tail.len() <= 6, "{:?}", choice.map);
    }

    #[test]
    fn values_out_of_bounds_get_no_choice() {
        let seen = |v: f32| {
            let mut stats = ChannelStats::new(2);
            stats.update(&[v, -v]).expect("finite");
            stats
        };
        let weights = |v: f32| Weights { k: 2, n: 1, values: vec![v, 1.0] };
        let settings = Settings::default();
        assert_eq!(choose(&ChannelStats::new(2), &weights(1.0), Widths::W8A8, &settings), None);
        assert_eq!(choose(&seen(1e30), &weights(1.0), Widths::W8A8, &settings), None);
        assert_eq!(choose(&seen(1.0), &weights(f32::NAN), Widths::W8A8, &settings), None);
        assert_eq!(choose(&seen(1.0), &weights(f32::INFINITY), Widths::W8A8, &settings), None);
        for v in [0.0, 1e-40, 1e-19, 1e17] {
            let choice =
                choose(&seen(v), &weights(1e-40), Widths::W8A8, &settings).expect("in bounds");
            assert!(choice.scale().is_normal() && (1.0 / choice.scale()).is_normal(), "{choice:?}");
        }
    }
}
