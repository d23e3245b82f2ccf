//! Calibration: the float graph runs on fqc's own CPU backend with the inputs of all linear groups
//! as outputs; their statistics are updated run by run, so memory is bounded by one run plus
//! `ChannelStats` of each group.

use crate::data::{Batch, Rare, Wanted};
use crate::exit::{Exit, Failure};
use crate::pipeline::{self, Context};
use crate::progress::Stage;
use fqc_ir::{Graph, NodeId};
use fqc_passes::quant::choose::Choice;
use fqc_passes::quant::groups::{self, Heads};
use fqc_passes::quant::stats::{ChannelStats, Statistics};
use fqrt::{Model, Session, SessionOptions, TensorView};
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;

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

/// Takes in the samples that `progress` has not seen yet, then the rare tokens; `after` is called after each. If it ends
/// early, `progress` holds whole samples only.
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
    let all: Vec<&Batch> = batches.iter().chain(&rare.batches).collect();
    let mut stage = Stage::new("calibrate", all.len() as u64, cx.verbosity);
    stage.skip(progress.done as u64);
    let ids: Vec<NodeId> = observed.into_iter().map(|(_, id, _)| id).collect();
    let first = progress.done;
    observe(float, &ids, &all, first, cx, &mut |index, values| {
        for (name, values) in values {
            let stats = progress.statistics.get_mut(*name);
            let stats = stats.ok_or_else(|| Failure::internal(format!("no place for `{name}`")))?;
            let taken = match index < batches.len() {
                true => stats.update(values),
                false => stats.update_rare(values, rare.share),
            };
            taken.map_err(|e| {
                Failure::data(format!("calibration sample {index}: value `{name}` is {e}"))
            })?;
        }
        progress.done = index + 1;
        after(progress)?;
        stage.step();
        Ok(())
    })?;
    progress.done = all.len();
    Ok(())
}

/// Called with the index of a batch and the observed values by name.
pub type Seen<'a> = &'a mut dyn FnMut(usize, &[(&str, &[f32])]) -> Result<(), Failure>;

/// Runs as much of a graph as some of its f32 values need and shows them, batch by batch from `first`
/// on.
pub fn observe(
    graph: &Graph,
    values: &[NodeId],
    batches: &[impl Borrow<Batch>],
    first: usize,
    cx: &mut Context<'_>,
    seen: Seen<'_>,
) -> Result<(), Failure> {
    if values.is_empty() {
        return Ok(());
    }
    let mut part = graph.clone();
    part.set_outputs(values.iter().map(|&id| (graph.node(id).name.clone(), id)).collect());
    part.sweep();
    let target = pipeline::float_target(&part, cx)?;
    let model = Model::from_parts(target.program, &target.weights, &target.code, None)?;
    let cancel = Some(cx.interrupt.flag());
    let options = SessionOptions { threads: cx.threads, cancel, ..Default::default() };
    let mut session = Session::new(&model, options)?;
    for (index, batch) in batches.iter().enumerate().skip(first) {
        let inputs: Vec<(&str, TensorView<'_>)> =
            batch.borrow().iter().map(|(name, t)| (name.as_str(), t.view())).collect();
        let outputs = session.run(&inputs).map_err(|e| {
            cx.interrupt.check().err().unwrap_or_else(|| {
                Failure::new(Exit::Data, format!("calibration sample {index}: {e}"))
            })
        })?;
        let all: Vec<(&str, &[f32])> = outputs
            .iter()
            .map(|(name, tensor)| (name, tensor.numbers::<f32>().unwrap_or_default()))
            .collect();
        seen(index, &all)?;
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
