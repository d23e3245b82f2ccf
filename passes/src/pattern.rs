//! Reading small patterns in a graph. Everything here looks and returns an option; each early exit
//! of a rule is one line.

use fqc_ir::{BinaryOp, Const, Dim, Elem, Graph, NodeId, Op, Type, UnaryOp};

pub fn ty(graph: &Graph, id: NodeId) -> &Type {
    &graph.node(id).ty
}

/// The operand of a unary node.
pub fn unary(graph: &Graph, id: NodeId, op: UnaryOp) -> Option<NodeId> {
    (graph.node(id).op == Op::Unary(op)).then(|| graph.operand(id, 0)).flatten()
}

/// Both operands of a binary node.
pub fn binary(graph: &Graph, id: NodeId, op: BinaryOp) -> Option<(NodeId, NodeId)> {
    if graph.node(id).op != Op::Binary(op) {
        return None;
    }
    Some((graph.operand(id, 0)?, graph.operand(id, 1)?))
}

/// Both operands of a commutative node, in both orders.
pub fn either(graph: &Graph, id: NodeId, op: BinaryOp) -> Vec<(NodeId, NodeId)> {
    match binary(graph, id, op) {
        Some((a, b)) => vec![(a, b), (b, a)],
        None => Vec::new(),
    }
}

pub fn constant(graph: &Graph, id: NodeId) -> Option<&Const> {
    match &graph.node(id).op {
        Op::Const(value) => Some(value),
        _ => None,
    }
}

/// The value of an f32 constant of one element, whatever its rank.
pub fn scalar(graph: &Graph, id: NodeId) -> Option<f32> {
    let value = constant(graph, id)?;
    if value.count() != 1 || value.elem != Elem::F32 {
        return None;
    }
    let bytes = value.bytes.as_slice();
    Some(f32::from_le_bytes(bytes.try_into().ok()?))
}

/// `x op c` with an f32 scalar `c` that does not change the type of `x`; either side where `op`
/// commutes.
pub fn with_scalar(graph: &Graph, id: NodeId, op: BinaryOp) -> Option<(NodeId, f32)> {
    let (a, b) = binary(graph, id, op)?;
    let right = scalar(graph, b).map(|c| (a, c));
    let left = || scalar(graph, a).filter(|_| commutes(op)).map(|c| (b, c));
    right.or_else(left).filter(|(x, _)| ty(graph, *x) == ty(graph, id))
}

/// Whether the operands may be swapped.
pub fn commutes(op: BinaryOp) -> bool {
    use BinaryOp::{Add, And, Eq, Max, Min, Mul, Ne, Or, Xor};
    matches!(op, Add | Mul | Min | Max | And | Or | Xor | Eq | Ne)
}

/// The comparison with its sides swapped.
pub fn mirrored(op: BinaryOp) -> Option<BinaryOp> {
    match op {
        BinaryOp::Gt => Some(BinaryOp::Lt),
        BinaryOp::Ge => Some(BinaryOp::Le),
        BinaryOp::Lt => Some(BinaryOp::Gt),
        BinaryOp::Le => Some(BinaryOp::Ge),
        _ => None,
    }
}

/// Whether a number is what it should be but for the rounding of a constant.
pub fn close(value: f64, expected: f64, relative: f64) -> bool {
    (value - expected).abs() <= relative * expected.abs()
}

/// Whether the nodes `inside` are read by nothing but each other and `root`.
pub fn private(graph: &Graph, root: NodeId, inside: &[NodeId]) -> bool {
    inside.iter().all(|&id| {
        let known = |user: NodeId| user == root || inside.contains(&user);
        !graph.is_output(id) && graph.users(id).iter().all(|u| known(u.0))
    })
}

/// Whether `id` is read by `user` alone, however often.
pub fn only_reader(graph: &Graph, id: NodeId, user: NodeId) -> bool {
    private(graph, user, &[id])
}

/// `x^2` in any form.
pub fn square(graph: &Graph, id: NodeId) -> Option<NodeId> {
    if let Some((x, exponent)) = with_scalar(graph, id, BinaryOp::Pow) {
        return (exponent == 2.0).then_some(x);
    }
    binary(graph, id, BinaryOp::Mul).filter(|(a, b)| a == b).map(|(a, _)| a)
}

/// The operand of a mean over the last axis that keeps it.
pub fn mean_of_last(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let Op::Reduce { op: fqc_ir::op::ReduceOp::Mean, axes, keep_dims: true } = &graph.node(id).op
    else {
        return None;
    };
    let x = graph.operand(id, 0)?;
    (axes.as_slice() == [ty(graph, x).rank().checked_sub(1)?]).then_some(x)
}

/// A part of another value's last axis, the other axes whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    pub of: NodeId,
    pub start: Dim,
    pub len: Dim,
}

/// The value as a window: a slice of the last axis, or all of itself.
pub fn window(graph: &Graph, id: NodeId) -> Window {
    let slice = last_slice(graph, id);
    slice.unwrap_or_else(|| Window { of: id, start: Dim::zero(), len: ty(graph, id).last() })
}

fn last_slice(graph: &Graph, id: NodeId) -> Option<Window> {
    let Op::Slice { start, len, step } = &graph.node(id).op else { return None };
    let of = graph.operand(id, 0)?;
    let (from, outer_starts) = start.split_last()?;
    let (size, outer_sizes) = len.split_last()?;
    let whole = outer_starts.iter().all(|d| d.as_const() == Some(0))
        && outer_sizes.iter().eq(ty(graph, of).shape[..outer_sizes.len()].iter())
        && step.iter().all(|&s| s == 1);
    whole.then(|| Window { of, start: from.clone(), len: size.clone() })
}

/// The length `n` if the constant's shape is `[1, .., 1, n]`.
pub fn row_length(shape: &[Dim]) -> Option<&Dim> {
    let (last, outer) = shape.split_last()?;
    outer.iter().all(|d| d.as_const() == Some(1)).then_some(last)
}
