//! Arithmetic, comparisons, logic and conversions.

use super::{Rule, fold};
use crate::builder::V;
use crate::cx::Cx;
use crate::error::{Fault, Res};
use crate::tensor;
use fqc_ir::{BinaryOp, Elem, Op, UnaryOp};

pub(super) const TABLE: super::Table = &[
    ("Abs", Rule::Unary(UnaryOp::Abs)),
    ("Ceil", Rule::Unary(UnaryOp::Ceil)),
    ("Cos", Rule::Unary(UnaryOp::Cos)),
    ("Erf", Rule::Unary(UnaryOp::Erf)),
    ("Exp", Rule::Unary(UnaryOp::Exp)),
    ("Floor", Rule::Unary(UnaryOp::Floor)),
    ("IsNaN", Rule::Unary(UnaryOp::IsNan)),
    ("Log", Rule::Unary(UnaryOp::Log)),
    ("Neg", Rule::Unary(UnaryOp::Neg)),
    ("Not", Rule::Unary(UnaryOp::Not)),
    ("Reciprocal", Rule::Unary(UnaryOp::Reciprocal)),
    ("Relu", Rule::Unary(UnaryOp::Relu)),
    ("Round", Rule::Unary(UnaryOp::Round)),
    ("Sigmoid", Rule::Unary(UnaryOp::Sigmoid)),
    ("Sign", Rule::Unary(UnaryOp::Sign)),
    ("Sin", Rule::Unary(UnaryOp::Sin)),
    ("Softplus", Rule::Unary(UnaryOp::Softplus)),
    ("Sqrt", Rule::Unary(UnaryOp::Sqrt)),
    ("Tanh", Rule::Unary(UnaryOp::Tanh)),
    ("Add", Rule::Binary(BinaryOp::Add)),
    ("And", Rule::Binary(BinaryOp::And)),
    ("Div", Rule::Binary(BinaryOp::Div)),
    ("Equal", Rule::Binary(BinaryOp::Eq)),
    ("Greater", Rule::Binary(BinaryOp::Gt)),
    ("GreaterOrEqual", Rule::Binary(BinaryOp::Ge)),
    ("Less", Rule::Binary(BinaryOp::Lt)),
    ("LessOrEqual", Rule::Binary(BinaryOp::Le)),
    ("Mul", Rule::Binary(BinaryOp::Mul)),
    ("Or", Rule::Binary(BinaryOp::Or)),
    ("Sub", Rule::Binary(BinaryOp::Sub)),
    ("Xor", Rule::Binary(BinaryOp::Xor)),
    ("Max", Rule::Fold(BinaryOp::Max)),
    ("Min", Rule::Fold(BinaryOp::Min)),
    ("Sum", Rule::Fold(BinaryOp::Add)),
    ("Acosh", Rule::Fn(acosh)),
    ("Asinh", Rule::Fn(asinh)),
    ("Atanh", Rule::Fn(atanh)),
    ("Cast", Rule::Fn(cast)),
    ("CastLike", Rule::Fn(cast_like)),
    ("Clip", Rule::Fn(clip)),
    ("Cosh", Rule::Fn(cosh)),
    ("IsInf", Rule::Fn(is_inf)),
    ("Mean", Rule::Fn(mean)),
    ("Mod", Rule::Fn(modulo)),
    ("Pow", Rule::Fn(pow)),
    ("Sinh", Rule::Fn(sinh)),
    ("Tan", Rule::Fn(tan)),
    ("Where", Rule::Fn(select)),
];

/// `x op constant`.
pub(super) fn with(cx: &mut Cx<'_>, op: BinaryOp, x: &V, constant: f64) -> Res<V> {
    let c = cx.scalar(x.elem(), constant);
    cx.binary(op, x, &c)
}

fn mean(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let count = cx.arity() as f64;
    let total = fold(cx, BinaryOp::Add)?;
    Ok(vec![with(cx, BinaryOp::Div, &total, count)?])
}

/// The result has the type of the base, whatever that of the exponent.
fn pow(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, y) = (cx.operand(0)?, cx.operand(1)?);
    if x.elem() == y.elem() {
        return Ok(vec![cx.binary(BinaryOp::Pow, &x, &y)?]);
    }
    // An integer to a fractional power: in floats, and back.
    let common = match (x.elem().is_float(), y.elem().is_float()) {
        (true, _) => x.elem(),
        (false, true) => Elem::F64,
        (false, false) => x.elem(),
    };
    let (a, b) = (cx.cast(&x, common)?, cx.cast(&y, common)?);
    let z = cx.binary(BinaryOp::Pow, &a, &b)?;
    Ok(vec![cx.cast(&z, x.elem())?])
}

fn modulo(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, y) = (cx.operand(0)?, cx.operand(1)?);
    let fmod = cx.attrs.flag("fmod", 0)?;
    if x.elem().is_float() && !fmod {
        return Err(Fault::invalid("`Mod` of floats needs `fmod` = 1"));
    }
    Ok(vec![cx.binary(if fmod { BinaryOp::Rem } else { BinaryOp::Mod }, &x, &y)?])
}

fn clip(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let mut x = cx.operand(0)?;
    let (low, high) = if cx.version < 11 {
        let (low, high) = (cx.attrs.float_opt("min")?, cx.attrs.float_opt("max")?);
        (
            low.map(|v| cx.scalar(x.elem(), f64::from(v))),
            high.map(|v| cx.scalar(x.elem(), f64::from(v))),
        )
    } else {
        (cx.opt(1), cx.opt(2))
    };
    if let Some(low) = low {
        x = cx.binary(BinaryOp::Max, &x, &low)?;
    }
    if let Some(high) = high {
        x = cx.binary(BinaryOp::Min, &x, &high)?;
    }
    Ok(vec![x])
}

fn select(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (c, a, b) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    Ok(vec![cx.select(&c, &a, &b)?])
}

fn is_inf(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let (negative, positive) =
        (cx.attrs.flag("detect_negative", 1)?, cx.attrs.flag("detect_positive", 1)?);
    let y = match (negative, positive) {
        (true, true) => cx.unary(UnaryOp::IsInf, &x)?,
        (true, false) => with(cx, BinaryOp::Eq, &x, f64::NEG_INFINITY)?,
        (false, true) => with(cx, BinaryOp::Eq, &x, f64::INFINITY)?,
        // Not NaN, not equal to itself: false everywhere.
        (false, false) => cx.binary(BinaryOp::Lt, &x, &x)?,
    };
    Ok(vec![y])
}

fn cast(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let to = cx.attrs.int_required("to")?;
    let to = tensor::elem(i32::try_from(to).unwrap_or(-1))?;
    convert(cx, &x, to)
}

fn cast_like(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, like) = (cx.operand(0)?, cx.operand(1)?);
    convert(cx, &x, like.elem())
}

fn convert(cx: &mut Cx<'_>, x: &V, to: Elem) -> Res<Vec<V>> {
    // Both speak of 8-bit floats only, which are refused as element types.
    cx.attrs.ignore("saturate");
    cx.attrs.ignore("round_mode");
    Ok(vec![cx.cast(x, to)?])
}

fn tan(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let (sin, cos) = (cx.unary(UnaryOp::Sin, &x)?, cx.unary(UnaryOp::Cos, &x)?);
    Ok(vec![cx.binary(BinaryOp::Div, &sin, &cos)?])
}

fn sinh(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    hyperbolic(cx, BinaryOp::Sub)
}

fn cosh(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    hyperbolic(cx, BinaryOp::Add)
}

/// `(exp(x) op exp(-x)) / 2`.
fn hyperbolic(cx: &mut Cx<'_>, op: BinaryOp) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let minus = cx.unary(UnaryOp::Neg, &x)?;
    let (up, down) = (cx.unary(UnaryOp::Exp, &x)?, cx.unary(UnaryOp::Exp, &minus)?);
    let both = cx.binary(op, &up, &down)?;
    Ok(vec![with(cx, BinaryOp::Mul, &both, 0.5)?])
}

fn asinh(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    area(cx, 1.0)
}

fn acosh(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    area(cx, -1.0)
}

/// `ln(x + sqrt(x^2 + c))`.
fn area(cx: &mut Cx<'_>, c: f64) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let square = cx.binary(BinaryOp::Mul, &x, &x)?;
    let inner = with(cx, BinaryOp::Add, &square, c)?;
    let root = cx.unary(UnaryOp::Sqrt, &inner)?;
    let sum = cx.binary(BinaryOp::Add, &x, &root)?;
    Ok(vec![cx.add(Op::Unary(UnaryOp::Log), &[&sum])?])
}

/// `ln((1 + x) / (1 - x)) / 2`.
fn atanh(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let one = cx.scalar(x.elem(), 1.0);
    let (up, down) = (cx.binary(BinaryOp::Add, &one, &x)?, cx.binary(BinaryOp::Sub, &one, &x)?);
    let ratio = cx.binary(BinaryOp::Div, &up, &down)?;
    let log = cx.unary(UnaryOp::Log, &ratio)?;
    Ok(vec![with(cx, BinaryOp::Mul, &log, 0.5)?])
}
