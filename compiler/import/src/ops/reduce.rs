//! Reductions along axes.

use super::Rule;
use super::math::with;
use crate::builder::V;
use crate::cx::{self, Cx};
use crate::error::{Fault, Res};
use fqc_ir::op::ReduceOp;
use fqc_ir::{BinaryOp, Elem, Op, UnaryOp};

pub(super) const TABLE: super::Table = &[
    ("ArgMax", Rule::Fn(|cx| arg(cx, Extreme::Largest))),
    ("ArgMin", Rule::Fn(|cx| arg(cx, Extreme::Smallest))),
    ("CumSum", Rule::Fn(cum_sum)),
    ("GlobalAveragePool", Rule::Fn(|cx| global(cx, ReduceOp::Mean))),
    ("GlobalMaxPool", Rule::Fn(|cx| global(cx, ReduceOp::Max))),
    ("ReduceL1", Rule::Fn(l1)),
    ("ReduceL2", Rule::Fn(l2)),
    ("ReduceLogSum", Rule::Fn(log_sum)),
    ("ReduceLogSumExp", Rule::Fn(log_sum_exp)),
    ("ReduceMax", Rule::Fn(|cx| plain(cx, ReduceOp::Max))),
    ("ReduceMean", Rule::Fn(|cx| plain(cx, ReduceOp::Mean))),
    ("ReduceMin", Rule::Fn(|cx| plain(cx, ReduceOp::Min))),
    ("ReduceProd", Rule::Fn(|cx| plain(cx, ReduceOp::Prod))),
    ("ReduceSum", Rule::Fn(sum)),
    ("ReduceSumSquare", Rule::Fn(sum_square)),
];

/// Which axes a node reduces.
struct Axes {
    axes: Vec<usize>,
    keep: bool,
    /// Empty axes that mean "do nothing", not "all".
    noop: bool,
}

fn axes(cx: &Cx<'_>, since: i64) -> Res<(V, Axes)> {
    let x = cx.operand(0)?;
    let keep = cx.attrs.flag("keepdims", 1)?;
    let noop_if_empty = cx.attrs.flag("noop_with_empty_axes", 0)?;
    let list = cx.ints("axes", 1, since)?.unwrap_or_default();
    let noop = list.is_empty() && noop_if_empty;
    let axes = match list.is_empty() {
        true => (0..x.rank()).collect(),
        false => cx::axes(&list, x.rank())?,
    };
    Ok((x, Axes { axes, keep, noop }))
}

fn run(cx: &mut Cx<'_>, op: ReduceOp, x: &V, a: &Axes) -> Res<V> {
    if a.noop { Ok(x.clone()) } else { cx.reduce(op, x, a.axes.clone(), a.keep) }
}

fn plain(cx: &mut Cx<'_>, op: ReduceOp) -> Res<Vec<V>> {
    let (x, a) = axes(cx, 18)?;
    Ok(vec![run(cx, op, &x, &a)?])
}

fn sum(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, a) = axes(cx, 13)?;
    Ok(vec![run(cx, ReduceOp::Sum, &x, &a)?])
}

fn l1(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, a) = axes(cx, 18)?;
    let x = cx.unary(UnaryOp::Abs, &x)?;
    Ok(vec![run(cx, ReduceOp::Sum, &x, &a)?])
}

fn squares(cx: &mut Cx<'_>) -> Res<V> {
    let (x, a) = axes(cx, 18)?;
    let x = cx.binary(BinaryOp::Mul, &x, &x)?;
    run(cx, ReduceOp::Sum, &x, &a)
}

fn sum_square(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    Ok(vec![squares(cx)?])
}

fn l2(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let sum = squares(cx)?;
    Ok(vec![cx.unary(UnaryOp::Sqrt, &sum)?])
}

fn log_sum(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, a) = axes(cx, 18)?;
    let sum = run(cx, ReduceOp::Sum, &x, &a)?;
    Ok(vec![cx.unary(UnaryOp::Log, &sum)?])
}

/// The largest is taken out first, so that no exponential overflows.
fn log_sum_exp(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, a) = axes(cx, 18)?;
    if a.noop {
        return Ok(vec![x]);
    }
    let top = cx.reduce(ReduceOp::Max, &x, a.axes.clone(), true)?;
    let low = cx.binary(BinaryOp::Sub, &x, &top)?;
    let exp = cx.unary(UnaryOp::Exp, &low)?;
    let sum = cx.reduce(ReduceOp::Sum, &exp, a.axes.clone(), true)?;
    let log = cx.unary(UnaryOp::Log, &sum)?;
    let y = cx.binary(BinaryOp::Add, &log, &top)?;
    if a.keep {
        return Ok(vec![y]);
    }
    let kept = y.shape().iter().enumerate().filter(|(i, _)| !a.axes.contains(i));
    let to = kept.map(|(_, d)| d.clone()).collect();
    Ok(vec![cx.reshape(&y, to)?])
}

fn global(cx: &mut Cx<'_>, op: ReduceOp) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    if x.rank() < 3 {
        return Err(Fault::invalid(format!("`{}` has no spatial axes", x.ty)));
    }
    Ok(vec![cx.reduce(op, &x, (2..x.rank()).collect(), true)?])
}

#[derive(PartialEq)]
enum Extreme {
    Largest,
    Smallest,
}

fn arg(cx: &mut Cx<'_>, which: Extreme) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let axis = cx::axis(cx.attrs.int("axis", 0)?, x.rank())?;
    let keep_dims = cx.attrs.flag("keepdims", 1)?;
    let last = cx.attrs.flag("select_last_index", 0)?;
    let op = Op::ArgReduce { axis, keep_dims, largest: which == Extreme::Largest, last };
    Ok(vec![cx.add(op, &[&x])?])
}

fn cum_sum(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, at) = (cx.operand(0)?, cx.operand(1)?);
    let axis = match cx.ints_of(&at, "the axis of `CumSum`")?.as_slice() {
        [a] => cx::axis(*a, x.rank())?,
        other => return Err(Fault::invalid(format!("{} axes", other.len()))),
    };
    let (exclusive, reverse) = (cx.attrs.flag("exclusive", 0)?, cx.attrs.flag("reverse", 0)?);
    Ok(vec![cx.add(Op::CumSum { axis, exclusive, reverse }, &[&x])?])
}

/// Mean and `1 / sqrt(variance + epsilon)` along axes, which are kept.
pub(super) fn moments(cx: &mut Cx<'_>, x: &V, axes: &[usize], epsilon: f32) -> Res<(V, V)> {
    let mean = cx.reduce(ReduceOp::Mean, x, axes.to_vec(), true)?;
    let centred = cx.binary(BinaryOp::Sub, x, &mean)?;
    let square = cx.binary(BinaryOp::Mul, &centred, &centred)?;
    let variance = cx.reduce(ReduceOp::Mean, &square, axes.to_vec(), true)?;
    let shifted = with(cx, BinaryOp::Add, &variance, f64::from(epsilon))?;
    let root = cx.unary(UnaryOp::Sqrt, &shifted)?;
    Ok((mean, cx.unary(UnaryOp::Reciprocal, &root)?))
}

/// Half floats as f32, the rest as it is.
pub(super) fn widened(cx: &mut Cx<'_>, x: &V) -> Res<V> {
    let half = matches!(x.elem(), Elem::F16 | Elem::BF16);
    if half { cx.cast(x, Elem::F32) } else { Ok(x.clone()) }
}
