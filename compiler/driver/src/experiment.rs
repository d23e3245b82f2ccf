//! One model compiled in several ways in memory and evaluated on one text, with one calibration.

use crate::analyze::GroupAnalysis;
use crate::calibrate::Data;
use crate::data::Batch;
use crate::evaluate::{self, Scores};
use crate::exit::Failure;
use crate::pipeline::{self, Compiled, Context};
use crate::progress::{Stage, Verbosity};
use crate::settings::{Scheme, Settings};
use crate::text::Text;
use fqbin::Level;
use fqc_ir::{Graph, NodeId};
use fqc_passes::quant::groups::{self, linear};
use fqc_passes::quant::stats::Statistics;
use fqrt::{Model, SessionOptions};
use serde::Serialize;
use std::sync::Arc;

/// What stays the same.
pub struct Experiment {
    pub float: Graph,
    pub statistics: Statistics,
    /// Samples, for passes that want them.
    pub batches: Arc<Vec<Batch>>,
    pub text: Text,
    reference: Arc<Model>,
    options: SessionOptions,
}

/// What came out for some settings.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub scores: Scores,
    /// Mean share of extra channels over the groups.
    pub extra_channels: f64,
    /// Share of the linear layers' multiplications with INT4 weights.
    pub int4_share: f64,
    pub weight_bytes: u64,
}

impl Experiment {
    pub fn new(
        float: Graph,
        statistics: Statistics,
        batches: Arc<Vec<Batch>>,
        text: Text,
        cx: &mut Context<'_>,
    ) -> Result<Experiment, Failure> {
        let target = pipeline::float_target(&float, cx)?;
        let reference = Model::from_parts(target.program, &target.weights, &target.code, None)?;
        let cancel = Some(cx.interrupt.flag());
        let options = SessionOptions { threads: cx.threads, cancel, ..Default::default() };
        Ok(Experiment { float, statistics, batches, text, reference, options })
    }

    /// Compiles for this machine and evaluates against float.
    pub fn run(&self, settings: &Settings, cx: &mut Context<'_>) -> Result<Outcome, Failure> {
        let level = best_level()?;
        let levels = vec![level.name().to_owned()];
        let settings = Settings { levels, ..settings.clone() };
        let data = Data {
            batches: self.batches.clone(),
            statistics: Some(self.statistics.clone()),
            ..Data::default()
        };
        let compiled = pipeline::compile(self.float.clone(), &settings, |_| Ok(data), cx)?;
        let (extra_channels, int4_share) = shares(&compiled, &settings);
        let target = compiled.target;
        let weight_bytes = target.weights.len() as u64;
        let model = Model::from_parts(target.program, &target.weights, &target.code, Some(level))?;
        drop(target.weights);
        let (reference, text) = (Some(&self.reference), &self.text);
        let scores = evaluate::run(&model, reference, text, &self.options, Verbosity::Quiet)
            .map_err(|e| cx.interrupt.check().err().unwrap_or(e))?;
        Ok(Outcome { scores, extra_channels, int4_share, weight_bytes })
    }

    /// Outcomes for growing shares of the linear layers' work in `low` widths, the rest W8A8: first the
    /// groups that lose least for their work.
    pub fn curve(
        &self,
        settings: &Settings,
        groups: &[GroupAnalysis],
        low: Scheme,
        shares: &[f64],
        cx: &mut Context<'_>,
    ) -> Result<Vec<Outcome>, Failure> {
        let at = |g: &GroupAnalysis, scheme: Scheme| {
            let widths = scheme.widths().to_string();
            g.at.iter().find(|a| a.widths == widths).map_or(g.loss, |a| a.loss)
        };
        let price = |g: &&GroupAnalysis| (at(g, low) - at(g, Scheme::W8a8)) / g.work;
        let mut ranked: Vec<&GroupAnalysis> = groups.iter().collect();
        ranked.sort_by(|a, b| price(a).total_cmp(&price(b)).then(a.layer.cmp(&b.layer)));
        let mut stage = Stage::new("curve", shares.len() as u64, cx.verbosity);
        let mut outcomes = Vec::new();
        for &share in shares {
            let mut sum = 0.0;
            // A rounding error must not add a group.
            let wanted = |g: &&&GroupAnalysis| -> bool {
                let more = sum + 1e-9 < share;
                sum += g.work;
                more
            };
            let chosen = ranked.iter().take_while(wanted);
            let groups = chosen.map(|g| (g.input.clone(), low)).collect();
            let widths = Settings { scheme: Scheme::W8a8, groups, ..settings.clone() };
            let settings = Settings { int4_share: None, gamma: None, max_drop: None, ..widths };
            outcomes.push(self.run(&settings, cx)?);
            stage.step();
        }
        Ok(outcomes)
    }
}

/// Mean share of extra channels, and the share of the groups' multiplications with INT4 weights.
fn shares(compiled: &Compiled, settings: &Settings) -> (f64, f64) {
    let (mut extra, mut count, mut low, mut all) = (0.0, 0, 0.0, 0.0);
    let float = &compiled.float;
    for group in groups::find(float, settings.heads()) {
        let Some(choice) = compiled.choices.get(&float.node(group.input).name) else { continue };
        let size = |&id: &NodeId| {
            let (_, w) = linear(float, id)?;
            let dims = &float.node(w).ty.shape;
            Some(dims.iter().map(|d| d.as_const().unwrap_or(0) as f64).product::<f64>())
        };
        let work: f64 = group.linears.iter().filter_map(size).sum();
        extra += choice.map.tail.len() as f64 / f64::from(choice.map.base.max(1));
        count += 1;
        all += work;
        low += if choice.widths.weights == 4 { work } else { 0.0 };
    }
    (extra / f64::from(count.max(1)), if all > 0.0 { low / all } else { 0.0 })
}

/// The level that runs here.
fn best_level() -> Result<Level, Failure> {
    pipeline::forced_level()?.or_else(fqrt::best_level).ok_or_else(pipeline::no_level)
}
