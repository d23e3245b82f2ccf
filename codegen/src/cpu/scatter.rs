//! Writes through indices into a result that already holds the data. Updates that may meet are
//! applied in order, within one work item.

use fqc_ir::dim::{self, Dim};
use fqc_ir::expr::BinaryOp;
use fqc_ir::op::ScatterOp;
use fqc_ir::plan::Step;
use fqc_ir::types::Elem;

use super::CpuError;
use super::build::{Builder, Val};
use super::call::{Call, Spec, unsupported};
use super::expr;
use super::gather::{BlockSpec, Tuple, checked_index, strides_without};
use super::spec::{Nest, Size, Sizes, ViewSpec, view_specs};
use super::walk::{Chunk, Row, Step as Stride, Walk};

/// Combines an update with what is there.
fn apply<'c>(b: &Builder<'_, 'c>, op: ScatterOp, to: Row<'c>, i: Val<'c>, from: Row<'c>) {
    let update = from.get(b, i);
    let op = match op {
        ScatterOp::Set => None,
        ScatterOp::Add => Some(BinaryOp::Add),
        ScatterOp::Mul => Some(BinaryOp::Mul),
        ScatterOp::Max => Some(BinaryOp::Max),
        ScatterOp::Min => Some(BinaryOp::Min),
    };
    let value = op.map_or(update, |op| expr::binary(b, op, to.get(b, i), update));
    to.write(b, i, Chunk { lanes: 1, mask: None }, value.val);
}

fn check(step: &Step, op: ScatterOp, elems: &[Elem]) -> Result<(), CpuError> {
    let [index, update, data] = elems else {
        return Err(unsupported(step, "wants indices, updates and a result"));
    };
    if !matches!(index, Elem::I64 | Elem::I32) || update != data {
        return Err(unsupported(step, "wants i64 or i32 indices and updates of the data's type"));
    }
    if op != ScatterOp::Set && *data == Elem::Bool {
        return Err(unsupported(step, "bools can only be set"));
    }
    Ok(())
}

/// Everything that the code of an element-wise scatter depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct ScatterElements {
    op: ScatterOp,
    /// Axes before the scattered one are work items, the others are walked in each.
    outer: Vec<Size>,
    outer_views: Vec<ViewSpec>,
    inner: Vec<Size>,
    inner_views: Vec<ViewSpec>,
    count: Size,
    n: Size,
    stride: Size,
}

/// Takes an element-wise scatter apart.
pub fn elements_call(
    step: &Step,
    axis: usize,
    op: ScatterOp,
    elems: &[Elem],
) -> Result<Call, CpuError> {
    check(step, op, elems)?;
    let (indices, updates, out) = (&step.args[0], &step.args[1], &step.results[0]);
    let rank = out.shape.len();
    if indices.shape.len() != rank || updates.shape.len() != rank || axis >= rank {
        return Err(unsupported(step, "indices, updates and data have one rank"));
    }
    let out_strides = strides_without(out, axis..axis + 1);
    let strides: [&[Dim]; 3] = [&indices.strides, &updates.strides, &out_strides];
    let part = |axes: std::ops::Range<usize>| {
        let parts: Vec<&[Dim]> = strides.iter().map(|s| &s[axes.clone()]).collect();
        Nest::new(&indices.shape[axes], &parts).collapse()
    };
    let (outer, inner) = (part(0..axis), part(axis..rank));
    let mut sizes = Sizes::default();
    let views = [indices, updates, out];
    let kernel = ScatterElements {
        op,
        outer: sizes.all(&outer.shape),
        outer_views: view_specs(&mut sizes, &views, elems, &outer.strides),
        inner: sizes.all(&inner.shape),
        inner_views: view_specs(&mut sizes, &views, elems, &inner.strides),
        count: sizes.one(&inner.count()),
        n: sizes.one(&out.shape[axis]),
        stride: sizes.one(&out.strides[axis]),
    };
    let ops = indices.count();
    Ok(Call::new(Spec::ScatterElements(kernel), sizes, outer.count(), 64, ops))
}

/// A walk over the axes of three views.
fn walk_of<'c>(b: &Builder<'_, 'c>, shape: &[Size], views: &[ViewSpec]) -> Walk<'c> {
    let strides: Vec<&[Size]> = views.iter().map(|v| v.strides.as_slice()).collect();
    Walk::new(b, shape, &strides)
}

impl ScatterElements {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let outer = walk_of(b, &self.outer, &self.outer_views);
        let inner = walk_of(b, &self.inner, &self.inner_views);
        let buffers = [b.buf(0), b.buf(1), b.buf(2)];
        let views = &self.outer_views;
        let starts: Vec<_> = views.iter().map(|v| v.start.val(b)).collect();
        let (count, n, stride) = (self.count.val(b), self.n.val(b), self.stride.val(b));
        outer.rows(b, b.begin(), b.end(), |_, base| {
            inner.rows(b, b.i64c(0), count, |_, offsets| {
                let at = |i: usize| b.add(starts[i], b.add(base[i], offsets[i]));
                let index = checked_index(b, views[0].elem, buffers[0], at(0), n);
                let to = b.add(at(2), b.mul(index, stride));
                let to = Row::new(b, views[2].elem, buffers[2], to, Stride::Same);
                let from = Row::new(b, views[1].elem, buffers[1], at(1), Stride::Same);
                apply(b, self.op, to, b.i64c(0), from);
            });
        });
    }
}

/// Everything that the code of a scatter by tuples depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct ScatterNd {
    op: ScatterOp,
    rows: Vec<Size>,
    /// Indices, updates, result.
    views: Vec<ViewSpec>,
    count: Size,
    tuple: Tuple,
    block: BlockSpec,
}

/// Takes a scatter by tuples apart.
pub fn nd_call(step: &Step, op: ScatterOp, elems: &[Elem]) -> Result<Call, CpuError> {
    check(step, op, elems)?;
    let (indices, updates, out) = (&step.args[0], &step.args[1], &step.results[0]);
    let mut sizes = Sizes::default();
    let split = indices.shape.len().saturating_sub(1);
    let Some(tuple) = Tuple::new(&mut sizes, indices, out, 0) else {
        return Err(unsupported(step, "wants tuples of constant length within the data's rank"));
    };
    let depth = tuple.depth();
    if updates.shape.len() + depth != split + out.shape.len() {
        return Err(unsupported(step, "the updates do not fit"));
    }
    let none = vec![Dim::zero(); split];
    let strides: [&[Dim]; 3] = [&indices.strides[..split], &updates.strides[..split], &none];
    let rows = Nest::new(&indices.shape[..split], &strides).collapse();
    let kernel = ScatterNd {
        op,
        rows: sizes.all(&rows.shape),
        views: view_specs(&mut sizes, &[indices, updates, out], elems, &rows.strides),
        count: sizes.one(&dim::product(&indices.shape[..split])),
        tuple,
        block: BlockSpec::new(
            &mut sizes,
            &out.shape[depth..],
            &updates.strides[split..],
            &out.strides[depth..],
        ),
    };
    let ops = updates.count();
    Ok(Call::new(Spec::ScatterNd(kernel), sizes, Dim::one(), 1, ops))
}

impl ScatterNd {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let walk = walk_of(b, &self.rows, &self.views);
        let buffers = [b.buf(0), b.buf(1), b.buf(2)];
        let starts: Vec<_> = self.views.iter().map(|v| v.start.val(b)).collect();
        let count = self.count.val(b);
        b.for_range(b.begin(), b.end(), 1, |_| {
            walk.rows(b, b.i64c(0), count, |_, offsets| {
                let at = |i: usize| b.add(starts[i], offsets[i]);
                let to = self.tuple.offset(b, self.views[0].elem, buffers[0], at(0));
                self.block.rows(
                    b,
                    [self.views[1].elem, self.views[2].elem],
                    [buffers[1], buffers[2]],
                    [at(1), b.add(at(2), to)],
                    &|from, to, n| {
                        b.for_range(b.i64c(0), n, 1, |i| apply(b, self.op, to, i, from));
                    },
                );
            });
        });
    }
}
