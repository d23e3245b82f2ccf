//! Attention over repeated keys and values is attention over groups: the copies that exporters make
//! for grouped queries are not needed.
//!
//! ```text
//! %a: f32[b,3,1,t,64] = reshape %k: f32[b,3,t,64]
//! %c: f32[b,3,3,t,64] = broadcast %a
//! %r: f32[b,9,t,64] = reshape %c
//! %y = attention %q, %r, %s …                    ->  %y = attention %q, %k, %v …
//! ```

use crate::pattern::ty;
use fqc_ir::{Dim, Graph, NodeId, Op, Patch, Shape, Value};

pub fn find(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Attention { .. } = graph.node(id).op else { return None };
    let operands = graph.operands(id);
    let [_, k, v, ..] = operands[..] else { return None };
    let ((k, k_shape), (v, v_shape)) = (repeated(graph, k)?, repeated(graph, v)?);
    if k_shape[1] != v_shape[1] {
        return None;
    }
    let name = &graph.node(id).name;
    let mut patch = Patch::new();
    let k = patch.add(format!("{name}.k"), Op::Reshape(k_shape), &[k.into()]);
    let v = patch.add(format!("{name}.v"), Op::Reshape(v_shape), &[v.into()]);
    let mut values: Vec<Value> = operands.into_iter().map(Value::from).collect();
    values[1] = k;
    values[2] = v;
    let attention = patch.add(name, graph.node(id).op.clone(), &values);
    patch.replace(id, attention);
    Some(patch)
}

/// For `[b, g*r, t, d]` that repeats each of g groups r times: a value that holds the groups once, and
/// their shape `[b, g, t, d]`.
fn repeated(graph: &Graph, id: NodeId) -> Option<(NodeId, Shape)> {
    let Op::Reshape(to) = &graph.node(id).op else { return None };
    let copies = graph.operand(id, 0)?;
    let Op::Broadcast(wide) = &graph.node(copies).op else { return None };
    let groups = graph.operand(copies, 0)?;
    let narrow = &ty(graph, groups).shape;
    let [b, g, r, t, d] = &wide[..] else { return None };
    let once = [b.clone(), g.clone(), Dim::one(), t.clone(), d.clone()];
    let all = [b.clone(), g.clone() * r.clone(), t.clone(), d.clone()];
    (narrow[..] == once && to[..] == all)
        .then(|| (groups, vec![b.clone(), g.clone(), t.clone(), d.clone()]))
}
