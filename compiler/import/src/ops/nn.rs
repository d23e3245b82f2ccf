//! Matrix products and softmax.

use super::Rule;
use super::math::with;
use crate::builder::V;
use crate::cx::{self, Cx};
use crate::dims;
use crate::error::{Fault, Res};
use fqc_ir::op::ReduceOp;
use fqc_ir::{BinaryOp, Dim, Op, UnaryOp};

pub(super) const TABLE: super::Table = &[
    ("Gemm", Rule::Fn(gemm)),
    ("Hardmax", Rule::Fn(hardmax)),
    ("LogSoftmax", Rule::Fn(log_softmax)),
    ("MatMul", Rule::Fn(mat_mul)),
    ("Softmax", Rule::Fn(softmax)),
];

fn mat_mul(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (a, b) = (cx.operand(0)?, cx.operand(1)?);
    Ok(vec![product(cx, &a, &b)?])
}

/// NumPy's matmul: a vector on the left is a row, on the right a column, and loses that axis again.
pub(super) fn product(cx: &mut Cx<'_>, a: &V, b: &V) -> Res<V> {
    if a.rank() == 0 || b.rank() == 0 {
        return Err(Fault::invalid("a scalar in a matrix product"));
    }
    let (row, column) = (a.rank() == 1, b.rank() == 1);
    let mut left = a.clone();
    let mut right = b.clone();
    if row {
        left = cx.reshape(a, vec![Dim::one(), a.shape()[0].clone()])?;
    }
    if column {
        right = cx.reshape(b, vec![b.shape()[0].clone(), Dim::one()])?;
    }
    let y = cx.add(Op::MatMul, &[&left, &right])?;
    let mut to = y.ty.shape.clone();
    if column {
        to.pop();
    }
    if row {
        to.remove(to.len() - 1 - usize::from(!column));
    }
    cx.reshape(&y, to)
}

/// `x * factor`, exact for integers too.
fn scaled(cx: &mut Cx<'_>, x: &V, factor: f32, name: &str) -> Res<V> {
    if factor == 1.0 {
        return Ok(x.clone());
    }
    if !x.elem().is_float() && factor.fract() != 0.0 {
        let message = format!("`{name}` = {factor} for integers of type `{}`", x.elem());
        return Err(Fault::unsupported(message));
    }
    with(cx, BinaryOp::Mul, x, f64::from(factor))
}

fn gemm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (mut a, mut b) = (cx.operand(0)?, cx.operand(1)?);
    let (alpha, beta) = (cx.attrs.float("alpha", 1.0)?, cx.attrs.float("beta", 1.0)?);
    if a.rank() != 2 || b.rank() != 2 {
        return Err(Fault::invalid(format!("`{}` times `{}` in `Gemm`", a.ty, b.ty)));
    }
    if cx.attrs.flag("transA", 0)? {
        a = cx.swap_last(&a)?;
    }
    if cx.attrs.flag("transB", 0)? {
        b = cx.swap_last(&b)?;
    }
    let ab = cx.add(Op::MatMul, &[&a, &b])?;
    let ab = scaled(cx, &ab, alpha, "alpha")?;
    let Some(c) = cx.opt(2).filter(|_| beta != 0.0) else { return Ok(vec![ab]) };
    let c = scaled(cx, &c, beta, "beta")?;
    // C is broadcast to the product, never the product to C.
    if dims::broadcast_shapes(ab.shape(), c.shape())? != ab.shape() {
        return Err(Fault::invalid(format!("`{}` does not broadcast to `{}`", c.ty, ab.ty)));
    }
    Ok(vec![cx.binary(BinaryOp::Add, &ab, &c)?])
}

/// Runs a function of the last axis along the axis that the node names. Before opset 13 that axis and
/// all after it were one.
fn along_axis(cx: &mut Cx<'_>, run: fn(&mut Cx<'_>, &V) -> Res<V>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let rank = x.rank();
    let axis = cx.attrs.int("axis", if cx.version < 13 { 1 } else { -1 })?;
    if rank == 0 {
        return Err(Fault::invalid("a scalar has no axis"));
    }
    if cx.version < 13 {
        let at = if axis == rank as i64 { rank } else { cx::axis(axis, rank)? };
        let (outer, inner) = x.shape().split_at(at);
        let to = vec![fqc_ir::dim::product(outer), fqc_ir::dim::product(inner)];
        if at + 1 == rank {
            return Ok(vec![run(cx, &x)?]);
        }
        let flat = cx.reshape(&x, to)?;
        let y = run(cx, &flat)?;
        return Ok(vec![cx.reshape(&y, x.ty.shape.clone())?]);
    }
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(cx::axis(axis, rank)?, rank - 1);
    let last = cx.transpose(&x, perm.clone())?;
    let y = run(cx, &last)?;
    Ok(vec![cx.transpose(&y, perm)?])
}

fn softmax(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    along_axis(cx, |cx, x| cx.add(Op::Softmax, &[x]))
}

fn log_softmax(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    along_axis(cx, |cx, x| {
        let last = vec![x.rank() - 1];
        let top = cx.reduce(ReduceOp::Max, x, last.clone(), true)?;
        let low = cx.binary(BinaryOp::Sub, x, &top)?;
        let exp = cx.unary(UnaryOp::Exp, &low)?;
        let sum = cx.reduce(ReduceOp::Sum, &exp, last, true)?;
        let log = cx.unary(UnaryOp::Log, &sum)?;
        cx.binary(BinaryOp::Sub, &low, &log)
    })
}

/// One at the first largest, zero elsewhere.
fn hardmax(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    along_axis(cx, |cx, x| {
        let axis = x.rank() - 1;
        let op = Op::ArgReduce { axis, keep_dims: true, largest: true, last: false };
        let at = cx.add(op, &[x])?;
        let places = cx.iota(&x.ty.last())?;
        let hot = cx.binary(BinaryOp::Eq, &places, &at)?;
        cx.cast(&hot, x.elem())
    })
}
