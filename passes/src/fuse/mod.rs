//! Fusion. First the pieces that exporters take apart become the operations they were; later, around
//! quantisation, products become linear layers, which are merged and take in what follows them, and
//! what is left of element-wise nodes is joined.

mod attention;
mod attention_scale;
mod causal;
mod elementwise;
pub mod epilogue;
mod gelu;
mod gqa;
mod layer_norm;
pub mod linear;
pub mod merge_gemms;
mod norm;
pub mod pointwise;
mod rms_norm;
mod rope;
mod silu;

use crate::clean::{CANON, Cse};
use crate::facts::Facts;
use crate::rule::{Rule, RulePass};
use crate::run::Pass;

/// A pass of rules that look for one operation's pieces.
const fn refusing(name: &'static str, rules: &'static [Rule]) -> RulePass {
    RulePass { name, rules, needs: Facts::NONE, gives: Facts::NONE, breaks: Facts::CANONICAL }
}

pub const LAYER_NORM: RulePass = refusing(
    "layer-norm",
    &[
        Rule { name: "layer-norm", find: layer_norm::core },
        Rule { name: "layer-norm-scale", find: layer_norm::scale },
        Rule { name: "layer-norm-shift", find: layer_norm::shift },
    ],
);

pub const RMS_NORM: RulePass = refusing(
    "rms-norm",
    &[
        Rule { name: "rms-norm", find: rms_norm::core },
        Rule { name: "rms-norm-scale", find: rms_norm::scale },
    ],
);

pub const GELU: RulePass = refusing("gelu", &[Rule { name: "gelu", find: gelu::find }]);

pub const SILU: RulePass = refusing("silu", &[Rule { name: "silu", find: silu::find }]);

pub const ROPE: RulePass = refusing(
    "rope",
    &[
        Rule { name: "rope", find: rope::whole },
        Rule { name: "rope-by-halves", find: rope::by_halves },
    ],
);

pub const ATTENTION: RulePass =
    refusing("attention", &[Rule { name: "attention", find: attention::find }]);

pub const ATTENTION_SCALE: RulePass =
    refusing("attention-scale", &[Rule { name: "attention-scale", find: attention_scale::find }]);

pub const GQA: RulePass = refusing("gqa", &[Rule { name: "gqa", find: gqa::find }]);

pub const CAUSAL: RulePass = refusing("causal", &[Rule { name: "causal", find: causal::find }]);

/// Finds the operations that exporters have taken apart.
pub fn refuse() -> Vec<Box<dyn Pass>> {
    vec![
        Box::new(LAYER_NORM),
        Box::new(RMS_NORM),
        Box::new(GELU),
        Box::new(SILU),
        Box::new(ROPE),
        Box::new(ATTENTION),
        Box::new(ATTENTION_SCALE),
        Box::new(CANON),
        Box::new(GQA),
        Box::new(CAUSAL),
        Box::new(CANON),
        Box::new(Cse),
        Box::new(CANON),
    ]
}

/// Linear layers with their epilogues, and fused element-wise nodes; before and after quantisation
/// alike.
pub fn fuse() -> Vec<Box<dyn Pass>> {
    vec![
        Box::new(linear::PASS),
        Box::new(merge_gemms::PASS),
        Box::new(CANON),
        Box::new(epilogue::PASS),
        Box::new(pointwise::PASS),
        Box::new(CANON),
    ]
}
