//! One block of queries of an attention kernel: transposed queries, scores, softmax, weighted sum.

use inkwell::IntPredicate::{SLE, SLT};

use super::attention::{Attention, QUERIES, Scratch};
use super::attention_bf16;
use super::build::{Builder, Val};
use super::spec::Size;
use super::transpose::transpose_tile;

/// Vectors of queries in a register tile of the scores, and of channels in one of the result.
const VECTORS: u32 = 2;

/// Addresses and sizes of one block. Strides are in elements.
pub(super) struct Block<'s, 'c> {
    pub spec: &'s Attention,
    pub q: Val<'c>,
    pub k: Val<'c>,
    pub v: Val<'c>,
    pub out: Val<'c>,
    pub mask: Option<Val<'c>>,
    pub query_stride: Val<'c>,
    pub key_stride: Val<'c>,
    pub value_stride: Val<'c>,
    pub out_stride: Val<'c>,
    /// Along queries and keys.
    pub mask_strides: Option<[Val<'c>; 2]>,
    /// Queries of the block.
    pub rows: Val<'c>,
    /// All keys of the head.
    pub keys: Val<'c>,
    /// Keys that any query of the block sees.
    pub visible: Val<'c>,
    /// Last key that the first query sees, if causal.
    pub limit: Val<'c>,
    pub scratch: Scratch<'c>,
}

impl<'c> Block<'_, 'c> {
    /// Emits the whole block.
    pub fn emit(&self, b: &Builder<'_, 'c>) {
        self.pack(b);
        let lanes = b.level().f32_lanes();
        let width = i64::from(VECTORS * lanes);
        for first in (0..QUERIES).step_by(width as usize) {
            // The lower half of a block may hold all its queries.
            let wanted = b.icmp(SLT, b.i64c(first), self.rows);
            b.when(wanted, || {
                self.spread_mask(b, first);
                let part = |vectors: u32| {
                    let largest = self.scores(b, first, vectors);
                    self.softmax(b, first, largest);
                };
                // Few queries do not pay for vectors that they leave empty.
                let few = b.icmp(SLE, self.rows, b.i64c(first + i64::from(lanes)));
                b.either(few, || part(1), || part(VECTORS));
            });
        }
        self.weigh(b);
    }

    /// Address of element `[row][column]` of a scratch matrix of [`QUERIES`] columns.
    pub fn cell(&self, b: &Builder<'_, 'c>, of: Val<'c>, row: Val<'c>, column: i64) -> Val<'c> {
        let at = b.add(b.mul(row, b.i64c(QUERIES)), b.i64c(column));
        b.index(of, b.f32(), at)
    }

    /// A query of the block; those that do not exist repeat the last.
    fn row(&self, b: &Builder<'_, 'c>, row: i64) -> Val<'c> {
        b.smin(b.i64c(row), b.sub(self.rows, b.i64c(1)))
    }

    /// Transposes the queries into scratch, scaled.
    fn pack(&self, b: &Builder<'_, 'c>) {
        let from = |row: i64| b.index(self.q, b.f32(), b.mul(self.row(b, row), self.query_stride));
        let depth = b.i64c(self.spec.depth);
        let scale = self.spec.query_scale(b);
        let scaled = |x: Val<'c>| b.fmul(x, b.fconst(x.get_type(), scale));
        self.transpose(b, depth, self.scratch.queries, &scaled, &from);
        if self.spec.in_pairs(b) {
            self.pair_queries(b);
        }
    }

    /// Writes what `map` makes of `count` elements of each of the rows `from(i)` as columns of `to`.
    fn transpose(
        &self,
        b: &Builder<'_, 'c>,
        count: Val<'c>,
        to: Val<'c>,
        map: &dyn Fn(Val<'c>) -> Val<'c>,
        from: &dyn Fn(i64) -> Val<'c>,
    ) {
        let lanes = b.level().f32_lanes();
        let ty = b.f32v(lanes);
        let whole = b.and(count, b.i64c(-i64::from(lanes)));
        for first in (0..QUERIES).step_by(lanes as usize) {
            let wanted = b.icmp(SLT, b.i64c(first), self.rows);
            b.when(wanted, || {
                let sources: Vec<Val<'c>> =
                    (0..i64::from(lanes)).map(|i| from(first + i)).collect();
                b.for_range(b.i64c(0), whole, lanes.into(), |j| {
                    let rows = sources
                        .iter()
                        .map(|&s| map(b.load(ty, b.index(s, b.f32(), j), 4)))
                        .collect();
                    for (i, column) in transpose_tile(b, rows).into_iter().enumerate() {
                        let row = b.add(j, b.i64c(i as i64));
                        b.store(column, self.cell(b, to, row, first), 4);
                    }
                });
                b.for_range(whole, count, 1, |j| {
                    let mut column = b.poison(ty);
                    for (i, &source) in sources.iter().enumerate() {
                        let x = b.load(b.f32(), b.index(source, b.f32(), j), 4);
                        column = b.insert(column, x, i as u32);
                    }
                    b.store(map(column), self.cell(b, to, j, first), 4);
                });
            });
        }
    }

    /// A mask that differs from query to query is transposed to where the scores will be.
    fn spread_mask(&self, b: &Builder<'_, 'c>, first: i64) {
        let (Some(mask), Some([along_queries, along_keys])) = (self.mask, self.mask_strides) else {
            return;
        };
        if first != 0 || self.spec.mask_is_shared() {
            return;
        }
        let from = |row: i64| b.index(mask, b.f32(), b.mul(self.row(b, row), along_queries));
        if self.spec.strides[4][3] == Size::Const(1) {
            let map = |x| self.spec.in_units(b, x);
            self.transpose(b, self.visible, self.scratch.scores, &map, &from);
            return;
        }
        b.for_range(b.i64c(0), self.visible, 1, |key| {
            for row in 0..QUERIES {
                let x = b.load(b.f32(), b.index(from(row), b.f32(), b.mul(key, along_keys)), 4);
                b.store(self.spec.in_units(b, x), self.cell(b, self.scratch.scores, key, row), 4);
            }
        });
    }

    /// Last visible key of each query of the vector that begins at query `first`.
    fn limits(&self, b: &Builder<'_, 'c>, first: i64) -> Val<'c> {
        let lanes = b.level().f32_lanes();
        let start = b.add(self.limit, b.i64c(first));
        let start = b.splat(b.trunc(start, b.int(32)), lanes);
        b.add(start, b.iota(b.int(32), lanes))
    }

    /// Scores of the queries from `first` on into scratch; gives the largest of each query.
    fn scores(&self, b: &Builder<'_, 'c>, first: i64, vectors: u32) -> Vec<Val<'c>> {
        let lanes = b.level().f32_lanes();
        let height = if b.level().has_avx512() { 8 } else { 4 };
        let low = b.fconst(b.f32v(lanes), f64::NEG_INFINITY);
        let init = vec![low; vectors as usize];
        let middle = b.and(self.visible, b.i64c(-height));
        let zero = b.i64c(0);
        let largest = b.for_carried(zero, middle, height, &init, |key, largest| {
            self.score_tile(b, first, key, height as u32, largest)
        });
        b.for_carried(middle, self.visible, 1, &largest, |key, largest| {
            self.score_tile(b, first, key, 1, largest)
        })
    }

    fn score_tile(
        &self,
        b: &Builder<'_, 'c>,
        first: i64,
        key: Val<'c>,
        height: u32,
        largest: &[Val<'c>],
    ) -> Vec<Val<'c>> {
        let lanes = b.level().f32_lanes();
        let ty = b.f32v(lanes);
        let in_pairs = self.spec.in_pairs(b);
        // A step is a channel or a pair of them; either has four bytes.
        let (first_key, key_stride, steps) = if in_pairs {
            (self.scratch.keys, b.i64c(self.spec.depth / 2), self.spec.depth / 2)
        } else {
            (self.k, self.key_stride, self.spec.depth)
        };
        let keys: Vec<Val<'c>> = (0..height)
            .map(|i| {
                let key = b.add(key, b.i64c(i.into()));
                b.index(first_key, b.f32(), b.mul(key, key_stride))
            })
            .collect();
        let unroll = if steps % 4 == 0 { 4 } else { 1 };
        let vectors = largest.len() as u32;
        let sums = vec![b.zero(ty); (height * vectors) as usize];
        let sums = b.for_carried(b.i64c(0), b.i64c(steps), unroll, &sums, |d, sums| {
            let mut sums = sums.to_vec();
            for u in 0..unroll {
                let d = b.add(d, b.i64c(u));
                let queries: Vec<Val<'c>> = (0..vectors)
                    .map(|v| {
                        let column = first + i64::from(v * lanes);
                        b.load(ty, self.cell(b, self.scratch.queries, d, column), 4)
                    })
                    .collect();
                for (i, &row) in keys.iter().enumerate() {
                    let x = b.splat(b.load(b.f32(), b.index(row, b.f32(), d), 4), lanes);
                    for (v, &q) in queries.iter().enumerate() {
                        let at = i * vectors as usize + v;
                        sums[at] = self.multiply_add(b, x, q, sums[at]);
                    }
                }
            }
            sums
        });
        let mut largest = largest.to_vec();
        for i in 0..height {
            let key = b.add(key, b.i64c(i.into()));
            for v in 0..vectors {
                let column = first + i64::from(v * lanes);
                let at = self.cell(b, self.scratch.scores, key, column);
                let sum = sums[(i * vectors + v) as usize];
                let score = self.masked(b, sum, key, column, at);
                b.store(score, at, 4);
                largest[v as usize] = b.fmax(score, largest[v as usize]);
            }
        }
        largest
    }

    /// `sum + x * y`, or for pairs `sum` and both products.
    fn multiply_add(&self, b: &Builder<'_, 'c>, x: Val<'c>, y: Val<'c>, sum: Val<'c>) -> Val<'c> {
        if self.spec.in_pairs(b) { attention_bf16::dot(b, sum, x, y) } else { b.fma(x, y, sum) }
    }

    /// A vector of scores with the mask added and what is hidden set to -inf.
    fn masked(
        &self,
        b: &Builder<'_, 'c>,
        sum: Val<'c>,
        key: Val<'c>,
        column: i64,
        at: Val<'c>,
    ) -> Val<'c> {
        let ty = sum.get_type();
        let lanes = b.lanes(sum);
        let mut score = sum;
        if let (Some(mask), Some([_, along_keys])) = (self.mask, self.mask_strides) {
            let added = if self.spec.mask_is_one() && self.spec.in_pairs(b) {
                b.splat(b.load(b.f32(), b.index(self.scratch.mask, b.f32(), key), 4), lanes)
            } else if self.spec.mask_is_shared() {
                let at = b.index(mask, b.f32(), b.mul(key, along_keys));
                b.splat(self.spec.in_units(b, b.load(b.f32(), at, 4)), lanes)
            } else {
                b.load(ty, at, 4)
            };
            score = b.fadd(score, added);
        }
        if self.spec.causal { self.seen(b, score, key, column) } else { score }
    }

    /// Scores of a key, -inf for the queries from `column` on that do not see it.
    fn seen(&self, b: &Builder<'_, 'c>, score: Val<'c>, key: Val<'c>, column: i64) -> Val<'c> {
        let ty = score.get_type();
        let key = b.splat(b.trunc(key, b.int(32)), b.lanes(score));
        let seen = b.icmp(SLE, key, self.limits(b, column));
        b.select(seen, score, b.fconst(ty, f64::NEG_INFINITY))
    }

    /// Exponentials in place of the scores, and `1 / sum`; 0 for a query that sees no key because
    /// all lie behind it.
    fn softmax(&self, b: &Builder<'_, 'c>, first: i64, mut largest: Vec<Val<'c>>) {
        let lanes = b.level().f32_lanes();
        let ty = b.f32v(lanes);
        let column = |v: usize| first + v as i64 * i64::from(lanes);
        let blind: Vec<Option<Val<'c>>> = (0..largest.len())
            .map(|v| {
                let limits = self.spec.causal.then(|| self.limits(b, column(v)))?;
                Some(b.icmp(SLT, limits, b.zero(limits.get_type())))
            })
            .collect();
        for (largest, blind) in largest.iter_mut().zip(&blind) {
            if let Some(blind) = blind {
                *largest = b.select(*blind, b.zero(ty), *largest);
            }
        }
        let init = vec![b.zero(ty); largest.len()];
        let score =
            |v: usize, key| b.load(ty, self.cell(b, self.scratch.scores, key, column(v)), 4);
        let sums = if self.spec.in_pairs(b) {
            let offsets: Vec<_> =
                largest.into_iter().map(|largest| attention_bf16::offset(b, largest)).collect();
            let ones = b.iconst(b.i32v(lanes), attention_bf16::ONES);
            // They end in the rows of half the keys' number.
            let step = |key: Val<'c>, two: bool, sums: &[Val<'c>]| -> Vec<Val<'c>> {
                let add = |(v, &sum): (usize, &Val<'c>)| {
                    let offset = |_| offsets[v];
                    let scores = [score(v, key), score(v, b.add(key, b.i64c(i64::from(two))))];
                    let [first, second] = attention_bf16::exponential(b, scores, offset);
                    let mut words = b.and(first, b.iconst(ones.get_type(), 0xffff));
                    if two {
                        words = b.or(words, b.shl(second, b.iconst(ones.get_type(), 16)));
                    }
                    let to = b.ashr(key, b.i64c(1));
                    b.store(words, self.cell(b, self.scratch.scores, to, column(v)), 4);
                    // What was rounded is summed.
                    attention_bf16::dot(b, sum, words, ones)
                };
                sums.iter().enumerate().map(add).collect()
            };
            let whole = b.and(self.visible, b.i64c(-2));
            let sums = b.for_carried(b.i64c(0), whole, 2, &init, |key, sums| step(key, true, sums));
            b.for_carried(whole, self.visible, 1, &sums, |key, sums| step(key, false, sums))
        } else {
            b.for_carried(b.i64c(0), self.visible, 1, &init, |key, sums| {
                let add = |(v, &sum): (usize, &Val<'c>)| {
                    let weight = self.spec.weight(b, b.fsub(score(v, key), largest[v]));
                    b.store(weight, self.cell(b, self.scratch.scores, key, column(v)), 4);
                    b.fadd(sum, weight)
                };
                sums.iter().enumerate().map(add).collect()
            })
        };
        for (v, &sum) in sums.iter().enumerate() {
            let mut inverse = b.fdiv(b.fconst(ty, 1.0), sum);
            if let Some(blind) = blind[v] {
                inverse = b.select(blind, b.zero(ty), inverse);
            }
            b.store(inverse, self.cell(b, self.scratch.inverse, b.i64c(0), column(v)), 4);
        }
    }

    /// The sums of the values, weighted by the exponentials, into the result.
    fn weigh(&self, b: &Builder<'_, 'c>) {
        let lanes = i64::from(b.level().f32_lanes());
        let height = if b.level().has_avx512() { 8 } else { 4 };
        let middle = b.and(self.rows, b.i64c(-height));
        for first in (0..self.spec.width).step_by((i64::from(VECTORS) * lanes) as usize) {
            let left = (self.spec.width - first).min(i64::from(VECTORS) * lanes);
            b.for_range(b.i64c(0), middle, height, |row| {
                self.weigh_tile(b, row, height as u32, first, left);
            });
            b.for_range(middle, self.rows, 1, |row| self.weigh_tile(b, row, 1, first, left));
        }
    }

    /// `height` queries from `row` by `columns` channels from `first`.
    fn weigh_tile(&self, b: &Builder<'_, 'c>, row: Val<'c>, height: u32, first: i64, columns: i64) {
        let lanes = b.level().f32_lanes();
        let ty = b.f32v(lanes);
        let vectors = (columns as u32).div_ceil(lanes);
        let masks: Vec<Option<Val<'c>>> = (0..vectors)
            .map(|v| {
                let left = columns as u32 - v * lanes;
                (left < lanes).then(|| b.mask_first(b.i64c(left.into()), lanes))
            })
            .collect();
        let place = |v: usize| b.i64c(first + v as i64 * i64::from(lanes));
        let sums = vec![b.zero(ty); (height * vectors) as usize];
        let in_pairs = self.spec.in_pairs(b);
        // A step is a key or a pair of them; either has a row of four-byte elements.
        let (first_value, value_stride, steps) = if in_pairs {
            let pairs = b.ashr(b.add(self.visible, b.i64c(1)), b.i64c(1));
            (self.scratch.values, b.i64c(self.spec.width), pairs)
        } else {
            (self.v, self.value_stride, self.visible)
        };
        let sums = b.for_carried(b.i64c(0), steps, 1, &sums, |key, sums| {
            let from = b.index(first_value, b.f32(), b.mul(key, value_stride));
            let values: Vec<Val<'c>> = masks
                .iter()
                .enumerate()
                .map(|(v, &mask)| {
                    let at = b.index(from, b.f32(), place(v));
                    match mask {
                        Some(mask) => b.masked_load(ty, at, mask, b.zero(ty)),
                        None => b.load(ty, at, 4),
                    }
                })
                .collect();
            let weights = b.index(self.cell(b, self.scratch.scores, key, 0), b.f32(), row);
            let mut next = Vec::with_capacity(sums.len());
            for i in 0..height {
                let at = b.index(weights, b.f32(), b.i64c(i.into()));
                let weight = b.splat(b.load(b.f32(), at, 4), lanes);
                for (v, &value) in values.iter().enumerate() {
                    let at = (i * vectors) as usize + v;
                    next.push(self.multiply_add(b, weight, value, sums[at]));
                }
            }
            next
        });
        for i in 0..height {
            let row = b.add(row, b.i64c(i.into()));
            let inverse = b.load(b.f32(), b.index(self.scratch.inverse, b.f32(), row), 4);
            let to = b.index(self.out, b.f32(), b.mul(row, self.out_stride));
            for (v, &mask) in masks.iter().enumerate() {
                let sum = sums[(i * vectors) as usize + v];
                let y = b.fmul(sum, b.splat(inverse, lanes));
                let at = b.index(to, b.f32(), place(v));
                match mask {
                    Some(mask) => b.masked_store(y, at, mask),
                    None => b.store(y, at, 4),
                }
            }
        }
    }
}
