//! The type of a result from the types of the operands: one file a family, used by the builder and
//! by the verifier alike. Sizes that must be equal and are not known to be are reported as a pair,
//! so that the importer can solve them by substitution.

mod elementwise;
mod index;
mod nn;
mod quant;
mod reduce;
mod shape;

use crate::dim::Dim;
use crate::op::Op;
use crate::types::{Elem, Shape, Type};
use std::fmt;

pub(crate) use quant::check_codes;
pub use shape::{broadcast_shapes, check_broadcast};

/// Why an operation does not take these operands.
#[derive(Clone, PartialEq, Debug)]
pub enum InferError {
    /// Two sizes must be equal and are not known to be; at least one is symbolic. The importer may
    /// solve this by substitution.
    Unequal(Dim, Dim),
    /// Anything else, as a sentence with the values.
    Invalid(String),
}

impl fmt::Display for InferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InferError::Unequal(a, b) => write!(f, "size `{a}` is not known to equal `{b}`"),
            InferError::Invalid(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for InferError {}

type Inferred = Result<Type, InferError>;

/// Returns an [`InferError::Invalid`] with a formatted sentence.
macro_rules! invalid {
    ($($arg:tt)*) => {
        return Err($crate::infer::InferError::Invalid(format!($($arg)*)))
    };
}
use invalid;

/// The result type of `op` on operands of these types.
pub fn infer(op: &Op, operands: &[&Type]) -> Result<Type, InferError> {
    let x = operands;
    let name = op.mnemonic();
    match op {
        Op::Input(ty) => exactly::<0>(name, x).map(|_| ty.clone()),
        Op::Const(value) => exactly::<0>(name, x).map(|_| value.ty()),
        Op::Dims(dims) => {
            exactly::<0>(name, x)?;
            Ok(Type::new(Elem::I64, vec![Dim::from(dims.len())]))
        }
        Op::Iota(len) => {
            exactly::<0>(name, x)?;
            at_least_zero(name, std::slice::from_ref(len))?;
            Ok(Type::new(Elem::I64, vec![len.clone()]))
        }
        Op::Unary(op) => elementwise::unary(*op, exactly(name, x)?),
        Op::Binary(op) => elementwise::binary(*op, exactly(name, x)?),
        Op::Select => elementwise::select(exactly(name, x)?),
        Op::Cast(elem) => elementwise::cast(*elem, exactly(name, x)?),
        Op::Pointwise(expr) => elementwise::pointwise(expr, x),
        Op::Reshape(to) => shape::reshape(to, exactly(name, x)?),
        Op::Transpose(perm) => shape::transpose(perm, exactly(name, x)?),
        Op::Broadcast(to) => shape::broadcast(to, exactly(name, x)?),
        Op::Slice { start, len, step } => shape::slice(start, len, step, exactly(name, x)?),
        Op::Concat { axis } => shape::concat(*axis, x),
        Op::Pad { before, after, mode } => shape::pad(before, after, *mode, x),
        Op::Gather { axis } => index::gather(*axis, exactly(name, x)?),
        Op::GatherElements { axis } => index::gather_elements(*axis, exactly(name, x)?),
        Op::GatherNd { batch_dims } => index::gather_nd(*batch_dims, exactly(name, x)?),
        Op::ScatterElements { axis, reduction } => {
            index::scatter_elements(*axis, *reduction, exactly(name, x)?)
        }
        Op::ScatterNd { reduction } => index::scatter_nd(*reduction, exactly(name, x)?),
        Op::Reduce { op, axes, keep_dims } => {
            reduce::reduce(*op, axes, *keep_dims, exactly(name, x)?)
        }
        Op::ArgReduce { axis, keep_dims, .. } => {
            reduce::arg_reduce(*axis, *keep_dims, exactly(name, x)?)
        }
        Op::CumSum { axis, .. } => reduce::cum_sum(*axis, exactly(name, x)?),
        Op::MatMul => nn::matmul(exactly(name, x)?),
        Op::Softmax => nn::softmax(exactly(name, x)?),
        Op::LayerNorm { epsilon } => nn::layer_norm(*epsilon, x),
        Op::RmsNorm { epsilon } => nn::rms_norm(*epsilon, exactly(name, x)?),
        Op::Rope => nn::rope(exactly(name, x)?),
        Op::Attention { scale, .. } => nn::attention(*scale, x),
        Op::Flatten { threshold, map } => quant::flatten(*threshold, map, exactly(name, x)?),
        Op::Quantize(quantizer) => quant::quantize(quantizer, exactly::<1>(name, x)?[0]),
        Op::Dequantize => quant::dequantize(exactly(name, x)?),
        Op::Gemm { epilogue, out } => quant::gemm(epilogue, out.as_deref(), x),
        Op::GemmAccumulate => quant::gemm_accumulate(exactly(name, x)?),
        Op::LayerNormQuantize { epsilon, out } => {
            quant::quantize(out, &nn::layer_norm(*epsilon, x)?)
        }
        Op::RmsNormQuantize { epsilon, out } => {
            quant::quantize(out, &nn::rms_norm(*epsilon, exactly(name, x)?)?)
        }
        Op::PointwiseQuantize { expr, out } => {
            quant::quantize(out, &elementwise::pointwise(expr, x)?)
        }
    }
}

/// The operands as an array of the right length.
fn exactly<'a, const N: usize>(
    name: &str,
    operands: &[&'a Type],
) -> Result<[&'a Type; N], InferError> {
    operands.try_into().map_err(|_| {
        InferError::Invalid(format!("`{name}` takes {N} operands, {} given", operands.len()))
    })
}

/// That two sizes are the same; `what` says which ones.
pub(crate) fn same(what: &str, a: &Dim, b: &Dim) -> Result<(), InferError> {
    if a == b {
        return Ok(());
    }
    if (a.clone() - b.clone()).is_const() {
        invalid!("{what}: size {a} is not {b}");
    }
    Err(InferError::Unequal(a.clone(), b.clone()))
}

/// That two shapes are the same.
fn same_shape(what: &str, a: &[Dim], b: &[Dim]) -> Result<(), InferError> {
    if a.len() != b.len() {
        invalid!("{what}: rank {} is not {}", a.len(), b.len());
    }
    a.iter().zip(b).try_for_each(|(a, b)| same(what, a, b))
}

fn same_elem(what: &str, a: &Type, b: &Type) -> Result<(), InferError> {
    if a.elem != b.elem {
        invalid!("{what}: element types {} and {}", a.elem, b.elem);
    }
    Ok(())
}

/// That no size is a negative number.
fn at_least_zero(what: &str, dims: &[Dim]) -> Result<(), InferError> {
    match dims.iter().find(|d| d.as_const().is_some_and(|v| v < 0)) {
        Some(d) => invalid!("`{what}`: negative size {d}"),
        None => Ok(()),
    }
}

fn axis_in(what: &str, axis: usize, rank: usize) -> Result<(), InferError> {
    if axis >= rank {
        invalid!("`{what}`: axis {axis} of a value of rank {rank}");
    }
    Ok(())
}

/// That the values are plain numbers, not codes.
fn plain(what: &str, operands: &[&Type]) -> Result<(), InferError> {
    match operands.iter().find(|t| t.quant.is_some()) {
        Some(t) => invalid!("`{what}` does not take codes ({t}); `dequantize` first"),
        None => Ok(()),
    }
}

/// That the values are plain floats of one type.
fn floats(what: &str, operands: &[&Type]) -> Result<(), InferError> {
    plain(what, operands)?;
    if let Some(t) = operands.iter().find(|t| !t.elem.is_float()) {
        invalid!("`{what}` takes floats, not {t}");
    }
    operands.windows(2).try_for_each(|w| same_elem(what, w[0], w[1]))
}

/// That the values are plain `f32`.
fn f32s(what: &str, operands: &[&Type]) -> Result<(), InferError> {
    plain(what, operands)?;
    match operands.iter().find(|t| t.elem != Elem::F32) {
        Some(t) => invalid!("`{what}` takes f32, not {t}"),
        None => Ok(()),
    }
}

/// A shape with its last size replaced.
fn with_last(shape: &[Dim], last: Dim) -> Shape {
    let mut out = shape.to_vec();
    out.pop();
    out.push(last);
    out
}

#[cfg(test)]
mod tests;
