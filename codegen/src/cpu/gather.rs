//! Reads through indices. Negative indices count from the end; one out of range ends the kernel
//! with status 1. The block behind each index is copied, never interpreted.

use fqc_ir::dim::Dim;
use fqc_ir::plan::{Step, View};
use fqc_ir::types::Elem;
use inkwell::IntPredicate::{SLT, UGE};

use super::CpuError;
use super::build::{Builder, Val};
use super::call::{Call, Spec, unsupported};
use super::expr;
use super::pointwise::{TASK_ELEMENTS, bits_only};
use super::spec::{Nest, Size, Sizes, ViewSpec, view_specs};
use super::walk::{self, Chunk, Row, Step as Stride, Walk};

/// Loops of a block that is copied: sizes, strides of source and result.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct BlockSpec {
    shape: Vec<Size>,
    strides: [Vec<Size>; 2],
}

impl BlockSpec {
    /// The axes `shape` of two views.
    pub fn new(sizes: &mut Sizes, shape: &[Dim], source: &[Dim], result: &[Dim]) -> BlockSpec {
        let nest = Nest::new(shape, &[source, result]).collapse();
        BlockSpec {
            shape: sizes.all(&nest.shape),
            strides: [sizes.all(&nest.strides[0]), sizes.all(&nest.strides[1])],
        }
    }

    /// Calls `body` with the rows of the last axis and their length.
    pub fn rows<'c>(
        &self,
        b: &Builder<'_, 'c>,
        elems: [Elem; 2],
        buffers: [Val<'c>; 2],
        offsets: [Val<'c>; 2],
        body: &dyn Fn(Row<'c>, Row<'c>, Val<'c>),
    ) {
        self.nested(b, 0, offsets, &|offsets| {
            let last = |side: usize| match self.strides[side].last() {
                Some(&s) => Stride::new(b, s),
                None => Stride::Same,
            };
            let row = |i: usize| Row::new(b, elems[i], buffers[i], offsets[i], last(i));
            let n = self.shape.last().map_or(b.i64c(1), |n| n.val(b));
            body(row(0), row(1), n);
        });
    }

    fn nested<'c>(
        &self,
        b: &Builder<'_, 'c>,
        axis: usize,
        offsets: [Val<'c>; 2],
        leaf: &dyn Fn([Val<'c>; 2]),
    ) {
        if axis + 1 >= self.shape.len() {
            return leaf(offsets);
        }
        let strides = [0, 1].map(|side| self.strides[side][axis].val(b));
        b.for_carried(b.i64c(0), self.shape[axis].val(b), 1, &offsets, |_, carried| {
            self.nested(b, axis + 1, [carried[0], carried[1]], leaf);
            (0..2).map(|side| b.add(carried[side], strides[side])).collect()
        });
    }
}

/// Copies a row. Only a block without axes goes to one place.
fn copy_row<'c>(b: &Builder<'_, 'c>, from: Row<'c>, to: Row<'c>, n: Val<'c>) {
    if matches!(to.step, Stride::Same) {
        let (zero, one) = (b.i64c(0), Chunk { lanes: 1, mask: None });
        return to.write(b, zero, one, from.read(b, zero, one).val);
    }
    let lanes = b.level().f32_lanes() * 32 / from.elem.bits();
    let tail = walk::tail_for(b, &[from, to]);
    let lanes = if tail == walk::Tail::Scalar { b.level().f32_lanes() } else { lanes };
    walk::span(b, b.i64c(0), n, lanes, tail, |i, chunk| {
        to.write(b, i, chunk, from.read(b, i, chunk).val);
    });
}

/// The index at `offset`, in `[0, n)`; leaves the kernel with status 1 if it is not.
pub(super) fn checked_index<'c>(
    b: &Builder<'_, 'c>,
    elem: Elem,
    buffer: Val<'c>,
    offset: Val<'c>,
    n: Val<'c>,
) -> Val<'c> {
    let index = Row::new(b, elem, buffer, offset, Stride::Same).get(b, b.i64c(0));
    let index = expr::cast(b, index, Elem::I64).val;
    let negative = b.icmp(SLT, index, b.i64c(0));
    let index = b.select(negative, b.add(index, n), index);
    b.return_if(b.icmp(UGE, index, n), 1);
    index
}

/// Strides of `view` with zeros for the axes in `without`.
pub(super) fn strides_without(view: &View, without: std::ops::Range<usize>) -> Vec<Dim> {
    let keep = |(axis, stride): (usize, &Dim)| {
        if without.contains(&axis) { Dim::zero() } else { stride.clone() }
    };
    view.strides.iter().enumerate().map(keep).collect()
}

fn is_index(elem: Elem) -> bool {
    matches!(elem, Elem::I64 | Elem::I32)
}

/// Everything that the code of a gather depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Gather {
    rows: Vec<Size>,
    /// Data, indices, result.
    views: Vec<ViewSpec>,
    n: Size,
    stride: Size,
    block: BlockSpec,
}

/// Takes a gather apart.
pub fn call(step: &Step, axis: usize, index_rank: usize, elems: &[Elem]) -> Result<Call, CpuError> {
    let [data, indices] = step.args.as_slice() else {
        return Err(unsupported(step, "wants data and indices"));
    };
    let out = &step.results[0];
    let fits = data.shape.len() > axis
        && indices.shape.len() == index_rank
        && out.shape.len() + 1 == data.shape.len() + index_rank
        && is_index(elems[1]);
    if !fits {
        return Err(unsupported(step, "data, indices and result do not fit"));
    }
    let split = axis + index_rank;
    let zeros = |n: usize| vec![Dim::zero(); n];
    let strides = [
        [&data.strides[..axis], &zeros(index_rank)].concat(),
        [&zeros(axis), &indices.strides[..]].concat(),
        out.strides[..split].to_vec(),
    ];
    let strides: Vec<&[Dim]> = strides.iter().map(Vec::as_slice).collect();
    let rows = Nest::new(&out.shape[..split], &strides).collapse();
    let mut sizes = Sizes::default();
    let kinds = [bits_only(elems[0]), elems[1], bits_only(elems[2])];
    let post = fqc_ir::dim::product(&out.shape[split..]);
    let kernel = Gather {
        rows: sizes.all(&rows.shape),
        views: view_specs(&mut sizes, &[data, indices, out], &kinds, &rows.strides),
        n: sizes.one(&data.shape[axis]),
        stride: sizes.one(&data.strides[axis]),
        block: BlockSpec::new(
            &mut sizes,
            &out.shape[split..],
            &data.strides[axis + 1..],
            &out.strides[split..],
        ),
    };
    let grain = (TASK_ELEMENTS / post.as_const().unwrap_or(64).max(1)).max(1);
    Ok(Call::new(Spec::Gather(kernel), sizes, rows.count(), grain, Dim::zero()))
}

impl Gather {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let strides: Vec<&[Size]> = self.views.iter().map(|v| v.strides.as_slice()).collect();
        let walk = Walk::new(b, &self.rows, &strides);
        let buffers = [b.buf(0), b.buf(1), b.buf(2)];
        let starts: Vec<_> = self.views.iter().map(|v| v.start.val(b)).collect();
        let (n, stride) = (self.n.val(b), self.stride.val(b));
        walk.rows(b, b.begin(), b.end(), |_, offsets| {
            let at = |i: usize| b.add(starts[i], offsets[i]);
            let index = checked_index(b, self.views[1].elem, buffers[1], at(1), n);
            let from = b.add(at(0), b.mul(index, stride));
            self.block.rows(
                b,
                [self.views[0].elem, self.views[2].elem],
                [buffers[0], buffers[2]],
                [from, at(2)],
                &|from, to, n| copy_row(b, from, to, n),
            );
        });
    }
}

/// Everything that the code of an element-wise gather depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct GatherElements {
    shape: Vec<Size>,
    /// Data without its axis, indices, result.
    views: Vec<ViewSpec>,
    n: Size,
    stride: Size,
}

/// Takes an element-wise gather apart.
pub fn elements_call(step: &Step, axis: usize, elems: &[Elem]) -> Result<Call, CpuError> {
    let [data, indices] = step.args.as_slice() else {
        return Err(unsupported(step, "wants data and indices"));
    };
    let out = &step.results[0];
    let rank = out.shape.len();
    if data.shape.len() != rank || indices.shape.len() != rank || axis >= rank {
        return Err(unsupported(step, "data, indices and result have one rank"));
    }
    if !is_index(elems[1]) {
        return Err(unsupported(step, "indices are i64 or i32"));
    }
    let data_strides = strides_without(data, axis..axis + 1);
    let strides: [&[Dim]; 3] = [&data_strides, &indices.strides, &out.strides];
    let nest = Nest::new(&out.shape, &strides).collapse();
    let mut sizes = Sizes::default();
    let kinds = [bits_only(elems[0]), elems[1], bits_only(elems[2])];
    let kernel = GatherElements {
        shape: sizes.all(&nest.shape),
        views: view_specs(&mut sizes, &[data, indices, out], &kinds, &nest.strides),
        n: sizes.one(&data.shape[axis]),
        stride: sizes.one(&data.strides[axis]),
    };
    let spec = Spec::GatherElements(kernel);
    Ok(Call::new(spec, sizes, nest.count(), TASK_ELEMENTS / 8, Dim::zero()))
}

impl GatherElements {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let strides: Vec<&[Size]> = self.views.iter().map(|v| v.strides.as_slice()).collect();
        let walk = Walk::new(b, &self.shape, &strides);
        let buffers = [b.buf(0), b.buf(1), b.buf(2)];
        let starts: Vec<_> = self.views.iter().map(|v| v.start.val(b)).collect();
        let (n, stride) = (self.n.val(b), self.stride.val(b));
        let (zero, one) = (b.i64c(0), Chunk { lanes: 1, mask: None });
        walk.rows(b, b.begin(), b.end(), |_, offsets| {
            let at = |i: usize| b.add(starts[i], offsets[i]);
            let index = checked_index(b, self.views[1].elem, buffers[1], at(1), n);
            let from = b.add(at(0), b.mul(index, stride));
            let from = Row::new(b, self.views[0].elem, buffers[0], from, Stride::Same);
            let to = Row::new(b, self.views[2].elem, buffers[2], at(2), Stride::Same);
            to.write(b, zero, one, from.get(b, zero).val);
        });
    }
}

/// Index tuples: their length, the step between entries, and what each counts in the data.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Tuple {
    step: Size,
    /// Size and stride of each indexed axis.
    axes: Vec<(Size, Size)>,
}

impl Tuple {
    /// Tuples along the last axis of `indices` into the axes of `data` from `first` on.
    pub fn new(sizes: &mut Sizes, indices: &View, data: &View, first: usize) -> Option<Tuple> {
        let depth = usize::try_from(indices.shape.last()?.as_const()?).ok()?;
        let axes = first..first.checked_add(depth)?;
        if axes.end > data.shape.len() {
            return None;
        }
        let step = sizes.one(indices.strides.last()?);
        let axis = |axis: usize| (sizes.one(&data.shape[axis]), sizes.one(&data.strides[axis]));
        Some(Tuple { step, axes: axes.map(axis).collect() })
    }

    pub fn depth(&self) -> usize {
        self.axes.len()
    }

    /// The element offset that the tuple at `offset` of the indices points to.
    pub fn offset<'c>(
        &self,
        b: &Builder<'_, 'c>,
        elem: Elem,
        buffer: Val<'c>,
        offset: Val<'c>,
    ) -> Val<'c> {
        let (mut at, mut sum) = (offset, b.i64c(0));
        for (n, stride) in &self.axes {
            let index = checked_index(b, elem, buffer, at, n.val(b));
            sum = b.add(sum, b.mul(index, stride.val(b)));
            at = b.add(at, self.step.val(b));
        }
        sum
    }
}

/// Everything that the code of a gather by tuples depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct GatherNd {
    rows: Vec<Size>,
    /// Data, indices, result.
    views: Vec<ViewSpec>,
    tuple: Tuple,
    block: BlockSpec,
}

/// Takes a gather by tuples apart.
pub fn nd_call(step: &Step, batch: usize, elems: &[Elem]) -> Result<Call, CpuError> {
    let [data, indices] = step.args.as_slice() else {
        return Err(unsupported(step, "wants data and indices"));
    };
    let out = &step.results[0];
    let mut sizes = Sizes::default();
    let tuple = Tuple::new(&mut sizes, indices, data, batch);
    let split = indices.shape.len().saturating_sub(1);
    let (Some(tuple), true) = (tuple, is_index(elems[1]) && batch <= split) else {
        return Err(unsupported(step, "wants tuples of constant length within the data's rank"));
    };
    let first_post = batch + tuple.depth();
    if out.shape.len() + first_post != split + data.shape.len() {
        return Err(unsupported(step, "the result does not fit"));
    }
    let mut data_strides = data.strides[..batch].to_vec();
    data_strides.resize(split, Dim::zero());
    let strides: [&[Dim]; 3] = [&data_strides, &indices.strides[..split], &out.strides[..split]];
    let rows = Nest::new(&out.shape[..split], &strides).collapse();
    let kinds = [bits_only(elems[0]), elems[1], bits_only(elems[2])];
    let post = fqc_ir::dim::product(&out.shape[split..]);
    let kernel = GatherNd {
        rows: sizes.all(&rows.shape),
        views: view_specs(&mut sizes, &[data, indices, out], &kinds, &rows.strides),
        tuple,
        block: BlockSpec::new(
            &mut sizes,
            &out.shape[split..],
            &data.strides[first_post..],
            &out.strides[split..],
        ),
    };
    let grain = (TASK_ELEMENTS / post.as_const().unwrap_or(64).max(8)).max(1);
    Ok(Call::new(Spec::GatherNd(kernel), sizes, rows.count(), grain, Dim::zero()))
}

impl GatherNd {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let strides: Vec<&[Size]> = self.views.iter().map(|v| v.strides.as_slice()).collect();
        let walk = Walk::new(b, &self.rows, &strides);
        let buffers = [b.buf(0), b.buf(1), b.buf(2)];
        let starts: Vec<_> = self.views.iter().map(|v| v.start.val(b)).collect();
        walk.rows(b, b.begin(), b.end(), |_, offsets| {
            let at = |i: usize| b.add(starts[i], offsets[i]);
            let from = self.tuple.offset(b, self.views[1].elem, buffers[1], at(1));
            self.block.rows(
                b,
                [self.views[0].elem, self.views[2].elem],
                [buffers[0], buffers[2]],
                [b.add(at(0), from), at(2)],
                &|from, to, n| copy_row(b, from, to, n),
            );
        });
    }
}
