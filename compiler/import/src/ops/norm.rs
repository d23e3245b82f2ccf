//! Normalisations. The plain forms become one node; with further results or along other axes they
//! are decomposed. Half floats are normalised in f32, as `stash_type` = 1 says.

use super::Rule;
use super::math::with;
use super::reduce::{moments, widened};
use crate::builder::V;
use crate::cx::{self, Cx};
use crate::error::{Fault, Res};
use fqc_ir::op::ReduceOp;
use fqc_ir::{BinaryOp, Dim, Op, UnaryOp};

pub(super) const TABLE: super::Table = &[
    ("BatchNormalization", Rule::Fn(batch_norm)),
    ("GroupNormalization", Rule::Fn(group_norm)),
    ("InstanceNormalization", Rule::Fn(instance_norm)),
    ("LayerNormalization", Rule::Fn(layer_norm)),
    ("LpNormalization", Rule::Fn(lp_norm)),
    ("MeanVarianceNormalization", Rule::Fn(mean_variance_norm)),
    ("RMSNormalization", Rule::Fn(rms_norm)),
    ("SimplifiedLayerNormalization", Rule::Fn(rms_norm)),
];

/// Axis and epsilon of a layer or RMS normalisation.
fn settings(cx: &Cx<'_>, x: &V) -> Res<(usize, f32)> {
    if cx.attrs.int("stash_type", 1)? != 1 {
        return Err(Fault::unsupported("only `stash_type` = 1 (f32) is supported"));
    }
    let axis = cx::axis(cx.attrs.int("axis", -1)?, x.rank())?;
    Ok((axis, cx.attrs.float("epsilon", 1e-5)?))
}

/// A scale or bias as a vector over the flattened axes from `axis` on; `None` if it varies more.
fn table(cx: &mut Cx<'_>, v: &V, inner: &[Dim]) -> Res<Option<V>> {
    let lead = v.rank().saturating_sub(inner.len());
    if v.shape()[..lead].iter().any(|d| *d != Dim::one()) {
        return Ok(None);
    }
    let own = cx.reshape(v, v.shape()[lead..].to_vec())?;
    let full = cx.broadcast(&own, inner.to_vec())?;
    cx.reshape(&full, vec![fqc_ir::dim::product(inner)]).map(Some)
}

/// Applies a normalisation of the last axis to all axes from `axis` on; `None` if a table does not
/// fit, and the caller decomposes.
fn over_rows(cx: &mut Cx<'_>, op: Op, x: &V, tables: &[V], axis: usize) -> Res<Option<V>> {
    let (outer, inner) = x.shape().split_at(axis);
    let mut flat = outer.to_vec();
    flat.push(fqc_ir::dim::product(inner));
    let mut operands = vec![cx.reshape(x, flat)?];
    for t in tables {
        match table(cx, t, inner)? {
            Some(t) => operands.push(t),
            None => return Ok(None),
        }
    }
    let operands: Vec<&V> = operands.iter().collect();
    let y = cx.add(op, &operands)?;
    cx.reshape(&y, x.ty.shape.clone()).map(Some)
}

fn layer_norm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, scale) = (cx.operand(0)?, cx.operand(1)?);
    let bias = cx.opt(2);
    let (axis, epsilon) = settings(cx, &x)?;
    let elem = x.elem();
    let wide = widened(cx, &x)?;
    let mut tables = vec![widened(cx, &scale)?];
    if let Some(b) = &bias {
        tables.push(widened(cx, b)?);
    }
    if !cx.wants(1) && !cx.wants(2) {
        let op = Op::LayerNorm { epsilon };
        if let Some(y) = over_rows(cx, op, &wide, &tables, axis)? {
            return Ok(vec![cx.cast(&y, elem)?]);
        }
    }
    let axes: Vec<usize> = (axis..x.rank()).collect();
    let (mean, inverse) = moments(cx, &wide, &axes, epsilon)?;
    let centred = cx.binary(BinaryOp::Sub, &wide, &mean)?;
    let unit = cx.binary(BinaryOp::Mul, &centred, &inverse)?;
    let y = affine(cx, &unit, &tables)?;
    Ok(vec![cx.cast(&y, elem)?, mean, inverse])
}

/// `x * tables[0] + tables[1]`.
fn affine(cx: &mut Cx<'_>, x: &V, tables: &[V]) -> Res<V> {
    let mut y = cx.binary(BinaryOp::Mul, x, &tables[0])?;
    if let Some(bias) = tables.get(1) {
        y = cx.binary(BinaryOp::Add, &y, bias)?;
    }
    Ok(y)
}

fn rms_norm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, scale) = (cx.operand(0)?, cx.operand(1)?);
    let (axis, epsilon) = settings(cx, &x)?;
    Ok(vec![rms(cx, &x, &scale, axis, epsilon)?])
}

/// `x / sqrt(mean(x^2) + epsilon) * scale` over the axes from `axis` on.
pub(super) fn rms(cx: &mut Cx<'_>, x: &V, scale: &V, axis: usize, epsilon: f32) -> Res<V> {
    let elem = x.elem();
    let (x, scale) = (widened(cx, x)?, widened(cx, scale)?);
    let op = Op::RmsNorm { epsilon };
    if let Some(y) = over_rows(cx, op, &x, std::slice::from_ref(&scale), axis)? {
        return cx.cast(&y, elem);
    }
    let square = cx.binary(BinaryOp::Mul, &x, &x)?;
    let mean = cx.reduce(ReduceOp::Mean, &square, (axis..x.rank()).collect(), true)?;
    let shifted = with(cx, BinaryOp::Add, &mean, f64::from(epsilon))?;
    let root = cx.unary(UnaryOp::Sqrt, &shifted)?;
    let unit = cx.binary(BinaryOp::Div, &x, &root)?;
    let y = cx.binary(BinaryOp::Mul, &unit, &scale)?;
    cx.cast(&y, elem)
}

/// A vector over the channels, axis 1 of `rank` axes.
fn per_channel(cx: &mut Cx<'_>, v: &V, rank: usize) -> Res<V> {
    let mut to = vec![Dim::one(); rank];
    to[1] = v.ty.count();
    cx.reshape(v, to)
}

fn channels_of(x: &V) -> Res<Dim> {
    x.shape().get(1).cloned().ok_or_else(|| Fault::invalid(format!("`{}` has no channels", x.ty)))
}

fn batch_norm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let epsilon = cx.attrs.float("epsilon", 1e-5)?;
    cx.attrs.ignore("momentum");
    cx.attrs.ignore("spatial");
    if cx.attrs.flag("training_mode", 0)? {
        return Err(Fault::unsupported("batch normalisation in training mode is not supported"));
    }
    channels_of(&x)?;
    let mut columns = Vec::new();
    for i in 1..5 {
        let v = cx.operand(i)?;
        columns.push(per_channel(cx, &v, x.rank())?);
    }
    let shifted = with(cx, BinaryOp::Add, &columns[3], f64::from(epsilon))?;
    let root = cx.unary(UnaryOp::Sqrt, &shifted)?;
    let centred = cx.binary(BinaryOp::Sub, &x, &columns[2])?;
    let unit = cx.binary(BinaryOp::Div, &centred, &root)?;
    Ok(vec![affine(cx, &unit, &columns[..2])?])
}

/// Normalises each row of a \[.., rows, elements\] view and restores the shape.
fn by_group(cx: &mut Cx<'_>, x: &V, groups: &Dim, epsilon: f32) -> Res<V> {
    let count = fqc_ir::dim::product(&x.shape()[1..]);
    let each = count
        .exact_div(groups)
        .ok_or_else(|| Fault::invalid(format!("{groups} groups of `{}`", x.ty)))?;
    let rows = cx.reshape(x, vec![x.shape()[0].clone(), groups.clone(), each])?;
    let (mean, inverse) = moments(cx, &rows, &[2], epsilon)?;
    let centred = cx.binary(BinaryOp::Sub, &rows, &mean)?;
    let unit = cx.binary(BinaryOp::Mul, &centred, &inverse)?;
    cx.reshape(&unit, x.ty.shape.clone())
}

fn instance_norm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, scale, bias) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    let epsilon = cx.attrs.float("epsilon", 1e-5)?;
    let channels = channels_of(&x)?;
    let unit = by_group(cx, &x, &channels, epsilon)?;
    let tables = [per_channel(cx, &scale, x.rank())?, per_channel(cx, &bias, x.rank())?];
    Ok(vec![affine(cx, &unit, &tables)?])
}

fn group_norm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, scale, bias) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    if cx.version < 21 || cx.attrs.int("stash_type", 1)? != 1 {
        return Err(Fault::unsupported("`GroupNormalization` before opset 21 or not in f32"));
    }
    let epsilon = cx.attrs.float("epsilon", 1e-5)?;
    let groups = Dim::from(cx.attrs.int_required("num_groups")?);
    channels_of(&x)?;
    let elem = x.elem();
    let wide = widened(cx, &x)?;
    let unit = by_group(cx, &wide, &groups, epsilon)?;
    let unit = cx.cast(&unit, elem)?;
    let tables = [per_channel(cx, &scale, x.rank())?, per_channel(cx, &bias, x.rank())?];
    Ok(vec![affine(cx, &unit, &tables)?])
}

fn mean_variance_norm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let list = cx.attrs.ints_opt("axes")?.unwrap_or_else(|| vec![0, 2, 3]);
    let axes = cx::axes(&list, x.rank())?;
    let mean = cx.reduce(ReduceOp::Mean, &x, axes.clone(), true)?;
    let centred = cx.binary(BinaryOp::Sub, &x, &mean)?;
    let square = cx.binary(BinaryOp::Mul, &centred, &centred)?;
    let variance = cx.reduce(ReduceOp::Mean, &square, axes, true)?;
    let deviation = cx.unary(UnaryOp::Sqrt, &variance)?;
    let shifted = with(cx, BinaryOp::Add, &deviation, 1e-9)?;
    Ok(vec![cx.binary(BinaryOp::Div, &centred, &shifted)?])
}

/// `x` by its 1- or 2-norm along an axis; zero where the norm is zero.
fn lp_norm(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let axis = cx::axis(cx.attrs.int("axis", -1)?, x.rank())?;
    let norm = match cx.attrs.int("p", 2)? {
        1 => {
            let sizes = cx.unary(UnaryOp::Abs, &x)?;
            cx.reduce(ReduceOp::Sum, &sizes, vec![axis], true)?
        }
        2 => {
            let squares = cx.binary(BinaryOp::Mul, &x, &x)?;
            let sum = cx.reduce(ReduceOp::Sum, &squares, vec![axis], true)?;
            cx.unary(UnaryOp::Sqrt, &sum)?
        }
        p => return Err(Fault::unsupported(format!("the {p}-norm"))),
    };
    let empty = with(cx, BinaryOp::Eq, &norm, 0.0)?;
    let zero = cx.scalar(x.elem(), 0.0);
    let y = cx.binary(BinaryOp::Div, &x, &norm)?;
    Ok(vec![cx.select(&empty, &zero, &y)?])
}
