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
        let halves = either(graph, first_cos, BinaryOp::Mul).into_iter().find_map(|(low, cos)| {
            let mut uppers = either(graph, first_sin, BinaryOp::Mul).into_iter();
            let (high, sin) = uppers.find(|&(high, sin)| {
                is_product(graph, a, high, cos) && is_product(graph, b, low, sin)
            })?;
            Some((low, high, cos, sin))
        });
        halves.map(|h| (h, vec![first, second, first_cos, first_sin, a, b]))
    });
    let ((low, high, cos, sin), inside) = found?;
    let x = joined(graph, low, high)?;
    let whole = Window { of: x.of, start: Dim::zero(), len: ty(graph, x.of).last() };
    if x != whole || ty(graph, x.of) != ty(graph, id) || !private(graph, id, &inside) {
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
    let rope = patch.add(name, Op::Rope, &[x.of.into(), cos, sin]);
    patch.replace(id, rope);
    Some(patch)
}

fn is_product(graph: &Graph, id: NodeId, a: NodeId, b: NodeId) -> bool {
    either(graph, id, BinaryOp::Mul).contains(&(a, b))
}
