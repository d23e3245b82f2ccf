//! GPTQ over a whole model, a few groups at a time: the graph runs up to their inputs, their Gram
//! matrices are summed, their weights rounded. Memory is bounded by the Gram matrices of one turn.

use crate::calibrate;
use crate::data::Batch;
use crate::exit::Failure;
use crate::pipeline::{self, Context};
use crate::progress::Stage;
use crate::settings::Settings;
use fqc_ir::{Graph, NodeId};
use fqc_passes::quant::choose::Choice;
use fqc_passes::quant::gram::Gram;
use fqc_passes::quant::groups;
use fqc_passes::quant::insert_qdq::RoundedWeights;
use fqc_passes::quant::parallel;
use fqc_passes::quant::passes::{self as quant, Choices};
use fqc_passes::quant::round::Rounded;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of the Gram matrices of one turn, unless one alone needs more.
const TURN_BYTES: usize = 192 << 20;

/// Groups of one turn where each sees its predecessors quantised: the blocks of a transformer have
/// about so many.
const SEQUENTIAL_GROUPS: usize = 4;

/// The weights of all groups that have a choice.
pub fn run(
    float: &Graph,
    choices: &Choices,
    batches: &[Batch],
    settings: &Settings,
    cx: &mut Context<'_>,
) -> Result<RoundedWeights, Failure> {
    let found = groups::find(float, settings.heads());
    let names = found.into_iter().map(|g| float.node(g.input).name.clone());
    let names: Vec<String> = names.filter(|name| choices.contains_key(name)).collect();
    let mut stage = Stage::new("round weights", names.len() as u64, cx.verbosity);
    let mut all: BTreeMap<String, Rounded> = BTreeMap::new();
    let mut graph = float.clone();
    let mut left = &names[..];
    while !left.is_empty() {
        let (turn, rest) = left.split_at(turn(left, choices, settings.sequential));
        let rounded = one_turn(&graph, turn, choices, batches, settings, cx)?;
        if settings.sequential {
            quantise(&mut graph, turn, choices, &rounded, settings, cx)?;
        }
        all.extend(rounded);
        turn.iter().for_each(|_| stage.step());
        left = rest;
    }
    Ok(Arc::new(all))
}

/// How many of the groups fit into one turn; at least one.
fn turn(names: &[String], choices: &Choices, sequential: bool) -> usize {
    let most = if sequential { SEQUENTIAL_GROUPS } else { usize::MAX };
    let mut bytes = 0usize;
    let fits = |name: &&String| {
        let width = choices[*name].map.base as usize + choices[*name].map.tail.len();
        bytes = bytes.saturating_add(width.saturating_mul(width).saturating_mul(4));
        bytes <= TURN_BYTES
    };
    names.iter().take(most).take_while(fits).count().max(1)
}

fn one_turn(
    graph: &Graph,
    names: &[String],
    choices: &Choices,
    batches: &[Batch],
    settings: &Settings,
    cx: &mut Context<'_>,
) -> Result<BTreeMap<String, Rounded>, Failure> {
    let inputs: Vec<NodeId> = names.iter().filter_map(|name| graph.find(name)).collect();
    let mut grams: Vec<(&Choice, Gram)> =
        names.iter().map(|name| (&choices[name], Gram::new(&choices[name]))).collect();
    let threads = cx.threads;
    calibrate::observe(graph, &inputs, batches, 0, cx, &mut |_, values| {
        let mut jobs = Vec::new();
        for (name, (choice, gram)) in names.iter().zip(&mut grams) {
            let values = values.iter().find(|(n, _)| n == name).map_or(&[][..], |(_, v)| v);
            jobs.push(std::sync::Mutex::new((*choice, gram, values)));
        }
        parallel::map(&jobs, threads, |job| {
            if let Ok(mut job) = job.lock() {
                let (choice, gram, values) = &mut *job;
                gram.update(values, choice);
            }
        });
        Ok(())
    })?;
    let mut rounded = BTreeMap::new();
    for (&input, (choice, gram)) in inputs.iter().zip(&grams) {
        cx.interrupt.check()?;
        let Some(group) = groups::of(graph, input, settings.heads()) else { continue };
        let granularity = settings.granularity();
        rounded.extend(quant::gptq(graph, &group, choice, gram, granularity, threads));
    }
    Ok(rounded)
}

/// Brings some groups of a float graph into their quantised form.
fn quantise(
    graph: &mut Graph,
    names: &[String],
    choices: &Choices,
    rounded: &BTreeMap<String, Rounded>,
    settings: &Settings,
    cx: &mut Context<'_>,
) -> Result<(), Failure> {
    let own = |(name, choice): (&String, &Choice)| {
        names.contains(name).then(|| (name.clone(), choice.clone()))
    };
    let choices: Choices = Arc::new(choices.iter().filter_map(own).collect());
    let rounded = Arc::new(rounded.clone());
    pipeline::run(graph, &pipeline::exact(&choices, settings), cx)?;
    pipeline::run(graph, &pipeline::rounding(&choices, &rounded, settings), cx)
}
