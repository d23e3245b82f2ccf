//! Sizes and views in a kernel under construction.

pub use crate::spec::*;

use fqc_ir::dim::Dim;
use fqc_ir::plan::View;
use fqc_ir::types::Elem;

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

impl Sizes {
    pub fn all(&mut self, dims: &[Dim]) -> Vec<Size> {
        dims.iter().map(|d| self.one(d)).collect()
    }
}

/// What a kernel knows of an argument: its type, where element 0 lies behind the lowest address,
/// and a stride for each axis of the loop nest.
#[derive(Clone, PartialEq, Debug)]
pub struct ViewSpec {
    pub elem: Elem,
    pub start: Size,
    pub strides: Vec<Size>,
}

/// The specification of every view over the axes that `strides` has.
pub fn view_specs(
    sizes: &mut Sizes,
    views: &[&View],
    elems: &[Elem],
    strides: &[Vec<Dim>],
) -> Vec<ViewSpec> {
    views
        .iter()
        .zip(elems)
        .zip(strides)
        .map(|((view, &elem), strides)| ViewSpec {
            elem,
            start: sizes.one(&reach_below(view)),
            strides: sizes.all(strides),
        })
        .collect()
}
