//! Quantised operators as the standard writes them, decomposed into the arithmetic that their text
//! gives: division, rounding half to even, shift, saturation; integer products in i32.

use super::Rule;
use super::math::with;
use super::nn::product;
use crate::builder::V;
use crate::cx::{self, Cx};
use crate::error::{Fault, Res};
use crate::tensor;
use fqc_ir::op::ReduceOp;
use fqc_ir::{BinaryOp, Dim, Elem, UnaryOp};

pub(super) const TABLE: super::Table = &[
    ("DequantizeLinear", Rule::Fn(dequantize)),
    ("DynamicQuantizeLinear", Rule::Fn(dynamic_quantize)),
    ("MatMulInteger", Rule::Fn(mat_mul_integer)),
    ("QLinearMatMul", Rule::Fn(q_linear_mat_mul)),
    ("QuantizeLinear", Rule::Fn(quantize)),
];

/// Smallest and largest code of a type.
fn code_range(elem: Elem) -> Res<(f64, f64)> {
    match elem {
        Elem::I4 => Ok((-8.0, 7.0)),
        Elem::U4 => Ok((0.0, 15.0)),
        Elem::I8 => Ok((-128.0, 127.0)),
        Elem::U8 => Ok((0.0, 255.0)),
        Elem::I16 => Ok((-32768.0, 32767.0)),
        Elem::U16 => Ok((0.0, 65535.0)),
        other => Err(Fault::unsupported(format!("codes of type `{other}`"))),
    }
}

/// A scale or zero point so that it broadcasts to x: one for all, one for each index of `axis`, or one
/// for each block of `block` along it.
fn spread(cx: &mut Cx<'_>, v: &V, x: &V, axis: i64, block: i64) -> Res<V> {
    if block > 0 {
        return blocks(cx, v, x, cx::axis(axis, x.rank())?, block);
    }
    match v.rank() {
        0 => Ok(v.clone()),
        1 if v.shape()[0] == Dim::one() => cx.reshape(v, Vec::new()),
        1 => {
            let mut to = vec![Dim::one(); x.rank()];
            to[cx::axis(axis, x.rank())?] = v.shape()[0].clone();
            cx.reshape(v, to)
        }
        _ => Err(Fault::invalid(format!("`{}` as scale or zero point of `{}`", v.ty, x.ty))),
    }
}

/// Each element of `v` repeated `block` times along the axis, cut to the size of x.
fn blocks(cx: &mut Cx<'_>, v: &V, x: &V, axis: usize, block: i64) -> Res<V> {
    if v.rank() != x.rank() {
        return Err(Fault::invalid(format!("`{}` as block scales of `{}`", v.ty, x.ty)));
    }
    let mut apart = v.ty.shape.clone();
    apart.insert(axis + 1, Dim::one());
    let mut copied = v.ty.shape.clone();
    copied.insert(axis + 1, Dim::from(block));
    let mut to = v.ty.shape.clone();
    to[axis] = to[axis].clone() * Dim::from(block);
    let y = cx.reshape(v, apart)?;
    let y = cx.broadcast(&y, copied)?;
    let y = cx.reshape(&y, to)?;
    cx.narrow(&y, axis, &Dim::zero(), &x.shape()[axis])
}

/// `saturate(round(x) + zero)` as codes of the given type.
fn saturate(cx: &mut Cx<'_>, x: &V, zero: Option<&V>, elem: Elem) -> Res<V> {
    let (low, high) = code_range(elem)?;
    let rounded = cx.unary(UnaryOp::Round, x)?;
    let mut y = cx.cast(&rounded, Elem::F32)?;
    if let Some(zero) = zero {
        let zero = cx.cast(zero, Elem::F32)?;
        y = cx.binary(BinaryOp::Add, &y, &zero)?;
    }
    let y = with(cx, BinaryOp::Max, &y, low)?;
    let y = with(cx, BinaryOp::Min, &y, high)?;
    cx.cast(&y, elem)
}

fn quantize(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, scale) = (cx.operand(0)?, cx.operand(1)?);
    let zero = cx.opt(2);
    let (axis, block) = (cx.attrs.int("axis", 1)?, cx.attrs.int("block_size", 0)?);
    cx.attrs.ignore("saturate");
    let named = |cx: &Cx<'_>, name: &str| match cx.attrs.int(name, 0)? {
        0 => Ok(None),
        t => tensor::elem(i32::try_from(t).unwrap_or(-1)).map(Some),
    };
    let output = named(cx, "output_dtype")?;
    let precision = named(cx, "precision")?.unwrap_or(scale.elem());
    let elem = zero.as_ref().map(|z| z.elem()).or(output).unwrap_or(Elem::U8);
    if output.is_some_and(|o| o != elem) {
        return Err(Fault::invalid("`output_dtype` and the zero point differ"));
    }
    let scale = spread(cx, &scale, &x, axis, block)?;
    let zero = zero.map(|z| spread(cx, &z, &x, axis, block)).transpose()?;
    let (x, scale) = (cx.cast(&x, precision)?, cx.cast(&scale, precision)?);
    let ratio = cx.binary(BinaryOp::Div, &x, &scale)?;
    Ok(vec![saturate(cx, &ratio, zero.as_ref(), elem)?])
}

fn dequantize(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, scale) = (cx.operand(0)?, cx.operand(1)?);
    let (axis, block) = (cx.attrs.int("axis", 1)?, cx.attrs.int("block_size", 0)?);
    let output = match cx.attrs.int("output_dtype", 0)? {
        0 => scale.elem(),
        t => tensor::elem(i32::try_from(t).unwrap_or(-1))?,
    };
    let scale = spread(cx, &scale, &x, axis, block)?;
    let mut codes = cx.cast(&x, Elem::I32)?;
    if let Some(zero) = cx.opt(2) {
        let zero = spread(cx, &zero, &x, axis, block)?;
        codes = shifted(cx, &x, &zero)?;
    }
    let wide = if scale.elem() == Elem::F64 { Elem::F64 } else { Elem::F32 };
    let (codes, scale) = (cx.cast(&codes, wide)?, cx.cast(&scale, wide)?);
    let y = cx.binary(BinaryOp::Mul, &codes, &scale)?;
    Ok(vec![cx.cast(&y, output)?])
}

/// `x - zero` in i32.
fn shifted(cx: &mut Cx<'_>, x: &V, zero: &V) -> Res<V> {
    let (x, zero) = (cx.cast(x, Elem::I32)?, cx.cast(zero, Elem::I32)?);
    cx.binary(BinaryOp::Sub, &x, &zero)
}

fn dynamic_quantize(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let all: Vec<usize> = (0..x.rank()).collect();
    let top = cx.reduce(ReduceOp::Max, &x, all.clone(), false)?;
    let top = with(cx, BinaryOp::Max, &top, 0.0)?;
    let bottom = cx.reduce(ReduceOp::Min, &x, all, false)?;
    let bottom = with(cx, BinaryOp::Min, &bottom, 0.0)?;
    let range = cx.binary(BinaryOp::Sub, &top, &bottom)?;
    let scale = with(cx, BinaryOp::Div, &range, 255.0)?;
    let lowest = cx.binary(BinaryOp::Div, &bottom, &scale)?;
    let lowest = cx.unary(UnaryOp::Neg, &lowest)?;
    let zero = saturate(cx, &lowest, None, Elem::U8)?;
    let ratio = cx.binary(BinaryOp::Div, &x, &scale)?;
    let y = saturate(cx, &ratio, Some(&zero), Elem::U8)?;
    Ok(vec![y, scale, zero])
}

/// A zero point or scale of the left factor: one for all, or one a row.
fn by_row(cx: &mut Cx<'_>, v: &V) -> Res<V> {
    match v.rank() {
        1 if v.shape()[0] == Dim::one() => cx.reshape(v, Vec::new()),
        1 => cx.reshape(v, vec![v.shape()[0].clone(), Dim::one()]),
        _ => Ok(v.clone()),
    }
}

/// A factor's codes less its zero point, in i32.
fn factor(cx: &mut Cx<'_>, x: &V, zero: Option<V>) -> Res<V> {
    match zero {
        None => cx.cast(x, Elem::I32),
        Some(zero) => shifted(cx, x, &zero),
    }
}

fn mat_mul_integer(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (a, b) = (cx.operand(0)?, cx.operand(1)?);
    let a_zero = cx.opt(2).map(|z| by_row(cx, &z)).transpose()?;
    let b_zero = cx.opt(3);
    let (a, b) = (factor(cx, &a, a_zero)?, factor(cx, &b, b_zero)?);
    Ok(vec![product(cx, &a, &b)?])
}

fn q_linear_mat_mul(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (a, a_scale, a_zero) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    let (b, b_scale, b_zero) = (cx.operand(3)?, cx.operand(4)?, cx.operand(5)?);
    let (y_scale, y_zero) = (cx.operand(6)?, cx.operand(7)?);
    let (a_zero, a_scale) = (by_row(cx, &a_zero)?, by_row(cx, &a_scale)?);
    let (y_zero, y_scale) = (by_row(cx, &y_zero)?, by_row(cx, &y_scale)?);
    let (a, b) = (factor(cx, &a, Some(a_zero))?, factor(cx, &b, Some(b_zero))?);
    let sum = product(cx, &a, &b)?;
    let sum = cx.cast(&sum, Elem::F32)?;
    let f32s: Vec<V> =
        [&a_scale, &b_scale, &y_scale].iter().map(|s| cx.cast(s, Elem::F32)).collect::<Res<_>>()?;
    let joint = cx.binary(BinaryOp::Mul, &f32s[0], &f32s[1])?;
    let multiplier = cx.binary(BinaryOp::Div, &joint, &f32s[2])?;
    let real = cx.binary(BinaryOp::Mul, &sum, &multiplier)?;
    Ok(vec![saturate(cx, &real, Some(&y_zero), y_zero.elem())?])
}
