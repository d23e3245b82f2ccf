//! Types of element-wise operations: operands broadcast as in NumPy, the element type follows the
//! expression.

use super::{InferError, Inferred, broadcast_shapes, invalid, plain};
use crate::expr::{self, BinaryOp, Expr, UnaryOp};
use crate::types::{Elem, Type};

pub(super) fn unary(op: UnaryOp, [x]: [&Type; 1]) -> Inferred {
    plain(op.name(), &[x])?;
    let elem = expr::unary_elem(op, x.elem).map_err(InferError::Invalid)?;
    Ok(Type::new(elem, x.shape.clone()))
}

pub(super) fn binary(op: BinaryOp, [a, b]: [&Type; 2]) -> Inferred {
    plain(op.name(), &[a, b])?;
    let elem = expr::binary_elem(op, a.elem, b.elem).map_err(InferError::Invalid)?;
    Ok(Type::new(elem, broadcast_shapes(&[&a.shape, &b.shape])?))
}

pub(super) fn select([c, a, b]: [&Type; 3]) -> Inferred {
    plain("select", &[c, a, b])?;
    if c.elem != Elem::Bool {
        invalid!("`select` wants a bool condition, not {c}");
    }
    if a.elem != b.elem {
        invalid!("`select` between {a} and {b}");
    }
    Ok(Type::new(a.elem, broadcast_shapes(&[&c.shape, &a.shape, &b.shape])?))
}

pub(super) fn cast(elem: Elem, [x]: [&Type; 1]) -> Inferred {
    plain("cast", &[x])?;
    Ok(Type::new(elem, x.shape.clone()))
}

pub(super) fn pointwise(expr: &Expr, operands: &[&Type]) -> Inferred {
    plain("pointwise", operands)?;
    let elems: Vec<Elem> = operands.iter().map(|t| t.elem).collect();
    let elem = expr.elem(&elems).map_err(|e| InferError::Invalid(format!("`pointwise`: {e}")))?;
    let shapes: Vec<_> = operands.iter().map(|t| &t.shape).collect();
    Ok(Type::new(elem, broadcast_shapes(&shapes)?))
}
