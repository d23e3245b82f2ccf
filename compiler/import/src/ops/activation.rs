//! Activation functions with parameters, decomposed.

use super::Rule;
use super::math::with;
use crate::builder::V;
use crate::cx::Cx;
use crate::error::{Fault, Res, shown};
use fqc_ir::{BinaryOp, UnaryOp};

pub(super) const TABLE: super::Table = &[
    ("Celu", Rule::Fn(celu)),
    ("Elu", Rule::Fn(elu)),
    ("Gelu", Rule::Fn(gelu)),
    ("HardSigmoid", Rule::Fn(hard_sigmoid)),
    ("HardSwish", Rule::Fn(hard_swish)),
    ("LeakyRelu", Rule::Fn(leaky_relu)),
    ("Mish", Rule::Fn(mish)),
    ("PRelu", Rule::Fn(prelu)),
    ("Selu", Rule::Fn(selu)),
    ("Shrink", Rule::Fn(shrink)),
    ("Softsign", Rule::Fn(softsign)),
    ("Swish", Rule::Fn(swish)),
    ("ThresholdedRelu", Rule::Fn(thresholded_relu)),
];

fn gelu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let op = match cx.attrs.string("approximate", "none")?.as_str() {
        "none" => UnaryOp::Gelu,
        "tanh" => UnaryOp::GeluTanh,
        other => {
            return Err(Fault::unsupported(format!("`approximate` = `{}`", shown(other))));
        }
    };
    Ok(vec![cx.unary(op, &x)?])
}

/// `x * sigmoid(alpha * x)`.
fn swish(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let alpha = cx.attrs.float("alpha", 1.0)?;
    if alpha == 1.0 {
        return Ok(vec![cx.unary(UnaryOp::Silu, &x)?]);
    }
    let scaled = with(cx, BinaryOp::Mul, &x, f64::from(alpha))?;
    let gate = cx.unary(UnaryOp::Sigmoid, &scaled)?;
    Ok(vec![cx.binary(BinaryOp::Mul, &x, &gate)?])
}

/// `below` where x is negative, else `x`.
fn negative_part(cx: &mut Cx<'_>, x: &V, below: &V) -> Res<Vec<V>> {
    let negative = with(cx, BinaryOp::Lt, x, 0.0)?;
    Ok(vec![cx.select(&negative, below, x)?])
}

fn leaky_relu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let alpha = cx.attrs.float("alpha", 0.01)?;
    let below = with(cx, BinaryOp::Mul, &x, f64::from(alpha))?;
    negative_part(cx, &x, &below)
}

fn prelu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, slope) = (cx.operand(0)?, cx.operand(1)?);
    let below = cx.binary(BinaryOp::Mul, &x, &slope)?;
    negative_part(cx, &x, &below)
}

/// `alpha * (exp(x / scale) - 1)`.
fn exp_branch(cx: &mut Cx<'_>, x: &V, alpha: f64, scale: f64) -> Res<V> {
    let x = if scale == 1.0 { x.clone() } else { with(cx, BinaryOp::Div, x, scale)? };
    let exp = cx.unary(UnaryOp::Exp, &x)?;
    let less = with(cx, BinaryOp::Sub, &exp, 1.0)?;
    with(cx, BinaryOp::Mul, &less, alpha)
}

fn elu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let alpha = f64::from(cx.attrs.float("alpha", 1.0)?);
    let below = exp_branch(cx, &x, alpha, 1.0)?;
    negative_part(cx, &x, &below)
}

fn celu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let alpha = f64::from(cx.attrs.float("alpha", 1.0)?);
    let below = exp_branch(cx, &x, alpha, alpha)?;
    negative_part(cx, &x, &below)
}

fn selu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let alpha = f64::from(cx.attrs.float("alpha", 1.673_263_2)?);
    let gamma = f64::from(cx.attrs.float("gamma", 1.050_701)?);
    let below = exp_branch(cx, &x, alpha, 1.0)?;
    let y = negative_part(cx, &x, &below)?;
    Ok(vec![with(cx, BinaryOp::Mul, &y[0], gamma)?])
}

/// `max(0, min(1, alpha * x + beta))`.
fn hard(cx: &mut Cx<'_>, x: &V, alpha: f64, beta: f64) -> Res<V> {
    let scaled = with(cx, BinaryOp::Mul, x, alpha)?;
    let shifted = with(cx, BinaryOp::Add, &scaled, beta)?;
    let below = with(cx, BinaryOp::Min, &shifted, 1.0)?;
    with(cx, BinaryOp::Max, &below, 0.0)
}

fn hard_sigmoid(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let (alpha, beta) = (cx.attrs.float("alpha", 0.2)?, cx.attrs.float("beta", 0.5)?);
    Ok(vec![hard(cx, &x, f64::from(alpha), f64::from(beta))?])
}

fn hard_swish(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let gate = hard(cx, &x, 1.0 / 6.0, 0.5)?;
    Ok(vec![cx.binary(BinaryOp::Mul, &x, &gate)?])
}

fn mish(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let plus = cx.unary(UnaryOp::Softplus, &x)?;
    let gate = cx.unary(UnaryOp::Tanh, &plus)?;
    Ok(vec![cx.binary(BinaryOp::Mul, &x, &gate)?])
}

fn softsign(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let size = cx.unary(UnaryOp::Abs, &x)?;
    let below = with(cx, BinaryOp::Add, &size, 1.0)?;
    Ok(vec![cx.binary(BinaryOp::Div, &x, &below)?])
}

fn thresholded_relu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let alpha = cx.attrs.float("alpha", 1.0)?;
    let above = with(cx, BinaryOp::Gt, &x, f64::from(alpha))?;
    let zero = cx.scalar(x.elem(), 0.0);
    Ok(vec![cx.select(&above, &x, &zero)?])
}

fn shrink(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let bias = f64::from(cx.attrs.float("bias", 0.0)?);
    let lambda = f64::from(cx.attrs.float("lambd", 0.5)?);
    let (low, high) = (with(cx, BinaryOp::Lt, &x, -lambda)?, with(cx, BinaryOp::Gt, &x, lambda)?);
    let (up, down) = (with(cx, BinaryOp::Add, &x, bias)?, with(cx, BinaryOp::Sub, &x, bias)?);
    let zero = cx.scalar(x.elem(), 0.0);
    let rest = cx.select(&high, &down, &zero)?;
    Ok(vec![cx.select(&low, &up, &rest)?])
}
