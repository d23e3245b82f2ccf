//! What quantisation does to each group of linears: the loss at each width, the channel maxima before
//! and after smoothing and flattening, and the extra channels.

use crate::data::Batch;
use crate::exit::Failure;
use crate::experiment::Outcome;
use crate::fqcal::Origin;
use crate::label;
use crate::pipeline::{self, Context};
use crate::progress::Stage;
use crate::settings::{Method, Scheme, Settings};
use fqc_ir::Graph;
use fqc_passes::quant::choose::Choice;
use fqc_passes::quant::groups::{self, Group, linear};
use fqc_passes::quant::measure::{Loss, Measure};
use fqc_passes::quant::stats::{ChannelStats, Statistics};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The widths that are compared.
pub const SCHEMES: [Scheme; 3] = [Scheme::W8a8, Scheme::W4a8, Scheme::W4a4];

/// Rows that a full analysis and the short table of a compilation run.
const ROWS: usize = 64;
const FEW_ROWS: usize = 16;

/// Large channels that are named.
const NAMED: usize = 5;

/// Choices by the name of the group's input.
type ByInput = BTreeMap<String, Choice>;

/// Everything that was found.
#[derive(Serialize)]
pub struct Analysis {
    pub producer: &'static str,
    pub model: String,
    pub settings: Settings,
    pub calibration: Origin,
    /// What the losses do not show.
    pub note: Option<&'static str>,
    /// The largest loss first.
    pub groups: Vec<GroupAnalysis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curve: Option<Curve>,
}

/// What a growing share of INT4 does.
#[derive(Serialize)]
pub struct Curve {
    pub low: Scheme,
    pub text: String,
    pub points: Vec<Outcome>,
}

/// One group.
#[derive(Clone, Debug, Serialize)]
pub struct GroupAnalysis {
    pub label: String,
    /// The value that the linears share.
    pub input: String,
    /// Position in the model, from zero.
    pub layer: usize,
    pub weights: Vec<String>,
    pub channels: usize,
    pub outputs: usize,
    /// Share of the multiplications of all groups.
    pub work: f64,
    /// What was chosen: widths, exponent of smoothing, largest value of a digit, extra channels.
    pub widths: String,
    pub alpha: f32,
    pub threshold: f32,
    pub signed: bool,
    pub extra: usize,
    /// Loss as chosen; see [`Loss`].
    pub loss: f64,
    /// The part of it that rounding the input alone makes.
    pub activation_loss: f64,
    /// Loss if the group were of these widths.
    pub at: Vec<AtWidths>,
    pub maxima: Maxima,
    /// The largest channels after smoothing.
    pub largest: Vec<Channel>,
    /// Channel maxima, largest first: before, after smoothing, after flattening.
    #[serde(skip)]
    pub profiles: [Vec<f32>; 3],
}

/// The loss at one pair of widths.
#[derive(Clone, Debug, Serialize)]
pub struct AtWidths {
    pub widths: String,
    pub loss: f64,
    pub activation_loss: f64,
    pub extra: usize,
}

/// Channel maxima in three numbers each.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Maxima {
    pub before: Spread,
    pub smoothed: Spread,
    pub flattened: Spread,
}

/// Of the maxima of a value's channels.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub max: f32,
    pub upper_quartile: f32,
    pub median: f32,
}

/// One channel.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Channel {
    pub channel: usize,
    pub before: f32,
    pub smoothed: f32,
    /// Channels that its digits take.
    pub digits: usize,
}

/// What the losses do not show.
pub const WEIGHTS: &str = "losses are with weights to nearest; GPTQ makes those of INT4 smaller";

/// All groups, the one with the largest loss first. What errors cost is measured on the
/// batches; without any, all groups cost the same.
pub fn groups(
    float: &Graph,
    statistics: &Statistics,
    batches: &[Batch],
    settings: &Settings,
    cx: &mut Context<'_>,
) -> Result<Vec<GroupAnalysis>, Failure> {
    if settings.method == Method::None {
        return Err(Failure::usage("`--method none` quantises nothing that could be analysed"));
    }
    settings.check(float)?;
    let mut costs = None;
    let mut choices = |settings: &Settings| -> Result<ByInput, Failure> {
        cx.interrupt.check()?;
        let aims = [settings.aim()];
        let choose = pipeline::choose_for;
        let mut all = choose(float, statistics, batches, settings, &aims, &mut costs, cx)?;
        Ok(all.pop().unwrap_or_default())
    };
    let chosen = choices(settings)?;
    let mut at = Vec::new();
    for scheme in SCHEMES {
        let all = Settings { scheme, groups: Vec::new(), ..settings.without_aim() };
        at.push(match all == *settings {
            true => chosen.clone(),
            false => choices(&all)?,
        });
    }
    measure(float, statistics, settings, &chosen, &at, cx)
}

/// Measures the groups on several threads.
pub fn measure(
    float: &Graph,
    statistics: &Statistics,
    settings: &Settings,
    chosen: &ByInput,
    at: &[ByInput],
    cx: &mut Context<'_>,
) -> Result<Vec<GroupAnalysis>, Failure> {
    if statistics.is_empty() {
        return Ok(Vec::new());
    }
    let found = groups::find(float, settings.heads());
    let labels = label::labels(float, &found);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let stage = Mutex::new(Stage::new("analyze", found.len() as u64, cx.verbosity));
    let interrupt = cx.interrupt;
    let work = || {
        while interrupt.check().is_ok() {
            let layer = next.fetch_add(1, Ordering::Relaxed);
            let Some(group) = found.get(layer) else { break };
            let one = one(float, group, statistics, settings, chosen, at);
            if let Some(one) = one {
                let one = GroupAnalysis { layer, label: labels[layer].clone(), ..one };
                done.lock().unwrap_or_else(|e| e.into_inner()).push(one);
            }
            stage.lock().unwrap_or_else(|e| e.into_inner()).step();
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..cx.threads {
            scope.spawn(work);
        }
        work();
    });
    cx.interrupt.check()?;
    let mut all = done.into_inner().unwrap_or_else(|e| e.into_inner());
    let size = |g: &GroupAnalysis| (g.channels * g.outputs) as f64;
    let total: f64 = all.iter().map(size).sum();
    all.iter_mut().for_each(|g| g.work = size(g) / total.max(1.0));
    all.sort_by(|a, b| b.loss.total_cmp(&a.loss).then(a.layer.cmp(&b.layer)));
    Ok(all)
}

/// A group of which there is a choice; label, place and share are filled in by the caller.
fn one(
    float: &Graph,
    group: &Group,
    statistics: &Statistics,
    settings: &Settings,
    chosen: &ByInput,
    at: &[ByInput],
) -> Option<GroupAnalysis> {
    let input = float.node(group.input).name.clone();
    let (stats, choice) = (statistics.get(&input)?, chosen.get(&input)?);
    let measure = Measure::new(float, group, stats, if at.is_empty() { FEW_ROWS } else { ROWS })?;
    let Loss { total, activations } = measure.loss(choice, settings.granularity())?;
    let at = at.iter().filter_map(|choices| {
        let other = choices.get(&input)?;
        let loss = match other == choice {
            true => Loss { total, activations },
            false => measure.loss(other, settings.granularity())?,
        };
        Some(AtWidths {
            widths: other.widths.to_string(),
            loss: loss.total,
            activation_loss: loss.activations,
            extra: other.map.tail.len(),
        })
    });
    let weights = group.linears.iter().filter_map(|&id| Some(linear(float, id)?.1));
    let weights: Vec<_> = weights.map(|id| float.node(id)).collect();
    let columns = |node: &&fqc_ir::Node| node.ty.last().as_const().unwrap_or(0) as usize;
    let profiles = profiles(stats, choice);
    Some(GroupAnalysis {
        label: String::new(),
        layer: 0,
        channels: stats.channels(),
        outputs: weights.iter().map(columns).sum(),
        work: 0.0,
        weights: weights.iter().map(|node| node.name.clone()).collect(),
        widths: choice.widths.to_string(),
        alpha: choice.alpha,
        threshold: choice.threshold,
        signed: choice.signed,
        extra: choice.map.tail.len(),
        loss: total,
        activation_loss: activations,
        at: at.collect(),
        maxima: Maxima {
            before: spread(&profiles[0]),
            smoothed: spread(&profiles[1]),
            flattened: spread(&profiles[2]),
        },
        largest: largest(stats, choice),
        profiles,
        input,
    })
}

/// Channel maxima, largest first, before, after smoothing, and of all digits after flattening.
fn profiles(stats: &ChannelStats, choice: &Choice) -> [Vec<f32>; 3] {
    let before = stats.absmax().to_vec();
    let smoothed: Vec<f32> = before.iter().zip(&choice.smooth).map(|(m, s)| m / s).collect();
    let part = |channel: usize, digit: u32| {
        (smoothed[channel] - (digit - 1) as f32 * choice.threshold).clamp(0.0, choice.threshold)
    };
    let base = (0..smoothed.len()).map(|channel| part(channel, 1));
    let tail = choice.map.tail.iter().map(|&(channel, k)| part(channel as usize, u32::from(k)));
    let flattened: Vec<f32> = base.chain(tail).collect();
    [before, smoothed, flattened].map(|mut profile| {
        profile.sort_by(|a, b| b.total_cmp(a));
        profile
    })
}

fn spread(descending: &[f32]) -> Spread {
    let at = |share: f32| {
        let place = (share * descending.len() as f32) as usize;
        descending.get(place).copied().unwrap_or(0.0)
    };
    Spread { max: at(0.0), upper_quartile: at(0.25), median: at(0.5) }
}

fn largest(stats: &ChannelStats, choice: &Choice) -> Vec<Channel> {
    let channel = |(channel, (&before, s)): (usize, (&f32, &f32))| {
        let copies = choice.map.tail.iter().filter(|(j, _)| *j as usize == channel).count();
        Channel { channel, before, smoothed: before / s, digits: 1 + copies }
    };
    let pairs = stats.absmax().iter().zip(&choice.smooth);
    let mut all: Vec<Channel> = pairs.enumerate().map(channel).collect();
    all.sort_by(|a, b| b.smoothed.total_cmp(&a.smoothed).then(a.channel.cmp(&b.channel)));
    all.truncate(NAMED);
    all
}

/// The groups as a table, one line each, at most so many.
pub fn table(groups: &[GroupAnalysis], lines: usize) -> String {
    let width = groups.iter().take(lines).map(|g| g.label.chars().count()).max().unwrap_or(0);
    let mut out = format!(
        "{:width$}  bits  {:>27}  extra    loss",
        "largest losses first", "max: float > smooth > digit"
    );
    let compared = groups.first().map_or(&[][..], |g| &g.at);
    compared.iter().for_each(|a| out += &format!("  {:>8}", format!("at {}", a.widths)));
    for g in groups.iter().take(lines) {
        let m = &g.maxima;
        out += &format!(
            "\n{:width$}  {:4}  {:>8} > {:>6} > {:>6}  {:4.1} %  {:>6}",
            g.label,
            g.widths,
            short(m.before.max),
            short(m.smoothed.max),
            short(m.flattened.max),
            100.0 * g.extra as f64 / g.channels.max(1) as f64,
            short_loss(g.loss),
        );
        g.at.iter().for_each(|a| out += &format!("  {:>8}", short_loss(a.loss)));
    }
    if groups.len() > lines {
        out += &format!("\nand {} more", groups.len() - lines);
    }
    out
}

/// Two digits.
pub fn short_loss(v: f64) -> String {
    if (0.01..10.0).contains(&v) { format!("{v:.2}") } else { format!("{v:.1e}") }
}

/// Three digits.
pub fn short(v: f32) -> String {
    match v.abs() {
        0.0 => "0".to_owned(),
        a if !(0.001..10_000.0).contains(&a) => format!("{v:.1e}"),
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 1.0 => format!("{v:.2}"),
        _ => format!("{v:.3}"),
    }
}
