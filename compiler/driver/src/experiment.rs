//! One model compiled in several ways in memory and evaluated on one text, with one calibration.

use crate::calibrate::Data;
use crate::data::Batch;
use crate::evaluate::{self, Scores};
use crate::exit::Failure;
use crate::memory::Memory;
use crate::pipeline::{self, Context};
use crate::progress::{Stage, Verbosity};
use crate::settings::{Scheme, Settings};
use crate::text::Text;
use fqbin::Level;
use fqc_ir::Graph;
use fqc_passes::quant::assign::Aim;
use fqc_passes::quant::choose::{Choice, mean_extra};
use fqc_passes::quant::stats::Statistics;
use fqrt::{Model, SessionOptions};
use serde::Serialize;
use std::collections::BTreeMap;
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
    /// Share of the linear layers' multiplications with INT4 weights, the head apart.
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
        self.run_with(settings, None, cx)
    }

    /// The same with what was already chosen for each group.
    fn run_with(
        &self,
        settings: &Settings,
        choices: Option<BTreeMap<String, Choice>>,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Failure> {
        let level = best_level()?;
        let levels = vec![level.name().to_owned()];
        let settings = Settings { levels, ..settings.clone() };
        let statistics = Some(self.statistics.clone());
        let batches = self.batches.clone();
        let data = Data { batches, statistics, choices, ..Data::default() };
        let compiled = pipeline::compile(self.float.clone(), &settings, |_| Ok(data), cx)?;
        let extra_channels = mean_extra(compiled.choices.values());
        let weight_bytes = compiled.target.weights.len() as u64;
        let left = settings.precision();
        let memory = Memory::of(&compiled.float, &compiled.choices, left, weight_bytes);
        let int4_share = memory.share(&memory.int4);
        let target = compiled.target;
        let model = Model::from_parts(target.program, &target.weights, &target.code, Some(level))?;
        drop(target.weights);
        let (reference, text) = (Some(&self.reference), &self.text);
        let scores = evaluate::run(&model, reference, text, &self.options, Verbosity::Quiet)
            .map_err(|e| cx.interrupt.check().err().unwrap_or(e))?;
        Ok(Outcome { scores, extra_channels, int4_share, weight_bytes })
    }

    /// Outcomes for growing shares of the linear layers' work in INT4, each what `--int4-share` gives, the
    /// rest W8A8. `activations` are the bits of the INT4 layers' inputs.
    pub fn curve(
        &self,
        settings: &Settings,
        activations: u8,
        shares: &[f64],
        cx: &mut Context<'_>,
    ) -> Result<Vec<Outcome>, Failure> {
        let at = |share: f64| Settings {
            scheme: Scheme::W8a8,
            int4_activations: activations,
            int4_share: Some(share),
            gamma: None,
            max_drop: None,
            ..settings.clone()
        };
        let aims: Vec<Option<Aim>> = shares.iter().map(|s| Some(Aim::Share(*s))).collect();
        let (float, statistics, batches) = (&self.float, &self.statistics, &self.batches);
        let any = at(0.0);
        any.check(float)?;
        let choices = pipeline::choose_for(float, statistics, batches, &any, &aims, &mut None, cx)?;
        let mut stage = Stage::new("curve", shares.len() as u64, cx.verbosity);
        let mut outcomes = Vec::new();
        for (&share, choices) in shares.iter().zip(choices) {
            outcomes.push(self.run_with(&at(share), Some(choices), cx)?);
            stage.step();
        }
        Ok(outcomes)
    }
}

/// The level that runs here.
fn best_level() -> Result<Level, Failure> {
    pipeline::forced_level()?.or_else(fqrt::best_level).ok_or_else(pipeline::no_level)
}
