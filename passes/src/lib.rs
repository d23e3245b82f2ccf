//! The rewrites of fqc, one file each, and what runs them.
//!
//! A pass reads a graph, makes patches, and declares which facts it needs, gives and breaks; the
//! runner checks them and verifies the graph after every pass in every build. Reading order:
//! [`rule`], [`run`], [`facts`], [`pattern`], [`position`], [`clean`], [`fuse`], [`quant`], [`lower`].

#![forbid(unsafe_code)]

pub mod clean;
pub mod facts;
pub mod fuse;
pub mod lower;
pub mod pattern;
pub mod position;
pub mod quant;
pub mod rule;
pub mod run;

pub use facts::Facts;
pub use rule::{Rule, RulePass};
pub use run::{Failure, Pass, PassCx, PassError, PassReport, Runner};

/// All passes that are sets of rules.
pub fn rule_passes() -> Vec<RulePass> {
    vec![
        clean::CANON,
        fuse::LAYER_NORM,
        fuse::RMS_NORM,
        fuse::GELU,
        fuse::SILU,
        fuse::ROPE,
        fuse::ATTENTION,
        fuse::ATTENTION_SCALE,
        fuse::GQA,
        fuse::CAUSAL,
        fuse::linear::PASS,
        fuse::merge_gemms::PASS,
        fuse::epilogue::PASS,
        fuse::pointwise::PASS,
        quant::passes::fold_qdq(),
        quant::passes::fold_quantize(),
        quant::passes::narrow_tables(),
    ]
}

/// The pass of a name, if it needs no data; for tests, and for `--passes`.
pub fn named(name: &str) -> Option<Box<dyn Pass>> {
    if name == clean::Cse.name() {
        return Some(Box::new(clean::Cse));
    }
    let mut all = rule_passes().into_iter();
    all.find(|p| p.name == name).map(|p| Box::new(p) as Box<dyn Pass>)
}

#[cfg(test)]
mod tests;
