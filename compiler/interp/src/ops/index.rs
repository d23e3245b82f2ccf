//! Gathers and scatters. An index outside its axis is an error that says which.

use super::{floats, ints};
use crate::error::{OpError, Res};
use crate::scalar;
use crate::tensor::{Data, Tensor};
use crate::walk::{around, strides};
use fqc_ir::BinaryOp;
use fqc_ir::op::ScatterOp;

/// An index into an axis, counted from the end if negative.
fn resolve(index: i128, size: usize) -> Res<usize> {
    let at = if index < 0 { index + size as i128 } else { index };
    if (0..size as i128).contains(&at) {
        return Ok(at as usize);
    }
    Err(OpError::invalid(format!("index {index} is outside an axis of size {size}")))
}

pub(crate) fn gather(data: &Tensor, indices: &Tensor, axis: usize) -> Res<Data> {
    let (outer, size, inner) = around(data.shape(), axis);
    let rows: Vec<usize> =
        ints(indices)?.into_iter().map(|i| resolve(i, size)).collect::<Res<_>>()?;
    let mut out = Data::empty(data.elem());
    for block in 0..outer {
        for row in &rows {
            out.append(data.data(), (block * size + row) * inner, inner);
        }
    }
    Ok(out)
}

/// For each element of `indices`: the position in `data` that differs from its own only on `axis`.
fn element_places(data: &[usize], indices: &Tensor, axis: usize) -> Res<Vec<usize>> {
    let (own, along) = (strides(data), strides(indices.shape()));
    let mut places = Vec::with_capacity(indices.count());
    for (flat, index) in ints(indices)?.into_iter().enumerate() {
        let (mut rest, mut at) = (flat, 0);
        for d in 0..data.len() {
            let here = rest / along[d] as usize;
            rest %= along[d] as usize;
            let here = if d == axis { resolve(index, data[d])? } else { here };
            at += here * own[d] as usize;
        }
        places.push(at);
    }
    Ok(places)
}

/// Refuses indices that reach over the data on an axis other than `axis`.
fn check_inside(data: &Tensor, indices: &Tensor, axis: usize) -> Res<()> {
    let mut sizes = data.shape().iter().zip(indices.shape()).enumerate();
    if sizes.any(|(d, (of, by))| d != axis && by > of) {
        let what = format!("indices {:?} reach over {:?}", indices.shape(), data.shape());
        return Err(OpError::invalid(what));
    }
    Ok(())
}

pub(crate) fn gather_elements(data: &Tensor, indices: &Tensor, axis: usize) -> Res<Data> {
    check_inside(data, indices, axis)?;
    let places = element_places(data.shape(), indices, axis)?;
    Ok(data.data().take(places.into_iter()))
}

/// For each index tuple: where its slice begins in `data`; and how long a slice is.
fn slice_places(data: &[usize], indices: &Tensor, batch_dims: usize) -> Res<(Vec<usize>, usize)> {
    let depth = indices.last();
    let tuples: usize = indices.shape()[batch_dims..indices.shape().len() - 1].iter().product();
    let sizes = &data[batch_dims..batch_dims + depth];
    let own = &strides(data)[batch_dims..];
    let batch_size: usize = data[batch_dims..].iter().product();
    let len: usize = data[batch_dims + depth..].iter().product();
    let batches: usize = data[..batch_dims].iter().product();
    let values = ints(indices)?;
    let mut places = Vec::new();
    for batch in 0..batches {
        for tuple in 0..tuples {
            let first = (batch * tuples + tuple) * depth;
            let mut at = batch * batch_size;
            for (d, &size) in sizes.iter().enumerate() {
                at += resolve(values[first + d], size)? * own[d] as usize;
            }
            places.push(at);
        }
    }
    Ok((places, len))
}

pub(crate) fn gather_nd(data: &Tensor, indices: &Tensor, batch_dims: usize) -> Res<Data> {
    let (places, len) = slice_places(data.shape(), indices, batch_dims)?;
    let mut out = Data::empty(data.elem());
    for at in places {
        out.append(data.data(), at, len);
    }
    Ok(out)
}

pub(crate) fn scatter_elements(
    data: &Tensor,
    indices: &Tensor,
    updates: &Tensor,
    axis: usize,
    reduction: ScatterOp,
) -> Res<Data> {
    check_inside(data, indices, axis)?;
    scatter(data, updates, &element_places(data.shape(), indices, axis)?, reduction)
}

pub(crate) fn scatter_nd(
    data: &Tensor,
    indices: &Tensor,
    updates: &Tensor,
    reduction: ScatterOp,
) -> Res<Data> {
    let (starts, len) = slice_places(data.shape(), indices, 0)?;
    let places: Vec<usize> = starts.into_iter().flat_map(|at| at..at + len).collect();
    scatter(data, updates, &places, reduction)
}

/// Combines update `i` with the element at `places[i]`, in order, rounding or wrapping each time.
fn scatter(data: &Tensor, updates: &Tensor, places: &[usize], reduction: ScatterOp) -> Res<Data> {
    let op = match reduction {
        ScatterOp::Set => {
            let mut from: Vec<usize> = (0..data.count()).collect();
            for (i, &at) in places.iter().enumerate() {
                from[at] = data.count() + i;
            }
            let mut both = data.data().clone();
            both.append(updates.data(), 0, updates.count());
            return Ok(both.take(from.into_iter()));
        }
        ScatterOp::Add => BinaryOp::Add,
        ScatterOp::Mul => BinaryOp::Mul,
        ScatterOp::Max => BinaryOp::Max,
        ScatterOp::Min => BinaryOp::Min,
    };
    let refused = || OpError::invalid(format!("`{}` of {}", reduction.name(), data.elem()));
    if data.elem().is_float() {
        let (mut x, u) = (floats(data)?, floats(updates)?);
        let f = scalar::binary_float(op).ok_or_else(refused)?;
        for (&at, &v) in places.iter().zip(&u) {
            x[at] = round_once(data, f(x[at], v))?;
        }
        return Ok(Data::from_floats(data.elem(), x.into_iter()));
    }
    let (mut x, u) = (ints(data)?, ints(updates)?);
    let f = scalar::binary_int(op).ok_or_else(refused)?;
    for (&at, &v) in places.iter().zip(&u) {
        // A product may leave i128 after a few wide factors: keep it in the element's own range.
        let wrapped = Data::from_ints(data.elem(), std::iter::once(f(x[at], v)));
        let one = Tensor::new(data.elem(), vec![1], wrapped).ok_or_else(refused)?;
        x[at] = ints(&one)?[0];
    }
    Ok(Data::from_ints(data.elem(), x.into_iter()))
}

fn round_once(like: &Tensor, value: f64) -> Res<f64> {
    Ok(floats(&Tensor::from_floats(like.elem(), &[1], &[value]))?[0])
}
