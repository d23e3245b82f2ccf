//! What a compilation tells its user: work and memory by width, and what was chosen for each group.

use crate::fqcal::Origin;
use crate::hash;
use crate::memory::{Memory, Part};
use crate::pipeline::Compiled;
use crate::settings::Settings;
use fqc_ir::Dim;
use fqc_passes::quant::choose::mean_extra;
use serde::Serialize;
use std::fmt;

/// The summary of one compilation; also the manifest of the file.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub producer: String,
    pub model: String,
    /// BLAKE3 of the model file (external data not included).
    pub model_hash: String,
    /// BLAKE3 of the imported graph with all its constants.
    pub graph_hash: String,
    /// Where the calibration data came from.
    pub calibration: Option<Origin>,
    pub settings: Settings,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    /// Linear layers by width, and what they take.
    pub memory: Memory,
    /// Mean of the extra channels over the groups, as a share.
    pub extra_channels: f64,
    pub weight_bytes: u64,
    pub code_bytes: u64,
    pub groups: Vec<GroupReport>,
    /// A kernel for every step.
    pub steps: Vec<String>,
}

/// The choice for one group.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    pub input: String,
    pub widths: String,
    pub channels: usize,
    pub extra: usize,
    pub alpha: f32,
    pub threshold: f32,
    pub signed: bool,
}

impl Report {
    pub fn new(compiled: &Compiled, settings: &Settings, model: String) -> Report {
        let groups: Vec<GroupReport> = compiled
            .choices
            .iter()
            .map(|(input, c)| GroupReport {
                input: input.clone(),
                widths: c.widths.to_string(),
                channels: c.map.base as usize,
                extra: c.map.tail.len(),
                alpha: c.alpha,
                threshold: c.threshold,
                signed: c.signed,
            })
            .collect();
        let port = |p: &fqc_ir::plan::Port| {
            let dims: Vec<String> = p.shape.iter().map(Dim::to_string).collect();
            format!("{}: {}[{}]", p.name, p.elem, dims.join(","))
        };
        let weight_bytes = compiled.target.weights.len() as u64;
        Report {
            producer: concat!("fqc ", env!("CARGO_PKG_VERSION")).to_owned(),
            model,
            model_hash: String::new(),
            graph_hash: hash::graph(&compiled.float),
            calibration: None,
            settings: settings.clone(),
            inputs: compiled.plan.inputs.iter().map(port).collect(),
            outputs: compiled.plan.outputs.iter().map(port).collect(),
            memory: Memory::of(
                &compiled.float,
                &compiled.choices,
                settings.precision(),
                weight_bytes,
            ),
            extra_channels: mean_extra(compiled.choices.values()),
            weight_bytes,
            code_bytes: compiled.target.code.iter().map(|c| c.bytes.len() as u64).sum(),
            groups,
            steps: compiled
                .plan
                .steps
                .iter()
                .map(|s| format!("{} {}", s.kernel.name(), s.name))
                .collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.memory;
        if !self.groups.is_empty() {
            let (extra, groups) = (100.0 * self.extra_channels, self.groups.len());
            writeln!(f, "{groups} groups, {extra:.1} % extra channels in the mean")?;
        }
        let share = |(name, part): (&str, &Part)| {
            let percent = 100.0 * m.share(part);
            (part.layers > 0).then(|| format!("{percent:.1} % of the work in {name}"))
        };
        let shares = [("INT4", &m.int4), ("INT8", &m.int8), ("float", &m.float)];
        let shares: Vec<String> = shares.into_iter().filter_map(share).collect();
        let linears = m.linears();
        if linears.layers == 0 {
            return write!(f, "no linear layers");
        }
        writeln!(f, "{} linear layers, {}", linears.layers, shares.join(", "))?;
        let mb = |bytes: u64| bytes as f64 / 1e6;
        write!(
            f,
            "their weights: {:.1} MB, {:.2} times less than {:.1} MB in FP16",
            mb(linears.bytes),
            linears.fp16_bytes as f64 / linears.bytes.max(1) as f64,
            mb(linears.fp16_bytes)
        )
    }
}
