//! Arithmetic in one spelling: constants stand right, neutral elements go, squares are products,
//! divisions that are exact as products are products.
//!
//! ```text
//! %y = add %c, %x            ->  %y = add %x, %c
//! %y = mul %x, 1.0           ->  %x
//! %y = pow %x, 2.0           ->  %y = mul %x, %x
//! %y = div %x, 8.0           ->  %y = mul %x, 0.125
//! %y = div 1.0, %x           ->  %y = reciprocal %x
//! %y = select true, %a, %b   ->  %a
//! ```
//!
//! All are exact but for the sign of a zero (`x + 0`), subnormal results (`div` to `mul`) and the
//! last bit of `pow(x, 2)`, where a library's `pow` is not correctly rounded.

use crate::pattern::{binary, commutes, constant, scalar, ty, with_scalar};
use fqc_ir::{BinaryOp, Const, Elem, Graph, NodeId, Op, Patch, UnaryOp, Value};

/// A constant operand of a commutative operation goes right.
pub fn constant_right(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Binary(op) = graph.node(id).op else { return None };
    let (a, b) = binary(graph, id, op).filter(|_| commutes(op))?;
    if constant(graph, a).is_none() || constant(graph, b).is_some() {
        return None;
    }
    let mut patch = Patch::new();
    let swapped = patch.add(&graph.node(id).name, Op::Binary(op), &[b.into(), a.into()]);
    patch.replace(id, swapped);
    Some(patch)
}

/// An operation with its neutral element at the right is its left operand.
pub fn neutral(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Binary(op) = graph.node(id).op else { return None };
    let (x, c) = binary(graph, id, op)?;
    let value = constant(graph, c)?;
    if ty(graph, x) != ty(graph, id) || value.count() > 4096 {
        return None;
    }
    let wanted = match op {
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Or | BinaryOp::Xor => 0,
        BinaryOp::Mul | BinaryOp::Div | BinaryOp::Pow | BinaryOp::And => 1,
        _ => return None,
    };
    all_equal(value, wanted).then(|| Patch::alias(id, x))
}

/// Whether every element is this number; false for an empty constant.
fn all_equal(value: &Const, wanted: i64) -> bool {
    let wanted_float = wanted as f32;
    let equal = match value.to_i64() {
        Some(values) => values.iter().all(|&v| v == wanted),
        None => value.to_f32().is_some_and(|values| values.iter().all(|&v| v == wanted_float)),
    };
    equal && value.count() > 0
}

/// `x^2` is `x * x`.
pub fn square(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (x, exponent) = with_scalar(graph, id, BinaryOp::Pow)?;
    if exponent != 2.0 {
        return None;
    }
    let mut patch = Patch::new();
    let product = patch.add(&graph.node(id).name, Op::Binary(BinaryOp::Mul), &[x.into(), x.into()]);
    patch.replace(id, product);
    Some(patch)
}

/// Division by a power of two is multiplication by its reciprocal, which is exact.
pub fn div_by_power_of_two(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (x, c) = with_scalar(graph, id, BinaryOp::Div)?;
    let mantissa = c.to_bits() & 0x007f_ffff;
    if mantissa != 0 || !c.is_normal() || !c.recip().is_normal() {
        return None;
    }
    let (_, divisor) = binary(graph, id, BinaryOp::Div)?;
    let shape = constant(graph, divisor)?.shape.clone();
    let mut patch = Patch::new();
    let name = &graph.node(id).name;
    let factor =
        patch.add(format!("{name}.factor"), Op::Const(Const::f32(shape, &[c.recip()])), &[]);
    let product = patch.add(name, Op::Binary(BinaryOp::Mul), &[x.into(), factor]);
    patch.replace(id, product);
    Some(patch)
}

/// `1 / x` is the reciprocal.
pub fn one_over(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (one, x) = binary(graph, id, BinaryOp::Div)?;
    if scalar(graph, one) != Some(1.0) || ty(graph, x) != ty(graph, id) {
        return None;
    }
    let mut patch = Patch::new();
    let recip = patch.add(&graph.node(id).name, Op::Unary(UnaryOp::Reciprocal), &[x.into()]);
    patch.replace(id, recip);
    Some(patch)
}

/// A choice that a constant has made, or between equal values.
pub fn select_const(graph: &Graph, id: NodeId) -> Option<Patch> {
    if graph.node(id).op != Op::Select {
        return None;
    }
    let [c, a, b]: [NodeId; 3] = graph.operands(id).try_into().ok()?;
    let chosen = match constant(graph, c).filter(|v| v.elem == Elem::Bool && v.count() <= 4096) {
        Some(value) if all_equal(value, 1) => a,
        Some(value) if all_equal(value, 0) => b,
        _ if a == b => a,
        _ => return None,
    };
    if ty(graph, chosen).elem != ty(graph, id).elem {
        return None;
    }
    let mut patch = Patch::new();
    let value: Value = if ty(graph, chosen) == ty(graph, id) {
        chosen.into()
    } else {
        let shape = ty(graph, id).shape.clone();
        patch.add(&graph.node(id).name, Op::Broadcast(shape), &[chosen.into()])
    };
    patch.replace(id, value);
    Some(patch)
}
