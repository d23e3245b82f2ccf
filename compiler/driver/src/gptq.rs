//! GPTQ over a whole model, a few groups at a time: the graph runs up to their inputs, their Gram
//! matrices are summed, their weights rounded and put into the result. Memory is bounded by one part
//! of the graph and the Gram matrices of one turn.

use crate::calibrate;
use crate::data::Batch;
use crate::exit::Failure;
use crate::parts::{self, Walk};
use crate::pipeline::Context;
use crate::progress::Stage;
use crate::quantise::quantise;
use crate::settings::Settings;
use fqc_ir::{Graph, NodeId};
use fqc_passes::quant::choose::Choice;
use fqc_passes::quant::gram::Gram;
use fqc_passes::quant::groups;
use fqc_passes::quant::parallel;
use fqc_passes::quant::passes::{self as quant, Choices};
use fqc_passes::quant::round::Rounded;
use fqrt::Tensor;
use std::collections::BTreeMap;

/// Bytes of the Gram matrices of one turn, unless one alone needs more.
const TURN_BYTES: usize = 192 << 20;

/// Groups of one turn where each sees its predecessors quantised: the blocks of a transformer have
/// about so many.
const SEQUENTIAL_GROUPS: usize = 4;

/// Brings all groups that have a choice, of `graph` which is still the float one, into their quantised
/// form.
pub fn run(
    float: &Graph,
    graph: &mut Graph,
    choices: &Choices,
    batches: &[Batch],
    settings: &Settings,
    cx: &mut Context<'_>,
) -> Result<(), Failure> {
    let found = groups::find(float, settings.heads());
    let names = found.into_iter().map(|g| float.node(g.input).name.clone());
    let names: Vec<String> = names.filter(|name| choices.contains_key(name)).collect();
    let mut stage = Stage::new("round weights", names.len() as u64, cx.verbosity);
    if settings.sequential {
        let mut left = &names[..];
        while !left.is_empty() {
            let (turn, rest) = left.split_at(turn(left, choices, true));
            let mut grams = Grams::new(turn, choices);
            let inputs: Vec<NodeId> = turn.iter().filter_map(|name| graph.find(name)).collect();
            let threads = cx.threads;
            calibrate::observe(graph, &inputs, batches, cx, &mut |_, values| {
                grams.update(values, threads);
                Ok(())
            })?;
            let rounded = grams.round(graph, settings, cx)?;
            quantise(graph, turn, choices, rounded, settings, rest.is_empty(), cx)?;
            turn.iter().for_each(|_| stage.step());
            left = rest;
        }
        return Ok(());
    }
    let inputs: Vec<NodeId> = names.iter().filter_map(|name| float.find(name)).collect();
    let mut walk = Walk::new(batches)?;
    let mut rounded_groups = 0;
    for part in parts::cut(float, &inputs)? {
        let mut left = &part.observed[..];
        loop {
            let (turn, rest) = left.split_at(turn(left, choices, false).min(left.len()));
            let mut grams = Grams::new(turn, choices);
            let threads = cx.threads;
            walk.run(&part, turn, rest.is_empty(), cx, &mut |_, values| {
                grams.update(values, threads);
                Ok(())
            })?;
            let rounded = grams.round(float, settings, cx)?;
            rounded_groups += turn.len();
            let last = rounded_groups == names.len();
            quantise(graph, turn, choices, rounded, settings, last, cx)?;
            turn.iter().for_each(|_| stage.step());
            left = rest;
            if left.is_empty() {
                break;
            }
        }
    }
    Ok(())
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

/// The Gram matrices of some groups.
struct Grams<'a> {
    names: &'a [String],
    each: Vec<(&'a Choice, Gram)>,
}

impl<'a> Grams<'a> {
    fn new(names: &'a [String], choices: &'a Choices) -> Grams<'a> {
        let each = names.iter().map(|name| (&choices[name], Gram::new(&choices[name]))).collect();
        Grams { names, each }
    }

    /// Takes in the groups' inputs of one batch.
    fn update(&mut self, values: &[(&str, &Tensor)], threads: usize) {
        let mut jobs = Vec::new();
        for (name, (choice, gram)) in self.names.iter().zip(&mut self.each) {
            let values = values.iter().find(|(n, _)| n == name);
            let values = values.and_then(|(_, v)| v.numbers::<f32>()).unwrap_or_default();
            jobs.push(std::sync::Mutex::new((*choice, gram, values)));
        }
        parallel::map(&jobs, threads, |job| {
            if let Ok(mut job) = job.lock() {
                let (choice, gram, values) = &mut *job;
                gram.update(values, choice);
            }
        });
    }

    /// The rounded weights by the names of the linears.
    fn round(
        self,
        graph: &Graph,
        settings: &Settings,
        cx: &Context<'_>,
    ) -> Result<BTreeMap<String, Rounded>, Failure> {
        let mut rounded = BTreeMap::new();
        for (name, (choice, gram)) in self.names.iter().zip(self.each) {
            cx.interrupt.check()?;
            let group = graph.find(name).and_then(|id| groups::of(graph, id, settings.heads()));
            let Some(group) = group else { continue };
            let granularity = settings.granularity();
            rounded.extend(quant::gptq(graph, &group, choice, &gram, granularity, cx.threads));
        }
        Ok(rounded)
    }
}
