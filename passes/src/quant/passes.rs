//! The quantisation rewrites as passes. What was chosen for each group travels as data.

use super::choose::{Choice, Weights};
use super::gram::Gram;
use super::groups::{self, Group, Heads, linear};
use super::insert_qdq::{Format, RoundedWeights, Source, multiplied};
use super::round::{self, Granularity, Rounded};
use super::{flatten, fold_qdq, fold_quantize, insert_qdq, narrow_table, smooth};
use crate::facts::Facts;
use crate::rule::{Rule, RulePass};
use crate::run::{Pass, PassCx, PassError};
use fqc_ir::{Graph, NodeId, Op, Patch};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The choice for each group, by the name of its input.
pub type Choices = Arc<BTreeMap<String, Choice>>;

/// The weights of a group by GPTQ, by the names of its linears; nothing if the group has no choice.
pub fn gptq(
    graph: &Graph,
    group: &Group,
    choice: &Choice,
    gram: &Gram,
    granularity: Granularity,
    threads: usize,
) -> Vec<(String, Rounded)> {
    let Some(mut all) = weights(graph, group) else { return Vec::new() };
    for (row, s) in all.values.chunks_exact_mut(all.n.max(1)).zip(&choice.smooth) {
        row.iter_mut().for_each(|v| *v *= s);
    }
    let rounded = round::gptq(&all.values, all.n, choice, gram, granularity, threads);
    let mut begin = 0;
    let mut out = Vec::new();
    for &id in &group.linears {
        let Some((_, w)) = linear(graph, id) else { continue };
        let Op::Const(value) = &graph.node(w).op else { continue };
        let end = begin + value.shape[1];
        out.push((graph.node(id).name.clone(), rounded.columns(begin..end)));
        begin = end;
    }
    out
}

/// The weights of a group side by side.
pub fn weights(graph: &Graph, group: &Group) -> Option<Weights> {
    let mut parts = Vec::new();
    for &id in &group.linears {
        let (_, w) = linear(graph, id)?;
        let Op::Const(value) = &graph.node(w).op else { return None };
        parts.push((value.shape[1], value.to_f32()?));
        if value.shape[0] != parts[0].1.len() / parts[0].0.max(1) {
            return None;
        }
    }
    let n: usize = parts.iter().map(|p| p.0).sum();
    let k = parts.first().map_or(0, |p| p.1.len() / p.0.max(1));
    let mut values = Vec::with_capacity(k * n);
    for row in 0..k {
        for (columns, part) in &parts {
            values.extend_from_slice(&part[row * columns..(row + 1) * columns]);
        }
    }
    Some(Weights { k, n, values })
}

/// Channel smoothing of every chosen group. The values of the graph stay.
pub struct Smooth {
    pub heads: Heads,
    pub choices: Choices,
}

impl Pass for Smooth {
    fn name(&self) -> &'static str {
        "smooth"
    }

    fn breaks(&self) -> Facts {
        Facts::CANONICAL
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<(), PassError> {
        each_group(graph, cx, self.heads, "smooth", |graph, group| {
            let choice = self.choices.get(&graph.node(group.input).name)?;
            smooth::smooth(graph, group, &choice.smooth)
        })
    }
}

/// Flattening of every chosen group. The values of the graph stay.
pub struct Flatten {
    pub heads: Heads,
    pub choices: Choices,
}

impl Pass for Flatten {
    fn name(&self) -> &'static str {
        "flatten"
    }

    fn breaks(&self) -> Facts {
        Facts::CANONICAL
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<(), PassError> {
        each_group(graph, cx, self.heads, "flatten", |graph, group| {
            let (_, choice) = chosen(graph, group.input, &self.choices)?;
            flatten::flatten(graph, group, choice.threshold, &choice.map)
        })
    }
}

/// Rounds the inputs and weights of every flattened group.
pub struct InsertQdq {
    pub choices: Choices,
    pub rounded: RoundedWeights,
    pub granularity: Granularity,
}

impl Pass for InsertQdq {
    fn name(&self) -> &'static str {
        "insert-qdq"
    }

    fn breaks(&self) -> Facts {
        Facts::CANONICAL
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<(), PassError> {
        for id in graph.topological().ok_or(PassError::Cycle)? {
            if !graph.contains(id) || !matches!(graph.node(id).op, Op::Flatten { .. }) {
                continue;
            }
            let input = graph.operands(id)[0];
            let Some((source, choice)) = chosen(graph, input, &self.choices) else { continue };
            let name = graph.node(source.value).name.clone();
            let format = Format {
                widths: choice.widths,
                signed: choice.signed,
                granularity: self.granularity,
            };
            if let Some(patch) = insert_qdq::insert(graph, id, &source, format, &self.rounded) {
                apply(graph, cx, "insert-qdq", &name, patch)?;
            }
        }
        Ok(())
    }
}

/// Products of dequantised values become gemms on codes.
pub fn fold_qdq() -> RulePass {
    RulePass {
        name: "fold-qdq",
        rules: &[Rule { name: "fold-qdq", find: fold_qdq::fold }],
        needs: Facts::NONE,
        gives: Facts::NO_DEAD,
        breaks: Facts::CANONICAL,
    }
}

/// Quantisations go into the node before them.
pub fn fold_quantize() -> RulePass {
    RulePass {
        name: "fold-quantize",
        rules: &[Rule { name: "fold-quantize", find: fold_quantize::fold }],
        needs: Facts::NONE,
        gives: Facts::NONE,
        breaks: Facts::CANONICAL,
    }
}

/// Tables that rows are looked up in are kept in f16.
pub fn narrow_tables() -> RulePass {
    RulePass {
        name: "narrow-table",
        rules: &[Rule { name: "narrow-table", find: narrow_table::narrow }],
        needs: Facts::NONE,
        gives: Facts::NONE,
        breaks: Facts::NONE,
    }
}

/// The choice that was made for a group's input, or for the value it is the smoothing of. A
/// multiplication of the model's own is not mistaken for one: its result has a choice itself, and
/// other factors.
fn chosen<'c>(graph: &Graph, input: NodeId, choices: &'c Choices) -> Option<(Source, &'c Choice)> {
    if let Some(choice) = choices.get(&graph.node(input).name) {
        return Some((Source { value: input, factors: None }, choice));
    }
    let (value, factors) = multiplied(graph, input)?;
    let choice = choices.get(&graph.node(value).name)?;
    let ours = factors == smooth::multipliers(&choice.smooth);
    ours.then_some((Source { value, factors: Some(factors) }, choice))
}

/// Applies a patch for each group. Between patches only names stay: where a linear reads another one,
/// the first patch replaces the second group's input.
fn each_group(
    graph: &mut Graph,
    cx: &mut PassCx,
    heads: Heads,
    rule: &'static str,
    find: impl Fn(&Graph, &Group) -> Option<Patch>,
) -> Result<(), PassError> {
    let found = groups::find(graph, heads);
    let names: Vec<String> = found.iter().map(|g| graph.node(g.input).name.clone()).collect();
    for name in names {
        let group = graph.find(&name).and_then(|input| groups::of(graph, input, heads));
        if let Some(patch) = group.and_then(|group| find(graph, &group)) {
            apply(graph, cx, rule, &name, patch)?;
        }
    }
    Ok(())
}

fn apply(
    graph: &mut Graph,
    cx: &mut PassCx,
    rule: &'static str,
    node: &str,
    patch: Patch,
) -> Result<Vec<NodeId>, PassError> {
    if !cx.take_patch() {
        return Ok(Vec::new());
    }
    cx.count(rule);
    patch.apply(graph).map_err(|error| PassError::Patch {
        rule,
        node: node.to_owned(),
        error: error.to_string(),
    })
}
