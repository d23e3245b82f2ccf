//! Types of reductions and of cumulative sums.

use super::{Inferred, axis_in, invalid, plain};
use crate::dim::Dim;
use crate::op::ReduceOp;
use crate::types::{Elem, Shape, Type};

fn without(shape: &[Dim], axes: &[usize], keep_dims: bool) -> Shape {
    let mut out = Shape::new();
    for (i, d) in shape.iter().enumerate() {
        if !axes.contains(&i) {
            out.push(d.clone());
        } else if keep_dims {
            out.push(Dim::one());
        }
    }
    out
}

pub(super) fn reduce(op: ReduceOp, axes: &[usize], keep_dims: bool, [x]: [&Type; 1]) -> Inferred {
    plain("reduce", &[x])?;
    if x.elem == Elem::Bool && !matches!(op, ReduceOp::Max | ReduceOp::Min) {
        invalid!("`reduce` does not take the `{}` of {x}", op.name());
    }
    for (i, &axis) in axes.iter().enumerate() {
        axis_in("reduce", axis, x.rank())?;
        if axes[..i].contains(&axis) {
            invalid!("`reduce`: axis {axis} twice");
        }
    }
    Ok(Type::new(x.elem, without(&x.shape, axes, keep_dims)))
}

pub(super) fn arg_reduce(axis: usize, keep_dims: bool, [x]: [&Type; 1]) -> Inferred {
    plain("arg_reduce", &[x])?;
    axis_in("arg_reduce", axis, x.rank())?;
    if x.shape[axis].as_const() == Some(0) {
        invalid!("`arg_reduce`: axis {axis} of {x} is empty");
    }
    Ok(Type::new(Elem::I64, without(&x.shape, &[axis], keep_dims)))
}

pub(super) fn cum_sum(axis: usize, [x]: [&Type; 1]) -> Inferred {
    plain("cum_sum", &[x])?;
    axis_in("cum_sum", axis, x.rank())?;
    if x.elem == Elem::Bool {
        invalid!("`cum_sum` does not take {x}");
    }
    Ok(x.clone())
}
