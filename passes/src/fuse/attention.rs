//! Attention from its parts: scores of queries and keys, scaled before or after, masked by adding or
//! choosing, softmax, times the values. Numbers change by rounding. Exporters guard the weights against
//! NaN, which a row hidden altogether by minus infinity gives: where the mask cannot be infinite the
//! guard goes, else it moves behind the attention, onto fewer numbers (and clears NaN of the values too).
//!
//! ```text
//! %kt = transpose %k {perm=[0,1,3,2]}
//! %s = matmul %q, %kt
//! %c = mul %s, 0.125
//! %m = add %c, %mask
//! %p = softmax %m
//! %y = matmul %p, %v       ->  %y = attention %q, %k, %v, %mask {scale=0.125, causal=false}
//! ```

use crate::pattern::{either, private, scalar, ty, unary, with_scalar};
use fqc_ir::{BinaryOp, Const, Elem, Graph, NodeId, Op, Patch, UnaryOp, Value};

/// A score at or below this is lost when it is added to any finite one.
const HIDDEN: f32 = -1e30;

pub fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    if graph.node(id).op != Op::MatMul || ty(graph, id).elem != Elem::F32 {
        return None;
    }
    let (weights, v) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    let (softmax, mut inside) = unguarded(graph, weights)?;
    let guarded = softmax != weights;
    if graph.node(softmax).op != Op::Softmax {
        return None;
    }
    inside.push(softmax);
    let scores = scores(graph, graph.operand(softmax, 0)?, &mut inside)?;
    if !private(graph, id, &inside) {
        return None;
    }
    let mut scale = scores.scale;
    let q = unscaled(graph, scores.q, &mut scale);
    let kt = unscaled(graph, scores.kt, &mut scale);
    if !fits(graph, q, kt, v) || !(scale as f32).is_finite() {
        return None;
    }
    let name = &graph.node(id).name;
    let mut patch = Patch::new();
    let k = patch.add(format!("{name}.k"), Op::Transpose(vec![0, 1, 3, 2]), &[kt.into()]);
    let mut operands = vec![q.into(), k, v.into()];
    operands.extend(mask(&mut patch, name, &scores.masks));
    let op = Op::Attention { scale: scale as f32, causal: false };
    let mut attention = patch.add(name, op, &operands);
    if guarded && !scores.masks.iter().all(|m| m.is_finite(graph)) {
        let is_nan = patch.add(format!("{name}.nan"), Op::Unary(UnaryOp::IsNan), &[attention]);
        let zero = patch.add(format!("{name}.zero"), Op::Const(Const::f32(vec![], &[0.0])), &[]);
        attention = patch.add(name, Op::Select, &[is_nan, zero, attention]);
    }
    patch.replace(id, attention);
    Some(patch)
}

/// The softmax behind `select(is_nan(p), 0, p)`, if that is there.
fn unguarded(graph: &Graph, id: NodeId) -> Option<(NodeId, Vec<NodeId>)> {
    if graph.node(id).op != Op::Select {
        return Some((id, Vec::new()));
    }
    let [is_nan, zero, p]: [NodeId; 3] = graph.operands(id).try_into().ok()?;
    let guards = unary(graph, is_nan, UnaryOp::IsNan) == Some(p) && scalar(graph, zero)? == 0.0;
    guards.then(|| (p, vec![id, is_nan]))
}

/// What is added to the scores.
enum Mask {
    Value(NodeId),
    /// `select(condition, then, otherwise)`, one of them 0 and the other [`HIDDEN`] or less.
    Choice {
        condition: NodeId,
        hidden: NodeId,
        hidden_if: bool,
    },
}

impl Mask {
    /// Whether every number of the mask is known to be finite.
    fn is_finite(&self, graph: &Graph) -> bool {
        match self {
            Mask::Value(value) => is_finite(graph, *value),
            Mask::Choice { hidden, .. } => is_finite(graph, *hidden),
        }
    }
}

/// Whether every element comes from finite constants by moving and choosing.
fn is_finite(graph: &Graph, id: NodeId) -> bool {
    let operand = |slot| graph.operand(id, slot).is_some_and(|x| is_finite(graph, x));
    match &graph.node(id).op {
        Op::Const(value) => value.to_f32().is_some_and(|v| v.iter().all(|x| x.is_finite())),
        Op::Select => operand(1) && operand(2),
        Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice { .. } => operand(0),
        _ => false,
    }
}

struct Scores {
    q: NodeId,
    kt: NodeId,
    scale: f64,
    masks: Vec<Mask>,
}

/// Reads the scores down to the product; all nodes passed go to `inside`.
fn scores(graph: &Graph, id: NodeId, inside: &mut Vec<NodeId>) -> Option<Scores> {
    inside.push(id);
    let same_type = |x: &NodeId| ty(graph, *x) == ty(graph, id);
    let depth = inside.len();
    match graph.node(id).op {
        Op::MatMul => {
            let (q, kt) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
            Some(Scores { q, kt, scale: 1.0, masks: Vec::new() })
        }
        Op::Binary(op @ (BinaryOp::Mul | BinaryOp::Div)) => {
            let (x, c) = with_scalar(graph, id, op)?;
            let mut scores = scores(graph, x, inside).filter(|s| s.masks.is_empty())?;
            let c = f64::from(c);
            scores.scale *= if op == BinaryOp::Mul { c } else { c.recip() };
            Some(scores)
        }
        Op::Binary(BinaryOp::Add) => {
            let sides = either(graph, id, BinaryOp::Add).into_iter();
            sides.filter(|(x, _)| same_type(x)).find_map(|(x, mask)| {
                inside.truncate(depth);
                let mut scores = scores(graph, x, inside)?;
                scores.masks.push(Mask::Value(mask));
                Some(scores)
            })
        }
        Op::Select => {
            let [condition, a, b]: [NodeId; 3] = graph.operands(id).try_into().ok()?;
            let hides = |x: NodeId| scalar(graph, x).is_some_and(|v| v <= HIDDEN);
            let (x, hidden, hidden_if) = match (hides(a), hides(b)) {
                (true, false) => (b, a, true),
                (false, true) => (a, b, false),
                _ => return None,
            };
            let mut scores = Some(x).filter(same_type).and_then(|x| scores(graph, x, inside))?;
            scores.masks.push(Mask::Choice { condition, hidden, hidden_if });
            Some(scores)
        }
        _ => None,
    }
}

/// The value without a scalar factor, which goes to `scale`.
fn unscaled(graph: &Graph, id: NodeId, scale: &mut f64) -> NodeId {
    for op in [BinaryOp::Mul, BinaryOp::Div] {
        if let Some((x, c)) = with_scalar(graph, id, op) {
            let c = f64::from(c);
            *scale *= if op == BinaryOp::Mul { c } else { c.recip() };
            return x;
        }
    }
    id
}

/// Whether the operands are \[b,h,s,d\], \[b,g,d,t\] and \[b,g,t,e\] with h a multiple of g.
fn fits(graph: &Graph, q: NodeId, kt: NodeId, v: NodeId) -> bool {
    let shapes = [q, kt, v].map(|x| ty(graph, x).shape.as_slice());
    let [[b, h, _, _], [kb, g, _, t], [vb, vg, vt, _]] = shapes else { return false };
    let heads = h.exact_div(g).is_some();
    b == kb && b == vb && g == vg && t == vt && heads
}

/// The sum of all masks, if there are any.
fn mask(patch: &mut Patch, name: &str, masks: &[Mask]) -> Option<Value> {
    let mut sum: Option<Value> = None;
    for mask in masks {
        let value = match mask {
            Mask::Value(value) => (*value).into(),
            Mask::Choice { condition, hidden, hidden_if } => {
                let zero = Const::f32(vec![], &[0.0]);
                let zero = patch.add(format!("{name}.zero"), Op::Const(zero), &[]);
                let hidden = Value::from(*hidden);
                let (a, b) = if *hidden_if { (hidden, zero) } else { (zero, hidden) };
                patch.add(format!("{name}.mask"), Op::Select, &[(*condition).into(), a, b])
            }
        };
        sum = Some(match sum {
            None => value,
            Some(s) => patch.add(format!("{name}.mask"), Op::Binary(BinaryOp::Add), &[s, value]),
        });
    }
    sum
}
