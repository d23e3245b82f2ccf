//! Launches, checks and times attention.

mod bench;
mod check;
mod instances;
mod launch;

pub use bench::bench;
pub use check::check;
pub use instances::all;
