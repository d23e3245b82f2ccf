//! Sizes in a kernel under construction.

pub use crate::spec::*;

use super::build::{Builder, Val};

impl Size {
    /// The value in the kernel being built.
    pub fn val<'c>(self, b: &Builder<'_, 'c>) -> Val<'c> {
        match self {
            Size::Const(value) => b.i64c(value),
            Size::Dim(index) => b.dim(index),
        }
    }
}
