//! Copies that swap the contiguous axis, by square tiles that are transposed in registers.

use fqc_ir::Expr;
use fqc_ir::dim::Dim;
use fqc_ir::plan::{Step, View};
use fqc_ir::types::Elem;

use super::build::{Builder, Val};
use super::call::{Call, Spec};
use super::pointwise::{TASK_ELEMENTS, unit_axis_last};
use super::spec::{Nest, Size, Sizes, reach_below};
use super::walk::Walk;

/// Rows of one work item.
const ROWS: i64 = 16;

/// A copy of 32-bit elements; the source is contiguous along `across`, the result along `along`.
#[derive(Clone, PartialEq, Debug)]
pub struct Transpose {
    outer: Vec<Size>,
    across: Size,
    along: Size,
    /// Where element 0 of source and result lies.
    starts: [Size; 2],
    /// Strides of the outer axes, source and result.
    strides: [Vec<Size>; 2],
    /// The source's stride along `along`, the result's along `across`.
    source_step: Size,
    result_step: Size,
}

/// Takes a step apart if it is such a copy.
pub fn call(step: &Step, expr: &Expr, elems: &[Elem]) -> Option<Call> {
    let (Expr::Arg(source), Some(out)) = (expr, step.results.first()) else { return None };
    let source: &View = step.args.get(*source)?;
    if step.args.len() != 1 || elems.iter().any(|&e| e != Elem::U32) {
        return None;
    }
    let one = Dim::one();
    let mut nest =
        unit_axis_last(Nest::new(&out.shape, &[&source.strides, &out.strides]).collapse());
    let last = nest.shape.len().checked_sub(1)?;
    let across = nest.strides[0].iter().rposition(|s| *s == one)?;
    let small = |n: &Dim| n.as_const().is_some_and(|n| n < 8);
    let plain = across == last || nest.strides[1][last] != one;
    if plain || small(&nest.shape[across]) || small(&nest.shape[last]) {
        return None;
    }
    let along = nest.shape.pop()?;
    let source_step = nest.strides[0].pop()?;
    nest.strides[1].pop()?;
    let across_size = nest.shape.remove(across);
    nest.strides[0].remove(across);
    let result_step = nest.strides[1].remove(across);
    let mut sizes = Sizes::default();
    let work = nest.count() * across_size.ceil_div(ROWS);
    let row = along.as_const().unwrap_or(256).max(1);
    let kernel = Transpose {
        outer: sizes.all(&nest.shape),
        across: sizes.one(&across_size),
        along: sizes.one(&along),
        starts: [sizes.one(&reach_below(source)), sizes.one(&reach_below(out))],
        strides: [sizes.all(&nest.strides[0]), sizes.all(&nest.strides[1])],
        source_step: sizes.one(&source_step),
        result_step: sizes.one(&result_step),
    };
    let grain = (TASK_ELEMENTS / (row * ROWS)).max(1);
    Some(Call::new(Spec::Transpose(kernel), sizes, work, grain, out.count()))
}

/// The transposed of as many vectors as they have lanes.
pub fn transpose_tile<'c>(b: &Builder<'_, 'c>, mut rows: Vec<Val<'c>>) -> Vec<Val<'c>> {
    let n = rows.len() as u32;
    let mut step = 1;
    while step < n {
        let upper: Vec<u32> =
            (0..n).map(|l| if l & step == 0 { l } else { n + l - step }).collect();
        let lower: Vec<u32> =
            (0..n).map(|l| if l & step == 0 { l + step } else { n + l }).collect();
        for i in (0..n).filter(|i| i & step == 0) {
            let (i, j) = (i as usize, (i + step) as usize);
            let (x, y) = (rows[i], rows[j]);
            rows[i] = b.shuffle(x, y, &upper);
            rows[j] = b.shuffle(x, y, &lower);
        }
        step *= 2;
    }
    rows
}

impl Transpose {
    /// Emits the body.
    pub fn emit(&self, b: &Builder<'_, '_>) {
        let across = self.across.val(b);
        let blocks = b.sdiv(b.add(across, b.i64c(ROWS - 1)), b.i64c(ROWS));
        let mut shape = self.outer.clone();
        shape.push(Size::Const(0));
        let mut strides = self.strides.clone();
        strides[0].push(Size::Const(ROWS));
        strides[1].push(Size::Const(0));
        let mut walk = Walk::new(b, &shape, &[&strides[0], &strides[1]]);
        let rank = walk.shape.len();
        let (source_step, result_step) = (self.source_step.val(b), self.result_step.val(b));
        walk.shape[rank - 1] = blocks;
        walk.strides[1][rank - 1] = b.mul(result_step, b.i64c(ROWS));
        let int = b.int(32);
        let source = b.index(b.buf(0), int, self.starts[0].val(b));
        let result = b.index(b.buf(1), int, self.starts[1].val(b));
        let along = self.along.val(b);
        walk.rows(b, b.begin(), b.end(), |item, offsets| {
            let block = b.srem(item, blocks);
            let left = b.sub(across, b.mul(block, b.i64c(ROWS)));
            let part = Part {
                from: b.index(source, int, offsets[0]),
                to: b.index(result, int, offsets[1]),
                source_step,
                result_step,
                rows: b.smin(left, b.i64c(ROWS)),
            };
            let lanes = i64::from(b.level().f32_lanes());
            let whole = b.icmp(inkwell::IntPredicate::EQ, part.rows, b.i64c(ROWS));
            let middle = b.select(whole, b.and(along, b.i64c(-lanes)), b.i64c(0));
            b.for_range(b.i64c(0), middle, lanes, |column| {
                for first in (0..ROWS).step_by(lanes as usize) {
                    part.tile(b, column, first);
                }
            });
            b.for_range(middle, along, 1, |column| part.column(b, column));
        });
    }
}

/// The rows of one work item.
struct Part<'c> {
    from: Val<'c>,
    to: Val<'c>,
    source_step: Val<'c>,
    result_step: Val<'c>,
    rows: Val<'c>,
}

impl<'c> Part<'c> {
    /// A square tile: result rows from `first`, columns from `column`.
    fn tile(&self, b: &Builder<'_, 'c>, column: Val<'c>, first: i64) {
        let lanes = b.level().f32_lanes();
        let int = b.int(32);
        let ty = b.i32v(lanes);
        let from = b.index(self.from, int, b.i64c(first));
        let rows = (0..lanes).map(|i| {
            let column = b.add(column, b.i64c(i.into()));
            b.load(ty, b.index(from, int, b.mul(column, self.source_step)), 4)
        });
        let columns = transpose_tile(b, rows.collect());
        for (i, x) in columns.into_iter().enumerate() {
            let row = b.mul(b.i64c(first + i as i64), self.result_step);
            b.store(x, b.index(self.to, int, b.add(row, column)), 4);
        }
    }

    /// One column of the result.
    fn column(&self, b: &Builder<'_, 'c>, column: Val<'c>) {
        let int = b.int(32);
        let from = b.index(self.from, int, b.mul(column, self.source_step));
        b.for_range(b.i64c(0), self.rows, 1, |row| {
            let x = b.load(int, b.index(from, int, row), 4);
            let at = b.add(b.mul(row, self.result_step), column);
            b.store(x, b.index(self.to, int, at), 4);
        });
    }
}
