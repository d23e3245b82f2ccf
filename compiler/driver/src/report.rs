//! What a compilation tells its user: layers by width, sizes, and what was chosen for each group.

use crate::fqcal::Origin;
use crate::hash;
use crate::pipeline::Compiled;
use crate::settings::Settings;
use fqc_ir::plan::{GemmInput, Kernel};
use fqc_ir::{Dim, Op};
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
    pub layers: Layers,
    pub float_bytes: u64,
    pub weight_bytes: u64,
    pub code_bytes: u64,
    pub groups: Vec<GroupReport>,
    /// A kernel for every step.
    pub steps: Vec<String>,
}

/// Linear layers by width, and their share of the multiplications.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Layers {
    pub int8: usize,
    pub float: usize,
    pub int8_share: f64,
    /// Mean of the extra channels over the groups, as a share.
    pub extra_channels: f64,
}

/// The choice for one group.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    pub input: String,
    pub channels: usize,
    pub extra: usize,
    pub alpha: f32,
    pub threshold: f32,
    pub signed: bool,
}

impl Report {
    pub fn new(compiled: &Compiled, settings: &Settings, model: String) -> Report {
        let (mut layers, mut int8_macs, mut all_macs) = (Layers::default(), 0.0, 0.0);
        for step in &compiled.plan.steps {
            let Kernel::Gemm(gemm) = &step.kernel else { continue };
            let macs = (gemm.n * gemm.k) as f64;
            all_macs += macs;
            match gemm.input {
                GemmInput::F32 => layers.float += 1,
                GemmInput::Codes { .. } => {
                    layers.int8 += 1;
                    int8_macs += macs;
                }
            }
        }
        layers.int8_share = if all_macs > 0.0 { int8_macs / all_macs } else { 0.0 };
        let groups: Vec<GroupReport> = compiled
            .choices
            .iter()
            .map(|(input, c)| GroupReport {
                input: input.clone(),
                channels: c.map.base as usize,
                extra: c.map.tail.len(),
                alpha: c.alpha,
                threshold: c.threshold,
                signed: c.signed,
            })
            .collect();
        let share = |g: &GroupReport| g.extra as f64 / g.channels.max(1) as f64;
        layers.extra_channels = groups.iter().map(share).sum::<f64>() / groups.len().max(1) as f64;
        let port = |p: &fqc_ir::plan::Port| {
            let dims: Vec<String> = p.shape.iter().map(Dim::to_string).collect();
            format!("{}: {}[{}]", p.name, p.elem, dims.join(","))
        };
        Report {
            producer: concat!("fqc ", env!("CARGO_PKG_VERSION")).to_owned(),
            model,
            model_hash: String::new(),
            graph_hash: hash::graph(&compiled.float),
            calibration: None,
            settings: settings.clone(),
            inputs: compiled.plan.inputs.iter().map(port).collect(),
            outputs: compiled.plan.outputs.iter().map(port).collect(),
            layers,
            float_bytes: float_bytes(compiled),
            weight_bytes: compiled.target.weights.len() as u64,
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

/// Bytes of the constants of the float graph.
fn float_bytes(compiled: &Compiled) -> u64 {
    let graph = &compiled.float;
    let sizes = graph.ids().into_iter().filter_map(|id| match &graph.node(id).op {
        Op::Const(value) => Some(value.bytes.as_slice().len() as u64),
        _ => None,
    });
    sizes.sum()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let l = &self.layers;
        writeln!(
            f,
            "linear layers: {} in INT8 ({:.1} % of their multiplications), {} in float",
            l.int8,
            100.0 * l.int8_share,
            l.float
        )?;
        if !self.groups.is_empty() {
            writeln!(
                f,
                "extra channels: {:.1} % in the mean over {} groups",
                100.0 * l.extra_channels,
                self.groups.len()
            )?;
        }
        write!(
            f,
            "size: {:.1} MB of float constants before, {:.1} MB of weights and {:.2} MB of code after",
            mb(self.float_bytes),
            mb(self.weight_bytes),
            mb(self.code_bytes)
        )
    }
}
