//! What positions decide: a comparison that holds for all of them is a constant, and a lookup by them
//! is the value itself, seen otherwise. So do the exporters of PyTorch spell the mask of padding.
//!
//! ```text
//! %i: i64[b] = iota {len=b}
//! %j: i64[s] = iota {len=s}
//! %b: i64[b,1,1,s,1] = …                     %i along axis 0
//! %s: i64[b,1,1,s,1] = …                     %j along axis 3
//! %at: i64[b,1,1,s,2] = concat %b, %s {axis=4}
//! %y: bool[b,1,1,s] = gather_nd %mask: bool[b,s], %at     ->  %y = reshape %mask
//! %flat: bool[b*s] = reshape %mask
//! %place: i64[b,1,1,s] = …                   s times %i, plus %j
//! %z: bool[b,1,1,s] = gather %flat, %place {axis=0}       ->  %z = reshape %mask
//! %c: bool[s] = ge %j, 0                                  ->  %c = broadcast true
//! ```

use crate::pattern::{binary, mirrored, ty};
use crate::position::{Position, columns, least, position};
use fqc_ir::{BinaryOp, Const, Dim, Elem, Graph, NodeId, Op, Patch, Value};

/// A comparison of positions with one number, the same for all of them.
pub fn compared(graph: &Graph, id: NodeId) -> Option<Patch> {
    let Op::Binary(op) = graph.node(id).op else { return None };
    let swapped = mirrored(op)?;
    let (x, y) = binary(graph, id, op)?;
    let (a, b) = (position(graph, x)?, position(graph, y)?);
    let holds = match (a.as_fixed(), b.as_fixed()) {
        (None, Some(bound)) => from_on(op, &a, bound),
        (Some(bound), None) => from_on(swapped, &b, bound),
        _ => None,
    }?;
    let mut patch = Patch::new();
    let name = &graph.node(id).name;
    let value = Const::new(Elem::Bool, vec![], vec![u8::from(holds)])?;
    let value = patch.add(format!("{name}.always"), Op::Const(value), &[]);
    let shape = ty(graph, id).shape.clone();
    let all = patch.add(name, Op::Broadcast(shape), &[value]);
    patch.replace(id, all);
    Some(patch)
}

/// Whether `p op bound` is the same for all of the positions p, and what.
fn from_on(op: BinaryOp, p: &Position, bound: &Dim) -> Option<bool> {
    if !p.steps.iter().all(|step| least(step).is_some_and(|least| least >= 0)) {
        return None;
    }
    let above = least(&(p.first.clone() - bound.clone()))?;
    match op {
        BinaryOp::Ge if above >= 0 => Some(true),
        BinaryOp::Gt if above > 0 => Some(true),
        BinaryOp::Lt if above >= 0 => Some(false),
        BinaryOp::Le if above > 0 => Some(false),
        _ => None,
    }
}

/// A lookup whose indices are positions along axes of its result.
pub fn looked_up(graph: &Graph, id: NodeId) -> Option<Patch> {
    match graph.node(id).op {
        Op::GatherNd { batch_dims: 0 } => by_columns(graph, id),
        Op::Gather { axis: 0 } => by_rows(graph, id),
        _ => None,
    }
}

/// Every index of some axes, once, or one index of an axis.
fn by_columns(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (x, indices) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    let (sizes, places) = (&ty(graph, x).shape, &ty(graph, indices).shape);
    let columns = columns(graph, indices)?;
    let (mut start, mut len) = (vec![Dim::zero(); sizes.len()], sizes.clone());
    let mut axes = Vec::new();
    for (c, column) in columns.iter().enumerate() {
        if let Some(first) = column.as_fixed() {
            let inside = 0..sizes[c].as_const()?;
            first.as_const().filter(|at| inside.contains(at))?;
            (start[c], len[c]) = (first.clone(), Dim::one());
        } else {
            let axis = column.as_index()?;
            let whole = column.first == Dim::zero() && sizes[c] == places[axis];
            if !whole || axes.contains(&axis) {
                return None;
            }
            axes.push(axis);
        }
    }
    let name = &graph.node(id).name;
    let mut patch = Patch::new();
    let kept = (0..sizes.len()).filter(|&c| columns.get(c).is_none_or(|c| c.as_fixed().is_none()));
    let kept = kept.map(|c| sizes[c].clone()).collect();
    let step = vec![1; sizes.len()];
    let part = patch.add(format!("{name}.part"), Op::Slice { start, len, step }, &[x.into()]);
    let part = patch.add(format!("{name}.kept"), Op::Reshape(kept), &[part]);
    spread(graph, id, patch, part, &axes, &places[..places.len() - 1], &sizes[columns.len()..])
}

/// Every row once, in the order in which some axes of the result go through them.
fn by_rows(graph: &Graph, id: NodeId) -> Option<Patch> {
    let (x, indices) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    let Position { first, steps } = position(graph, indices)?;
    let (rows, rest) = ty(graph, x).shape.split_first()?;
    let outer = &ty(graph, indices).shape;
    // Innermost axis first: its step is one, that of each other the size of all further in.
    let mut axes = Vec::new();
    let mut size = Dim::one();
    while let Some(axis) = (0..steps.len()).find(|a| steps[*a] == size && !axes.contains(a)) {
        axes.push(axis);
        size = size * outer[axis].clone();
    }
    let all_found = (0..steps.len()).all(|a| steps[a] == Dim::zero() || axes.contains(&a));
    if first != Dim::zero() || size != *rows || axes.is_empty() || !all_found {
        return None;
    }
    axes.reverse();
    let shape = axes.iter().map(|&axis| &outer[axis]).chain(rest).cloned().collect();
    let mut patch = Patch::new();
    let apart = Op::Reshape(shape);
    let apart = patch.add(format!("{}.apart", graph.node(id).name), apart, &[x.into()]);
    spread(graph, id, patch, apart, &axes, outer, rest)
}

/// Replaces a lookup by a value whose first axes are these `axes` among the `outer` ones of the
/// result, the others its last ones: turned, placed and broadcast.
fn spread(
    graph: &Graph,
    id: NodeId,
    mut patch: Patch,
    value: Value,
    axes: &[usize],
    outer: &[Dim],
    rest: &[Dim],
) -> Option<Patch> {
    let mut order: Vec<usize> = (0..axes.len()).collect();
    order.sort_unstable_by_key(|&i| axes[i]);
    order.extend(axes.len()..axes.len() + rest.len());
    let place = |(axis, size): (usize, &Dim)| match axes.contains(&axis) {
        true => size.clone(),
        false => Dim::one(),
    };
    let shape = outer.iter().enumerate().map(place).chain(rest.iter().cloned()).collect();
    let name = &graph.node(id).name;
    let turned = patch.add(format!("{name}.turned"), Op::Transpose(order), &[value]);
    let placed = patch.add(format!("{name}.placed"), Op::Reshape(shape), &[turned]);
    let all = patch.add(name, Op::Broadcast(ty(graph, id).shape.clone()), &[placed]);
    patch.replace(id, all);
    Some(patch)
}
