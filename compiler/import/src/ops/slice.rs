//! Slices and splits. Bounds may be symbolic; what cannot be proven about them (that a slice ends
//! inside of its axis) is taken for granted and recorded as a limit of the graph, checked at run time.

use super::Rule;
use crate::builder::V;
use crate::cx::{self, Cx};
use crate::dims;
use crate::error::{Fault, Res};
use fqc_ir::Dim;

pub(super) const TABLE: super::Table = &[("Slice", Rule::Fn(slice)), ("Split", Rule::Fn(split))];

fn slice(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let (starts, ends, axes, steps) = if cx.version < 10 {
        let list = |name: &str| cx.attrs.ints_opt(name);
        let dims = |l: Option<Vec<i64>>| {
            l.map(|l| l.into_iter().map(Dim::from).collect::<Vec<Dim>>()).unwrap_or_default()
        };
        (dims(list("starts")?), dims(list("ends")?), list("axes")?, None)
    } else {
        let (starts, ends) = (cx.operand(1)?, cx.operand(2)?);
        let ints = |v: Option<V>, what| v.map(|v| cx.ints_of(&v, what)).transpose();
        (
            cx.sizes_of(&starts, "the starts of `Slice`")?,
            cx.sizes_of(&ends, "the ends of `Slice`")?,
            ints(cx.opt(3), "the axes of `Slice`")?,
            ints(cx.opt(4), "the steps of `Slice`")?,
        )
    };
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    let n = starts.len();
    if ends.len() != n || axes.len() != n || steps.len() != n {
        return Err(Fault::invalid(format!(
            "{n} starts, {} ends, {} axes, {} steps",
            ends.len(),
            axes.len(),
            steps.len()
        )));
    }
    cx::axes(&axes, x.rank())?;
    let mut start = vec![Dim::zero(); x.rank()];
    let mut len = x.ty.shape.clone();
    let mut step = vec![1; x.rank()];
    for i in 0..n {
        let axis = cx::axis(axes[i], x.rank())?;
        step[axis] = steps[i];
        (start[axis], len[axis]) = bounds(cx, &x.shape()[axis], &starts[i], &ends[i], steps[i])?;
    }
    Ok(vec![cx.slice(&x, start, len, step)?])
}

/// Start and length of a slice of one axis of the given size.
fn bounds(cx: &mut Cx<'_>, size: &Dim, start: &Dim, end: &Dim, step: i64) -> Res<(Dim, Dim)> {
    match step {
        0 => Err(Fault::invalid("a step of 0")),
        i64::MIN..=-1 => backwards(size, start, end, step),
        _ => {
            let from = bound(cx, size, start)?;
            let to = bound(cx, size, end)?;
            let span = to - from.clone();
            if span.as_const().is_some_and(|s| s <= 0) {
                return Ok((Dim::zero(), Dim::zero()));
            }
            cx.assume_at_most(&-span.clone(), &Dim::zero())?;
            Ok((from, if step == 1 { span } else { span.ceil_div(step) }))
        }
    }
}

/// Numbers from here on mean "to the end", whatever the size.
const ENDLESS: i64 = i32::MAX as i64;

/// A bound as a place in `0..=size`.
fn bound(cx: &mut Cx<'_>, size: &Dim, at: &Dim) -> Res<Dim> {
    let zero = Dim::zero();
    if let (Some(n), Some(v)) = (size.as_const(), at.as_const()) {
        let v = if v < 0 { v.saturating_add(n) } else { v };
        return Ok(Dim::from(v.clamp(0, n)));
    }
    match at.as_const() {
        Some(v) if v >= ENDLESS => Ok(size.clone()),
        Some(v) if v <= -ENDLESS => Ok(zero),
        Some(0) => Ok(zero),
        // The last few: at least that many are there.
        Some(v) if v < 0 => {
            cx.assume_at_most(&Dim::from(-v), size)?;
            Ok(size.clone() + Dim::from(v))
        }
        Some(1) => {
            cx.assume_at_most(at, size)?;
            Ok(at.clone())
        }
        // The first few: exact also where there are fewer.
        Some(_) => Ok(dims::min(at, size)),
        None if dims::at_least(size, at) && dims::nonneg(at) => Ok(at.clone()),
        None if dims::at_least(at, size) => Ok(size.clone()),
        None if dims::nonneg(&-at.clone()) => {
            cx.assume_at_most(&-at.clone(), size)?;
            Ok(size.clone() + at.clone())
        }
        None => {
            cx.assume_at_most(&-at.clone(), &zero)?;
            cx.assume_at_most(at, size)?;
            Ok(at.clone())
        }
    }
}

/// A negative step: constant bounds, or the whole axis reversed.
fn backwards(size: &Dim, start: &Dim, end: &Dim, step: i64) -> Res<(Dim, Dim)> {
    let from_end = |v: i64, n: i64| if v < 0 { v.saturating_add(n) } else { v };
    if let (Some(n), Some(a), Some(b)) = (size.as_const(), start.as_const(), end.as_const()) {
        let (a, b) = (from_end(a, n).clamp(0, n - 1), from_end(b, n).clamp(-1, n - 1));
        let span = (a - b).max(0) as u64;
        let len = i64::try_from(span.div_ceil(step.unsigned_abs())).unwrap_or(0);
        return Ok((Dim::from(if len == 0 { 0 } else { a }), Dim::from(len)));
    }
    let whole = start.as_const().is_some_and(|v| v == -1 || v >= ENDLESS)
        && end.as_const().is_some_and(|v| v <= -ENDLESS);
    if whole && step == -1 {
        return Ok((size.clone() - Dim::one(), size.clone()));
    }
    Err(Fault::unsupported(format!(
        "a slice from {start} to {end} by {step} of an axis of size {size}"
    )))
}

fn split(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let axis = cx::axis(cx.attrs.int("axis", 0)?, x.rank())?;
    let size = x.shape()[axis].clone();
    let lengths = if cx.version < 13 {
        let list = cx.attrs.ints_opt("split")?;
        list.map(|l| l.into_iter().map(Dim::from).collect())
    } else {
        cx.opt(1).map(|v| cx.sizes_of(&v, "the lengths of `Split`")).transpose()?
    };
    let parts = match cx.attrs.int_opt("num_outputs")? {
        Some(n) if n < 1 || n as usize != cx.results() => {
            let message = format!("`num_outputs` is {n}, {} are named", cx.results());
            return Err(Fault::invalid(message));
        }
        _ => cx.results(),
    };
    let lengths = match lengths {
        Some(lengths) => lengths,
        None => even(&size, parts)?,
    };
    let total = lengths.iter().fold(Dim::zero(), |sum, d| sum + d.clone());
    match (total.clone() - size.clone()).as_const() {
        Some(0) => {}
        Some(_) => return Err(Fault::invalid(format!("parts of {total} of an axis of {size}"))),
        None => return Err(Fault::Equal(total, size)),
    }
    let mut start = Dim::zero();
    let mut out = Vec::new();
    for len in lengths {
        out.push(cx.narrow(&x, axis, &start, &len)?);
        start = start + len;
    }
    Ok(out)
}

/// Equal parts; the last one is smaller where the size does not divide.
fn even(size: &Dim, parts: usize) -> Res<Vec<Dim>> {
    let n = parts as i64;
    if n < 1 {
        return Err(Fault::invalid("`Split` without results"));
    }
    if let Some(each) = size.exact_div(&Dim::from(n)) {
        return Ok(vec![each; parts]);
    }
    let Some(total) = size.as_const() else {
        return Err(Fault::unsupported(format!("{parts} equal parts of an axis of {size}")));
    };
    let each = total / n + i64::from(total % n != 0);
    let part = |i: i64| Dim::from((total - i * each).clamp(0, each));
    Ok((0..n).map(part).collect())
}
