//! Kernels that read nothing: counting numbers, and sizes as data.

use fqc_ir::dim::Dim;
use fqc_ir::plan::Step;

use super::CpuError;
use super::build::Builder;
use super::call::{Call, Spec};
use super::pointwise::TASK_ELEMENTS;
use super::spec::{Size, Sizes};

/// Everything that the code depends on.
#[derive(Clone, PartialEq, Debug)]
pub enum Source {
    /// 0, 1, 2, … with this distance between elements.
    Iota { step: Size },
    /// These sizes.
    Dims { step: Size, values: Vec<Size> },
}

/// Takes an `iota` apart.
pub fn iota_call(step: &Step) -> Result<Call, CpuError> {
    let out = &step.results[0];
    let mut sizes = Sizes::default();
    let stride = out.strides.last().cloned().unwrap_or_default();
    let kernel = Source::Iota { step: sizes.one(&stride) };
    Ok(Call::new(Spec::Source(kernel), sizes, out.count(), TASK_ELEMENTS, Dim::zero()))
}

/// Takes a `dims` apart.
pub fn dims_call(step: &Step, values: &[Dim]) -> Result<Call, CpuError> {
    let out = &step.results[0];
    let mut sizes = Sizes::default();
    let stride = out.strides.last().cloned().unwrap_or_default();
    let kernel = Source::Dims { step: sizes.one(&stride), values: sizes.all(values) };
    Ok(Call::new(Spec::Source(kernel), sizes, Dim::one(), 1, Dim::zero()))
}

impl Source {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let out = b.buf(0);
        let int = b.int(64);
        match self {
            Source::Iota { step } => {
                let step = step.val(b);
                b.for_range(b.begin(), b.end(), 1, |i| {
                    b.store(i, b.index(out, int, b.mul(i, step)), 8);
                });
            }
            Source::Dims { step, values } => b.for_range(b.begin(), b.end(), 1, |_| {
                for (i, value) in values.iter().enumerate() {
                    let at = b.mul(b.i64c(i as i64), step.val(b));
                    b.store(value.val(b), b.index(out, int, at), 8);
                }
            }),
        }
    }
}
