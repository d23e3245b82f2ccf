//! Operators of the domain `com.microsoft` that are short forms of standard ones.

use super::Rule;
use super::math::with;
use super::nn::product;
use super::norm::rms;
use crate::builder::V;
use crate::cx::{self, Cx};
use crate::error::Res;
use fqc_ir::{BinaryOp, Op, UnaryOp};

pub(super) const TABLE: super::Table = &[
    ("BiasGelu", Rule::Fn(bias_gelu)),
    ("FastGelu", Rule::Fn(fast_gelu)),
    ("FusedMatMul", Rule::Fn(fused_mat_mul)),
    ("Gelu", Rule::Unary(UnaryOp::Gelu)),
    ("QuickGelu", Rule::Fn(quick_gelu)),
    ("SimplifiedLayerNormalization", Rule::Fn(simplified_layer_norm)),
    ("SkipLayerNormalization", Rule::Fn(skip_layer_norm)),
    ("SkipSimplifiedLayerNormalization", Rule::Fn(skip_simplified_layer_norm)),
];

fn bias_gelu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, bias) = (cx.operand(0)?, cx.operand(1)?);
    let sum = cx.binary(BinaryOp::Add, &x, &bias)?;
    Ok(vec![cx.unary(UnaryOp::Gelu, &sum)?])
}

fn fast_gelu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let mut x = cx.operand(0)?;
    if let Some(bias) = cx.opt(1) {
        x = cx.binary(BinaryOp::Add, &x, &bias)?;
    }
    Ok(vec![cx.unary(UnaryOp::GeluTanh, &x)?])
}

/// `x * sigmoid(alpha * x)`.
fn quick_gelu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let alpha = cx.attrs.float("alpha", 1.702)?;
    let scaled = with(cx, BinaryOp::Mul, &x, f64::from(alpha))?;
    let gate = cx.unary(UnaryOp::Sigmoid, &scaled)?;
    Ok(vec![cx.binary(BinaryOp::Mul, &x, &gate)?])
}

fn fused_mat_mul(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (mut a, mut b) = (cx.operand(0)?, cx.operand(1)?);
    let alpha = cx.attrs.float("alpha", 1.0)?;
    if cx.attrs.flag("transA", 0)? {
        a = cx.swap_last(&a)?;
    }
    if cx.attrs.flag("transB", 0)? {
        b = cx.swap_last(&b)?;
    }
    let y = product(cx, &a, &b)?;
    Ok(vec![if alpha == 1.0 { y } else { with(cx, BinaryOp::Mul, &y, f64::from(alpha))? }])
}

fn simplified_layer_norm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, scale) = (cx.operand(0)?, cx.operand(1)?);
    let axis = cx::axis(cx.attrs.int("axis", -1)?, x.rank())?;
    cx.attrs.ignore("stash_type");
    let epsilon = cx.attrs.float("epsilon", 1e-5)?;
    Ok(vec![rms(cx, &x, &scale, axis, epsilon)?])
}

/// Operand and skip added, with a bias if there is one.
fn skipped(cx: &mut Cx<'_>, bias: Option<V>) -> Res<V> {
    let (x, skip) = (cx.operand(0)?, cx.operand(1)?);
    let sum = cx.binary(BinaryOp::Add, &x, &skip)?;
    match bias {
        Some(bias) => cx.binary(BinaryOp::Add, &sum, &bias),
        None => Ok(sum),
    }
}

/// Results: the norm, two that only training reads, the sum.
fn skip_simplified_layer_norm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let scale = cx.operand(2)?;
    let bias = cx.opt(3);
    let epsilon = cx.attrs.float("epsilon", 1e-5)?;
    let sum = skipped(cx, bias)?;
    let y = rms(cx, &sum, &scale, sum.rank().saturating_sub(1), epsilon)?;
    with_sum(cx, y, sum)
}

fn skip_layer_norm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let scale = cx.operand(2)?;
    let (beta, bias) = (cx.opt(3), cx.opt(4));
    let epsilon = cx.attrs.float("epsilon", 1e-12)?;
    let sum = skipped(cx, bias)?;
    let mut operands = vec![&sum, &scale];
    operands.extend(&beta);
    let y = cx.add(Op::LayerNorm { epsilon }, &operands)?;
    with_sum(cx, y, sum)
}

fn with_sum(cx: &mut Cx<'_>, y: V, sum: V) -> Res<Vec<V>> {
    if cx.wants(1) || cx.wants(2) {
        return Err(crate::error::Fault::unsupported("results for training are not supported"));
    }
    Ok(vec![y.clone(), y, sum.clone(), sum])
}
