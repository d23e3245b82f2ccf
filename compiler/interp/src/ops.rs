//! One operation on its operands. The type rules of the IR are applied first, to the sizes at hand,
//! so that the loops of the families may trust ranks, sizes and element types.

mod index;
mod math;
mod nn;
mod quant;
mod reduce;
mod shape;

use crate::bind::{Binding, bind_op};
use crate::error::{OpError, Res};
use crate::eval::FOLD_BYTES;
use crate::tensor::{Data, Tensor, count, value_bytes};
use fqc_ir::{Elem, Op, infer};

/// The result of one operation other than an input, of at most [`FOLD_BYTES`].
pub fn eval_node(op: &Op, operands: &[&Tensor], binding: &Binding) -> Result<Tensor, OpError> {
    eval_node_within(op, operands, binding, FOLD_BYTES)
}

/// The same with another bound on the bytes of the result.
pub fn eval_node_within(
    op: &Op,
    operands: &[&Tensor],
    binding: &Binding,
    limit: u64,
) -> Result<Tensor, OpError> {
    if let Some(x) = operands.iter().find(|x| count(x.shape()).is_none()) {
        return Err(OpError::invalid(format!("the sizes {:?} overflow", x.shape())));
    }
    let op = bind_op(op, binding)?;
    let types: Vec<_> = operands.iter().map(|t| t.ty()).collect();
    let ty = infer::infer(&op, &types.iter().collect::<Vec<_>>())
        .map_err(|e| OpError::invalid(e.to_string()))?;
    let shape = ty
        .const_shape()
        .ok_or_else(|| OpError::invalid(format!("its result would be {ty}, not a shape")))?;
    let need = count(&shape).map_or(u64::MAX, |n| value_bytes(ty.elem, n as u64));
    if need > limit {
        return Err(OpError::Memory { need, limit });
    }
    // With nothing to compute, no loop need care for sizes of zero beside large ones.
    let data = match need {
        0 => Data::empty(ty.elem),
        _ => compute(&op, operands, ty.elem, &shape)?,
    };
    let found = data.len();
    Tensor::new(ty.elem, shape, data)
        .map(|t| t.with_quant(ty.quant.clone()))
        .ok_or_else(|| OpError::invalid(format!("made {found} elements for {ty}")))
}

/// The elements of the result, whose type is known.
fn compute(op: &Op, x: &[&Tensor], elem: Elem, shape: &[usize]) -> Res<Data> {
    Ok(match op {
        Op::Input(_) => return Err(OpError::invalid("an input has no value of its own")),
        Op::Const(c) => Tensor::from_const(c).data().clone(),
        Op::Dims(dims) => {
            Data::I64(dims.iter().map(|d| d.as_const().unwrap_or_default()).collect())
        }
        Op::Iota(_) => Data::I64((0..shape[0] as i64).collect()),

        Op::Unary(op) => math::unary(*op, x[0])?,
        Op::Binary(op) => math::binary(*op, x[0], x[1], shape)?,
        Op::Select => math::select(x[0], x[1], x[2], shape)?,
        Op::Cast(elem) => math::cast(x[0], *elem),
        Op::Pointwise(expr) => math::pointwise(expr, x, shape)?.data().clone(),

        Op::Reshape(_) => x[0].data().clone(),
        Op::Transpose(perm) => shape::transpose(x[0], perm, shape),
        Op::Broadcast(_) => shape::broadcast(x[0], shape),
        Op::Slice { start, step, .. } => shape::slice(x[0], start, step, shape)?,
        Op::Concat { axis } => shape::concat(x, *axis, elem, shape),
        Op::Pad { before, mode, .. } => shape::pad(x, before, *mode, shape)?,

        Op::Gather { axis } => index::gather(x[0], x[1], *axis)?,
        Op::GatherElements { axis } => index::gather_elements(x[0], x[1], *axis)?,
        Op::GatherNd { batch_dims } => index::gather_nd(x[0], x[1], *batch_dims)?,
        Op::ScatterElements { axis, reduction } => {
            index::scatter_elements(x[0], x[1], x[2], *axis, *reduction)?
        }
        Op::ScatterNd { reduction } => index::scatter_nd(x[0], x[1], x[2], *reduction)?,

        Op::Reduce { op, axes, .. } => reduce::reduce(*op, x[0], axes)?,
        Op::ArgReduce { axis, largest, last, .. } => {
            reduce::arg_reduce(x[0], *axis, *largest, *last)?
        }
        Op::CumSum { axis, exclusive, reverse } => {
            reduce::cum_sum(x[0], *axis, *exclusive, *reverse)?
        }

        Op::MatMul => nn::matmul(x[0], x[1], shape)?,
        Op::Softmax => nn::softmax(x[0])?,
        Op::LayerNorm { epsilon } => nn::layer_norm(x, *epsilon)?,
        Op::RmsNorm { epsilon } => nn::rms_norm(x, *epsilon)?,
        Op::Rope => nn::rope(x[0], x[1], x[2])?,
        Op::Attention { scale, causal } => nn::attention(x, *scale, *causal, shape)?,

        Op::Flatten { threshold, map } => quant::flatten(x[0], *threshold, map)?,
        Op::Quantize(quantizer) => quant::quantize(x[0], quantizer)?,
        Op::Dequantize => quant::dequantize(x[0])?,
        Op::Gemm { epilogue, out } => quant::gemm(x, epilogue, out.as_deref())?,
        Op::GemmAccumulate => quant::gemm_accumulate(x[0], x[1])?,
        Op::LayerNormQuantize { epsilon, out } => {
            quant::quantize(&like(x[0], nn::layer_norm(x, *epsilon)?)?, out)?
        }
        Op::RmsNormQuantize { epsilon, out } => {
            quant::quantize(&like(x[0], nn::rms_norm(x, *epsilon)?)?, out)?
        }
        Op::PointwiseQuantize { expr, out } => {
            let shapes: Vec<_> = x.iter().map(|t| t.shape()).collect();
            let wide = math::broadcast_shapes(&shapes)?;
            quant::quantize(&math::pointwise(expr, x, &wide)?, out)?
        }
    })
}

/// An f32 tensor of the shape of another.
fn like(x: &Tensor, data: Data) -> Res<Tensor> {
    Tensor::new(Elem::F32, x.shape().to_vec(), data)
        .ok_or_else(|| OpError::invalid("only f32 can be quantised"))
}

/// Floats of an operand that must be float.
fn floats(x: &Tensor) -> Res<Vec<f64>> {
    x.floats().ok_or_else(|| OpError::invalid(format!("takes floats, not {}", x.elem())))
}

/// Integers (or bools) of an operand that must not be float.
fn ints(x: &Tensor) -> Res<Vec<i128>> {
    x.ints().ok_or_else(|| OpError::invalid(format!("takes integers, not {}", x.elem())))
}
