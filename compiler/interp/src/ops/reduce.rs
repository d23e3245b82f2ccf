//! Reductions, arg-reductions and running sums. Float sums run in f64; among floats NaN wins.

use super::ints;
use crate::error::{OpError, Res};
use crate::tensor::{Data, Tensor};
use crate::walk::{Walk, around, strides};
use fqc_ir::Elem;
use fqc_ir::op::ReduceOp;

pub(crate) fn reduce(op: ReduceOp, x: &Tensor, axes: &[usize]) -> Res<Data> {
    let own = strides(x.shape());
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for axis in 0..x.shape().len() {
        if axes.contains(&axis) { gone.push(axis) } else { kept.push(axis) }
    }
    let order = kept.iter().chain(&gone);
    let (sizes, steps): (Vec<usize>, Vec<isize>) =
        order.map(|&axis| (x.shape()[axis], own[axis])).unzip();
    let groups: usize = kept.iter().map(|&axis| x.shape()[axis]).product();
    let len: usize = gone.iter().map(|&axis| x.shape()[axis]).product();
    let mut walk = Walk::new(&sizes, &steps, 0);
    let elem = x.elem();
    if let Some(values) = x.floats() {
        let out: Vec<f64> = (0..groups)
            .map(|_| reduce_floats(op, walk.by_ref().take(len).map(|i| values[i]), len))
            .collect();
        return Ok(Data::from_floats(elem, out.into_iter()));
    }
    if elem == Elem::Bool && !matches!(op, ReduceOp::Max | ReduceOp::Min) {
        return Err(OpError::invalid(format!("`{}` does not take bool", op.name())));
    }
    let values = ints(x)?;
    let out: Vec<i128> = (0..groups)
        .map(|_| reduce_ints(op, elem, walk.by_ref().take(len).map(|i| values[i]), len))
        .collect();
    Ok(Data::from_ints(elem, out.into_iter()))
}

fn reduce_floats(op: ReduceOp, values: impl Iterator<Item = f64>, len: usize) -> f64 {
    match op {
        ReduceOp::Sum => values.sum::<f64>() + 0.0,
        ReduceOp::Mean => values.sum::<f64>() / len as f64,
        ReduceOp::Prod => values.product(),
        ReduceOp::Max => {
            values.fold(f64::NEG_INFINITY, |a, b| if a.is_nan() || a > b { a } else { b })
        }
        ReduceOp::Min => values.fold(f64::INFINITY, |a, b| if a.is_nan() || a < b { a } else { b }),
    }
}

fn reduce_ints(op: ReduceOp, elem: Elem, values: impl Iterator<Item = i128>, len: usize) -> i128 {
    match op {
        ReduceOp::Sum => values.sum(),
        ReduceOp::Mean if len == 0 => 0,
        ReduceOp::Mean => values.sum::<i128>() / len as i128,
        ReduceOp::Prod => values.fold(1i128, i128::wrapping_mul),
        ReduceOp::Max => values.max().unwrap_or(bounds(elem).0),
        ReduceOp::Min => values.min().unwrap_or(bounds(elem).1),
    }
}

/// The smallest and largest value of an integer type.
fn bounds(elem: Elem) -> (i128, i128) {
    let bits = if elem == Elem::Bool { 1 } else { elem.bits() };
    if elem.is_signed() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    }
}

pub(crate) fn arg_reduce(x: &Tensor, axis: usize, largest: bool, last: bool) -> Res<Data> {
    let (outer, size, inner) = around(x.shape(), axis);
    if size == 0 && outer * inner > 0 {
        return Err(OpError::invalid("has nothing to choose from on an empty axis"));
    }
    let place = |o: usize, i: usize, k: usize| (o * size + k) * inner + i;
    let mut out = Vec::with_capacity(outer * inner);
    let floats = x.floats();
    let integers = x.ints().unwrap_or_default();
    // Whether the element at `b` takes the place of the one at `a`, which comes before it.
    let beats = |a: usize, b: usize| match &floats {
        Some(v) => match (v[a].is_nan(), v[b].is_nan()) {
            (true, true) => last,
            (true, false) => false,
            (false, true) => true,
            _ if v[a] == v[b] => last,
            _ => (v[b] > v[a]) == largest,
        },
        None if integers[a] == integers[b] => last,
        None => (integers[b] > integers[a]) == largest,
    };
    for o in 0..outer {
        for i in 0..inner {
            let mut best = 0;
            for k in 1..size {
                if beats(place(o, i, best), place(o, i, k)) {
                    best = k;
                }
            }
            out.push(best as i64);
        }
    }
    Ok(Data::I64(out))
}

pub(crate) fn cum_sum(x: &Tensor, axis: usize, exclusive: bool, reverse: bool) -> Res<Data> {
    let (outer, size, inner) = around(x.shape(), axis);
    let place = |o: usize, i: usize, step: usize| {
        let k = if reverse { size - 1 - step } else { step };
        (o * size + k) * inner + i
    };
    let lanes = (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i)));
    if let Some(values) = x.floats() {
        let mut out = vec![0f64; values.len()];
        for (o, i) in lanes {
            let mut sum = 0.0;
            for at in (0..size).map(|step| place(o, i, step)) {
                let before = sum;
                sum += values[at];
                out[at] = if exclusive { before } else { sum };
            }
        }
        return Ok(Data::from_floats(x.elem(), out.into_iter()));
    }
    let values = ints(x)?;
    let mut out = vec![0i128; values.len()];
    for (o, i) in lanes {
        let mut sum = 0;
        for at in (0..size).map(|step| place(o, i, step)) {
            let before = sum;
            sum += values[at];
            out[at] = if exclusive { before } else { sum };
        }
    }
    Ok(Data::from_ints(x.elem(), out.into_iter()))
}
