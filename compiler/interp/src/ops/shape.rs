//! Operations that only move elements.

use crate::error::{OpError, Res};
use crate::tensor::{Data, Tensor};
use crate::walk::{Walk, around, strides};
use fqc_ir::op::PadMode;
use fqc_ir::{Dim, Elem};

pub(crate) fn transpose(x: &Tensor, perm: &[usize], shape: &[usize]) -> Data {
    let own = strides(x.shape());
    let moved: Vec<isize> = perm.iter().map(|&axis| own[axis]).collect();
    x.data().take(Walk::new(shape, &moved, 0))
}

pub(crate) fn broadcast(x: &Tensor, shape: &[usize]) -> Data {
    x.data().take(Walk::broadcast(x.shape(), shape))
}

pub(crate) fn slice(x: &Tensor, start: &[Dim], step: &[i64], shape: &[usize]) -> Res<Data> {
    let own = strides(x.shape());
    let mut first = 0isize;
    let mut stepped = Vec::new();
    for (axis, (&size, &len)) in x.shape().iter().zip(shape).enumerate() {
        let start = start[axis].as_const().unwrap_or(-1);
        if len > 0 {
            let last = i128::from(start) + i128::from(step[axis]) * (len as i128 - 1);
            let inside = |i: i128| (0..size as i128).contains(&i);
            if !inside(start.into()) || !inside(last) {
                let what = format!("takes {start} to {last} of axis {axis}, which has size {size}");
                return Err(OpError::invalid(what));
            }
            first += start as isize * own[axis];
        }
        // With one element the step is never taken and may be anything.
        stepped.push(if len > 1 { step[axis] as isize * own[axis] } else { 0 });
    }
    if shape.contains(&0) {
        first = 0;
    }
    Ok(x.data().take(Walk::new(shape, &stepped, first)))
}

pub(crate) fn concat(parts: &[&Tensor], axis: usize, elem: Elem, shape: &[usize]) -> Data {
    let mut out = Data::empty(elem);
    let (outer, _, _) = around(shape, axis);
    for block in 0..outer {
        for part in parts {
            let (_, size, inner) = around(part.shape(), axis);
            out.append(part.data(), block * size * inner, size * inner);
        }
    }
    out
}

/// Where element `i` of a padded axis comes from; `None` for the fill value.
fn pad_source(i: usize, before: i64, size: usize, mode: PadMode) -> Option<usize> {
    let (at, n) = (i as i64 - before, size as i64);
    let source = match mode {
        PadMode::Constant if (0..n).contains(&at) => at,
        PadMode::Constant => return None,
        PadMode::Edge => at.clamp(0, n - 1),
        PadMode::Wrap => at.rem_euclid(n),
        PadMode::Reflect if n == 1 => 0,
        PadMode::Reflect => {
            let turn = at.rem_euclid(2 * (n - 1));
            turn.min(2 * (n - 1) - turn)
        }
    };
    Some(source as usize)
}

pub(crate) fn pad(x: &[&Tensor], before: &[Dim], mode: PadMode, shape: &[usize]) -> Res<Data> {
    let input = x[0];
    // The fill value comes after the elements.
    let mut source = input.data().clone();
    if let (PadMode::Constant, Some(fill)) = (mode, x.get(1)) {
        source.append(fill.data(), 0, 1);
    }
    let empty = input.shape().iter().zip(shape).any(|(&from, &to)| from == 0 && to > 0);
    if empty && mode != PadMode::Constant {
        return Err(OpError::invalid(format!("has nothing to pad with on {:?}", input.shape())));
    }
    let own = strides(input.shape());
    let places: Vec<Vec<Option<usize>>> = input
        .shape()
        .iter()
        .zip(shape)
        .enumerate()
        .map(|(axis, (&size, &to))| {
            let before = before[axis].as_const().unwrap_or(0);
            let scale = |s: usize| s * own[axis] as usize;
            (0..to).map(|i| pad_source(i, before, size, mode).map(scale)).collect()
        })
        .collect();
    let fill_at = input.count();
    let along = strides(shape);
    let count: usize = shape.iter().product();
    Ok(source.take((0..count).map(|flat| {
        let mut rest = flat;
        let mut at = Some(0usize);
        for (axis, place) in places.iter().enumerate() {
            let i = rest / along[axis] as usize;
            rest %= along[axis] as usize;
            at = at.zip(place[i]).map(|(a, b)| a + b);
        }
        at.unwrap_or(fill_at)
    })))
}
