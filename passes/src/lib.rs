//! The rewrites of fqc, one file each, and what runs them.
//!
//! A pass reads a graph, makes patches, and declares which facts it needs, gives and breaks; the
//! runner checks them and verifies the graph after every pass in every build. Reading order:
//! [`rule`], [`run`], [`facts`], [`pattern`], [`clean`], [`fuse`].

#![forbid(unsafe_code)]

pub mod clean;
pub mod facts;
pub mod fuse;
pub mod pattern;
pub mod rule;
pub mod run;

pub use facts::Facts;
pub use rule::{Rule, RulePass};
pub use run::{Failure, Pass, PassCx, PassError, PassReport, Runner};
