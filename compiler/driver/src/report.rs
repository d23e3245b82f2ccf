//! What a compilation tells its user: work and memory by width, and what was chosen for each group.

use crate::fqcal::{DataFile, Origin};
use crate::hash;
use crate::memory::{Memory, Part};
use crate::pipeline::Planned;
use crate::settings::Settings;
use fqbin::Weights;
use fqc_ir::Dim;
use fqc_ir::plan::{Place, Plan};
use fqc_passes::quant::choose::mean_extra;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

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
    /// The gemms of which tiles for `cuda:sm_90a` were chosen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gemms: Vec<GemmReport>,
    /// The file that measured tiles came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuned: Option<DataFile>,
}

/// A gemm as `fqc tune` times it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GemmReport {
    /// As [`fqc_codegen::cuda::Layer`] writes itself.
    pub gemm: String,
    /// Steps that are such a gemm.
    pub steps: usize,
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
    /// The summary of what `targets` are then generated for; `code_bytes` is for these to say.
    pub fn new(planned: &Planned, settings: &Settings, model: String) -> Report {
        let groups: Vec<GroupReport> = planned
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
        let weight_bytes = constant_bytes(&planned.plan);
        Report {
            producer: concat!("fqc ", env!("CARGO_PKG_VERSION")).to_owned(),
            model,
            model_hash: String::new(),
            graph_hash: hash::graph(&planned.float),
            calibration: None,
            settings: settings.clone(),
            inputs: planned.plan.inputs.iter().map(port).collect(),
            outputs: planned.plan.outputs.iter().map(port).collect(),
            memory: Memory::of(
                &planned.float,
                &planned.choices,
                settings.precision(),
                weight_bytes,
            ),
            extra_channels: mean_extra(planned.choices.values()),
            weight_bytes,
            code_bytes: 0,
            groups,
            steps: planned
                .plan
                .steps
                .iter()
                .map(|s| format!("{} {}", s.kernel.name(), s.name))
                .collect(),
            gemms: Vec::new(),
            tuned: None,
        }
    }
}

/// What a plan's constants take in a file, each content once.
fn constant_bytes(plan: &Plan) -> u64 {
    let (mut known, mut all) = (BTreeSet::new(), Weights::new());
    for buffer in &plan.buffers {
        let Place::Const(constant) = &buffer.place else { continue };
        if known.insert(*blake3::hash(constant.bytes.as_slice()).as_bytes()) {
            all.push(Arc::new(constant.bytes.clone()));
        }
        constant.bytes.release();
    }
    all.len() as u64
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
