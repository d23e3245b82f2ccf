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
use fqc_ir::{Graph, NodeId, Op, Patch, Shape, Value, dim};

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
    let [b, heads, t, d] = &to[..] else { return None };
    if narrow.len() != wide.len() {
        return None;
    }
    let mut widened = (0..wide.len()).filter(|&axis| narrow[axis] != wide[axis]);
    let axis = widened.next().filter(|_| widened.next().is_none())?;
    let g = heads.exact_div(&wide[axis])?;
    let once = dim::product(&wide[..axis]) == b.clone() * g.clone()
        && dim::product(&wide[axis + 1..]) == t.clone() * d.clone();
    once.then(|| (groups, vec![b.clone(), g, t.clone(), d.clone()]))
}
