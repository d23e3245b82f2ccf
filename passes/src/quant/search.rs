//! The choices for all groups of a model: the frontiers of each, then one price, then the points.

use super::assign::{Aim, Candidate, assign};
use super::budget::{Curve, price};
use super::choose::{Choice, Settings, build, frontier};
use super::groups::{self, Group, Heads};
use super::parallel;
use super::passes::weights;
use super::stats::Statistics;
use super::widths::Widths;
use fqc_ir::Graph;
use std::collections::BTreeMap;

/// What a unit of each group's error costs the model, by the name of its input; one where not named.
pub type Sensitivity = BTreeMap<String, f64>;

/// The frontiers of all groups of which there are statistics. A group with values that no scale fits
/// (no rows seen, a weight that is not finite) has none and stays as it is.
pub struct Search<'a> {
    graph: &'a Graph,
    statistics: &'a Statistics,
    settings: &'a Settings,
    threads: usize,
    found: Vec<Found>,
    left: Vec<String>,
}

struct Found {
    name: String,
    group: Group,
    /// Multiplications for each token; a head's do not count.
    work: f64,
    /// A curve for each width that may be chosen: the plain one first.
    curves: Vec<(Widths, Curve)>,
}

impl Found {
    /// Whether the group takes four bits, if it has no choice.
    fn settled(&self) -> Option<bool> {
        let [(widths, _)] = self.curves[..] else { return None };
        Some(widths.weights == 4)
    }
}

impl<'a> Search<'a> {
    /// `widths` says what each group may become: its widths, or eight bits first and then four.
    pub fn new(
        graph: &'a Graph,
        heads: Heads,
        statistics: &'a Statistics,
        widths: impl Fn(&Group) -> Vec<Widths>,
        settings: &'a Settings,
        threads: usize,
    ) -> Self {
        let name = |group: &Group| graph.node(group.input).name.clone();
        let groups = groups::find(graph, heads).into_iter().map(|g| (widths(&g), g));
        let wanted: Vec<(Vec<Widths>, Group)> = groups.filter(|(w, _)| !w.is_empty()).collect();
        let found = parallel::map(&wanted, threads, |(widths, group)| {
            let name = name(group);
            let stats = statistics.get(&name)?;
            let weights = weights(graph, group)?;
            let curve = |&widths: &Widths| {
                let points = frontier(stats, &weights, widths, settings)?;
                Some((widths, Curve { points, channels: weights.k, weight: 1.0 }))
            };
            let curves = widths.iter().map(curve).collect::<Option<Vec<_>>>()?;
            let head = group.linears.iter().any(|&id| groups::is_head(graph, id));
            let work = if head { 0.0 } else { (weights.k * weights.n) as f64 };
            Some(Found { name, group: group.clone(), work, curves })
        });
        let without = wanted.iter().zip(&found).filter(|(_, found)| found.is_none());
        let left = without.map(|((_, group), _)| name(group)).collect();
        let found = found.into_iter().flatten().collect();
        Search { graph, statistics, settings, threads, found, left }
    }

    /// The groups that are to be quantised and have no frontier, by the names of their inputs.
    pub fn left(&self) -> &[String] {
        &self.left
    }

    /// The choices with every group in its first widths, or, with an aim, where four bits cost little
    /// in its second.
    pub fn choices(&self, sensitivity: &Sensitivity, aim: Option<Aim>) -> BTreeMap<String, Choice> {
        let weighted = |found: &Found, at: usize| {
            let weight = sensitivity.get(&found.name).copied().unwrap_or(1.0);
            Curve { weight, ..found.curves[at].1.clone() }
        };
        let mut at = vec![0; self.found.len()];
        if let Some(aim) = aim {
            let eight: Vec<Curve> = self.found.iter().map(|f| weighted(f, 0)).collect();
            let price = price(&eight, self.settings);
            let loss = |c: &Curve| c.at(price).map_or(0.0, |p| c.weight * p.error);
            let candidates: Vec<Candidate> = self
                .found
                .iter()
                .zip(&eight)
                .map(|(f, eight)| Candidate {
                    work: f.work,
                    settled: f.settled(),
                    loss8: loss(eight),
                    loss4: loss(&weighted(f, f.curves.len() - 1)),
                })
                .collect();
            for ((at, found), four) in at.iter_mut().zip(&self.found).zip(assign(&candidates, aim))
            {
                *at = if four { found.curves.len() - 1 } else { 0 };
            }
        }
        let curves: Vec<Curve> =
            self.found.iter().zip(&at).map(|(f, &at)| weighted(f, at)).collect();
        let price = price(&curves, self.settings);
        let jobs: Vec<_> = self.found.iter().zip(at).zip(&curves).collect();
        let built = parallel::map(&jobs, self.threads, |((found, at), curve)| {
            let stats = self.statistics.get(&found.name)?;
            let weights = weights(self.graph, &found.group)?;
            let widths = found.curves[*at].0;
            let choice = build(stats, &weights, widths, self.settings, curve.at(price)?);
            Some((found.name.clone(), choice))
        });
        built.into_iter().flatten().collect()
    }
}
