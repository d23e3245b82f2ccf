//! From the symbolic sizes of a step to what a kernel's code depends on: constants stay in the
//! code, everything else becomes a parameter. Steps that agree in all of it share a kernel.

use fqc_ir::dim::{self, Dim};
use fqc_ir::plan::View;

/// A size or stride in a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// Known at compile time.
    Const(i64),
    /// Entry of the kernel's run-time dims.
    Dim(u32),
}

/// Collects the run-time dims of one call, each once, in the order of their first use.
#[derive(Clone, Debug, Default)]
pub struct Sizes {
    pub dims: Vec<Dim>,
}

impl Sizes {
    pub fn one(&mut self, dim: &Dim) -> Size {
        if let Some(value) = dim.as_const() {
            return Size::Const(value);
        }
        self.dim(dim)
    }

    /// A run-time dim, whether constant or not.
    pub fn dim(&mut self, dim: &Dim) -> Size {
        let found = self.dims.iter().position(|d| d == dim);
        let index = found.unwrap_or_else(|| {
            self.dims.push(dim.clone());
            self.dims.len() - 1
        });
        Size::Dim(index as u32)
    }
}

/// How far below element 0 a view reaches, in elements: strides of slices may be negative.
pub fn reach_below(view: &View) -> Dim {
    let mut below = Dim::zero();
    for (n, stride) in view.shape.iter().zip(&view.strides) {
        if stride.as_const().is_some_and(|s| s < 0) {
            below = below + (n.clone() - Dim::one()) * -stride.clone();
        }
    }
    below
}

/// Elements from the lowest to one past the highest that a view touches.
pub fn extent(view: &View) -> Dim {
    if view.shape.iter().any(|n| n.as_const() == Some(0)) {
        return Dim::zero();
    }
    let mut extent = Dim::one();
    for (n, stride) in view.shape.iter().zip(&view.strides) {
        let stride = match stride.as_const() {
            Some(s) => Dim::from(s.abs()),
            None => stride.clone(),
        };
        extent = extent + (n.clone() - Dim::one()) * stride;
    }
    extent
}

/// A loop nest over several views at once: sizes, and strides of each view.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Nest {
    pub shape: Vec<Dim>,
    /// By view, then by axis.
    pub strides: Vec<Vec<Dim>>,
}

impl Nest {
    /// The axes `axes` of views that all have `shape`.
    pub fn new(shape: &[Dim], views: &[&[Dim]]) -> Nest {
        Nest {
            shape: shape.to_vec(),
            strides: views.iter().map(|strides| strides.to_vec()).collect(),
        }
    }

    /// Drops axes of size 1 and merges neighbours that are contiguous in every view.
    pub fn collapse(&self) -> Nest {
        let mut out = Nest { shape: Vec::new(), strides: vec![Vec::new(); self.strides.len()] };
        for axis in (0..self.shape.len()).rev() {
            let n = &self.shape[axis];
            if n.as_const() == Some(1) {
                continue;
            }
            let merges = out.shape.last().is_some_and(|inner| {
                let pairs = self.strides.iter().zip(&out.strides);
                pairs.into_iter().all(|(view, done)| {
                    done.last().is_some_and(|s| view[axis] == s.clone() * inner.clone())
                })
            });
            if merges {
                let inner = out.shape.last_mut().expect("there is an axis to merge with");
                *inner = inner.clone() * n.clone();
                continue;
            }
            out.shape.push(n.clone());
            for (view, done) in self.strides.iter().zip(&mut out.strides) {
                done.push(view[axis].clone());
            }
        }
        out.shape.reverse();
        out.strides.iter_mut().for_each(|view| view.reverse());
        out
    }

    /// The last axis taken off: its size and each view's stride. A nest without axes has one,
    /// contiguous, of size 1.
    pub fn split_last(mut self) -> (Nest, Dim, Vec<Dim>) {
        let Some(n) = self.shape.pop() else {
            let strides = vec![Dim::one(); self.strides.len()];
            return (self, Dim::one(), strides);
        };
        let last = self.strides.iter_mut().map(|view| view.pop().unwrap_or_default()).collect();
        (self, n, last)
    }

    /// Number of iterations.
    pub fn count(&self) -> Dim {
        dim::product(&self.shape)
    }
}
