//! Steps and copies of a group's channels, each by itself: the step that a channel's codes have is its
//! smoothing factor times the scale that all share, so any step can be had, and copies are what keeps a
//! fine step from cutting the channel off. The search's one exponent and one threshold are where this
//! starts: at a price for a copy, the best step and number of copies follow for each channel from what
//! rounding, cutting off and the weights' own rounding cost there; channels meet only in the scales of
//! the weights, which one solution gives to the next. The price is the one at which all copies together
//! are no more than before, and what else may be had for nothing.

use super::trial::{Base, Tail};

/// Steps to try: two to so many quarters, times the one before.
const QUARTERS: std::ops::RangeInclusive<i32> = -12..=8;

/// What is looked up of a channel's copies beyond those it had.
const MORE: usize = 24;

/// How often the weights' scales are taken from the last solution.
const ROUNDS: usize = 3;

/// Halvings of the interval for the price.
const HALVINGS: usize = 24;

/// What a search of the scale or feedback between the rows leaves of the error of weights that are
/// rounded to nearest under the scale of the largest.
const WEIGHTS: f64 = 0.5;

/// Steps, real values of a code, and copies of all channels.
#[derive(Clone, PartialEq, Debug)]
pub struct Steps {
    pub steps: Vec<f32>,
    pub copies: Vec<u16>,
}

/// One channel and all that it may become.
struct Channel {
    options: Vec<Choosable>,
    before: (f32, u16),
}

/// One step of a channel.
struct Choosable {
    step: f32,
    /// What rounding to it costs.
    rounding: f64,
    /// What is cut off beyond one copy, two copies and so on.
    cut: Vec<f64>,
}

/// Steps and copies that cost less than those before, with at most `free` more copies; those before if
/// there are none. Returns what is left of the error too, in the measure of [`trial`](super::trial), with
/// the weights' by the size of their steps.
pub fn refine(base: &Base<'_>, before: Steps, free: usize) -> (Steps, f64) {
    let tails: Vec<Tail> = (0..before.steps.len()).map(|j| base.tail(j)).collect();
    let channels = channels(base, &tails, &before);
    let error = |now: &Steps| {
        let noise = base.weight_noise(&now.steps);
        let of = |(j, (step, copies)): (usize, (&f32, &u16))| {
            let limit = f32::from(*copies) * base.q() * step;
            tails[j].beyond(limit) + weights(base, j, *step, noise)
        };
        let each = now.steps.iter().zip(&now.copies).enumerate();
        base.rounding(&now.steps).iter().sum::<f64>() + each.map(of).sum::<f64>()
    };
    let budget = extra(&before.copies) + free;
    let mut best = (error(&before), before);
    let mut now = best.1.clone();
    for _ in 0..ROUNDS {
        let noise = base.weight_noise(&now.steps);
        // Errors are relative to outputs: powers of two that no copy is worth, and that any is.
        let (mut low, mut high) = (-80.0f64, 2.0f64);
        now = solve(base, &channels, noise, high.exp2());
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            let next = solve(base, &channels, noise, middle.exp2());
            if extra(&next.copies) <= budget {
                (high, now) = (middle, next);
            } else {
                low = middle;
            }
        }
        if extra(&now.copies) > budget {
            break;
        }
        let error = error(&now);
        if error < best.0 {
            best = (error, now.clone());
        }
    }
    (best.1, best.0)
}

fn extra(copies: &[u16]) -> usize {
    copies.iter().map(|n| usize::from(*n) - 1).sum()
}

fn channels(base: &Base<'_>, tails: &[Tail], before: &Steps) -> Vec<Channel> {
    let each = || before.steps.iter().copied().zip(before.copies.iter().copied());
    let mut channels: Vec<Channel> =
        each().map(|before| Channel { options: Vec::new(), before }).collect();
    for quarters in QUARTERS {
        let factor = (0.25 * quarters as f32).exp2();
        let steps: Vec<f32> = before.steps.iter().map(|s| s * factor).collect();
        let rounding = base.rounding(&steps);
        for (j, channel) in channels.iter_mut().enumerate().filter(|(j, _)| base.fires(*j)) {
            let digit = base.q() * steps[j];
            let most = usize::from(channel.before.1) * 2 + MORE;
            let mut cut = Vec::new();
            for copies in 1..=most {
                cut.push(tails[j].beyond(copies as f32 * digit));
                if cut[copies - 1] == 0.0 {
                    break;
                }
            }
            channel.options.push(Choosable { step: steps[j], rounding: rounding[j], cut });
        }
    }
    channels
}

/// The best of each channel at a price for a copy, with the given noise of the weights' codes.
fn solve(base: &Base<'_>, channels: &[Channel], noise: f64, price: f64) -> Steps {
    let of_channel = |(j, channel): (usize, &Channel)| {
        let mut best = (f64::INFINITY, channel.before);
        for option in &channel.options {
            let uncut = option.rounding + weights(base, j, option.step, noise);
            for (extra, cut) in option.cut.iter().enumerate() {
                let paid = uncut + price * extra as f64;
                if paid >= best.0 {
                    break;
                }
                if paid + cut < best.0 {
                    best = (paid + cut, (option.step, extra as u16 + 1));
                }
            }
        }
        best.1
    };
    let (steps, copies) = channels.iter().enumerate().map(of_channel).unzip();
    Steps { steps, copies }
}

/// What rounding row `j` of the weights costs, given [`Base::weight_noise`]; no more than a row that is
/// zero in codes loses.
fn weights(base: &Base<'_>, j: usize, step: f32, noise: f64) -> f64 {
    WEIGHTS * base.energy(j) * (noise / f64::from(step).powi(2)).min(base.row_energy(j))
}
