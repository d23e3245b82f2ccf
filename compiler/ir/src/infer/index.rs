//! Types of gathers and scatters. Whether an index is in range is known only when the model runs.

use super::{InferError, Inferred, axis_in, invalid, plain, same, same_elem, same_shape};
use crate::dim::Dim;
use crate::op::ScatterOp;
use crate::types::{Elem, Shape, Type};

fn is_index(what: &str, indices: &Type) -> Result<(), InferError> {
    if !matches!(indices.elem, Elem::I64 | Elem::I32) {
        invalid!("`{what}` wants i64 or i32 indices, not {indices}");
    }
    Ok(())
}

pub(super) fn gather(axis: usize, [data, indices]: [&Type; 2]) -> Inferred {
    plain("gather", &[data, indices])?;
    is_index("gather", indices)?;
    axis_in("gather", axis, data.rank())?;
    let (pre, post) = (&data.shape[..axis], &data.shape[axis + 1..]);
    Ok(Type::new(data.elem, [pre, &indices.shape, post].concat()))
}

/// That `indices` has the rank of `data` and is nowhere larger, but along `axis`.
fn check_elements(what: &str, axis: usize, data: &Type, indices: &Type) -> Result<(), InferError> {
    is_index(what, indices)?;
    axis_in(what, axis, data.rank())?;
    if indices.rank() != data.rank() {
        invalid!("`{what}`: indices {indices} and data {data} have different ranks");
    }
    for (i, (d, n)) in data.shape.iter().zip(&indices.shape).enumerate() {
        if i != axis && (n.clone() - d.clone()).as_const().is_some_and(|more| more > 0) {
            invalid!("`{what}`: {n} indices along axis {i}, whose size is {d}");
        }
    }
    Ok(())
}

pub(super) fn gather_elements(axis: usize, [data, indices]: [&Type; 2]) -> Inferred {
    plain("gather_elements", &[data, indices])?;
    check_elements("gather_elements", axis, data, indices)?;
    Ok(Type::new(data.elem, indices.shape.clone()))
}

/// The length of an index tuple: the constant last size of `indices`, at most `rank`.
fn depth(what: &str, indices: &Type, rank: usize) -> Result<usize, InferError> {
    let depth = indices.shape.last().and_then(Dim::as_const).and_then(|d| usize::try_from(d).ok());
    match depth {
        Some(d) if d <= rank => Ok(d),
        _ => invalid!("`{what}`: the last size of {indices} must be a constant, at most {rank}"),
    }
}

pub(super) fn gather_nd(batch_dims: usize, [data, indices]: [&Type; 2]) -> Inferred {
    plain("gather_nd", &[data, indices])?;
    is_index("gather_nd", indices)?;
    if batch_dims >= data.rank() || batch_dims >= indices.rank() {
        invalid!("`gather_nd`: {batch_dims} batch axes of {data} and {indices}");
    }
    for (a, b) in data.shape.iter().zip(&indices.shape).take(batch_dims) {
        same("gather_nd", a, b)?;
    }
    let depth = depth("gather_nd", indices, data.rank() - batch_dims)?;
    let outer = &indices.shape[..indices.rank() - 1];
    Ok(Type::new(data.elem, [outer, &data.shape[batch_dims + depth..]].concat()))
}

fn check_updates(
    what: &str,
    op: ScatterOp,
    data: &Type,
    updates: &Type,
    shape: &Shape,
) -> Result<(), InferError> {
    same_elem(what, data, updates)?;
    if data.elem == Elem::Bool && op != ScatterOp::Set {
        invalid!("`{what}`: `{}` of bool", op.name());
    }
    same_shape(what, &updates.shape, shape)
}

pub(super) fn scatter_elements(
    axis: usize,
    op: ScatterOp,
    [data, indices, updates]: [&Type; 3],
) -> Inferred {
    let what = "scatter_elements";
    plain(what, &[data, indices, updates])?;
    check_elements(what, axis, data, indices)?;
    check_updates(what, op, data, updates, &indices.shape)?;
    Ok(data.clone())
}

pub(super) fn scatter_nd(op: ScatterOp, [data, indices, updates]: [&Type; 3]) -> Inferred {
    let what = "scatter_nd";
    plain(what, &[data, indices, updates])?;
    is_index(what, indices)?;
    let depth = depth(what, indices, data.rank())?;
    let shape = [&indices.shape[..indices.rank() - 1], &data.shape[depth..]].concat();
    check_updates(what, op, data, updates, &shape)?;
    Ok(data.clone())
}
