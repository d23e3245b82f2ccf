//! The compiler as one program: what each command does, and the pipeline that `compile` runs.
//!
//! Reading order: [`pipeline`] (the whole way, top to bottom) and [`settings`]; what it calls:
//! [`calibrate`] (with [`data`], [`fqcal`]), [`sensitivity`], [`quantise`] and [`gptq`], all of which run the
//! float graph through [`parts`], on code that [`host`] generates; [`target`] (with [`tuned`], and [`tiles`] and
//! [`whole`], which measure what it takes), [`memory`] and [`report`]; then [`evaluate`], [`experiment`] and
//! [`analyze`]; then [`cmd`], one file a command.

#![forbid(unsafe_code)]

pub mod analyze;
pub mod calibrate;
pub mod cmd;
pub mod data;
pub mod evaluate;
pub mod exit;
pub mod experiment;
pub mod file;
pub mod fqcal;
pub mod gptq;
pub mod hash;
#[cfg_attr(not(feature = "cpu"), path = "no_host.rs")]
pub mod host;
pub mod html;
pub mod interrupt;
pub mod key;
pub mod label;
pub mod memory;
pub mod metrics;
pub mod npz;
pub mod parts;
pub mod pipeline;
pub mod progress;
pub mod quantise;
pub mod rates;
pub mod report;
pub mod score;
pub mod sensitivity;
pub mod settings;
pub mod shapes;
pub mod svg;
pub mod target;
pub mod text;
pub mod tiles;
pub mod tuned;
pub mod whole;

pub use exit::{Exit, Failure};
