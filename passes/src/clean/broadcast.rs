//! Broadcasts move down: an element-wise node broadcasts by itself, so one before it is dropped, or,
//! where the result needs the size, done once after it on the smaller value.
//!
//! ```text
//! %m: bool[b,h,s,s] = broadcast %c: bool[1,1,s,s]
//! %y: f32[b,h,s,s] = select %m, %x, %k           ->  %y = select %c, %x, %k
//! %z: bool[b,h,s,s] = not %m                     ->  %n: bool[1,1,s,s] = not %c
//!                                                    %z = broadcast %n
//! ```

use crate::pattern::{only_reader, ty};
use fqc_ir::{Graph, NodeId, Op, Patch, Type, Value, infer};

pub fn of_broadcast(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Broadcast(shape) = &graph.node(id).op else { return None };
    let x = source(graph, graph.operand(id, 0)?)?;
    let mut patch = Patch::new();
    let broadcast = patch.add(&graph.node(id).name, Op::Broadcast(shape.clone()), &[x.into()]);
    patch.replace(id, broadcast);
    Some(patch)
}

/// What a broadcast broadcasts.
fn source(graph: &Graph, id: NodeId) -> Option<NodeId> {
    matches!(graph.node(id).op, Op::Broadcast(_)).then(|| graph.operand(id, 0)).flatten()
}

/// The first operand that may be smaller than the result; `None` if the operation does not broadcast.
fn first_broadcast(op: &Op) -> Option<usize> {
    match op {
        Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) | Op::Pointwise(_) => Some(0),
        Op::Rope => Some(1),
        Op::Attention { .. } => Some(3),
        _ => None,
    }
}

pub fn sink(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let first = first_broadcast(&node.op)?;
    let operands = graph.operands(id);
    let strip = |slot: usize| source(graph, operands[slot]).filter(|_| slot >= first);
    let smaller: Vec<NodeId> =
        (0..operands.len()).map(|slot| strip(slot).unwrap_or(operands[slot])).collect();
    if smaller == operands {
        return None;
    }
    let types: Vec<&Type> = smaller.iter().map(|&x| ty(graph, x)).collect();
    let result = infer::infer(&node.op, &types).ok()?;
    let values: Vec<Value> = smaller.iter().map(|&x| x.into()).collect();
    let mut patch = Patch::new();
    if result == node.ty {
        let direct = patch.add(&node.name, node.op.clone(), &values);
        patch.replace(id, direct);
        return Some(patch);
    }
    let moved = operands.iter().zip(&smaller).filter(|(a, b)| a != b);
    if !moved.clone().all(|(&broadcast, _)| only_reader(graph, broadcast, id)) {
        return None;
    }
    let small = patch.add(format!("{}.small", node.name), node.op.clone(), &values);
    let big = patch.add(&node.name, Op::Broadcast(node.ty.shape.clone()), &[small]);
    patch.replace(id, big);
    Some(patch)
}
