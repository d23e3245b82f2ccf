//! Rotary position embedding.

use super::Rule;
use crate::builder::V;
use crate::cx::Cx;
use crate::error::{Fault, Res};
use fqc_ir::{BinaryOp, Dim, Op};

pub(super) const TABLE: super::Table = &[("RotaryEmbedding", Rule::Fn(rotary))];

/// How a rotation is applied.
pub(super) struct Rotary {
    /// Pairs are neighbours, not the two halves.
    pub interleaved: bool,
    /// How many leading elements of a head are rotated.
    pub width: Dim,
}

fn rotary(cx: &mut Cx<'_>) -> Res<Vec<V>> {
    let (x, cos, sin) = (cx.operand(0)?, cx.operand(1)?, cx.operand(2)?);
    let positions = cx.opt(3);
    let interleaved = cx.attrs.flag("interleaved", 0)?;
    let heads = cx.attrs.int("num_heads", 0)?;
    let width = cx.attrs.int("rotary_embedding_dim", 0)?;
    // The head axis: 1 of [b, h, s, d], 2 of the [b, s, h, d] that [b, s, h*d] becomes.
    let (split, head_axis) = match x.shape() {
        [_, _, _, _] => (x.clone(), 1),
        [b, s, hidden] => {
            let each = Some(heads)
                .filter(|&h| h > 0)
                .and_then(|h| hidden.exact_div(&Dim::from(h)))
                .ok_or_else(|| Fault::invalid(format!("`num_heads` is {heads} for `{}`", x.ty)))?;
            let to = vec![b.clone(), s.clone(), Dim::from(heads), each];
            (cx.reshape(&x, to)?, 2)
        }
        _ => return Err(Fault::invalid(format!("`{}` has neither 3 nor 4 axes", x.ty))),
    };
    let width = if width > 0 { Dim::from(width) } else { split.ty.last() };
    let mut angle = |table: &V| -> Res<V> {
        let rows = match &positions {
            Some(p) => cx.gather(table, p, 0)?,
            None => table.clone(),
        };
        if rows.rank() != 3 {
            return Err(Fault::invalid(format!("an angle table `{}`", rows.ty)));
        }
        let mut to = rows.ty.shape.clone();
        to.insert(head_axis, Dim::one());
        cx.reshape(&rows, to)
    };
    let (cos, sin) = (angle(&cos)?, angle(&sin)?);
    let y = rotate(cx, &split, &cos, &sin, &Rotary { interleaved, width })?;
    Ok(vec![cx.reshape(&y, x.ty.shape.clone())?])
}

/// Rotates the last axis of x by angles whose tables hold half of its width.
pub(super) fn rotate(cx: &mut Cx<'_>, x: &V, cos: &V, sin: &V, how: &Rotary) -> Res<V> {
    let last = x.rank() - 1;
    let head = cx.narrow(x, last, &Dim::zero(), &how.width)?;
    let turned = if how.interleaved {
        neighbours(cx, &head, cos, sin)?
    } else {
        let full = |cx: &mut Cx<'_>, t: &V| cx.concat(&[t.clone(), t.clone()], t.rank() - 1);
        let (cos, sin) = (full(cx, cos)?, full(cx, sin)?);
        cx.add(Op::Rope, &[&head, &cos, &sin])?
    };
    if how.width == x.ty.last() {
        return Ok(turned);
    }
    let rest = x.ty.last() - how.width.clone();
    let tail = cx.narrow(x, last, &how.width, &rest)?;
    cx.concat(&[turned, tail], last)
}

/// Rotation of neighbouring elements: the last axis seen as pairs.
fn neighbours(cx: &mut Cx<'_>, x: &V, cos: &V, sin: &V) -> Res<V> {
    let last = x.rank();
    let half = cos.ty.last();
    let mut apart = x.ty.shape.clone();
    apart.pop();
    apart.extend([half, Dim::from(2i64)]);
    let pairs = cx.reshape(x, apart)?;
    let column = |cx: &mut Cx<'_>, v: &V| {
        let mut to = v.ty.shape.clone();
        to.push(Dim::one());
        cx.reshape(v, to)
    };
    let (cos, sin) = (column(cx, cos)?, column(cx, sin)?);
    let a = cx.narrow(&pairs, last, &Dim::zero(), &Dim::one())?;
    let b = cx.narrow(&pairs, last, &Dim::one(), &Dim::one())?;
    let (ac, bs) = (cx.binary(BinaryOp::Mul, &a, &cos)?, cx.binary(BinaryOp::Mul, &b, &sin)?);
    let (as_, bc) = (cx.binary(BinaryOp::Mul, &a, &sin)?, cx.binary(BinaryOp::Mul, &b, &cos)?);
    let real = cx.binary(BinaryOp::Sub, &ac, &bs)?;
    let imaginary = cx.binary(BinaryOp::Add, &as_, &bc)?;
    let y = cx.concat(&[real, imaginary], last)?;
    cx.reshape(&y, x.ty.shape.clone())
}
