//! Calibration: the float graph runs on fqc's own CPU backend, part by part, with the inputs of all
//! linear groups as outputs; their statistics are updated run by run, so memory is bounded by one
//! part, what it leaves for the next of [`WAVE`] samples, and `ChannelStats` of each group.

use crate::data::{Batch, Rare, Wanted};
use crate::exit::Failure;
use crate::parts::{self, Seen, Walk};
use crate::pipeline::Context;
use crate::progress::Stage;
use fqc_ir::{Graph, NodeId};
use fqc_passes::quant::choose::Choice;
use fqc_passes::quant::groups::{self, Heads};
use fqc_passes::quant::stats::{ChannelStats, Statistics};
use fqrt::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Samples that go through one part before the next is loaded.
const WAVE: usize = 64;

/// What the model's inputs are, for reading data.
pub fn wanted(graph: &Graph) -> Vec<Wanted> {
    graph
        .inputs()
        .iter()
        .map(|&id| {
            let node = graph.node(id);
            Wanted { name: node.name.clone(), elem: element(node.ty.elem), rank: node.ty.rank() }
        })
        .collect()
}

/// The file format's name for an element type; both tables use the same names.
fn element(elem: fqc_ir::Elem) -> fqbin::Elem {
    fqbin::Elem::ALL
        .into_iter()
        .find(|e| e.name() == elem.name())
        .expect("both tables have the same element types")
}

/// What a compilation is calibrated with.
#[derive(Default)]
pub struct Data {
    /// Samples; may be empty where there are statistics and no pass wants samples.
    pub batches: Arc<Vec<Batch>>,
    pub rare: Rare,
    /// Statistics of an earlier run.
    pub statistics: Option<Statistics>,
    /// What was already chosen for each group.
    pub choices: Option<BTreeMap<String, Choice>>,
}

impl From<Vec<Batch>> for Data {
    fn from(batches: Vec<Batch>) -> Self {
        Data { batches: Arc::new(batches), ..Data::default() }
    }
}

/// Statistics of the samples so far.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Progress {
    /// Samples seen.
    pub done: usize,
    pub statistics: Statistics,
}

/// Statistics of every group's input over all batches.
pub fn run(
    float: &Graph,
    heads: Heads,
    batches: &[Batch],
    rare: &Rare,
    cx: &mut Context<'_>,
) -> Result<Statistics, Failure> {
    let mut progress = Progress::default();
    resume(float, heads, batches, rare, &mut progress, &mut |_| Ok(()), cx)?;
    Ok(progress.statistics)
}

/// Takes in the samples that `progress` has not seen yet, then the rare tokens; `after` is called after
/// each, or each [`WAVE`]. If it ends early, `progress` holds whole samples only.
pub fn resume(
    float: &Graph,
    heads: Heads,
    batches: &[Batch],
    rare: &Rare,
    progress: &mut Progress,
    after: &mut dyn FnMut(&Progress) -> Result<(), Failure>,
    cx: &mut Context<'_>,
) -> Result<(), Failure> {
    if batches.is_empty() {
        return Err(Failure::data(
            "static quantisation needs calibration data: give `--calib FILE` (an .npz, a .fqcal, \
             or text with `--tokenizer`), or `--calib random` to try without",
        ));
    }
    let observed = observed(float, heads)?;
    if progress.done == 0 {
        let new =
            |(name, _, channels): &(String, _, usize)| (name.clone(), ChannelStats::new(*channels));
        progress.statistics = observed.iter().map(new).collect();
    }
    let ids: Vec<NodeId> = observed.into_iter().map(|(_, id, _)| id).collect();
    let parts = parts::cut(float, &ids)?;
    let all: Vec<&Batch> = batches.iter().chain(&rare.batches).collect();
    let mut stage = Stage::new("calibrate", (parts.len() * all.len()) as u64, cx.verbosity);
    stage.skip((parts.len() * progress.done) as u64);
    let mut left = &all[progress.done..];
    let mut walk = Walk::new([])?;
    while !left.is_empty() {
        // A sample is whole when the last part has seen it. Where there is another before, that one
        // has then seen others as well.
        let several = parts.len() > 1;
        let (wave, rest) = left.split_at(left.len().min(if several { WAVE } else { usize::MAX }));
        let mut ahead = several.then(|| progress.statistics.clone());
        let first = progress.done;
        walk.restart(first, wave.iter().copied());
        for part in &parts {
            walk.run(part, &part.observed, true, cx, &mut |index, values| {
                let share = (index >= batches.len()).then_some(rare.share);
                take_in(ahead.as_mut().unwrap_or(&mut progress.statistics), index, values, share)?;
                if !several {
                    progress.done = index + 1;
                    after(progress)?;
                }
                stage.step();
                Ok(())
            })?;
        }
        progress.done = first + wave.len();
        if let Some(ahead) = ahead {
            progress.statistics = ahead;
            after(progress)?;
        }
        left = rest;
    }
    Ok(())
}

/// Takes in what one sample shows of some groups; of rare tokens, with their share.
fn take_in(
    statistics: &mut Statistics,
    sample: usize,
    values: &[(&str, &Tensor)],
    rare: Option<f64>,
) -> Result<(), Failure> {
    for (name, tensor) in values {
        let stats = statistics.get_mut(*name);
        let stats = stats.ok_or_else(|| Failure::internal(format!("no place for `{name}`")))?;
        let values = tensor.numbers::<f32>().unwrap_or_default();
        let taken = match rare {
            None => stats.update(values),
            Some(share) => stats.update_rare(values, share),
        };
        taken.map_err(|e| {
            Failure::data(format!("calibration sample {sample}: value `{name}` is {e}"))
        })?;
    }
    Ok(())
}

/// Runs as much of a graph as some of its f32 values need and shows them, part by part.
pub fn observe(
    graph: &Graph,
    values: &[NodeId],
    batches: &[Batch],
    cx: &mut Context<'_>,
    seen: Seen<'_>,
) -> Result<(), Failure> {
    let mut walk = Walk::new(batches)?;
    for part in parts::cut(graph, values)? {
        walk.run(&part, &part.observed, true, cx, seen)?;
    }
    Ok(())
}

/// That statistics are those of the graph's groups, each with the right number of channels.
pub fn check(float: &Graph, heads: Heads, statistics: &Statistics) -> Result<(), Failure> {
    let observed = observed(float, heads)?;
    let fits = |(name, _, channels): &(String, NodeId, usize)| {
        statistics.get(name).is_some_and(|stats| stats.channels() == *channels)
    };
    match observed.iter().find(|o| !fits(o)) {
        Some((name, ..)) => Err(Failure::data(format!("has no statistics of `{name}`"))),
        None => Ok(()),
    }
}

/// The groups' inputs: name, node, channels.
fn observed(float: &Graph, heads: Heads) -> Result<Vec<(String, NodeId, usize)>, Failure> {
    let one = |group: groups::Group| {
        let node = float.node(group.input);
        let channels = node.ty.last().as_const().and_then(|c| usize::try_from(c).ok());
        let channels = channels.ok_or_else(|| {
            let name = &node.name;
            Failure::internal(format!("the input `{name}` of a linear has no constant width"))
        })?;
        Ok((node.name.clone(), group.input, channels))
    };
    groups::find(float, heads).into_iter().map(one).collect()
}
