//! Batched products of two computed values. f32 with a contiguous result goes by register tiles,
//! over panels of b that are copied to scratch where b is not contiguous along its columns; the
//! rest goes row by row in plain loops.

use fqc_ir::dim::{self, Dim};
use fqc_ir::expr::BinaryOp;
use fqc_ir::op::ReduceOp;
use fqc_ir::plan::{Step, View};
use fqc_ir::types::Elem;
use inkwell::IntPredicate::{EQ, SLT};

use super::CpuError;
use super::build::{Builder, Val};
use super::call::{Call, Spec, unsupported};
use super::expr::{self, Typed};
use super::pointwise::TASK_ELEMENTS;
use super::reduce::combine;
use super::spec::{Nest, Size, Sizes, ViewSpec, view_specs};
use super::transpose::transpose_tile;
use super::walk::{self, Row, Step as Stride, Walk};

/// Rows and columns of one work item.
const ROWS: i64 = 48;
const COLUMNS: i64 = 256;
/// Vectors of a register tile.
const VECTORS: u32 = 2;
/// Columns of a panel at the level with the longest vectors.
const PANEL: i64 = 32;

/// Everything that the code depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct MatMul {
    batch: Vec<Size>,
    /// a, b, result, with their batch strides.
    views: Vec<ViewSpec>,
    m: Size,
    n: Size,
    k: Size,
    /// Strides of a along m and k, of b along k and n, of the result along m and n.
    inner: [Size; 6],
    tiled: bool,
}

/// Takes a step apart.
pub fn call(step: &Step, elems: &[Elem]) -> Result<Call, CpuError> {
    let [x, y] = step.args.as_slice() else {
        return Err(unsupported(step, "wants two arguments"));
    };
    let out = &step.results[0];
    let rank = out.shape.len();
    let (Some(batch), true) = (rank.checked_sub(2), x.shape.len() == rank && y.shape.len() == rank)
    else {
        return Err(unsupported(step, "wants views of one rank, at least 2"));
    };
    if elems.iter().any(|e| *e != elems[0] || *e == Elem::Bool) {
        return Err(unsupported(step, "wants numbers of one type"));
    }
    let views: [&View; 3] = [x, y, out];
    let outer: Vec<&[Dim]> = views.iter().map(|v| &v.strides[..batch]).collect();
    let nest = Nest::new(&out.shape[..batch], &outer).collapse();
    let (m, n, k) = (&out.shape[batch], &out.shape[batch + 1], &x.shape[batch + 1]);
    let mut sizes = Sizes::default();
    let mut inner = |view: &View| [batch, batch + 1].map(|axis| sizes.one(&view.strides[axis]));
    let [[xm, xk], [yk, yn], [om, on]] = views.map(&mut inner);
    let tiled = elems[0] == Elem::F32 && on == Size::Const(1);
    let kernel = MatMul {
        batch: sizes.all(&nest.shape),
        views: view_specs(&mut sizes, &views, elems, &nest.strides),
        m: sizes.one(m),
        n: sizes.one(n),
        k: sizes.one(k),
        inner: [xm, xk, yk, yn, om, on],
        tiled,
    };
    let packs = kernel.packs();
    let ops = dim::product([&out.count(), k, &Dim::from(2i64)]);
    let rows = if tiled { m.ceil_div(ROWS) * n.ceil_div(COLUMNS) } else { m.clone() };
    let grain = if tiled { 1 } else { (TASK_ELEMENTS / 4096).max(1) };
    let call = Call::new(Spec::MatMul(kernel), sizes, nest.count() * rows, grain, ops);
    let panel = if packs { k.clone() * Dim::from(PANEL * 4) } else { Dim::zero() };
    Ok(call.with_scratch(panel))
}

/// One work item of the tiled form.
struct Item<'c> {
    a: Val<'c>,
    b: Val<'c>,
    out: Val<'c>,
    rows: Val<'c>,
    columns: Val<'c>,
}

/// Run-time values of the sizes.
struct Values<'c> {
    k: Val<'c>,
    inner: [Val<'c>; 6],
}

impl MatMul {
    /// Whether panels of b are copied to scratch.
    fn packs(&self) -> bool {
        self.tiled && self.inner[3] != Size::Const(1)
    }

    /// Emits the body.
    pub fn emit<'c>(&self, b: &Builder<'_, 'c>) {
        if self.tiled { self.emit_tiled(b) } else { self.emit_plain(b) }
    }

    /// The walk over the batch with a last axis that counts the items of one product.
    fn walk<'c>(&self, b: &Builder<'_, 'c>, items: Val<'c>) -> Walk<'c> {
        let mut shape = self.batch.clone();
        shape.push(Size::Const(0));
        let strides: Vec<Vec<Size>> = self
            .views
            .iter()
            .map(|v| v.strides.iter().copied().chain([Size::Const(0)]).collect())
            .collect();
        let strides: Vec<&[Size]> = strides.iter().map(Vec::as_slice).collect();
        let mut walk = Walk::new(b, &shape, &strides);
        walk.shape[self.batch.len()] = items;
        walk
    }

    fn emit_plain<'c>(&self, b: &Builder<'_, 'c>) {
        let elem = self.views[0].elem;
        let (m, n, k) = (self.m.val(b), self.n.val(b), self.k.val(b));
        let walk = self.walk(b, m);
        let buffers = [b.buf(0), b.buf(1), b.buf(2)];
        let starts: Vec<_> = self.views.iter().map(|v| v.start.val(b)).collect();
        let s: Vec<_> = self.inner.iter().map(|s| s.val(b)).collect();
        let step = |i: usize| Stride::new(b, self.inner[i]);
        walk.rows(b, b.begin(), b.end(), |item, offsets| {
            let row = if self.batch.is_empty() { item } else { b.srem(item, m) };
            let at = |i: usize| b.add(starts[i], offsets[i]);
            let left = b.add(at(0), b.mul(row, s[0]));
            let left = Row::new(b, elem, buffers[0], left, step(1));
            let out = b.add(at(2), b.mul(row, s[4]));
            let out = Row::new(b, elem, buffers[2], out, step(5));
            let right = Row::new(b, elem, buffers[1], at(1), step(3));
            let tail = walk::tail_for(b, &[right, out]);
            walk::span(b, b.i64c(0), n, b.level().f32_lanes(), tail, |j, chunk| {
                let zero = b.zero(expr::register_type(b, elem, chunk.lanes));
                let sum = b.for_carried(b.i64c(0), k, 1, &[zero], |p, sum| {
                    let offset = b.add(at(1), b.mul(p, s[2]));
                    let right = Row::new(b, elem, buffers[1], offset, step(3));
                    let x = b.splat(left.get(b, p).val, chunk.lanes);
                    let y = right.read(b, j, chunk).val;
                    let wide = if elem.bits() == 16 && elem.is_float() { Elem::F32 } else { elem };
                    let typed = |val| Typed { elem: wide, val };
                    let xy = expr::binary(b, BinaryOp::Mul, typed(x), typed(y)).val;
                    vec![combine(b, ReduceOp::Sum, elem, sum[0], xy)]
                });
                out.write(b, j, chunk, sum[0]);
            });
        });
    }

    fn emit_tiled<'c>(&self, b: &Builder<'_, 'c>) {
        let (m, n) = (self.m.val(b), self.n.val(b));
        let up = |x: Val<'c>, by: i64| b.sdiv(b.add(x, b.i64c(by - 1)), b.i64c(by));
        let across = up(n, COLUMNS);
        let items = b.mul(up(m, ROWS), across);
        let walk = self.walk(b, items);
        let buffers = [b.buf(0), b.buf(1), b.buf(2)];
        let starts: Vec<_> = self.views.iter().map(|v| v.start.val(b)).collect();
        let inner = self.inner.map(|s| s.val(b));
        let values = Values { k: self.k.val(b), inner };
        walk.rows(b, b.begin(), b.end(), |item, offsets| {
            let part = if self.batch.is_empty() { item } else { b.srem(item, items) };
            let row = b.mul(b.sdiv(part, across), b.i64c(ROWS));
            let column = b.mul(b.srem(part, across), b.i64c(COLUMNS));
            let [xm, _, _, yn, om, _] = values.inner;
            let at = |i: usize, row: Val<'c>, rs: Val<'c>, column: Val<'c>, cs: Val<'c>| {
                let offset = b.add(starts[i], offsets[i]);
                let offset = b.add(offset, b.add(b.mul(row, rs), b.mul(column, cs)));
                b.index(buffers[i], b.f32(), offset)
            };
            let (zero, one) = (b.i64c(0), b.i64c(1));
            let item = Item {
                a: at(0, row, xm, zero, zero),
                b: at(1, zero, zero, column, yn),
                out: at(2, row, om, column, one),
                rows: b.smin(b.sub(m, row), b.i64c(ROWS)),
                columns: b.smin(b.sub(n, column), b.i64c(COLUMNS)),
            };
            self.emit_item(b, &item, &values);
        });
    }

    fn emit_item<'c>(&self, b: &Builder<'_, 'c>, item: &Item<'c>, values: &Values<'c>) {
        let lanes = b.level().f32_lanes();
        let panel = i64::from(VECTORS * lanes);
        b.for_range(b.i64c(0), item.columns, panel, |column| {
            let left = b.smin(b.sub(item.columns, column), b.i64c(panel));
            let source = b.index(item.b, b.f32(), b.mul(column, values.inner[3]));
            let (right, stride) = if self.packs() {
                self.pack(b, source, left, values);
                (b.scratch(), b.i64c(panel))
            } else {
                (source, values.inner[2])
            };
            let out = b.index(item.out, b.f32(), column);
            let whole = b.icmp(EQ, left, b.i64c(panel));
            let height = if b.level().has_avx512() { 8 } else { 6 };
            let rows = |masks: Option<Vec<Val<'c>>>| {
                let tile = |first: Val<'c>, count: u32| {
                    let a = b.index(item.a, b.f32(), b.mul(first, values.inner[0]));
                    let out = b.index(out, b.f32(), b.mul(first, values.inner[4]));
                    self.tile(b, [a, right, out], stride, count, masks.as_deref(), values);
                };
                let middle = b.mul(b.sdiv(item.rows, b.i64c(height)), b.i64c(height));
                b.for_range(b.i64c(0), middle, height, |row| tile(row, height as u32));
                b.for_range(middle, item.rows, 1, |row| tile(row, 1));
            };
            b.either(
                whole,
                || rows(None),
                || {
                    let mask =
                        |v: u32| b.mask_first(b.sub(left, b.i64c((v * lanes).into())), lanes);
                    rows(Some((0..VECTORS).map(mask).collect()));
                },
            );
        });
    }

    /// `height` rows by [`VECTORS`] vectors of the result; `[a, b, out]` are the first elements.
    fn tile<'c>(
        &self,
        b: &Builder<'_, 'c>,
        [a, right, out]: [Val<'c>; 3],
        stride: Val<'c>,
        height: u32,
        masks: Option<&[Val<'c>]>,
        values: &Values<'c>,
    ) {
        let lanes = b.level().f32_lanes();
        let ty = b.f32v(lanes);
        let [xm, xk, _, _, om, _] = values.inner;
        let rows: Vec<Val<'c>> =
            (0..height).map(|i| b.index(a, b.f32(), b.mul(b.i64c(i.into()), xm))).collect();
        let sums = vec![b.zero(ty); (height * VECTORS) as usize];
        let sums = b.for_carried(b.i64c(0), values.k, 1, &sums, |k, sums| {
            let from = b.index(right, b.f32(), b.mul(k, stride));
            let columns: Vec<Val<'c>> = (0..VECTORS)
                .map(|v| {
                    let at = b.index(from, b.f32(), b.i64c((v * lanes).into()));
                    match masks {
                        Some(masks) => b.masked_load(ty, at, masks[v as usize], b.zero(ty)),
                        None => b.load(ty, at, 4),
                    }
                })
                .collect();
            let offset = b.mul(k, xk);
            let mut next = Vec::with_capacity(sums.len());
            for (i, &row) in rows.iter().enumerate() {
                let x = b.splat(b.load(b.f32(), b.index(row, b.f32(), offset), 4), lanes);
                for (v, &y) in columns.iter().enumerate() {
                    next.push(b.fma(x, y, sums[i * VECTORS as usize + v]));
                }
            }
            next
        });
        for (i, &sum) in sums.iter().enumerate() {
            let (row, v) = (i as i64 / i64::from(VECTORS), i as u32 % VECTORS);
            let at = b.add(b.mul(b.i64c(row), om), b.i64c((v * lanes).into()));
            let at = b.index(out, b.f32(), at);
            match masks {
                Some(masks) => b.masked_store(sum, at, masks[v as usize]),
                None => b.store(sum, at, 4),
            }
        }
    }

    /// Copies `count` columns of b to scratch, one panel row for each k.
    fn pack<'c>(&self, b: &Builder<'_, 'c>, from: Val<'c>, count: Val<'c>, values: &Values<'c>) {
        let lanes = b.level().f32_lanes();
        let panel = i64::from(VECTORS * lanes);
        let [_, _, yk, yn, _, _] = values.inner;
        let ty = b.f32v(lanes);
        let k = values.k;
        // Whole squares are transposed in registers where b is contiguous along k.
        let squares = self.inner[2] == Size::Const(1);
        let done = if squares { b.and(k, b.i64c(-i64::from(lanes))) } else { b.i64c(0) };
        for v in 0..VECTORS {
            let first = i64::from(v * lanes);
            let full = b.not(b.icmp(SLT, count, b.i64c(first + i64::from(lanes))));
            let begin = b.select(full, done, b.i64c(0));
            let from = b.index(from, b.f32(), b.mul(b.i64c(first), yn));
            let to = b.index(b.scratch(), b.f32(), b.i64c(first));
            if squares {
                b.for_range(b.i64c(0), begin, lanes.into(), |k| {
                    let column = |i: u32| {
                        let at = b.add(k, b.mul(b.i64c(i.into()), yn));
                        b.load(ty, b.index(from, b.f32(), at), 4)
                    };
                    let rows = transpose_tile(b, (0..lanes).map(column).collect());
                    for (i, row) in rows.into_iter().enumerate() {
                        let at = b.mul(b.add(k, b.i64c(i as i64)), b.i64c(panel));
                        b.store(row, b.index(to, b.f32(), at), 4);
                    }
                });
            }
            let left = b.smin(b.sub(count, b.i64c(first)), b.i64c(lanes.into()));
            b.for_range(begin, k, 1, |k| {
                let from = b.index(from, b.f32(), b.mul(k, yk));
                let to = b.index(to, b.f32(), b.mul(k, b.i64c(panel)));
                b.for_range(b.i64c(0), left, 1, |i| {
                    let x = b.load(b.f32(), b.index(from, b.f32(), b.mul(i, yn)), 4);
                    b.store(x, b.index(to, b.f32(), i), 4);
                });
            });
        }
    }
}
