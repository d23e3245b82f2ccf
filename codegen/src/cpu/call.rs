//! A step taken apart: the specification of its code, and what the program says about the call.

use fqc_ir::dim::Dim;
use fqc_ir::plan::{Kernel, Plan, Step};
use fqc_ir::types::Elem;
use fqc_kernels::GemmDesc;
use fqc_kernels::gemm::GemmCall;

use super::attention::Attention;
use super::build::Code;
use super::gather::{Gather, GatherElements, GatherNd};
use super::matmul::MatMul;
use super::nibbles::Nibbles;
use super::norm::Norm;
use super::pointwise::Pointwise;
use super::quantize::Quantize;
use super::reduce::{ArgReduce, CumSum, Reduce};
use super::scatter::{ScatterElements, ScatterNd};
use super::softmax::Softmax;
use super::source::Source;
use super::spec::Sizes;
use super::transpose::Transpose;
use super::{
    CpuError, attention, gather, gemm, matmul, nibbles, norm, pointwise, quantize, reduce, scatter,
    softmax, source,
};

/// Everything that a kernel's code depends on, the level aside. Equal ones share the code.
#[derive(Clone, PartialEq, Debug)]
pub enum Spec {
    Gemm(GemmDesc),
    MatMul(MatMul),
    Pointwise(Pointwise),
    Transpose(Transpose),
    Reduce(Reduce),
    ArgReduce(ArgReduce),
    CumSum(CumSum),
    Softmax(Softmax),
    Nibbles(Nibbles),
    Norm(Norm),
    Quantize(Quantize),
    Attention(Attention),
    Gather(Gather),
    GatherElements(GatherElements),
    GatherNd(GatherNd),
    ScatterElements(ScatterElements),
    ScatterNd(ScatterNd),
    Source(Source),
}

/// One step as the program will have it.
#[derive(Clone, PartialEq, Debug)]
pub struct Call {
    pub spec: Spec,
    /// Values of the kernel's run-time dims.
    pub dims: Vec<Dim>,
    pub work: Dim,
    /// Work items below which a task is not split.
    pub grain: i64,
    pub scratch_bytes: Dim,
    /// Arithmetic operations.
    pub ops: Dim,
}

impl Call {
    /// A call without scratch.
    pub fn new(spec: Spec, sizes: Sizes, work: Dim, grain: i64, ops: Dim) -> Call {
        Call { spec, dims: sizes.dims, work, grain, scratch_bytes: Dim::zero(), ops }
    }

    pub fn with_scratch(mut self, bytes: Dim) -> Call {
        self.scratch_bytes = bytes;
        self
    }

    /// The call of a gemm.
    pub fn gemm(call: GemmCall) -> Call {
        Call {
            dims: call.dims,
            work: call.work,
            grain: i64::try_from(call.grain).unwrap_or(i64::MAX),
            scratch_bytes: Dim::from(call.desc.scratch_bytes() as i64),
            ops: call.ops,
            spec: Spec::Gemm(call.desc),
        }
    }

    /// Takes `step` apart.
    pub fn of(plan: &Plan, step: &Step) -> Result<Call, CpuError> {
        let elem = |view: &fqc_ir::plan::View| plan.buffer(view.buffer).elem;
        let elems: Vec<Elem> = step.args.iter().chain(&step.results).map(elem).collect();
        if let Some(narrow) = elems.iter().find(|e| e.bits() < 8)
            && !matches!(step.kernel, Kernel::Gemm(_) | Kernel::Pointwise(_))
        {
            return Err(unsupported(step, format!("elements of {narrow} are not addressable")));
        }
        check(step)?;
        match &step.kernel {
            Kernel::Gemm(gemm) => {
                Ok(Call::gemm(GemmCall::new(step, gemm).map_err(|r| unsupported(step, r))?))
            }
            Kernel::MatMul => matmul::call(step, &elems),
            Kernel::Pointwise(expr) if nibbles::is_narrow(&elems) => {
                nibbles::call(step, expr, &elems)
            }
            Kernel::Pointwise(expr) => pointwise::call(step, expr, &elems),
            Kernel::Reduce { op, keep } => reduce::call(step, *op, *keep, &elems),
            Kernel::ArgReduce { largest, last } => reduce::arg_call(step, *largest, *last, &elems),
            Kernel::CumSum { exclusive, reverse } => {
                reduce::cumsum_call(step, *exclusive, *reverse, &elems)
            }
            Kernel::Softmax => softmax::call(step, &elems),
            Kernel::Norm { kind, epsilon, float, quantize } => {
                norm::call(step, *kind, *epsilon, *float, quantize.as_ref(), &elems)
            }
            Kernel::Quantize { expr, quantize } => quantize::call(step, expr, quantize, &elems),
            Kernel::Attention { scale, causal, mask, precision } => {
                attention::call(step, *scale, *causal, *mask, *precision, &elems)
            }
            Kernel::Gather { axis, index_rank } => gather::call(step, *axis, *index_rank, &elems),
            Kernel::GatherElements { axis } => gather::elements_call(step, *axis, &elems),
            Kernel::GatherNd { batch_dims } => gather::nd_call(step, *batch_dims, &elems),
            Kernel::ScatterElements { axis, op } => {
                scatter::elements_call(step, *axis, *op, &elems)
            }
            Kernel::ScatterNd { op } => scatter::nd_call(step, *op, &elems),
            Kernel::Iota => source::iota_call(step),
            Kernel::Dims(values) => source::dims_call(step, values),
        }
    }
}

/// What every kernel takes for granted of its views.
fn check(step: &Step) -> Result<(), CpuError> {
    let views = || step.args.iter().chain(&step.results);
    if let Some(view) = views().find(|v| v.shape.len() != v.strides.len()) {
        let (shape, strides) = (view.shape.len(), view.strides.len());
        return Err(unsupported(step, format!("a view has {shape} sizes and {strides} strides")));
    }
    let (args, rank) = match step.kernel {
        Kernel::Softmax | Kernel::CumSum { .. } | Kernel::ArgReduce { .. } => (1, 1),
        Kernel::Norm { .. } | Kernel::Quantize { .. } => (1, 1),
        Kernel::Reduce { .. } => (1, 0),
        Kernel::ScatterElements { .. } | Kernel::ScatterNd { .. } => (2, 1),
        _ => (0, 0),
    };
    if step.results.is_empty() || step.args.len() < args {
        return Err(unsupported(step, format!("wants a result and at least {args} arguments")));
    }
    if step.args.first().is_some_and(|v| v.shape.len() < rank) {
        return Err(unsupported(step, "does not take a scalar"));
    }
    let rank = step.results[0].shape.len();
    let broadcast = matches!(step.kernel, Kernel::Pointwise(_));
    if broadcast && step.args.iter().any(|v| v.shape.len() != rank) {
        return Err(unsupported(step, "wants arguments of the result's shape"));
    }
    Ok(())
}

/// A step that no kernel fits.
pub(super) fn unsupported(step: &Step, reason: impl Into<String>) -> CpuError {
    let kernel = format!("{} `{}`", step.kernel.name(), step.name);
    CpuError::Unsupported { kernel, reason: reason.into() }
}

impl Spec {
    /// Adds the kernel to a module.
    pub fn emit(&self, code: &Code<'_>, name: &str) -> Result<(), CpuError> {
        if let Spec::Gemm(desc) = self {
            return gemm::emit(code, name, desc);
        }
        code.kernel(name, |b| {
            match self {
                Spec::Gemm(_) => unreachable!("gemms have their own emitter"),
                Spec::MatMul(k) => k.emit(b),
                Spec::Pointwise(k) => k.emit(b),
                Spec::Transpose(k) => k.emit(b),
                Spec::Reduce(k) => k.emit(b),
                Spec::ArgReduce(k) => k.emit(b),
                Spec::CumSum(k) => k.emit(b),
                Spec::Softmax(k) => k.emit(b),
                Spec::Nibbles(k) => k.emit(b),
                Spec::Norm(k) => k.emit(b),
                Spec::Quantize(k) => k.emit(b),
                Spec::Attention(k) => k.emit(b),
                Spec::Gather(k) => k.emit(b),
                Spec::GatherElements(k) => k.emit(b),
                Spec::GatherNd(k) => k.emit(b),
                Spec::ScatterElements(k) => k.emit(b),
                Spec::ScatterNd(k) => k.emit(b),
                Spec::Source(k) => k.emit(b),
            }
            Ok(())
        })
    }
}
