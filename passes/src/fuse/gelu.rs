//! GELU from its parts, in both forms. The factors may stand in any order and grouping; the argument
//! of `erf` or `tanh` is read as a polynomial in x, so it may be written in any way too. Constants may
//! be off by 1e-5 relative (they are rounded in the files), the result by as much.
//!
//! ```text
//! %h = mul %x, 0.5
//! %t = div %x, 1.4142135
//! %e = erf %t
//! %a = add %e, 1.0
//! %y = mul %h, %a          ->  %y = gelu %x
//! ```

use crate::pattern::{binary, close, private, scalar, ty, unary, with_scalar};
use fqc_ir::{BinaryOp, Graph, NodeId, Op, Patch, UnaryOp};

/// How far below the result the pieces may lie.
const DEPTH: usize = 6;
const TOLERANCE: f64 = 1e-5;
const ERF: [f64; 4] = [0.0, std::f64::consts::FRAC_1_SQRT_2, 0.0, 0.0];
const ROOT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const TANH: [f64; 4] = [0.0, ROOT_2_OVER_PI, 0.0, ROOT_2_OVER_PI * 0.044_715];

pub fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    if !matches!(graph.node(id).op, Op::Binary(BinaryOp::Mul | BinaryOp::Div)) {
        return None;
    }
    let mut gates = Vec::new();
    collect_gates(graph, id, DEPTH, &mut gates);
    gates.into_iter().find_map(|gate| from_gate(graph, id, &gate))
}

/// `1 + f(argument)`.
struct Gate {
    sum: NodeId,
    call: NodeId,
    argument: NodeId,
    function: UnaryOp,
    polynomial: [f64; 4],
}

/// The gates among the factors of a product.
fn collect_gates(graph: &Graph, id: NodeId, depth: usize, gates: &mut Vec<Gate>) {
    if let Some((call, one)) = with_scalar(graph, id, BinaryOp::Add) {
        let forms = [(UnaryOp::Erf, UnaryOp::Gelu, ERF), (UnaryOp::Tanh, UnaryOp::GeluTanh, TANH)];
        for (inner, function, polynomial) in forms {
            if let Some(argument) = unary(graph, call, inner).filter(|_| one == 1.0) {
                gates.push(Gate { sum: id, call, argument, function, polynomial });
            }
        }
    }
    if depth == 0 || !matches!(graph.node(id).op, Op::Binary(BinaryOp::Mul | BinaryOp::Div)) {
        return;
    }
    for operand in graph.operands(id) {
        collect_gates(graph, operand, depth - 1, gates);
    }
}

fn from_gate(graph: &Graph, id: NodeId, gate: &Gate) -> Option<Patch> {
    let mut candidates = Vec::new();
    descend(graph, gate.argument, DEPTH, &mut candidates);
    let (x, inside) = candidates.into_iter().find_map(|x| {
        let mut inside = vec![gate.sum, gate.call];
        let found = polynomial(graph, gate.argument, x, DEPTH, &mut inside)?;
        let pairs = found.iter().zip(&gate.polynomial);
        let same = pairs.clone().all(|(a, b)| close(*a, *b, TOLERANCE));
        let product = product(graph, id, x, gate.sum, DEPTH, &mut inside)?;
        (same && product == (0.5, 1, 1)).then_some((x, inside))
    })?;
    inside_is_private(graph, id, &inside)?;
    if ty(graph, x) != ty(graph, id) {
        return None;
    }
    let mut patch = Patch::new();
    let gelu = patch.add(&graph.node(id).name, Op::Unary(gate.function), &[x.into()]);
    patch.replace(id, gelu);
    Some(patch)
}

fn inside_is_private(graph: &Graph, id: NodeId, inside: &[NodeId]) -> Option<()> {
    let inside: Vec<NodeId> = inside.iter().copied().filter(|&n| n != id).collect();
    private(graph, id, &inside).then_some(())
}

/// Everything below `id` that could be x, nearest last.
fn descend(graph: &Graph, id: NodeId, depth: usize, out: &mut Vec<NodeId>) {
    if scalar(graph, id).is_some() || out.contains(&id) {
        return;
    }
    if depth > 0 && matches!(graph.node(id).op, Op::Binary(_)) {
        for operand in graph.operands(id) {
            descend(graph, operand, depth - 1, out);
        }
    }
    out.push(id);
}

/// The value as a polynomial in x of degree at most three; the nodes it passes go to `inside`.
fn polynomial(
    graph: &Graph,
    id: NodeId,
    x: NodeId,
    depth: usize,
    inside: &mut Vec<NodeId>,
) -> Option<[f64; 4]> {
    if id == x {
        return Some([0.0, 1.0, 0.0, 0.0]);
    }
    if let Some(c) = scalar(graph, id) {
        return Some([f64::from(c), 0.0, 0.0, 0.0]);
    }
    let Op::Binary(op) = graph.node(id).op else { return None };
    let (a, b) = binary(graph, id, op).filter(|_| depth > 0)?;
    let left = polynomial(graph, a, x, depth - 1, inside)?;
    let right = polynomial(graph, b, x, depth - 1, inside)?;
    inside.push(id);
    let constant = (right[1..] == [0.0; 3]).then_some(right[0]);
    match op {
        BinaryOp::Add => Some(std::array::from_fn(|i| left[i] + right[i])),
        BinaryOp::Sub => Some(std::array::from_fn(|i| left[i] - right[i])),
        BinaryOp::Mul => times(&left, &right),
        BinaryOp::Div => constant.map(|c| left.map(|v| v / c)),
        BinaryOp::Pow if constant == Some(2.0) => times(&left, &left),
        BinaryOp::Pow if constant == Some(3.0) => times(&times(&left, &left)?, &left),
        _ => None,
    }
}

/// The product, if its degree is at most three.
fn times(a: &[f64; 4], b: &[f64; 4]) -> Option<[f64; 4]> {
    let mut out = [0.0; 4];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            match out.get_mut(i + j) {
                Some(sum) => *sum += x * y,
                None if x * y != 0.0 => return None,
                None => {}
            }
        }
    }
    Some(out)
}

/// A product as constant, count of x and count of the gate; the nodes it passes go to `inside`.
fn product(
    graph: &Graph,
    id: NodeId,
    x: NodeId,
    gate: NodeId,
    depth: usize,
    inside: &mut Vec<NodeId>,
) -> Option<(f64, u32, u32)> {
    if id == x {
        return Some((1.0, 1, 0));
    }
    if id == gate {
        return Some((1.0, 0, 1));
    }
    if let Some(c) = scalar(graph, id) {
        return Some((f64::from(c), 0, 0));
    }
    let Op::Binary(op) = graph.node(id).op else { return None };
    let (a, b) = binary(graph, id, op).filter(|_| depth > 0)?;
    let (c, n, g) = product(graph, a, x, gate, depth - 1, inside)?;
    let (d, m, h) = product(graph, b, x, gate, depth - 1, inside)?;
    inside.push(id);
    match op {
        BinaryOp::Mul => Some((c * d, n + m, g + h)),
        BinaryOp::Div if (m, h) == (0, 0) => Some((c / d, n, g)),
        _ => None,
    }
}
