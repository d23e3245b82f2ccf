//! What a compilation does, resolved: from the command line, and recorded in the file's manifest.

use crate::exit::Failure;
use fqbin::Level;
use fqc_ir::plan::Precision;
use fqc_passes::quant::choose;
use fqc_passes::quant::groups::Heads;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How activations and weights are quantised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Float all the way.
    None,
    /// Static per-tensor activations from their largest value, weights rounded to nearest.
    Rtn,
    /// The same after channel smoothing.
    Smoothquant,
    /// Smoothing, then large channels spread over extra channels.
    Flattenquant,
}

/// What products that stay float are computed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    F32,
    /// Operands rounded to bf16 where the processor has instructions for it; sums stay f32.
    Bf16,
}

/// Everything that decides the bytes of the result, but for the model and the data.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub method: Method,
    /// Code levels, best last.
    pub levels: Vec<String>,
    /// Extra channels at most, as a share of a layer's channels.
    pub max_extra: f32,
    /// Whether a language model's head is quantised too.
    pub quantize_head: bool,
    /// Whether each weight has one scale instead of one for each output channel.
    pub per_tensor_weights: bool,
    /// Products that stay float; by default f32 if all of the model does, else bf16.
    pub float: Option<Float>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            method: Method::Flattenquant,
            levels: Level::ALL.map(|level| level.name().to_owned()).into(),
            max_extra: 0.10,
            quantize_head: false,
            per_tensor_weights: false,
            float: None,
        }
    }
}

impl Settings {
    /// The settings in a TOML file; what it does not name keeps its default.
    pub fn read(path: &Path) -> Result<Settings, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| Failure::io("read", path, &e))?;
        toml::from_str(&text)
            .map_err(|e| Failure::usage(format!("`{}`: {}", path.display(), e.to_string().trim())))
    }

    /// The search space of the method.
    pub fn search(&self) -> choose::Settings {
        let defaults = choose::Settings { max_extra: self.max_extra, ..Default::default() };
        match self.method {
            Method::None | Method::Rtn => {
                choose::Settings { alphas: vec![0.0], flatten: false, ..defaults }
            }
            // Without copies for the large channels, more of them must go into the weights.
            Method::Smoothquant => {
                let alphas = (0..=9).map(|tenths| tenths as f32 / 10.0).collect();
                choose::Settings { alphas, flatten: false, ..defaults }
            }
            Method::Flattenquant => defaults,
        }
    }

    /// How exact the operands of float products have to be.
    pub fn precision(&self) -> Precision {
        match (self.float, self.method) {
            (Some(Float::F32), _) | (None, Method::None) => Precision::F32,
            (Some(Float::Bf16), _) | (None, _) => Precision::Bf16,
        }
    }

    pub fn heads(&self) -> Heads {
        if self.quantize_head { Heads::Quantized } else { Heads::Float }
    }
}
