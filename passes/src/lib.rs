//! Under construction.

pub mod lower;
