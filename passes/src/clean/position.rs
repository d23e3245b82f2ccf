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
use fqc_ir::graph::Limit;
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

/// A lookup whose indices are positions along axes of its result. Where these may reach beyond what is
/// looked up, which makes the lookup fail (unless it finds nothing at all), that they do not becomes a
/// limit of the graph.
pub fn looked_up(graph: &Graph, id: NodeId) -> Option<Patch> {
    let name = &graph.node(id).name;
    let mut patch = Patch::new();
    let Looked { value, axes } = match graph.node(id).op {
        Op::GatherNd { batch_dims: 0 } => by_columns(graph, id, &mut patch)?,
        Op::Gather { axis: 0 } => by_rows(graph, id, &mut patch)?,
        Op::GatherElements { axis } => by_elements(graph, id, axis, &mut patch)?,
        _ => return None,
    };
    // The axes in the result's order, in their places, and everything else broadcast.
    let shape = &ty(graph, id).shape;
    let mut order: Vec<usize> = (0..axes.len()).collect();
    order.sort_unstable_by_key(|&i| axes[i]);
    let place = |(axis, size): (usize, &Dim)| match axes.contains(&axis) {
        true => size.clone(),
        false => Dim::one(),
    };
    let placed = shape.iter().enumerate().map(place).collect();
    let turned = patch.add(format!("{name}.turned"), Op::Transpose(order), &[value]);
    let placed = patch.add(format!("{name}.placed"), Op::Reshape(placed), &[turned]);
    let all = patch.add(name, Op::Broadcast(shape.clone()), &[placed]);
    patch.replace(id, all);
    Some(patch)
}

/// What a lookup finds, and the axis of its result that each axis of it is.
struct Looked {
    value: Value,
    axes: Vec<usize>,
}

/// A part of each of the first axes, or one index of it.
fn by_columns(graph: &Graph, id: NodeId, patch: &mut Patch) -> Option<Looked> {
    let (x, indices) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    let (sizes, places) = (&ty(graph, x).shape, &ty(graph, indices).shape);
    let columns = columns(graph, indices)?;
    let (mut start, mut len) = (vec![Dim::zero(); sizes.len()], sizes.clone());
    let mut axes = Vec::new();
    for (c, column) in columns.iter().enumerate() {
        start[c] = column.first.clone();
        len[c] = Dim::one();
        if column.as_fixed().is_none() {
            let axis = column.as_index().filter(|axis| !axes.contains(axis))?;
            len[c] = places[axis].clone();
            axes.push(axis);
        }
        if least(&start[c])? < 0 {
            return None;
        }
        inside(patch, start[c].clone() + len[c].clone(), &sizes[c])?;
    }
    let name = &graph.node(id).name;
    let is_kept = |c: usize| columns.get(c).is_none_or(|column| column.as_fixed().is_none());
    let kept = (0..sizes.len()).filter(|&c| is_kept(c)).map(|c| len[c].clone()).collect();
    let step = vec![1; sizes.len()];
    let part = patch.add(format!("{name}.part"), Op::Slice { start, len, step }, &[x.into()]);
    let value = patch.add(format!("{name}.kept"), Op::Reshape(kept), &[part]);
    axes.extend((columns.len()..sizes.len()).map(|c| places.len() - 1 + c - columns.len()));
    Some(Looked { value, axes })
}

/// A part of one axis, the others whole.
fn by_elements(graph: &Graph, id: NodeId, axis: usize, patch: &mut Patch) -> Option<Looked> {
    let (x, indices) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    let (sizes, places) = (&ty(graph, x).shape, &ty(graph, indices).shape);
    let Position { first, .. } = position(graph, indices).filter(|p| p.as_index() == Some(axis))?;
    let others = (0..sizes.len()).all(|a| a == axis || sizes[a] == places[a]);
    if !others || least(&first)? < 0 {
        return None;
    }
    inside(patch, first.clone() + places[axis].clone(), &sizes[axis])?;
    let mut start = vec![Dim::zero(); sizes.len()];
    start[axis] = first;
    let part = Op::Slice { start, len: places.clone(), step: vec![1; sizes.len()] };
    let value = patch.add(format!("{}.part", graph.node(id).name), part, &[x.into()]);
    Some(Looked { value, axes: (0..sizes.len()).collect() })
}

/// Rows that lie as some axes of the result go through them: `s i + j` for rows of `b` times `s`.
fn by_rows(graph: &Graph, id: NodeId, patch: &mut Patch) -> Option<Looked> {
    let (x, indices) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    let Position { first, steps } = position(graph, indices)?;
    let (rows, rest) = ty(graph, x).shape.split_first()?;
    let outer = &ty(graph, indices).shape;
    let name = &graph.node(id).name;
    let others = (0..rest.len()).map(|i| outer.len() + i);
    if steps.iter().all(|step| *step == Dim::zero()) {
        let end = least(&first).filter(|&at| at >= 0).map(|_| first.clone() + Dim::one())?;
        inside(patch, end, rows)?;
        let (mut start, mut len) = (vec![Dim::zero(); 1 + rest.len()], vec![Dim::one()]);
        start[0] = first;
        len.extend(rest.iter().cloned());
        let step = vec![1; len.len()];
        let row = patch.add(format!("{name}.part"), Op::Slice { start, len, step }, &[x.into()]);
        let value = patch.add(format!("{name}.kept"), Op::Reshape(rest.to_vec()), &[row]);
        return Some(Looked { value, axes: others.collect() });
    }
    if first != Dim::zero() {
        return None;
    }
    // From the outermost axis on, each step is a multiple of the next, the last is one; so the rows are
    // a matrix of as many axes.
    let mut left: Vec<usize> = (0..steps.len()).filter(|&a| steps[a] != Dim::zero()).collect();
    let (mut axes, mut sizes, mut around) = (Vec::new(), Vec::new(), rows.clone());
    while !left.is_empty() {
        let is_multiple = |a: usize, b: &usize| steps[a].exact_div(&steps[*b]).is_some();
        let at = left.iter().position(|&a| left.iter().all(|b| is_multiple(a, b)))?;
        let axis = left.swap_remove(at);
        sizes.push(around.exact_div(&steps[axis])?);
        axes.push(axis);
        around = steps[axis].clone();
    }
    if around != Dim::one() {
        return None;
    }
    let len: Vec<Dim> = axes.iter().map(|&axis| outer[axis].clone()).collect();
    let reaches = len.iter().zip(&sizes).position(|(len, size)| len != size);
    if let Some(at) = reaches {
        // Beyond the end of an axis that is not the last to differ, the next row begins.
        if len[at + 1..] != sizes[at + 1..] {
            return None;
        }
        inside(patch, len[at].clone(), &sizes[at])?;
    }
    let whole = |sizes: Vec<Dim>| sizes.into_iter().chain(rest.iter().cloned()).collect::<Vec<_>>();
    let (sizes, len) = (whole(sizes), whole(len));
    let (start, step) = (vec![Dim::zero(); len.len()], vec![1; len.len()]);
    let apart = patch.add(format!("{name}.apart"), Op::Reshape(sizes), &[x.into()]);
    let value = patch.add(format!("{name}.part"), Op::Slice { start, len, step }, &[apart]);
    axes.extend(others);
    Some(Looked { value, axes })
}

/// Whether `end` is not beyond `size`, or may not be, which then becomes a limit.
fn inside(patch: &mut Patch, end: Dim, size: &Dim) -> Option<()> {
    let beyond = end.clone() - size.clone();
    if least(&(size.clone() - end)).is_some_and(|room| room >= 0) {
        return Some(());
    }
    if beyond.is_const() {
        return None;
    }
    let fixed: i64 = beyond.terms().filter(|(atoms, _)| atoms.is_empty()).map(|(_, n)| n).sum();
    patch.limit(Limit::AtMost(beyond - Dim::from(fixed), fixed.checked_neg()?));
    Some(())
}
