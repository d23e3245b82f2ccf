//! What a compilation does, resolved: from the command line, and recorded in the file's manifest.

use crate::exit::Failure;
use fqbin::Level;
use fqc_ir::Graph;
use fqc_ir::plan::Precision;
use fqc_passes::quant::assign::Aim;
use fqc_passes::quant::choose;
use fqc_passes::quant::groups::{Group, Heads, find, is_head, linear};
use fqc_passes::quant::round::Granularity;
use fqc_passes::quant::widths::Widths;
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

/// What stays float: products, and tables that rows are looked up in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    F32,
    /// Operands rounded to bf16, attention's where the processor has instructions for it; sums stay f32.
    /// Tables are kept in f16.
    Bf16,
}

/// How weights become codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// To the nearest.
    Nearest,
    /// With feedback, so that the error of the layer's outputs on the calibration data is small.
    Gptq,
}

/// How a language model's head is computed: a linear whose result is an output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LmHead {
    Float,
    /// Weights and activations of eight bits, whatever the other layers have.
    Int8,
}

/// Bits of weights and activations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    W8a8,
    W4a8,
    W4a4,
}

impl Scheme {
    pub fn widths(self) -> Widths {
        match self {
            Scheme::W8a8 => Widths::W8A8,
            Scheme::W4a8 => Widths::W4A8,
            Scheme::W4a4 => Widths::W4A4,
        }
    }
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
    /// Whether more of them fill the rows up to a multiple of 64.
    pub headroom: bool,
    /// How a language model's head is computed.
    pub lm_head: LmHead,
    /// Widths of weights and activations.
    pub scheme: Scheme,
    /// Widths of single groups: a name of the group's input, of a linear or of its weight, where `*`
    /// stands for anything, and the scheme; the first name that fits counts.
    pub groups: Vec<(String, Scheme)>,
    /// Bits of the activations of groups that an aim gives four-bit weights: 8 or 4.
    pub int4_activations: u8,
    /// At least this share of the linear layers' work in four bits, where it costs least.
    pub int4_share: Option<f64>,
    /// Four bits for every group whose loss is at most this: the divergence of the model's outputs.
    pub gamma: Option<f64>,
    /// Four bits for as many groups as this loss of all together allows.
    pub max_drop: Option<f64>,
    /// How weights are rounded; `flattenquant` only.
    pub rounding: Rounding,
    /// Whether GPTQ shows each layer the quantised outputs of those before it.
    pub sequential: bool,
    /// Whether each weight has one scale instead of one for each output channel.
    pub per_tensor_weights: bool,
    /// What stays float; by default f32 if all of the model does, else bf16.
    pub float: Option<Float>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            method: Method::Flattenquant,
            levels: Level::ALL.map(|level| level.name().to_owned()).into(),
            max_extra: 0.08,
            headroom: false,
            lm_head: LmHead::Float,
            scheme: Scheme::W8a8,
            groups: Vec::new(),
            int4_activations: 8,
            int4_share: None,
            gamma: None,
            max_drop: None,
            rounding: Rounding::Gptq,
            sequential: false,
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
        let (max_extra, headroom, granularity) =
            (self.max_extra, self.headroom, self.granularity());
        let defaults = choose::Settings { max_extra, headroom, granularity, ..Default::default() };
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

    /// Whether a pattern is the name of a group's input, of one of its linears, or of a weight, as it is
    /// or with dots for slashes and colons, as tables show it.
    fn fits(graph: &Graph, group: &Group, pattern: &str) -> bool {
        let mut names = vec![graph.node(group.input).name.as_str()];
        for &id in &group.linears {
            names.push(&graph.node(id).name);
            names.extend(linear(graph, id).map(|(_, w)| graph.node(w).name.as_str()));
        }
        let dotted = |name: &str| name.replace(['/', ':'], ".");
        names.iter().any(|name| matches(pattern, name) || matches(pattern, &dotted(name)))
    }

    /// The scheme of a group that is settled: named in the settings, or a head's.
    fn own_scheme(&self, graph: &Graph, group: &Group) -> Option<Scheme> {
        let named = self.groups.iter().find(|(p, _)| Settings::fits(graph, group, p));
        let head = || group.linears.iter().any(|&id| is_head(graph, id)).then_some(Scheme::W8a8);
        named.map(|(_, scheme)| *scheme).or_else(head)
    }

    /// Refuses settings that contradict each other, or that name what the graph does not have.
    pub fn check(&self, graph: &Graph) -> Result<(), Failure> {
        let aims = [self.int4_share, self.gamma, self.max_drop];
        if aims.iter().flatten().count() > 1 {
            return Err(Failure::usage("one of `int4_share`, `gamma` and `max_drop` at most"));
        }
        if self.int4_share.is_some_and(|s| !(0.0..=1.0).contains(&s)) {
            return Err(Failure::usage("`--int4-share` is a share from 0 to 1"));
        }
        if aims.iter().flatten().any(|aim| aim.is_nan() || *aim < 0.0) {
            return Err(Failure::usage("`--gamma` and `--max-drop` are losses from 0 on"));
        }
        if ![4, 8].contains(&self.int4_activations) {
            return Err(Failure::usage("`--int4-activations` is 4 or 8"));
        }
        if !(0.0..=4.0).contains(&self.max_extra) {
            return Err(Failure::usage("`--max-extra` is a percentage from 0 to 400"));
        }
        if self.aim().is_some() && self.method == Method::None {
            return Err(Failure::usage(
                "`--method none` quantises nothing: leave out `--int4-share`, `--gamma` and \
                 `--max-drop`",
            ));
        }
        if self.aim().is_some() && self.scheme != Scheme::W8a8 {
            return Err(Failure::usage(
                "`--scheme` gives every layer its bits, and `--int4-share`, `--gamma` and \
                 `--max-drop` decide which layers have four: give one of them",
            ));
        }
        if self.sequential && self.rounding() != Rounding::Gptq {
            return Err(Failure::usage("`--sequential` goes with `--rounding gptq`"));
        }
        self.check_names(graph)
    }

    /// That every name of a group fits one.
    fn check_names(&self, graph: &Graph) -> Result<(), Failure> {
        let (all, own) = (find(graph, Heads::Quantized), find(graph, self.heads()));
        for (pattern, _) in &self.groups {
            let among = |groups: &[Group]| groups.iter().any(|g| Settings::fits(graph, g, pattern));
            if among(&own) {
                continue;
            }
            let remedy = match among(&all) {
                true => "that is to be quantised: it is the head, which needs `--lm-head int8`",
                false => "; `fqc analyze` lists their weights, and `*` stands for anything",
            };
            let space = if among(&all) { " " } else { "" };
            let message = format!("no linear layer fits `{pattern}`{space}{remedy}");
            return Err(Failure::usage(message));
        }
        Ok(())
    }

    /// What decides which groups take four bits, if anything does.
    pub fn aim(&self) -> Option<Aim> {
        let share = self.int4_share.map(Aim::Share);
        share.or(self.gamma.map(Aim::Each)).or(self.max_drop.map(Aim::Total))
    }

    /// Whether any group may get activations of four bits.
    pub fn asks_int4_activations(&self) -> bool {
        let named = self.groups.iter().any(|(_, scheme)| *scheme == Scheme::W4a4);
        let aimed = self.aim().is_some() && self.int4_activations == 4;
        named || aimed || self.scheme == Scheme::W4a4
    }

    /// The same with the scheme for all groups that are not named.
    pub fn without_aim(&self) -> Settings {
        Settings { int4_share: None, gamma: None, max_drop: None, ..self.clone() }
    }

    /// What a group may become: the widths asked for, and four bits as well if an aim decides. A
    /// group named in the settings has no choice.
    pub fn candidates(&self, graph: &Graph, group: &Group) -> Vec<Widths> {
        let four = Widths { activations: self.int4_activations, weights: 4 };
        match (self.own_scheme(graph, group), self.aim()) {
            (None, Some(_)) => vec![Widths::W8A8, four],
            _ => vec![self.widths(graph, group)],
        }
    }

    /// The widths that are asked for a group of a float graph.
    pub fn widths(&self, graph: &Graph, group: &Group) -> Widths {
        self.own_scheme(graph, group).unwrap_or(self.scheme).widths()
    }

    /// How weights are rounded: the baselines know nothing better than to nearest.
    pub fn rounding(&self) -> Rounding {
        match self.method {
            Method::Flattenquant => self.rounding,
            _ => Rounding::Nearest,
        }
    }

    pub fn granularity(&self) -> Granularity {
        if self.per_tensor_weights { Granularity::PerTensor } else { Granularity::PerChannel }
    }

    pub fn heads(&self) -> Heads {
        match self.lm_head {
            LmHead::Float => Heads::Float,
            LmHead::Int8 => Heads::Quantized,
        }
    }
}

/// Whether a name is a pattern's, where `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|after| {
            let ends = (0..=after.len()).filter(|&at| after.is_char_boundary(at));
            ends.into_iter().any(|at| matches(rest, &after[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, fits) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("*.down_proj.*", "layers.3.down_proj.weight", true),
            ("layers.*.up*", "layers.3.down_proj.weight", false),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
