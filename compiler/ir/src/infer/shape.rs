//! Types of operations that only move elements, and NumPy's broadcasting. Codes may be moved as
//! long as their meaning moves with them: one scale and no digits, or a permutation of axes.

use super::{InferError, Inferred, at_least_zero, axis_in, invalid, plain, same, same_elem};
use crate::dim::{self, Dim};
use crate::op::PadMode;
use crate::quant::{Quant, Scale};
use crate::types::{Shape, Type};
use std::sync::Arc;

/// The shape that all of these broadcast to, as in NumPy: a constant size 1 gives way, everything
/// else must be equal.
pub fn broadcast_shapes(shapes: &[&Shape]) -> Result<Shape, InferError> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![Dim::one(); rank];
    for shape in shapes {
        for (o, d) in out[rank - shape.len()..].iter_mut().zip(shape.iter()) {
            if o.as_const() == Some(1) {
                *o = d.clone();
            } else if d.as_const() != Some(1) {
                same("broadcast", o, d)?;
            }
        }
    }
    Ok(out)
}

/// That `from` broadcasts to exactly `to`.
pub fn check_broadcast(what: &str, from: &[Dim], to: &[Dim]) -> Result<(), InferError> {
    if from.len() > to.len() {
        invalid!("`{what}`: rank {} does not broadcast to rank {}", from.len(), to.len());
    }
    for (f, t) in from.iter().zip(&to[to.len() - from.len()..]) {
        if f.as_const() != Some(1) {
            same(what, f, t)?;
        }
    }
    Ok(())
}

/// The quantisation of moved codes, where it does not depend on the place of an element.
fn uniform_quant(what: &str, x: &Type) -> Result<Option<Arc<Quant>>, InferError> {
    match x.quant.as_deref() {
        Some(Quant { scale: Scale::Tensor(_), flatten: None, .. }) | None => Ok(x.quant.clone()),
        Some(_) => invalid!("`{what}` does not take codes whose meaning depends on the channel"),
    }
}

pub(super) fn reshape(to: &Shape, [x]: [&Type; 1]) -> Inferred {
    at_least_zero("reshape", to)?;
    let (from_count, to_count) = (x.count(), dim::product(to));
    if from_count != to_count && (from_count.clone() - to_count.clone()).is_const() {
        invalid!("`reshape` of {x}, {from_count} elements, to {}", Type::new(x.elem, to.clone()));
    }
    same("reshape", &from_count, &to_count)?;
    let channels_stay = x.shape.last().is_some() && x.shape.last() == to.last();
    let quant = match x.quant.as_deref() {
        Some(Quant { scale: Scale::Tensor(_), .. }) if channels_stay => x.quant.clone(),
        _ => uniform_quant("reshape", x)?,
    };
    Ok(Type { elem: x.elem, shape: to.clone(), quant })
}

pub(super) fn transpose(perm: &[usize], [x]: [&Type; 1]) -> Inferred {
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..x.rank()) {
        invalid!("`transpose`: {perm:?} does not permute the {} axes of {x}", x.rank());
    }
    let shape = perm.iter().map(|&i| x.shape[i].clone()).collect();
    let quant = match x.quant.as_deref() {
        Some(q @ Quant { scale: Scale::Axis { axis, scales }, flatten: None, .. }) => {
            let Some(axis) = perm.iter().position(|i| i == axis) else {
                invalid!("`transpose`: the scales of {x} run along axis {axis}");
            };
            let scale = Scale::Axis { axis, scales: scales.clone() };
            Some(Arc::new(Quant { scale, ..q.clone() }))
        }
        Some(Quant { scale: Scale::Tensor(_), .. })
            if perm.last().is_some_and(|&i| i + 1 == x.rank()) =>
        {
            x.quant.clone()
        }
        _ => uniform_quant("transpose", x)?,
    };
    Ok(Type { elem: x.elem, shape, quant })
}

pub(super) fn broadcast(to: &Shape, [x]: [&Type; 1]) -> Inferred {
    at_least_zero("broadcast", to)?;
    check_broadcast("broadcast", &x.shape, to)?;
    Ok(Type { elem: x.elem, shape: to.clone(), quant: uniform_quant("broadcast", x)? })
}

pub(super) fn slice(start: &[Dim], len: &[Dim], step: &[i64], [x]: [&Type; 1]) -> Inferred {
    let ranks = (start.len(), len.len(), step.len());
    if ranks != (x.rank(), x.rank(), x.rank()) {
        invalid!(
            "`slice` of {x}: {} starts, {} lengths, {} steps",
            start.len(),
            len.len(),
            step.len()
        );
    }
    at_least_zero("slice", len)?;
    for (axis, size) in x.shape.iter().enumerate() {
        let (start, len, step) = (&start[axis], &len[axis], step[axis]);
        if step == 0 {
            invalid!("`slice`: step 0 along axis {axis}");
        }
        if len.as_const() == Some(0) {
            continue;
        }
        let last = start.clone() + (len.clone() - Dim::one()) * Dim::from(step);
        for at in [start, &last] {
            let below = at.as_const().is_some_and(|v| v < 0);
            let above = (at.clone() - size.clone()).as_const().is_some_and(|v| v >= 0);
            if below || above {
                invalid!("`slice`: element {at} of axis {axis}, whose size is {size}");
            }
        }
    }
    Ok(Type { elem: x.elem, shape: len.to_vec(), quant: uniform_quant("slice", x)? })
}

pub(super) fn concat(axis: usize, operands: &[&Type]) -> Inferred {
    let Some((first, rest)) = operands.split_first() else {
        invalid!("`concat` of nothing");
    };
    axis_in("concat", axis, first.rank())?;
    let mut shape = first.shape.clone();
    for x in rest {
        same_elem("concat", first, x)?;
        if x.rank() != first.rank() {
            invalid!("`concat` of {first} and {x}");
        }
        if x.quant != first.quant {
            invalid!("`concat` of codes with different meanings");
        }
        for (i, (a, b)) in shape.iter_mut().zip(&x.shape).enumerate() {
            if i == axis {
                *a = a.clone() + b.clone();
            } else {
                same("concat", a, b)?;
            }
        }
    }
    Ok(Type { elem: first.elem, shape, quant: uniform_quant("concat", first)? })
}

pub(super) fn pad(before: &[Dim], after: &[Dim], mode: PadMode, operands: &[&Type]) -> Inferred {
    let x = match (mode, operands) {
        (PadMode::Constant, [x, fill]) => {
            same_elem("pad", x, fill)?;
            if fill.rank() != 0 {
                invalid!("`pad` wants a scalar fill value, not {fill}");
            }
            x
        }
        (PadMode::Edge | PadMode::Reflect | PadMode::Wrap, [x]) => x,
        _ => invalid!("`pad` in mode `{}` with {} operands", mode.name(), operands.len()),
    };
    plain("pad", operands)?;
    if before.len() != x.rank() || after.len() != x.rank() {
        invalid!("`pad` of {x}: {} sizes before, {} after", before.len(), after.len());
    }
    at_least_zero("pad", before)?;
    at_least_zero("pad", after)?;
    let sizes = x.shape.iter().zip(before.iter().zip(after));
    let shape = sizes.map(|(d, (b, a))| b.clone() + d.clone() + a.clone()).collect();
    Ok(Type::new(x.elem, shape))
}
