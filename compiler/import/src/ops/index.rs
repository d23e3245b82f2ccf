//! Gathers, scatters and what is built from comparing places.

use super::Rule;
use super::math::with;
use crate::builder::V;
use crate::cx::{self, Cx};
use crate::error::{Fault, Res, shown};
use crate::tensor;
use fqc_ir::op::ScatterOp;
use fqc_ir::{BinaryOp, Dim, Elem, Op};

pub(super) const TABLE: super::Table = &[
    ("EyeLike", Rule::Fn(eye_like)),
    ("Gather", Rule::Fn(gather)),
    ("GatherElements", Rule::Fn(gather_elements)),
    ("GatherND", Rule::Fn(gather_nd)),
    ("OneHot", Rule::Fn(one_hot)),
    ("Scatter", Rule::Fn(scatter_elements)),
    ("ScatterElements", Rule::Fn(scatter_elements)),
    ("ScatterND", Rule::Fn(scatter_nd)),
    ("TensorScatter", Rule::Fn(tensor_scatter)),
    ("Trilu", Rule::Fn(trilu)),
];

fn gather(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (data, indices) = (cx.operand(0)?, cx.operand(1)?);
    let axis = cx::axis(cx.attrs.int("axis", 0)?, data.rank())?;
    Ok(vec![cx.gather(&data, &indices, axis)?])
}

fn gather_elements(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (data, indices) = (cx.operand(0)?, cx.operand(1)?);
    let axis = cx::axis(cx.attrs.int("axis", 0)?, data.rank())?;
    Ok(vec![cx.add(Op::GatherElements { axis }, &[&data, &indices])?])
}

fn gather_nd(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (data, indices) = (cx.operand(0)?, cx.operand(1)?);
    let batch = cx.attrs.int("batch_dims", 0)?;
    let batch_dims =
        usize::try_from(batch).map_err(|_| Fault::invalid(format!("`batch_dims` is {batch}")))?;
    Ok(vec![cx.add(Op::GatherNd { batch_dims }, &[&data, &indices])?])
}

fn reduction(cx: &Cx<'_>) -> Res<ScatterOp> {
    match cx.attrs.string("reduction", "none")?.as_str() {
        "none" => Ok(ScatterOp::Set),
        "add" => Ok(ScatterOp::Add),
        "mul" => Ok(ScatterOp::Mul),
        "max" => Ok(ScatterOp::Max),
        "min" => Ok(ScatterOp::Min),
        other => Err(Fault::unsupported(format!("`reduction` = `{}`", shown(other)))),
    }
}

fn scatter_elements(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (data, indices, updates) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    let axis = cx::axis(cx.attrs.int("axis", 0)?, data.rank())?;
    let op = Op::ScatterElements { axis, reduction: reduction(cx)? };
    Ok(vec![cx.add(op, &[&data, &indices, &updates])?])
}

fn scatter_nd(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (data, indices, updates) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    let op = Op::ScatterNd { reduction: reduction(cx)? };
    Ok(vec![cx.add(op, &[&data, &indices, &updates])?])
}

/// Writes `update` into a cache, for every sample from its own place on.
fn tensor_scatter(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (cache, update) = (cx.operand(0)?, cx.operand(1)?);
    let axis = cx::axis(cx.attrs.int("axis", -2)?, cache.rank())?;
    let circular = match cx.attrs.string("mode", "linear")?.as_str() {
        "linear" => false,
        "circular" => true,
        other => return Err(Fault::unsupported(format!("`mode` = `{}`", shown(other)))),
    };
    if axis == 0 || update.rank() != cache.rank() {
        let message = format!("`{}` into axis {axis} of `{}`", update.ty, cache.ty);
        return Err(Fault::invalid(message));
    }
    let mut column = vec![Dim::one(); cache.rank()];
    column[axis] = update.shape()[axis].clone();
    let places = cx.iota(&update.shape()[axis])?;
    let mut places = cx.reshape(&places, column)?;
    if let Some(first) = cx.opt(2) {
        let mut rows = vec![Dim::one(); cache.rank()];
        rows[0] = update.shape()[0].clone();
        let first = cx.reshape(&first, rows)?;
        let first = cx.cast(&first, Elem::I64)?;
        places = cx.binary(BinaryOp::Add, &places, &first)?;
    }
    if circular {
        let size = cx.size(&cache.shape()[axis]);
        places = cx.binary(BinaryOp::Mod, &places, &size)?;
    }
    let places = cx.broadcast(&places, update.ty.shape.clone())?;
    let op = Op::ScatterElements { axis, reduction: ScatterOp::Set };
    Ok(vec![cx.add(op, &[&cache, &places, &update])?])
}

/// Row and column numbers of a matrix: \[rows, 1\] and \[1, columns\].
pub(super) fn places(cx: &mut Cx<'_>, rows: &Dim, columns: &Dim) -> Res<(V, V)> {
    let i = cx.iota(rows)?;
    let j = cx.iota(columns)?;
    Ok((
        cx.reshape(&i, vec![rows.clone(), Dim::one()])?,
        cx.reshape(&j, vec![Dim::one(), columns.clone()])?,
    ))
}

fn trilu(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let upper = cx.attrs.flag("upper", 1)?;
    let [.., rows, columns] = x.shape() else {
        return Err(Fault::invalid(format!("`{}` is not a matrix", x.ty)));
    };
    let (i, j) = places(cx, rows, columns)?;
    let k = match cx.opt(1) {
        None => cx.scalar(Elem::I64, 0.0),
        Some(k) => {
            let k = cx.reshape(&k, Vec::new())?;
            cx.cast(&k, Elem::I64)?
        }
    };
    let diagonal = cx.binary(BinaryOp::Add, &i, &k)?;
    let op = if upper { BinaryOp::Ge } else { BinaryOp::Le };
    let kept = cx.binary(op, &j, &diagonal)?;
    let zero = cx.scalar(x.elem(), 0.0);
    Ok(vec![cx.select(&kept, &x, &zero)?])
}

fn eye_like(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let x = cx.operand(0)?;
    let elem = match cx.attrs.int_opt("dtype")? {
        None => x.elem(),
        Some(t) => tensor::elem(i32::try_from(t).unwrap_or(-1))?,
    };
    let k = cx.attrs.int("k", 0)?;
    let [rows, columns] = x.shape() else {
        return Err(Fault::invalid(format!("`{}` is not a matrix", x.ty)));
    };
    let (i, j) = places(cx, rows, columns)?;
    let diagonal = with(cx, BinaryOp::Add, &i, k as f64)?;
    let eye = cx.binary(BinaryOp::Eq, &j, &diagonal)?;
    Ok(vec![cx.cast(&eye, elem)?])
}

fn one_hot(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (indices, depth, values) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    let depth = cx.cast(&depth, Elem::I64)?;
    let depth = match cx.sizes_of(&depth, "the depth of `OneHot`")?.as_slice() {
        [d] => d.clone(),
        other => return Err(Fault::invalid(format!("{} depths", other.len()))),
    };
    let axis = cx::axis(cx.attrs.int("axis", -1)?, indices.rank() + 1)?;
    let indices = cx.cast(&indices, Elem::I64)?;
    let size = cx.size(&depth);
    let wrapped = cx.binary(BinaryOp::Add, &indices, &size)?;
    let negative = with(cx, BinaryOp::Lt, &indices, 0.0)?;
    let indices = cx.select(&negative, &wrapped, &indices)?;
    let mut to = indices.ty.shape.clone();
    to.insert(axis, Dim::one());
    let indices = cx.reshape(&indices, to)?;
    let mut column = vec![Dim::one(); indices.rank()];
    column[axis] = depth.clone();
    let places = cx.iota(&depth)?;
    let places = cx.reshape(&places, column)?;
    let hot = cx.binary(BinaryOp::Eq, &indices, &places)?;
    let mut pick = |at: i64| {
        let v = cx.narrow(&values, 0, &Dim::from(at), &Dim::one())?;
        cx.reshape(&v, Vec::new())
    };
    let (off, on) = (pick(0)?, pick(1)?);
    Ok(vec![cx.select(&hot, &on, &off)?])
}
