//! The rotary embedding: halves swapped, one negated, times sine, plus the value times cosine; or
//! written half by half. Numbers change by rounding only.
//!
//! ```text
//! %lo = slice %x {start=[0,0,0,0], len=[b,h,s,32], step=[1,1,1,1]}
//! %hi = slice %x {start=[0,0,0,32], len=[b,h,s,32], step=[1,1,1,1]}
//! %n = neg %hi
//! %r = concat %n, %lo {axis=3}
//! %c = mul %x, %cos
//! %s = mul %r, %sin
//! %y = add %c, %s          ->  %y = rope %x, %cos, %sin
//! ```

use crate::pattern::{Window, binary, either, private, ty, unary, window};
use fqc_ir::{BinaryOp, Dim, Graph, NodeId, Op, Patch, UnaryOp, Value};

/// `x * cos + rotated(x) * sin`.
pub fn whole(graph: &Graph, id: NodeId) -> Option<Patch> {
    let sums = either(graph, id, BinaryOp::Add);
    let (x, cos, sin) = sums.into_iter().find_map(|(left, right)| {
        let turned = either(graph, right, BinaryOp::Mul).into_iter();
        turned.filter_map(|(r, sin)| Some((rotated(graph, r)?, r, sin))).find_map(
            |((of, mut inside), r, sin)| {
                let straight = either(graph, left, BinaryOp::Mul);
                let (x, cos) = straight.into_iter().find(|&(x, _)| window(graph, x) == of)?;
                inside.extend([left, right, r]);
                (ty(graph, x) == ty(graph, id) && private(graph, id, &inside))
                    .then_some((x, cos, sin))
            },
        )
    })?;
    let mut patch = Patch::new();
    let operands: [Value; 3] = [x.into(), cos.into(), sin.into()];
    let rope = patch.add(&graph.node(id).name, Op::Rope, &operands);
    patch.replace(id, rope);
    Some(patch)
}

/// The window that `concat(-high half, low half)` turns, and the nodes inside.
fn rotated(graph: &Graph, id: NodeId) -> Option<(Window, Vec<NodeId>)> {
    let [minus_high, low]: [NodeId; 2] = last_concat(graph, id)?.try_into().ok()?;
    let high = unary(graph, minus_high, UnaryOp::Neg)?;
    let x = joined(graph, low, high)?;
    Some((x, vec![minus_high, high, low]))
}

fn last_concat(graph: &Graph, id: NodeId) -> Option<Vec<NodeId>> {
    let Op::Concat { axis } = graph.node(id).op else { return None };
    (axis + 1 == ty(graph, id).rank()).then(|| graph.operands(id))
}

/// The window of which two values are the lower and the upper half.
fn joined(graph: &Graph, low: NodeId, high: NodeId) -> Option<Window> {
    let (a, b) = (window(graph, low), window(graph, high));
    let follows = a.of == b.of && a.len == b.len && b.start == a.start.clone() + a.len.clone();
    follows.then(|| Window { len: a.len * Dim::from(2i64), ..a })
}

/// `concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin)` with tables of half the width.
pub fn by_halves(graph: &Graph, id: NodeId) -> Option<Patch> {
    let [first, second]: [NodeId; 2] = last_concat(graph, id)?.try_into().ok()?;
    let (first_cos, first_sin) = binary(graph, first, BinaryOp::Sub)?;
    let found = either(graph, second, BinaryOp::Add).into_iter().find_map(|(a, b)| {
        let (x, cos, sin) = by_products(graph, first_cos, first_sin, a, b)?;
        Some((x, cos, sin, [first, second, first_cos, first_sin, a, b]))
    });
    let (x, cos, sin, inside) = found?;
    if ty(graph, x) != ty(graph, id) || !private(graph, id, &inside) {
        return None;
    }
    let name = &graph.node(id).name;
    let mut patch = Patch::new();
    let mut twice = |what: &str, table: NodeId| {
        let axis = ty(graph, table).rank().checked_sub(1)?;
        let operands: [Value; 2] = [table.into(), table.into()];
        Some(patch.add(format!("{name}.{what}"), Op::Concat { axis }, &operands))
    };
    let (cos, sin) = (twice("cos", cos)?, twice("sin", sin)?);
    let rope = patch.add(name, Op::Rope, &[x.into(), cos, sin]);
    patch.replace(id, rope);
    Some(patch)
}

/// x, cosine and sine of the four products `x1 * cos`, `x2 * sin`, `x2 * cos` and `x1 * sin`.
fn by_products(
    graph: &Graph,
    low_cos: NodeId,
    high_sin: NodeId,
    high_cos: NodeId,
    low_sin: NodeId,
) -> Option<(NodeId, NodeId, NodeId)> {
    either(graph, low_cos, BinaryOp::Mul).into_iter().find_map(|(low, cos)| {
        either(graph, high_sin, BinaryOp::Mul).into_iter().find_map(|(high, sin)| {
            let products =
                is_product(graph, high_cos, high, cos) && is_product(graph, low_sin, low, sin);
            let x = joined(graph, low, high).filter(|_| products)?;
            let is_whole = x.start == Dim::zero() && x.len == ty(graph, x.of).last();
            is_whole.then_some((x.of, cos, sin))
        })
    })
}

fn is_product(graph: &Graph, id: NodeId, a: NodeId, b: NodeId) -> bool {
    either(graph, id, BinaryOp::Mul).contains(&(a, b))
}
