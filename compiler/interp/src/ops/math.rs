//! Element-wise operations and fused trees of them.

use super::{floats, ints};
use crate::error::{OpError, Res};
use crate::scalar;
use crate::tensor::{Data, Tensor};
use crate::walk::Walk;
use fqc_ir::expr::Literal;
use fqc_ir::{BinaryOp, Elem, Expr, UnaryOp};
use std::borrow::Cow;

pub(crate) fn unary(op: UnaryOp, x: &Tensor) -> Res<Data> {
    let refused = || OpError::invalid(format!("`{}` does not take {}", op.name(), x.elem()));
    match op {
        UnaryOp::Not => {
            let v = x.as_bool().ok_or_else(refused)?;
            return Ok(Data::Bool(v.iter().map(|v| !v).collect()));
        }
        UnaryOp::IsNan => return Ok(Data::Bool(floats(x)?.iter().map(|v| v.is_nan()).collect())),
        UnaryOp::IsInf => {
            return Ok(Data::Bool(floats(x)?.iter().map(|v| v.is_infinite()).collect()));
        }
        _ => {}
    }
    if let Some(values) = x.floats() {
        let f = scalar::unary_float(op).ok_or_else(refused)?;
        return Ok(Data::from_floats(x.elem(), values.into_iter().map(f)));
    }
    let f = scalar::unary_int(op).ok_or_else(refused)?;
    Ok(Data::from_ints(x.elem(), ints(x)?.into_iter().map(f)))
}

pub(crate) fn binary(op: BinaryOp, a: &Tensor, b: &Tensor, shape: &[usize]) -> Res<Data> {
    let refused = || OpError::invalid(format!("`{}` of {} and {}", op.name(), a.elem(), b.elem()));
    if a.elem() != b.elem() {
        return Err(refused());
    }
    let pairs = Walk::broadcast(a.shape(), shape).zip(Walk::broadcast(b.shape(), shape));
    if let (Some(x), Some(y)) = (a.as_bool(), b.as_bool()) {
        let f: fn(bool, bool) -> bool = match op {
            BinaryOp::Eq => |a, b| a == b,
            BinaryOp::Ne => |a, b| a != b,
            _ => scalar::logic(op).ok_or_else(refused)?,
        };
        return Ok(Data::Bool(pairs.map(|(i, j)| f(x[i], y[j])).collect()));
    }
    if let (Some(x), Some(y)) = (a.floats(), b.floats()) {
        if let Some(f) = scalar::compare(op) {
            return Ok(Data::Bool(pairs.map(|(i, j)| f(&x[i], &y[j])).collect()));
        }
        let f = scalar::binary_float(op).ok_or_else(refused)?;
        return Ok(Data::from_floats(a.elem(), pairs.map(|(i, j)| f(x[i], y[j]))));
    }
    let (x, y) = (ints(a)?, ints(b)?);
    if let Some(f) = scalar::compare(op) {
        return Ok(Data::Bool(pairs.map(|(i, j)| f(&x[i], &y[j])).collect()));
    }
    let f = scalar::binary_int(op).ok_or_else(refused)?;
    Ok(Data::from_ints(a.elem(), pairs.map(|(i, j)| f(x[i], y[j]))))
}

pub(crate) fn select(c: &Tensor, a: &Tensor, b: &Tensor, shape: &[usize]) -> Res<Data> {
    let flags = c.as_bool().ok_or_else(|| OpError::invalid("the condition is not bool"))?;
    // Both branches in one vector: the condition then only chooses a position.
    let mut both = a.data().clone();
    both.append(b.data(), 0, b.count());
    let places = Walk::broadcast(a.shape(), shape).zip(Walk::broadcast(b.shape(), shape));
    let at = Walk::broadcast(c.shape(), shape)
        .zip(places)
        .map(|(k, (i, j))| if flags[k] { i } else { a.count() + j });
    Ok(both.take(at))
}

pub(crate) fn cast(x: &Tensor, to: Elem) -> Data {
    match (x.floats(), x.ints()) {
        (Some(values), _) => Data::from_floats(to, values.into_iter()),
        (None, values) => Data::from_ints(to, values.unwrap_or_default().into_iter()),
    }
}

/// The NumPy broadcast of shapes.
pub(crate) fn broadcast_shapes(shapes: &[&[usize]]) -> Res<Vec<usize>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for shape in shapes {
        for (to, &size) in out[rank - shape.len()..].iter_mut().zip(*shape) {
            if *to == 1 {
                *to = size;
            } else if size != 1 && size != *to {
                return Err(OpError::invalid(format!("sizes {to} and {size} do not broadcast")));
            }
        }
    }
    Ok(out)
}

/// A fused tree, each of its operations rounded to its own type, as if they were nodes.
pub(crate) fn pointwise(expr: &Expr, args: &[&Tensor], shape: &[usize]) -> Res<Tensor> {
    let value = tree(expr, args)?;
    if value.shape() == shape {
        return Ok(value.into_owned());
    }
    let data = super::shape::broadcast(&value, shape);
    remake(value.elem(), shape.to_vec(), data).map(Cow::into_owned)
}

fn remake<'a>(elem: Elem, shape: Vec<usize>, data: Data) -> Res<Cow<'a, Tensor>> {
    Tensor::new(elem, shape, data)
        .map(Cow::Owned)
        .ok_or_else(|| OpError::invalid("an expression gives the wrong number of elements"))
}

fn tree<'a>(expr: &Expr, args: &[&'a Tensor]) -> Res<Cow<'a, Tensor>> {
    match expr {
        Expr::Arg(i) => args
            .get(*i)
            .map(|t| Cow::Borrowed(*t))
            .ok_or_else(|| OpError::invalid(format!("uses argument {i} of {}", args.len()))),
        Expr::Literal(Literal::F32(v)) => Ok(Cow::Owned(Tensor::f32(&[], &[*v]))),
        Expr::Literal(Literal::I64(v)) => Ok(Cow::Owned(Tensor::i64(&[], &[*v]))),
        Expr::Literal(Literal::Bool(v)) => Ok(Cow::Owned(Tensor::bool(&[], &[*v]))),
        Expr::Unary(op, a) => {
            let a = tree(a, args)?;
            let elem = if op.is_predicate() { Elem::Bool } else { a.elem() };
            remake(elem, a.shape().to_vec(), unary(*op, &a)?)
        }
        Expr::Binary(op, a, b) => {
            let (a, b) = (tree(a, args)?, tree(b, args)?);
            let shape = broadcast_shapes(&[a.shape(), b.shape()])?;
            let elem = if op.is_comparison() { Elem::Bool } else { a.elem() };
            let data = binary(*op, &a, &b, &shape)?;
            remake(elem, shape, data)
        }
        Expr::Select(c, a, b) => {
            let (c, a, b) = (tree(c, args)?, tree(a, args)?, tree(b, args)?);
            if a.elem() != b.elem() {
                let what = format!("`select` between {} and {}", a.elem(), b.elem());
                return Err(OpError::invalid(what));
            }
            let shape = broadcast_shapes(&[c.shape(), a.shape(), b.shape()])?;
            let data = select(&c, &a, &b, &shape)?;
            remake(a.elem(), shape, data)
        }
        Expr::Cast(elem, a) => {
            let a = tree(a, args)?;
            remake(*elem, a.shape().to_vec(), cast(&a, *elem))
        }
    }
}
