//! What layer and root-mean-square normalisation have in common: `x / sqrt(mean(x^2) + epsilon)` and
//! the scale after it.

use crate::pattern::{
    binary, constant, either, mean_of_last, only_reader, row_length, scalar, square, ty, unary,
    with_scalar,
};
use fqc_ir::{BinaryOp, Const, Elem, Graph, NodeId, Op, Patch, UnaryOp, Value};

/// `centred / sqrt(mean(centred^2) + epsilon)`.
pub struct Core {
    pub centred: NodeId,
    pub epsilon: f32,
    /// The nodes between `centred` and the result, both not included.
    pub inside: Vec<NodeId>,
}

pub fn core(graph: &Graph, id: NodeId) -> Option<Core> {
    if ty(graph, id).elem != Elem::F32 {
        return None;
    }
    let mut quotients = Vec::new();
    if let Some((x, divisor)) = binary(graph, id, BinaryOp::Div) {
        quotients.extend(root(graph, divisor).map(|(sum, inside)| (x, sum, inside)));
    }
    for (x, factor) in either(graph, id, BinaryOp::Mul) {
        quotients.extend(inverse_root(graph, factor).map(|(sum, inside)| (x, sum, inside)));
    }
    quotients.into_iter().find_map(|(centred, sum, mut inside)| {
        let (mean, epsilon) = with_scalar(graph, sum, BinaryOp::Add)?;
        let squares = mean_of_last(graph, mean)?;
        inside.extend([sum, mean, squares]);
        let fits = square(graph, squares)? == centred && ty(graph, centred) == ty(graph, id);
        (fits && epsilon >= 0.0 && epsilon.is_finite()).then_some(Core { centred, epsilon, inside })
    })
}

/// `sqrt(x)`, with the nodes it is made of.
fn root(graph: &Graph, id: NodeId) -> Option<(NodeId, Vec<NodeId>)> {
    if let Some(x) = unary(graph, id, UnaryOp::Sqrt) {
        return Some((x, vec![id]));
    }
    let (x, exponent) = with_scalar(graph, id, BinaryOp::Pow)?;
    (exponent == 0.5).then(|| (x, vec![id]))
}

/// `1 / sqrt(x)`, with the nodes it is made of.
fn inverse_root(graph: &Graph, id: NodeId) -> Option<(NodeId, Vec<NodeId>)> {
    if let Some(x) = unary(graph, id, UnaryOp::Rsqrt) {
        return Some((x, vec![id]));
    }
    if let Some((x, exponent)) = with_scalar(graph, id, BinaryOp::Pow) {
        return (exponent == -0.5).then(|| (x, vec![id]));
    }
    let over_one = binary(graph, id, BinaryOp::Div)
        .filter(|(one, _)| scalar(graph, *one) == Some(1.0))
        .map(|(_, x)| x);
    let (x, mut inside) = root(graph, unary(graph, id, UnaryOp::Reciprocal).or(over_one)?)?;
    inside.push(id);
    Some((x, inside))
}

/// Replaces `id` by a normalisation of `x` with a scale of ones.
pub fn with_ones(graph: &Graph, id: NodeId, x: NodeId, op: Op) -> Option<Patch> {
    let channels = usize::try_from(ty(graph, x).last().as_const()?).ok()?;
    let name = &graph.node(id).name;
    let ones = Const::f32(vec![channels], &vec![1.0; channels]);
    let mut patch = Patch::new();
    let ones = patch.add(format!("{name}.ones"), Op::Const(ones), &[]);
    let norm = patch.add(name, op, &[x.into(), ones]);
    patch.replace(id, norm);
    Some(patch)
}

/// `x op row` where the row has one f32 for each element of `x`'s last axis; in either order.
pub fn with_row(graph: &Graph, id: NodeId, op: BinaryOp) -> Option<(NodeId, NodeId)> {
    either(graph, id, op).into_iter().find(|&(x, row)| {
        let (x, row) = (ty(graph, x), ty(graph, row));
        x == ty(graph, id) && row.elem == Elem::F32 && row_length(&row.shape) == x.shape.last()
    })
}

/// The row as a value of rank one.
pub fn row(graph: &Graph, patch: &mut Patch, row: NodeId, what: &str, id: NodeId) -> Value {
    if ty(graph, row).rank() == 1 {
        return row.into();
    }
    let to = Op::Reshape(vec![ty(graph, row).last()]);
    patch.add(format!("{}.{what}", graph.node(id).name), to, &[row.into()])
}

/// A normalisation with a scale of ones, read by nobody else, times a row.
pub fn scale(graph: &Graph, id: NodeId, is_norm: fn(&Op) -> bool) -> Option<Patch> {
    let (n, gamma) = with_row(graph, id, BinaryOp::Mul)?;
    let op = &graph.node(n).op;
    if !is_norm(op) || !only_reader(graph, n, id) {
        return None;
    }
    let [x, ones]: [NodeId; 2] = graph.operands(n).try_into().ok()?;
    if constant(graph, ones)?.to_f32()?.iter().any(|&v| v != 1.0) {
        return None;
    }
    let mut patch = Patch::new();
    let gamma = row(graph, &mut patch, gamma, "gamma", id);
    let scaled = patch.add(&graph.node(id).name, op.clone(), &[x.into(), gamma]);
    patch.replace(id, scaled);
    Some(patch)
}
