//! Integer values that count: exporters spell masks as comparisons of positions and as lookups by them,
//! and what such a value holds is then known without running anything.
//!
//! ```text
//! %i: i64[s] = iota {len=s}                        0 + i0
//! %row: i64[1,s,1] = reshape %i                    0 + i1
//! %size: i64[1] = dims {sizes=[s]}                 s
//! %item: i64[b,1,1] = reshape (iota {len=b})       0 + i0
//! %start: i64[b,1,1] = mul %item, %size            0 + s i0
//! %at: i64[b,s,1] = add %row, %start               0 + s i0 + i1
//! ```

use fqc_ir::dim::{Atom, product};
use fqc_ir::{BinaryOp, Const, Dim, Elem, Graph, NodeId, Op};

use crate::pattern::{binary, ty};

/// Larger constants are not searched.
const MAX_ELEMENTS: usize = 1 << 17;

/// A value whose every element is `first` plus, for each axis, `steps` times its index there. Along an
/// axis of size one the step is zero.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Position {
    pub first: Dim,
    pub steps: Vec<Dim>,
}

impl Position {
    /// The same number everywhere.
    fn fixed(first: Dim, rank: usize) -> Self {
        Position { first, steps: vec![Dim::zero(); rank] }
    }

    /// The one number that it holds.
    pub fn as_fixed(&self) -> Option<&Dim> {
        self.steps.iter().all(|step| *step == Dim::zero()).then_some(&self.first)
    }

    /// The axis along which it counts in ones, if it is the same along all others.
    pub fn as_index(&self) -> Option<usize> {
        let mut moving = self.steps.iter().enumerate().filter(|(_, step)| **step != Dim::zero());
        let (axis, step) = moving.next()?;
        (moving.next().is_none() && *step == Dim::one()).then_some(axis)
    }

    /// The position seen with other axes, `to(axis)` for each along which it moves.
    fn moved(self, rank: usize, to: impl Fn(usize) -> Option<usize>) -> Option<Self> {
        let mut result = Position::fixed(self.first, rank);
        for (axis, step) in self.steps.into_iter().enumerate() {
            if step != Dim::zero() {
                result.steps[to(axis)?] = step;
            }
        }
        Some(result)
    }

    /// The position of a value of these sizes that is broadcast.
    fn stretched(self, from: &[Dim], to: &[Dim]) -> Option<Self> {
        let new = to.len().checked_sub(from.len())?;
        self.moved(to.len(), |axis| (to[new + axis] == from[axis]).then_some(new + axis))
    }
}

/// Nodes that are looked at for one value, at most.
const VISITS: usize = 64;

/// Largest factor or constant in a position: integers of a run do not wrap where these and sizes of tensors meet.
const MOST: i64 = 1 << 30;

/// What the value counts, if it is known to.
pub fn position(graph: &Graph, id: NodeId) -> Option<Position> {
    visit(graph, id, &mut { VISITS })
}

fn visit(graph: &Graph, id: NodeId, visits: &mut usize) -> Option<Position> {
    *visits = visits.checked_sub(1)?;
    if !matches!(ty(graph, id).elem, Elem::I32 | Elem::I64) {
        return None;
    }
    let position = of_node(graph, id, visits)?;
    let small = |number: &Dim| number.terms().all(|(_, factor)| (-MOST..=MOST).contains(&factor));
    let all_small = small(&position.first) && position.steps.iter().all(small);
    all_small.then_some(position)
}

fn of_node(graph: &Graph, id: NodeId, visits: &mut usize) -> Option<Position> {
    let node = graph.node(id);
    let rank = node.ty.rank();
    let mut from = || {
        let x = graph.operand(id, 0)?;
        Some((visit(graph, x, visits)?, &ty(graph, x).shape[..]))
    };
    match &node.op {
        Op::Iota(len) => {
            let step = if len.as_const() == Some(1) { Dim::zero() } else { Dim::one() };
            Some(Position { first: Dim::zero(), steps: vec![step] })
        }
        Op::Dims(sizes) => match &sizes[..] {
            [size] => Some(Position::fixed(size.clone(), rank)),
            _ => None,
        },
        Op::Const(value) if value.count() <= MAX_ELEMENTS => of_constant(value),
        Op::Cast(_) => Some(from()?.0),
        Op::Broadcast(to) => {
            let (position, shape) = from()?;
            position.stretched(shape, to)
        }
        Op::Reshape(to) => {
            let (position, shape) = from()?;
            position.moved(rank, |axis| reshaped(shape, axis, to))
        }
        Op::Transpose(order) => {
            let (position, _) = from()?;
            position.moved(rank, |axis| order.iter().position(|&from| from == axis))
        }
        Op::Slice { start, len, step } => {
            let mut position = from()?.0;
            for (axis, by) in position.steps.iter_mut().enumerate() {
                position.first = position.first + start[axis].clone() * by.clone();
                let moves = len[axis].as_const() != Some(1);
                *by = if moves { by.clone() * Dim::from(step[axis]) } else { Dim::zero() };
            }
            Some(position)
        }
        Op::Binary(op @ (BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul)) => {
            let (x, y) = binary(graph, id, *op)?;
            let mut operand =
                |x| visit(graph, x, visits)?.stretched(&ty(graph, x).shape, &node.ty.shape);
            combined(*op, operand(x)?, operand(y)?)
        }
        _ => None,
    }
}

/// The columns of a value's last axis, each over the other axes.
pub fn columns(graph: &Graph, id: NodeId) -> Option<Vec<Position>> {
    let node = graph.node(id);
    let last = node.ty.rank().checked_sub(1)?;
    let count = usize::try_from(node.ty.shape[last].as_const()?).ok()?;
    let outer = |mut position: Position| {
        position.steps.truncate(last);
        position
    };
    match &node.op {
        Op::Concat { axis } if *axis == last => {
            let single = |&part: &NodeId| ty(graph, part).shape[last].as_const() == Some(1);
            let parts = graph.operands(id);
            let parts = parts.iter().all(single).then_some(parts)?;
            parts.into_iter().map(|part| position(graph, part).map(outer)).collect()
        }
        Op::Const(value) if value.count() <= MAX_ELEMENTS => {
            let values = value.to_i64()?;
            let column = |c| values.iter().skip(c).step_by(count).copied().collect::<Vec<_>>();
            (0..count).map(|c| of_values(&column(c), &value.shape[..last])).collect()
        }
        _ if count == 1 => Some(vec![outer(position(graph, id)?)]),
        _ => None,
    }
}

/// The least number that a size or a difference of sizes is known not to fall below.
pub fn least(size: &Dim) -> Option<i64> {
    size.terms().try_fold(0i64, |least, (atoms, factor)| match atoms {
        [] => least.checked_add(factor),
        _ => {
            let grows = factor >= 0 && atoms.iter().all(|atom| matches!(atom, Atom::Sym(_)));
            grows.then_some(least)
        }
    })
}

/// The sum, difference or product of two positions over the same axes.
fn combined(op: BinaryOp, a: Position, b: Position) -> Option<Position> {
    let each = |f: &dyn Fn(Dim, Dim) -> Dim, a: Position, b: Position| {
        let steps = a.steps.into_iter().zip(b.steps).map(|(a, b)| f(a, b)).collect();
        Some(Position { first: f(a.first, b.first), steps })
    };
    match op {
        BinaryOp::Add => each(&|a, b| a + b, a, b),
        BinaryOp::Sub => each(&|a, b| a - b, a, b),
        BinaryOp::Mul => {
            let (position, by) = match (a.as_fixed(), b.as_fixed()) {
                (_, Some(by)) => (a, by.clone()),
                (Some(by), None) => (b, by.clone()),
                (None, None) => return None,
            };
            let steps = position.steps.into_iter().map(|step| step * by.clone()).collect();
            Some(Position { first: position.first * by, steps })
        }
        _ => None,
    }
}

fn of_constant(value: &Const) -> Option<Position> {
    of_values(&value.to_i64()?, &value.shape)
}

/// What these values, in row-major order, count.
fn of_values(values: &[i64], shape: &[usize]) -> Option<Position> {
    let &first = values.first()?;
    let inner = |axis: usize| shape[axis + 1..].iter().product::<usize>();
    let step = |axis: usize| match shape[axis] {
        1 => Some(0),
        _ => values[inner(axis)].checked_sub(first),
    };
    let steps = (0..shape.len()).map(step).collect::<Option<Vec<i64>>>()?;
    let expected = |at: usize| {
        steps.iter().enumerate().try_fold(first, |sum, (axis, step)| {
            let index = i64::try_from(at / inner(axis) % shape[axis]).ok()?;
            sum.checked_add(step.checked_mul(index)?)
        })
    };
    let counts = values.iter().enumerate().all(|(at, &value)| expected(at) == Some(value));
    counts.then(|| Position {
        first: Dim::from(first),
        steps: steps.into_iter().map(Dim::from).collect(),
    })
}

/// The axis of a reshaped value that goes through the elements as the axis of its source does.
fn reshaped(from: &[Dim], axis: usize, to: &[Dim]) -> Option<usize> {
    let before = product(&from[..axis]);
    (0..to.len()).find(|&at| to[at] == from[axis] && product(&to[..at]) == before)
}
