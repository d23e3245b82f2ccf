//! Smoothing factors, threshold and copies of one group, by search: every exponent with every
//! threshold, and for each of them the copies that take most off the error. What is left is a curve of
//! error against extra channels; [`budget`](super::budget) says where on it each group lies. Sources:
//! smoothing as SmoothQuant's, threshold as FlattenQuant's, both searched here.

use super::refine::{Steps, refine};
use super::round::Granularity;
use super::stats::ChannelStats;
use super::trial::{Base, Trial};
use super::widths::Widths;
use fqc_ir::quant::{FlattenMap, q_max};
use std::sync::Arc;

/// What the search may do.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Exponents of the activation maximum in the smoothing factor; 0 is no smoothing.
    pub alphas: Vec<f32>,
    /// The smallest threshold lies this many interquartile ranges above the third quartile of the
    /// channel maxima.
    pub lowest_beta: f32,
    /// Ratio of two thresholds in a row.
    pub ratio: f32,
    /// Extra channels at most in the mean over the groups, as a share of the channels.
    pub max_extra: f32,
    /// Extra channels of one group at most, as a share of its channels.
    pub group_cap: f32,
    /// Relative fall of the summed error of activations that one more share of extra channels must
    /// bring: with 3, an extra channel to a hundred must take away 3 %.
    pub gain: f64,
    /// Multiple of the flattened width.
    pub align: usize,
    /// Whether copies beyond the budget fill the width up to the multiple.
    pub headroom: bool,
    /// Whether large channels are spread over copies at all.
    pub flatten: bool,
    /// How many scales a weight has.
    pub granularity: Granularity,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            alphas: vec![0.2, 0.35, 0.5, 0.65, 0.8],
            lowest_beta: -0.5,
            ratio: 1.15,
            max_extra: 0.08,
            group_cap: 2.0,
            gain: 2.0,
            align: 64,
            headroom: false,
            flatten: true,
            granularity: Granularity::PerChannel,
        }
    }
}

/// The search's answer for one group.
#[derive(Clone, PartialEq, Debug)]
pub struct Choice {
    /// The exponent that won; each channel was then refined by itself.
    pub alpha: f32,
    /// Channel `j` of the input is divided by `smooth[j]`, row `j` of the weights multiplied.
    pub smooth: Vec<f32>,
    /// Largest real value of one digit, after smoothing.
    pub threshold: f32,
    pub map: Arc<FlattenMap>,
    pub signed: bool,
    pub widths: Widths,
    /// Median of the squared sizes of a token's input: `τ` of [`trial`](super::trial).
    pub typical_energy: f32,
    /// The measure of [`trial`](super::trial).
    pub error: f64,
}

impl Choice {
    /// The static scale of the activation.
    pub fn scale(&self) -> f32 {
        self.threshold / q_max(self.widths.activations, self.signed) as f32
    }
}

/// Extra channels as a share of the channels, in the mean over groups.
pub fn mean_extra<'a>(choices: impl ExactSizeIterator<Item = &'a Choice>) -> f64 {
    let groups = choices.len().max(1) as f64;
    let share = |c: &Choice| c.map.tail.len() as f64 / f64::from(c.map.base.max(1));
    // From zero: an empty `sum` is -0.
    choices.map(share).fold(0.0, |sum, share| sum + share) / groups
}

/// The weights of a group side by side, row-major \[K, ΣN\].
pub struct Weights {
    pub k: usize,
    pub n: usize,
    pub values: Vec<f32>,
}

impl Weights {
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.n.max(1))
    }
}

/// Activations or weights beyond this are not quantised; sums of them would overflow.
const LARGEST: f32 = 1e18;

/// The least error of a group at a number of extra channels, and how to get it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    pub extra: usize,
    /// The measure of [`trial`](super::trial).
    pub error: f64,
    /// The part of it that the weights make.
    pub weight_error: f64,
    pub alpha: f32,
    pub threshold: f32,
}

/// The lower convex hull of error against extra channels, fewest first; `None` if nothing was seen of
/// the group, or if its values or weights are out of bounds.
pub fn frontier(
    stats: &ChannelStats,
    weights: &Weights,
    widths: Widths,
    settings: &Settings,
) -> Option<Vec<Point>> {
    assert_eq!(stats.channels(), weights.k, "statistics and weights have the same channels");
    let bounded = |values: &[f32]| values.iter().all(|v| v.abs() <= LARGEST);
    let empty = weights.values.is_empty() || stats.rows() == 0;
    if empty || !bounded(stats.absmax()) || !bounded(&weights.values) {
        return None;
    }
    let base = Base::new(stats, weights, widths).with(settings.granularity);
    let cap = (settings.group_cap * stats.channels() as f32) as usize;
    let mut best: Vec<Option<Point>> = vec![None; cap + 1];
    for &alpha in &settings.alphas {
        let trial = Trial::new(&base, alpha);
        for threshold in trial.thresholds(settings) {
            let cost = trial.cost(threshold, settings);
            let mut error = cost.plain;
            for (extra, slot) in best.iter_mut().enumerate() {
                if extra > 0 {
                    let Some((_, gain)) = cost.gains.get(extra - 1) else { break };
                    error -= gain;
                }
                if slot.is_none_or(|p| error < p.error) {
                    let weight_error = trial.weight_error;
                    *slot = Some(Point { extra, error, weight_error, alpha, threshold });
                }
            }
        }
    }
    Some(hull(best.into_iter().flatten()))
}

/// The lower convex hull from the left to the least error.
fn hull(points: impl Iterator<Item = Point>) -> Vec<Point> {
    let slope = |a: &Point, b: &Point| (b.error - a.error) / (b.extra - a.extra) as f64;
    let mut hull: Vec<Point> = Vec::new();
    for point in points {
        if hull.last().is_some_and(|last| point.error >= last.error) {
            continue;
        }
        while let [.., a, b] = &hull[..] {
            if slope(a, b) < slope(b, &point) {
                break;
            }
            hull.pop();
        }
        hull.push(point);
    }
    hull
}

/// The choice behind a point of the frontier.
pub fn build(
    stats: &ChannelStats,
    weights: &Weights,
    widths: Widths,
    settings: &Settings,
    point: &Point,
) -> Choice {
    let base = Base::new(stats, weights, widths).with(settings.granularity);
    let trial = Trial::new(&base, point.alpha);
    let cost = trial.cost(point.threshold, settings);
    let channels = stats.channels();
    let mut copies = vec![1u16; channels];
    for (j, _) in &cost.gains[..point.extra] {
        copies[*j as usize] += 1;
    }
    let q = base.q();
    let steps = trial.smooth.iter().map(|s| s * point.threshold / q).collect();
    let (Steps { steps, copies }, error) = match settings.flatten {
        true => {
            let used = channels + point.extra;
            let free = used.next_multiple_of(settings.align) - used;
            refine(&base, Steps { steps, copies }, if settings.headroom { free } else { 0 })
        }
        false => (Steps { steps, copies }, point.error),
    };
    let mean = steps.iter().map(|s| s.ln()).sum::<f32>() / channels.max(1) as f32;
    let scale = mean.exp();
    let tail: Vec<(u32, u16)> =
        (0u32..).zip(&copies).flat_map(|(j, &n)| (2..=n).map(move |digit| (j, digit))).collect();
    let padded = (channels + tail.len()).next_multiple_of(settings.align) as u32;
    Choice {
        alpha: point.alpha,
        smooth: steps.iter().map(|s| s / scale).collect(),
        threshold: scale * q,
        map: Arc::new(FlattenMap { base: channels as u32, tail: tail.into(), padded }),
        signed: trial.signed(),
        widths,
        typical_energy: base.tau as f32,
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::{Curve, price};
    use super::*;

    fn choose(stats: &ChannelStats, weights: &Weights, settings: &Settings) -> Option<Choice> {
        let points = frontier(stats, weights, Widths::W8A8, settings)?;
        let curve = Curve { points, channels: weights.k, weight: 1.0 };
        let price = price(std::slice::from_ref(&curve), settings);
        let point = *curve.at(price)?;
        Some(build(stats, weights, Widths::W8A8, settings, &point))
    }

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
        let flat = choose(&stats, &weights, &only(true)).expect("in bounds");
        let plain = choose(&stats, &weights, &only(false)).expect("in bounds");
        let of_3 = flat.map.tail.iter().filter(|t| t.0 == 3).count();
        // Others may have a second copy where that makes their steps finer.
        let second = |t: &(u32, u16)| t.0 == 3 || t.1 == 2;
        let few = flat.map.tail.len() <= 32 && flat.map.tail.iter().all(second);
        assert!(of_3 >= 5 && few, "{:?}", flat.map.tail);
        assert!(flat.error < 0.5 * plain.error, "{} against {}", flat.error, plain.error);
        assert_eq!(flat.map.padded % 64, 0);
        assert!(plain.map.tail.is_empty());
    }

    #[test]
    fn the_cap_holds() {
        let stats = outlier_stats(64);
        let weights = Weights { k: 64, n: 1, values: vec![1.0; 64] };
        let choice = choose(&stats, &weights, &Settings::default()).expect("in bounds");
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
        assert_eq!(choose(&ChannelStats::new(2), &weights(1.0), &settings), None);
        assert_eq!(choose(&seen(1e30), &weights(1.0), &settings), None);
        assert_eq!(choose(&seen(1.0), &weights(f32::NAN), &settings), None);
        assert_eq!(choose(&seen(1.0), &weights(f32::INFINITY), &settings), None);
        for v in [0.0, 1e-40, 1e-19, 1e17] {
            let choice = choose(&seen(v), &weights(1e-40), &settings).expect("in bounds");
            assert!(choice.scale().is_normal() && (1.0 / choice.scale()).is_normal(), "{choice:?}");
        }
    }
}
