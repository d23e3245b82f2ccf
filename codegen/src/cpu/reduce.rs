//! Reductions, index of an extreme, running sums. A reduction goes along the contiguous axis: the
//! last reduced one, or, where that is strided, the last kept one, a block of columns at a time.

use fqc_ir::dim::{self, Dim};
use fqc_ir::expr::BinaryOp;
use fqc_ir::op::ReduceOp;
use fqc_ir::plan::Step;
use fqc_ir::types::Elem;
use inkwell::FloatPredicate::{OEQ, OGT, OLT, UNO};

use super::build::{Builder, Val};
use super::call::{Call, Spec, unsupported};
use super::expr::{self, Typed};
use super::pointwise::TASK_ELEMENTS;
use super::spec::{Nest, Size, Sizes, ViewSpec, view_specs};
use super::walk::{self, Chunk, Row, Step as Stride, Walk};
use super::{CpuError, math};

/// Columns of one work item where kept columns are the vector axis.
const COLUMNS: i64 = 64;

/// Everything that the code of a reduction depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Reduce {
    op: ReduceOp,
    /// Kept axes, of argument and result.
    keep: Vec<Size>,
    views: Vec<ViewSpec>,
    /// Reduced axes of the argument.
    reduced: Vec<Size>,
    strides: Vec<Size>,
    /// Number of reduced elements.
    count: Size,
    /// The last kept axis is the vector axis.
    columns: bool,
}

/// Takes a reduction apart.
pub fn call(step: &Step, op: ReduceOp, keep: usize, elems: &[Elem]) -> Result<Call, CpuError> {
    let (x, y) = (&step.args[0], &step.results[0]);
    if x.shape.len() < keep || y.shape.len() != keep {
        return Err(unsupported(step, "kept axes do not fit the views"));
    }
    let kept = Nest::new(&y.shape, &[&x.strides[..keep], &y.strides]).collapse();
    let reduced = Nest::new(&x.shape[keep..], &[&x.strides[keep..]]).collapse();
    let one = Some(1);
    let unit = |view: &[Dim]| view.last().and_then(Dim::as_const) == one;
    let columns = !unit(&reduced.strides[0]) && unit(&kept.strides[0]) && unit(&kept.strides[1]);
    let mut sizes = Sizes::default();
    let count = reduced.count();
    let work = if columns {
        let (outer, n) = kept.shape.split_at(kept.shape.len() - 1);
        dim::product(outer) * n[0].ceil_div(COLUMNS)
    } else {
        kept.count()
    };
    let row = count.as_const().unwrap_or(256).max(1) * if columns { COLUMNS } else { 1 };
    let kernel = Reduce {
        op,
        keep: sizes.all(&kept.shape),
        views: view_specs(&mut sizes, &[x, y], elems, &kept.strides),
        reduced: sizes.all(&reduced.shape),
        strides: sizes.all(&reduced.strides[0]),
        count: sizes.one(&count),
        columns,
    };
    let grain = (TASK_ELEMENTS / row).max(1);
    Ok(Call::new(Spec::Reduce(kernel), sizes, work, grain, x.count()))
}

/// One step of a reduction, on registers.
pub(super) fn combine<'c>(
    b: &Builder<'_, 'c>,
    op: ReduceOp,
    elem: Elem,
    x: Val<'c>,
    y: Val<'c>,
) -> Val<'c> {
    let wide = if matches!(elem, Elem::F16 | Elem::BF16) { Elem::F32 } else { elem };
    let op = match op {
        ReduceOp::Sum | ReduceOp::Mean => BinaryOp::Add,
        ReduceOp::Prod => BinaryOp::Mul,
        ReduceOp::Max => BinaryOp::Max,
        ReduceOp::Min => BinaryOp::Min,
    };
    expr::binary(b, op, Typed { elem: wide, val: x }, Typed { elem: wide, val: y }).val
}

/// What a reduction of nothing gives.
fn identity<'c>(b: &Builder<'_, 'c>, op: ReduceOp, elem: Elem) -> Val<'c> {
    let ty = expr::register_type(b, elem, 1);
    let bits = if elem == Elem::Bool { 1 } else { elem.bits() };
    let (low, high) = match elem.is_signed() {
        true => (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits)),
        false => (0, -1),
    };
    match (op, elem.is_float()) {
        (ReduceOp::Sum | ReduceOp::Mean, _) => b.zero(ty),
        (ReduceOp::Prod, true) => b.fconst(ty, 1.0),
        (ReduceOp::Prod, false) => b.iconst(ty, 1),
        (ReduceOp::Max, true) => b.fconst(ty, f64::NEG_INFINITY),
        (ReduceOp::Min, true) => b.fconst(ty, f64::INFINITY),
        (ReduceOp::Max, false) => b.iconst(ty, low),
        (ReduceOp::Min, false) => b.iconst(ty, high),
    }
}

/// Loops over `shape`, carrying an element offset and one value.
fn nested<'c>(
    b: &Builder<'_, 'c>,
    shape: &[Val<'c>],
    strides: &[Val<'c>],
    offset: Val<'c>,
    value: Val<'c>,
    leaf: &dyn Fn(Val<'c>, Val<'c>) -> Val<'c>,
) -> Val<'c> {
    let (Some((&n, shape)), Some((&stride, strides))) =
        (shape.split_first(), strides.split_first())
    else {
        return leaf(offset, value);
    };
    b.for_carried(b.i64c(0), n, 1, &[offset, value], |_, carried| {
        let value = nested(b, shape, strides, carried[0], carried[1], leaf);
        vec![b.add(carried[0], stride), value]
    })[1]
}

impl Reduce {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        if self.columns { self.emit_columns(b) } else { self.emit_rows(b) }
    }

    fn elem(&self) -> Elem {
        self.views[0].elem
    }

    /// The mean's division.
    fn finish<'c>(&self, b: &Builder<'_, 'c>, sum: Val<'c>) -> Val<'c> {
        if self.op != ReduceOp::Mean {
            return sum;
        }
        let count = Typed { elem: Elem::I64, val: self.count.val(b) };
        let wide = match self.elem() {
            Elem::F16 | Elem::BF16 => Elem::F32,
            other => other,
        };
        let count = Typed { elem: wide, val: expr::cast(b, count, wide).val };
        let count = Typed { elem: wide, val: b.splat(count.val, b.lanes(sum)) };
        expr::binary(b, BinaryOp::Div, Typed { elem: wide, val: sum }, count).val
    }

    fn vals<'c>(&self, b: &Builder<'_, 'c>, sizes: &[Size]) -> Vec<Val<'c>> {
        sizes.iter().map(|s| s.val(b)).collect()
    }

    fn emit_rows(&self, b: &Builder<'_, '_>) {
        let [x, y] = self.views.as_slice() else { panic!("a reduction has two views") };
        let walk = Walk::new(b, &self.keep, &[&x.strides, &y.strides]);
        let (source, result) = (b.buf(0), b.buf(1));
        let (x_start, y_start) = (x.start.val(b), y.start.val(b));
        let (n, step) = match (self.reduced.last(), self.strides.last()) {
            (Some(n), Some(&s)) => (n.val(b), Stride::new(b, s)),
            _ => (b.i64c(1), Stride::Unit),
        };
        let outer = self.reduced.len().saturating_sub(1);
        let shape = self.vals(b, &self.reduced[..outer]);
        let strides = self.vals(b, &self.strides[..outer]);
        let first = identity(b, self.op, self.elem());
        let merge = |p, q| combine(b, self.op, self.elem(), p, q);
        walk.rows(b, b.begin(), b.end(), |_, offsets| {
            let base = b.add(x_start, offsets[0]);
            let total = nested(b, &shape, &strides, base, first, &|offset, sum| {
                let row = Row::new(b, x.elem, source, offset, step);
                let tail = walk::tail_for(b, &[row]);
                let part = walk::fold(b, n, tail, first, merge, |i, c| row.read(b, i, c).val);
                merge(sum, part)
            });
            let out = Row::new(b, y.elem, result, b.add(y_start, offsets[1]), Stride::Same);
            let one = Chunk { lanes: 1, mask: None };
            out.write(b, b.i64c(0), one, self.finish(b, total));
        });
    }

    fn emit_columns(&self, b: &Builder<'_, '_>) {
        let [x, y] = self.views.as_slice() else { panic!("a reduction has two views") };
        let (source, result) = (b.buf(0), b.buf(1));
        let last = self.keep.len() - 1;
        let n = self.keep[last].val(b);
        let blocks = b.sdiv(b.add(n, b.i64c(COLUMNS - 1)), b.i64c(COLUMNS));
        let mut walk = Walk::new(b, &self.keep, &[&x.strides, &y.strides]);
        walk.shape[last] = blocks;
        walk.strides.iter_mut().for_each(|view| view[last] = b.i64c(COLUMNS));
        let (x_start, y_start) = (x.start.val(b), y.start.val(b));
        let (shape, strides) = (self.vals(b, &self.reduced), self.vals(b, &self.strides));
        let merge = |p, q| combine(b, self.op, self.elem(), p, q);
        walk.rows(b, b.begin(), b.end(), |item, offsets| {
            let column = b.mul(b.srem(item, blocks), b.i64c(COLUMNS));
            let width = b.smin(b.sub(n, column), b.i64c(COLUMNS));
            let base = b.add(x_start, offsets[0]);
            let out = Row::new(b, y.elem, result, b.add(y_start, offsets[1]), Stride::Unit);
            let start = Row::new(b, x.elem, source, base, Stride::Unit);
            let tail = walk::tail_for(b, &[out, start]);
            let lanes = b.level().f32_lanes();
            walk::span(b, b.i64c(0), width, lanes, tail, |i, chunk| {
                let first = b.splat(identity(b, self.op, self.elem()), chunk.lanes);
                let total = nested(b, &shape, &strides, base, first, &|offset, sum| {
                    let row = Row::new(b, x.elem, source, offset, Stride::Unit);
                    merge(sum, row.read(b, i, chunk).val)
                });
                out.write(b, i, chunk, self.finish(b, total));
            });
        });
    }
}

/// Everything that the code of an arg-reduction depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct ArgReduce {
    largest: bool,
    last: bool,
    keep: Vec<Size>,
    views: Vec<ViewSpec>,
    n: Size,
    step: Size,
}

/// Takes an arg-reduction apart.
pub fn arg_call(step: &Step, largest: bool, last: bool, elems: &[Elem]) -> Result<Call, CpuError> {
    let (x, y) = (&step.args[0], &step.results[0]);
    let keep = y.shape.len();
    if x.shape.len() != keep + 1 {
        return Err(unsupported(step, "the argument has one axis more than the result"));
    }
    let kept = Nest::new(&y.shape, &[&x.strides[..keep], &y.strides]).collapse();
    let mut sizes = Sizes::default();
    let kernel = ArgReduce {
        largest,
        last,
        keep: sizes.all(&kept.shape),
        views: view_specs(&mut sizes, &[x, y], elems, &kept.strides),
        n: sizes.one(&x.shape[keep]),
        step: sizes.one(&x.strides[keep]),
    };
    let row = x.shape[keep].as_const().unwrap_or(256).max(1);
    let grain = (TASK_ELEMENTS / row).max(1);
    Ok(Call::new(Spec::ArgReduce(kernel), sizes, kept.count(), grain, x.count()))
}

impl ArgReduce {
    /// Emits the body: one element after the other; the first NaN wins.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let [x, y] = self.views.as_slice() else { panic!("an arg-reduction has two views") };
        let walk = Walk::new(b, &self.keep, &[&x.strides, &y.strides]);
        let (source, result) = (b.buf(0), b.buf(1));
        let (x_start, y_start) = (x.start.val(b), y.start.val(b));
        let (n, step) = (self.n.val(b), Stride::new(b, self.step));
        let zero = b.i64c(0);
        walk.rows(b, b.begin(), b.end(), |_, offsets| {
            let row = Row::new(b, x.elem, source, b.add(x_start, offsets[0]), step);
            let first = row.get(b, zero).val;
            let found = b.for_carried(b.i64c(1), n, 1, &[first, zero], |i, best| {
                let value = row.get(b, i).val;
                let better = self.better(b, x.elem, value, best[0]);
                vec![b.select(better, value, best[0]), b.select(better, i, best[1])]
            });
            let out = Row::new(b, y.elem, result, b.add(y_start, offsets[1]), Stride::Same);
            out.write(b, zero, Chunk { lanes: 1, mask: None }, found[1]);
        });
    }

    fn better<'c>(
        &self,
        b: &Builder<'_, 'c>,
        elem: Elem,
        value: Val<'c>,
        best: Val<'c>,
    ) -> Val<'c> {
        let typed = |val| Typed { elem, val };
        if elem.is_float() {
            let beyond = b.fcmp(if self.largest { OGT } else { OLT }, value, best);
            let ties = if self.last { b.or(beyond, b.fcmp(OEQ, value, best)) } else { beyond };
            let nan = b.and(b.fcmp(UNO, value, value), b.not(b.fcmp(UNO, best, best)));
            return b.or(ties, nan);
        }
        let op = match (self.largest, self.last) {
            (true, false) => BinaryOp::Gt,
            (true, true) => BinaryOp::Ge,
            (false, false) => BinaryOp::Lt,
            (false, true) => BinaryOp::Le,
        };
        expr::binary(b, op, typed(value), typed(best)).val
    }
}

/// Everything that the code of a running sum depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct CumSum {
    exclusive: bool,
    reverse: bool,
    rows: Vec<Size>,
    views: Vec<ViewSpec>,
    n: Size,
    steps: Vec<Size>,
}

/// Takes a running sum apart.
pub fn cumsum_call(
    step: &Step,
    exclusive: bool,
    reverse: bool,
    elems: &[Elem],
) -> Result<Call, CpuError> {
    let (x, y) = (&step.args[0], &step.results[0]);
    if x.shape.len() != y.shape.len() || x.shape.is_empty() {
        return Err(unsupported(step, "argument and result have one rank, at least 1"));
    }
    let (rows, n, steps) = Nest::new(&y.shape, &[&x.strides, &y.strides]).split_last();
    let rows = rows.collapse();
    let mut sizes = Sizes::default();
    let kernel = CumSum {
        exclusive,
        reverse,
        rows: sizes.all(&rows.shape),
        views: view_specs(&mut sizes, &[x, y], elems, &rows.strides),
        n: sizes.one(&n),
        steps: sizes.all(&steps),
    };
    let row = n.as_const().unwrap_or(256).max(1);
    let grain = (TASK_ELEMENTS / row).max(1);
    Ok(Call::new(Spec::CumSum(kernel), sizes, rows.count(), grain, x.count()))
}

impl CumSum {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let [x, y] = self.views.as_slice() else { panic!("a running sum has two views") };
        let walk = Walk::new(b, &self.rows, &[&x.strides, &y.strides]);
        let (source, result) = (b.buf(0), b.buf(1));
        let (x_start, y_start) = (x.start.val(b), y.start.val(b));
        let steps: Vec<_> = self.steps.iter().map(|&s| Stride::new(b, s)).collect();
        let (n, one) = (self.n.val(b), Chunk { lanes: 1, mask: None });
        walk.rows(b, b.begin(), b.end(), |_, offsets| {
            let from = Row::new(b, x.elem, source, b.add(x_start, offsets[0]), steps[0]);
            let to = Row::new(b, y.elem, result, b.add(y_start, offsets[1]), steps[1]);
            let zero = b.zero(expr::register_type(b, x.elem, 1));
            b.for_carried(b.i64c(0), n, 1, &[zero], |i, sum| {
                let i = if self.reverse { b.sub(b.sub(n, b.i64c(1)), i) } else { i };
                let value = from.get(b, i);
                let before = Typed { elem: x.elem, val: sum[0] };
                let after = expr::binary(b, BinaryOp::Add, before, value);
                to.write(b, i, one, if self.exclusive { before.val } else { after.val });
                vec![after.val]
            });
        });
    }
}

/// Largest element of a row of floats; NaN wins.
pub(super) fn row_max<'c>(b: &Builder<'_, 'c>, n: Val<'c>, row: Row<'c>) -> Val<'c> {
    let ty = expr::register_type(b, row.elem, 1);
    let tail = walk::tail_for(b, &[row]);
    let low = b.fconst(ty, f64::NEG_INFINITY);
    walk::fold(b, n, tail, low, |x, y| math::extreme(b, x, y, true), |i, c| row.read(b, i, c).val)
}
