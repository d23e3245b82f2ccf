//! Softmax along the last axis: largest element, exponentials and their sum, division.

use fqc_ir::dim::Dim;
use fqc_ir::plan::Step;
use fqc_ir::types::Elem;

use super::build::{Builder, Val};
use super::call::{Call, Spec, unsupported};
use super::pointwise::TASK_ELEMENTS;
use super::reduce::row_max;
use super::spec::{Nest, Size, Sizes, ViewSpec, view_specs};
use super::walk::{self, Row, Step as Stride, Walk};
use super::{CpuError, expr, math, math64};

/// Everything that the code depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Softmax {
    rows: Vec<Size>,
    views: Vec<ViewSpec>,
    n: Size,
    steps: Vec<Size>,
}

/// Takes a step apart.
pub fn call(step: &Step, elems: &[Elem]) -> Result<Call, CpuError> {
    let (x, y) = (&step.args[0], &step.results[0]);
    if !elems[0].is_float() || elems[0] != elems[1] {
        return Err(unsupported(step, "softmax wants floats of one type"));
    }
    let (rows, n, steps) = Nest::new(&y.shape, &[&x.strides, &y.strides]).split_last();
    let rows = rows.collapse();
    let mut sizes = Sizes::default();
    let kernel = Softmax {
        rows: sizes.all(&rows.shape),
        views: view_specs(&mut sizes, &[x, y], elems, &rows.strides),
        n: sizes.one(&n),
        steps: sizes.all(&steps),
    };
    let grain = (TASK_ELEMENTS / 4 / n.as_const().unwrap_or(128).max(1)).max(1);
    let ops = x.count() * Dim::from(5i64);
    Ok(Call::new(Spec::Softmax(kernel), sizes, rows.count(), grain, ops))
}

/// `e^x` of either width.
pub(super) fn exp<'c>(b: &Builder<'_, 'c>, elem: Elem, x: Val<'c>) -> Val<'c> {
    if elem == Elem::F64 { math64::exp(b, x) } else { math::exp(b, x) }
}

impl Softmax {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let [x, y] = self.views.as_slice() else { panic!("softmax has two views") };
        let walk = Walk::new(b, &self.rows, &[&x.strides, &y.strides]);
        let (source, result) = (b.buf(0), b.buf(1));
        let (x_start, y_start) = (x.start.val(b), y.start.val(b));
        let steps: Vec<_> = self.steps.iter().map(|&s| Stride::new(b, s)).collect();
        let n = self.n.val(b);
        walk.rows(b, b.begin(), b.end(), |_, offsets| {
            let from = Row::new(b, x.elem, source, b.add(x_start, offsets[0]), steps[0]);
            let to = Row::new(b, y.elem, result, b.add(y_start, offsets[1]), steps[1]);
            self.emit_row(b, from, to, n);
        });
    }

    fn emit_row<'c>(&self, b: &Builder<'_, 'c>, from: Row<'c>, to: Row<'c>, n: Val<'c>) {
        let elem = from.elem;
        let largest = row_max(b, n, from);
        let tail = walk::tail_for(b, &[from, to]);
        // Half precision would lose bits between the passes; it computes its exponentials twice.
        let stores = matches!(elem, Elem::F32 | Elem::F64);
        let zero = b.zero(expr::register_type(b, elem, 1));
        let term = |i, chunk: walk::Chunk<'c>| {
            let x = from.read(b, i, chunk).val;
            exp(b, elem, b.fsub(x, b.splat(largest, chunk.lanes)))
        };
        let sum = walk::fold(
            b,
            n,
            tail,
            zero,
            |p, q| b.fadd(p, q),
            |i, chunk| {
                let e = term(i, chunk);
                if stores {
                    to.write(b, i, chunk, e);
                }
                e
            },
        );
        let inverse = b.fdiv(b.fconst(sum.get_type(), 1.0), sum);
        walk::span(b, b.i64c(0), n, walk::FOLD_LANES, tail, |i, chunk| {
            let e = if stores { to.read(b, i, chunk).val } else { term(i, chunk) };
            to.write(b, i, chunk, b.fmul(e, b.splat(inverse, chunk.lanes)));
        });
    }
}
