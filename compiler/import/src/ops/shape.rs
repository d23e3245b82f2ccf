//! Operators that only rearrange elements or speak of sizes.

use super::Rule;
use crate::builder::V;
use crate::cx::{self, Cx};
use crate::dims;
use crate::error::{Fault, Res, shown};
use crate::known::Known;
use crate::limits;
use fqc_ir::op::PadMode;
use fqc_ir::{BinaryOp, Const, Dim, Elem, Op};

pub(super) const TABLE: super::Table = &[
    ("Concat", Rule::Fn(concat)),
    ("Constant", Rule::Fn(constant)),
    ("ConstantOfShape", Rule::Fn(constant_of_shape)),
    ("DepthToSpace", Rule::Fn(depth_to_space)),
    ("Dropout", Rule::Fn(dropout)),
    ("Expand", Rule::Fn(expand)),
    ("Flatten", Rule::Fn(flatten)),
    ("Identity", Rule::Fn(identity)),
    ("Pad", Rule::Fn(pad)),
    ("Range", Rule::Fn(range)),
    ("Reshape", Rule::Fn(reshape)),
    ("Shape", Rule::Fn(shape)),
    ("Size", Rule::Fn(size)),
    ("SpaceToDepth", Rule::Fn(space_to_depth)),
    ("Squeeze", Rule::Fn(squeeze)),
    ("Tile", Rule::Fn(tile)),
    ("Transpose", Rule::Fn(transpose)),
    ("Unsqueeze", Rule::Fn(unsqueeze)),
];

fn identity(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    Ok(vec![cx.operand(0)?])
}

/// At inference the identity, and a mask that keeps everything.
fn dropout(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    cx.attrs.ignore("ratio");
    cx.attrs.ignore("seed");
    let ratio = cx.opt(1);
    if let Some(training) = cx.opt(2)
        && cx.ints_of(&training, "`training_mode`")? == [1]
    {
        let rate = ratio.as_ref().map(|r| (r.known().cloned(), r.made()));
        match rate {
            Some((Some(Known::Floats(v)), _)) if v == [0.0] => {}
            Some((None, value)) => return Err(Fault::Unknown { value, what: "`ratio`" }),
            _ => return Err(Fault::unsupported("dropout in training mode is not supported")),
        }
    }
    let keep = cx.scalar(Elem::Bool, 1.0);
    let mask = if cx.wants(1) { cx.broadcast(&keep, x.ty.shape.clone())? } else { keep };
    Ok(vec![x, mask])
}

fn constant(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    if let Some(t) = cx.attrs.tensor_opt("value")? {
        let c = cx.tensor(t)?;
        return Ok(vec![cx.constant(c)]);
    }
    let c = if let Some(v) = cx.attrs.float_opt("value_float")? {
        Const::f32(Vec::new(), &[v])
    } else if let Some(v) = cx.attrs.floats_opt("value_floats")? {
        Const::f32(vec![v.len()], &v)
    } else if let Some(v) = cx.attrs.int_opt("value_int")? {
        Const::i64(Vec::new(), &[v])
    } else if let Some(v) = cx.attrs.ints_opt("value_ints")? {
        Const::i64(vec![v.len()], &v)
    } else {
        return Err(Fault::unsupported("only dense numbers are supported as `Constant`"));
    };
    Ok(vec![cx.constant(c)])
}

fn constant_of_shape(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let value = match cx.attrs.tensor_opt("value")? {
        None => cx.scalar(Elem::F32, 0.0),
        Some(t) => {
            let c = cx.tensor(t)?;
            if c.count() != 1 {
                return Err(Fault::invalid(format!("`value` has {} elements, not 1", c.count())));
            }
            let v = cx.constant(c);
            cx.reshape(&v, Vec::new())?
        }
    };
    let to = cx.sizes_of(&x, "the shape of `ConstantOfShape`")?;
    Ok(vec![cx.broadcast(&value, to)?])
}

fn shape(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let rank = x.rank() as i64;
    let clamp = |v: i64| if v < 0 { v.saturating_add(rank) } else { v }.clamp(0, rank) as usize;
    let start = clamp(cx.attrs.int("start", 0)?);
    let end = clamp(cx.attrs.int("end", rank)?).max(start);
    let sizes = x.shape()[start..end].to_vec();
    Ok(vec![cx.dims(sizes)])
}

fn size(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let count = cx.operand(0)?.ty.count();
    dims::check(&count)?;
    Ok(vec![cx.size(&count)])
}

fn reshape(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, to) = (cx.operand(0)?, cx.operand(1)?);
    let keep_zero = cx.attrs.flag("allowzero", 0)?;
    if to.rank() != 1 {
        return Err(Fault::invalid(format!("the target shape is `{}`, not a list", to.ty)));
    }
    let mut to = cx.sizes_of(&to, "the target of `Reshape`")?;
    let mut open = None;
    for (i, d) in to.iter_mut().enumerate() {
        match d.as_const() {
            Some(-1) if open.replace(i).is_some() => {
                return Err(Fault::invalid("the target has more than one -1"));
            }
            Some(0) if !keep_zero => {
                *d = x.shape().get(i).cloned().ok_or_else(|| {
                    Fault::invalid(format!("the target's 0 at axis {i} copies a missing axis"))
                })?;
            }
            Some(v) if v < -1 => return Err(Fault::invalid(format!("a size of {v}"))),
            _ => {}
        }
    }
    if let Some(i) = open {
        let rest: Vec<Dim> = [&to[..i], &to[i + 1..]].concat();
        to[i] = remaining(x.shape(), &rest)?;
    }
    Ok(vec![cx.reshape(&x, to)?])
}

/// What is left of `from` when `taken` is divided out: the size that a -1 stands for.
fn remaining(from: &[Dim], taken: &[Dim]) -> Res<Dim> {
    let mut from = from.to_vec();
    let mut taken = taken.to_vec();
    // Equal sizes cancel first, so that sums of symbols need no division.
    taken.retain(|t| match from.iter().position(|f| f == t && f.as_const() != Some(0)) {
        Some(i) => {
            from.swap_remove(i);
            false
        }
        None => true,
    });
    let (all, by) = (fqc_ir::dim::product(&from), fqc_ir::dim::product(&taken));
    let undecided = || {
        Fault::invalid(format!("a -1 stands for {all} elements divided by {by}, which is no size"))
    };
    if by.as_const() == Some(0) {
        return Err(undecided());
    }
    if let Some(q) = all.exact_div(&by) {
        return Ok(q);
    }
    // A symbol that cannot be divided out must be the same as one that is there.
    let lone = |list: &[Dim]| list.iter().find(|d| !d.is_const()).cloned();
    match (lone(&from), lone(&taken)) {
        (Some(a), Some(b)) => Err(Fault::Equal(a, b)),
        _ => Err(undecided()),
    }
}

fn flatten(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let (at, rank) = (cx.attrs.int("axis", 1)?, x.rank() as i64);
    if !(-rank..=rank).contains(&at) {
        return Err(Fault::invalid(format!("axis {at} of a tensor with {rank} axes")));
    }
    let at = if at < 0 { at + rank } else { at } as usize;
    let (outer, inner) = x.shape().split_at(at);
    let to = vec![fqc_ir::dim::product(outer), fqc_ir::dim::product(inner)];
    Ok(vec![cx.reshape(&x, to)?])
}

fn squeeze(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let drop = match cx.ints("axes", 1, 13)? {
        Some(list) => cx::axes(&list, x.rank())?,
        None if x.shape().iter().all(Dim::is_const) => {
            (0..x.rank()).filter(|&i| x.shape()[i].as_const() == Some(1)).collect()
        }
        None => {
            return Err(Fault::unsupported(format!("`Squeeze` of `{}` without axes", x.ty))
                .help("name the axes: which of the symbolic sizes are 1 is not known"));
        }
    };
    for &i in &drop {
        match x.shape()[i].as_const() {
            Some(1) => {}
            Some(n) => return Err(Fault::invalid(format!("axis {i} has size {n}, not 1"))),
            None => return Err(Fault::Equal(x.shape()[i].clone(), Dim::one())),
        }
    }
    let kept = x.shape().iter().enumerate().filter(|(i, _)| !drop.contains(i));
    let to = kept.map(|(_, d)| d.clone()).collect();
    Ok(vec![cx.reshape(&x, to)?])
}

fn unsqueeze(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let list = cx.ints("axes", 1, 13)?.ok_or_else(|| Fault::invalid("the axes are missing"))?;
    let axes = cx::axes(&list, x.rank() + list.len())?;
    let mut to = x.ty.shape.clone();
    for i in axes {
        to.insert(i, Dim::one());
    }
    Ok(vec![cx.reshape(&x, to)?])
}

fn transpose(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let perm = match cx.attrs.ints_opt("perm")? {
        None => (0..x.rank()).rev().collect(),
        Some(p) => p.iter().map(|&a| cx::axis(a, x.rank())).collect::<Res<_>>()?,
    };
    Ok(vec![cx.transpose(&x, perm)?])
}

fn concat(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let parts = cx.all()?;
    let axis = cx::axis(cx.attrs.int_required("axis")?, parts[0].rank())?;
    Ok(vec![cx.concat(&parts, axis)?])
}

fn expand(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, to) = (cx.operand(0)?, cx.operand(1)?);
    let to = cx.sizes_of(&to, "the target of `Expand`")?;
    if to.len() > limits::RANK {
        return Err(Fault::limit(format!("{} axes, the limit is {}", to.len(), limits::RANK)));
    }
    let to = dims::broadcast_shapes(x.shape(), &to)?;
    Ok(vec![cx.broadcast(&x, to)?])
}

fn tile(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, repeats) = (cx.operand(0)?, cx.operand(1)?);
    let repeats = cx.sizes_of(&repeats, "the repeats of `Tile`")?;
    if repeats.len() != x.rank() {
        let message = format!("{} repeats for {} axes", repeats.len(), x.rank());
        return Err(Fault::invalid(message));
    }
    let one = Dim::one();
    let apart = x.shape().iter().flat_map(|d| [one.clone(), d.clone()]).collect();
    let copied = x.shape().iter().zip(&repeats).flat_map(|(d, r)| [r.clone(), d.clone()]).collect();
    let to = x.shape().iter().zip(&repeats).map(|(d, r)| d.clone() * r.clone()).collect();
    if repeats.iter().all(|r| *r == one) {
        return Ok(vec![x]);
    }
    let y = cx.reshape(&x, apart)?;
    let y = cx.broadcast(&y, copied)?;
    Ok(vec![cx.reshape(&y, to)?])
}

fn pad(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let mut x = cx.operand(0)?;
    let mode = match cx.attrs.string("mode", "constant")?.as_str() {
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        "reflect" => PadMode::Reflect,
        "wrap" => PadMode::Wrap,
        other => return Err(Fault::unsupported(format!("`mode` = `{}`", shown(other)))),
    };
    let (pads, fill) = if cx.version < 11 {
        let pads = cx.attrs.ints_opt("pads")?.unwrap_or_default();
        let fill = cx.attrs.float("value", 0.0)?;
        (pads.into_iter().map(Dim::from).collect(), cx.scalar(x.elem(), f64::from(fill)))
    } else {
        let pads = cx.operand(1)?;
        let fill = cx.opt(2).unwrap_or_else(|| cx.scalar(x.elem(), 0.0));
        (cx.sizes_of(&pads, "the pads of `Pad`")?, fill)
    };
    let axes: Vec<usize> = match cx.opt(3) {
        None => (0..x.rank()).collect(),
        Some(v) => {
            let list = cx.ints_of(&v, "the axes of `Pad`")?;
            list.iter().map(|&a| cx::axis(a, x.rank())).collect::<Res<_>>()?
        }
    };
    if pads.len() != 2 * axes.len() {
        return Err(Fault::invalid(format!("{} pads for {} axes", pads.len(), axes.len())));
    }
    let mut before = vec![Dim::zero(); x.rank()];
    let mut after = before.clone();
    for (i, &axis) in axes.iter().enumerate() {
        let (mut low, mut high) = (pads[i].clone(), pads[axes.len() + i].clone());
        // A negative pad cuts off.
        let cut = |d: &Dim| Dim::from(d.as_const().map_or(0, |v| v.min(0).saturating_neg()));
        let (from, to) = (cut(&low), cut(&high));
        if from != Dim::zero() || to != Dim::zero() {
            let len = x.shape()[axis].clone() - from.clone() - to.clone();
            x = cx.narrow(&x, axis, &from, &len)?;
            low = low + from;
            high = high + to;
        }
        (before[axis], after[axis]) = (low, high);
    }
    if before.iter().chain(&after).all(|d| *d == Dim::zero()) {
        return Ok(vec![x]);
    }
    let op = Op::Pad { before, after, mode };
    if mode != PadMode::Constant {
        return Ok(vec![cx.add(op, &[&x])?]);
    }
    let fill = cx.reshape(&fill, Vec::new())?;
    Ok(vec![cx.add(op, &[&x, &fill])?])
}

fn range(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (start, limit, delta) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    // Half floats are summed in f32, which is also the only stash type.
    if cx.attrs.int("stash_type", 1)? != 1 {
        return Err(Fault::unsupported("only `stash_type` = 1 (f32) is supported"));
    }
    let what = "a bound of `Range`";
    let elem = start.elem();
    let bounds: Vec<V> =
        [&start, &limit, &delta].iter().map(|v| cx.reshape(v, Vec::new())).collect::<Res<_>>()?;
    let unknown = |v: &V| Fault::Unknown { value: v.made(), what };
    let known: Vec<Known> =
        bounds.iter().map(|v| v.known().cloned().ok_or_else(|| unknown(v))).collect::<Res<_>>()?;
    let len = match known.as_slice() {
        [Known::Dims(a), Known::Dims(b), Known::Dims(d)] => {
            int_range(cx, &a[0], &b[0], d[0].as_const())?
        }
        [Known::Floats(a), Known::Floats(b), Known::Floats(d)] => {
            let n = ((b[0] - a[0]) / d[0]).ceil().max(0.0);
            if !n.is_finite() || n > limits::ELEMENTS as f64 {
                return Err(Fault::invalid(format!("a range of {n} elements")));
            }
            Dim::from(n as i64)
        }
        _ => return Err(Fault::invalid("the bounds have different types")),
    };
    let wide = if matches!(elem, Elem::F16 | Elem::BF16) { Elem::F32 } else { elem };
    let iota = cx.iota(&len)?;
    let iota = cx.cast(&iota, wide)?;
    let (first, step) = (cx.cast(&bounds[0], wide)?, cx.cast(&bounds[2], wide)?);
    let scaled = if matches!(&known[2], Known::Dims(d) if d[0] == Dim::one()) {
        iota
    } else {
        cx.binary(BinaryOp::Mul, &iota, &step)?
    };
    let y = if matches!(&known[0], Known::Dims(d) if d[0] == Dim::zero()) {
        scaled
    } else {
        cx.binary(BinaryOp::Add, &scaled, &first)?
    };
    Ok(vec![cx.cast(&y, elem)?])
}

/// Number of elements of an integer range.
fn int_range(cx: &mut Cx<'_>, start: &Dim, limit: &Dim, delta: Option<i64>) -> Res<Dim> {
    let step = match delta {
        None => return Err(Fault::unsupported("the step of `Range` is symbolic")),
        Some(0) => return Err(Fault::invalid("the step of `Range` is 0")),
        Some(step) => step,
    };
    let span = if step > 0 { limit.clone() - start.clone() } else { start.clone() - limit.clone() };
    if span.as_const().is_some_and(|s| s <= 0) {
        return Ok(Dim::zero());
    }
    cx.assume_at_most(&-span.clone(), &Dim::zero())?;
    let step = i64::try_from(step.unsigned_abs()).unwrap_or(i64::MAX);
    Ok(if step == 1 { span } else { span.ceil_div(step) })
}

fn depth_to_space(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let block = Dim::from(cx.attrs.int_required("blocksize")?);
    let mode = cx.attrs.string("mode", "DCR")?;
    let [n, c, h, w] = x.shape() else {
        return Err(Fault::invalid(format!("`{}` has not four axes", x.ty)));
    };
    let depth = c
        .exact_div(&(block.clone() * block.clone()))
        .ok_or_else(|| Fault::invalid(format!("{c} channels in blocks of {block}")))?;
    let b = || block.clone();
    let (apart, perm) = match mode.as_str() {
        "DCR" => {
            (vec![n.clone(), b(), b(), depth.clone(), h.clone(), w.clone()], [0, 3, 4, 1, 5, 2])
        }
        "CRD" => {
            (vec![n.clone(), depth.clone(), b(), b(), h.clone(), w.clone()], [0, 1, 4, 2, 5, 3])
        }
        other => return Err(Fault::unsupported(format!("`mode` = `{}`", shown(other)))),
    };
    let to = vec![n.clone(), depth, h.clone() * b(), w.clone() * b()];
    let y = cx.reshape(&x, apart)?;
    let y = cx.transpose(&y, perm.to_vec())?;
    Ok(vec![cx.reshape(&y, to)?])
}

fn space_to_depth(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let block = Dim::from(cx.attrs.int_required("blocksize")?);
    let [n, c, h, w] = x.shape() else {
        return Err(Fault::invalid(format!("`{}` has not four axes", x.ty)));
    };
    let part = |d: &Dim| {
        d.exact_div(&block).ok_or_else(|| Fault::invalid(format!("size {d} in blocks of {block}")))
    };
    let (rows, columns) = (part(h)?, part(w)?);
    let b = || block.clone();
    let apart = vec![n.clone(), c.clone(), rows.clone(), b(), columns.clone(), b()];
    let to = vec![n.clone(), c.clone() * b() * b(), rows, columns];
    let y = cx.reshape(&x, apart)?;
    let y = cx.transpose(&y, vec![0, 3, 5, 1, 2, 4])?;
    Ok(vec![cx.reshape(&y, to)?])
}
