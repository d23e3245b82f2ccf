//! Launches, checks and times `quantize.cuh`.

mod bench;
mod check;
mod instances;
mod launch;

pub use bench::bench;
pub use check::check;
pub use instances::all;
pub use launch::{Operands, Quantize, Rows};
