//! Under construction.

pub mod lower;
pub mod quant;
