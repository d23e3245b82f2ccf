//! From a float graph to its quantised form, a few groups at a time: smoothed and flattened weights are
//! in memory only until they are codes.

use crate::exit::Failure;
use crate::pipeline::{self, Context};
use crate::settings::{Method, Settings};
use fqc_ir::{Graph, Op};
use fqc_passes::quant::groups::{self, Group, linear};
use fqc_passes::quant::insert_qdq::RoundedWeights;
use fqc_passes::quant::nearest;
use fqc_passes::quant::passes::Choices;
use fqc_passes::quant::round::Rounded;
use fqc_passes::quant::stats::Statistics;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of the float weights of one turn, unless one group has more.
const TURN_BYTES: usize = 64 << 20;

/// Brings all groups that have a choice, of `graph` which is still the float one, into their quantised
/// form, weights rounded to nearest.
pub fn nearest(
    float: &Graph,
    graph: &mut Graph,
    choices: &Choices,
    statistics: &Statistics,
    settings: &Settings,
    cx: &mut Context<'_>,
) -> Result<(), Failure> {
    let mut left = Vec::new();
    for group in groups::find(float, settings.heads()) {
        let name = float.node(group.input).name.clone();
        if choices.contains_key(&name) {
            left.push((name, weight_bytes(float, &group)));
        }
    }
    let mut left = &left[..];
    while !left.is_empty() {
        let mut bytes = 0usize;
        let fits = |(_, own): &&(String, usize)| {
            bytes = bytes.saturating_add(*own);
            bytes <= TURN_BYTES
        };
        let count = left.iter().take_while(fits).count().max(1);
        let (turn, rest) = left.split_at(count);
        let choices = own(turn.iter().map(|(name, _)| name), choices);
        let rounded = match settings.method {
            Method::Flattenquant => {
                let (heads, granularity) = (settings.heads(), settings.granularity());
                nearest::clipped(float, heads, &choices, statistics, granularity, cx.threads)
            }
            // The baselines stay plain.
            _ => RoundedWeights::default(),
        };
        rewrite(graph, &choices, &rounded, settings, rest.is_empty(), cx)?;
        left = rest;
    }
    Ok(())
}

/// The choices of some groups.
fn own<'a>(names: impl Iterator<Item = &'a String>, choices: &Choices) -> Choices {
    Arc::new(names.filter_map(|n| Some((n.clone(), choices.get(n)?.clone()))).collect())
}

fn weight_bytes(graph: &Graph, group: &Group) -> usize {
    let of = |&id| match &graph.node(linear(graph, id)?.1).op {
        Op::Const(value) => Some(value.bytes.as_slice().len()),
        _ => None,
    };
    group.linears.iter().filter_map(of).sum()
}

/// Brings some groups into their quantised form; `rounded` has weights by the names of their linears,
/// all others are rounded to nearest. Only the last turn of a compilation is shown pass by pass.
pub fn quantise(
    graph: &mut Graph,
    names: &[String],
    choices: &Choices,
    rounded: BTreeMap<String, Rounded>,
    settings: &Settings,
    last: bool,
    cx: &mut Context<'_>,
) -> Result<(), Failure> {
    rewrite(graph, &own(names.iter(), choices), &Arc::new(rounded), settings, last, cx)
}

fn rewrite(
    graph: &mut Graph,
    choices: &Choices,
    rounded: &RoundedWeights,
    settings: &Settings,
    last: bool,
    cx: &mut Context<'_>,
) -> Result<(), Failure> {
    let hook = if last { None } else { cx.after_pass.take() };
    let result = pipeline::run(graph, &pipeline::exact(choices, settings), cx)
        .and_then(|()| pipeline::run(graph, &pipeline::rounding(choices, rounded, settings), cx));
    if !last {
        cx.after_pass = hook;
    }
    result
}
