//! Attention's products in tile registers. Scores lie as elsewhere, \[key\]\[query\]: a tile of them
//! is sixteen rows of packed keys times the paired queries. The result is computed transposed,
//! \[channel\]\[query\], as rows of values along the keys times the paired exponentials, and turned
//! in registers when it is stored.

use inkwell::IntPredicate::{SGT, SLT};

use super::attention::{Attention, QUERIES};
use super::attention_bf16;
use super::attention_parts::{Block, VECTORS};
use super::build::{Builder, Val};
use super::spec::Size;
use super::tiles::{HEIGHT, TileOps};
use super::transpose::transpose_tile;

/// Lanes of a register, queries of a tile.
const LANES: u32 = 16;

/// Keys whose values fill the rows of a tile; scratch has room for a multiple of them.
pub(super) const DEPTH: i64 = 32;

/// Bytes of a row of scores.
const ROW: i64 = 4 * QUERIES;

/// Tile registers: sums from 0 on, queries of up to two steps from 2 on, keys or values, and
/// exponentials.
const QUERY: u8 = 2;
const LEFT: u8 = 6;
const RIGHT: u8 = 4;

impl Attention {
    /// Whether the products fill tiles, and sums can begin with the mask: one for all queries and
    /// heads of a batch.
    pub(super) fn fits_tiles(&self) -> bool {
        let one_mask = !self.mask || self.strides[4][1..3].iter().all(|s| *s == Size::Const(0));
        self.depth % DEPTH == 0 && self.width % HEIGHT == 0 && one_mask
    }
}

impl<'c> Block<'_, 'c> {
    /// Emits the whole block.
    pub fn emit_tiles(&self, b: &Builder<'_, 'c>, ops: &impl TileOps) {
        self.pack(b);
        let part = |vectors: u32| {
            self.tile_scores(b, ops, vectors);
            let largest = self.largest(b, vectors);
            self.softmax(b, 0, largest);
            self.clear_pairs(b, vectors);
            for channel in (0..self.spec.width).step_by(HEIGHT as usize) {
                self.tile_weigh(b, ops, channel, vectors);
            }
        };
        let few = b.icmp(SGT, b.i64c(i64::from(LANES) + 1), self.rows);
        b.either(few, || part(1), || part(VECTORS));
    }

    /// `value` rounded up to a multiple of a power of two.
    fn up(b: &Builder<'_, 'c>, value: Val<'c>, by: i64) -> Val<'c> {
        b.and(b.add(value, b.i64c(by - 1)), b.i64c(-by))
    }

    /// Products of the queries of `vectors` registers and all visible keys.
    fn tile_scores(&self, b: &Builder<'_, 'c>, ops: &impl TileOps, vectors: u32) {
        let steps = self.spec.depth / DEPTH;
        // As many as there are registers stay in them.
        let stay = steps <= 2;
        let query = |step: i64, v: u32| QUERY + (step % 2 * i64::from(VECTORS)) as u8 + v as u8;
        let queries = |step: i64| {
            for v in 0..vectors {
                let from = self.cell(b, self.packed, b.i64c(step * HEIGHT), lane(v));
                ops.load(b, query(step, v), from, b.i64c(ROW));
            }
        };
        if stay {
            (0..steps).for_each(queries);
        }
        let tile = |key: Val<'c>| {
            self.ask(b, key);
            let row = b.i64c(2 * self.spec.depth);
            let keys = b.offset(self.packed_keys, b.mul(key, row));
            for v in 0..vectors {
                match self.spec.mask {
                    true => {
                        ops.load(b, v as u8, self.mask_row(b, key), b.i64c(4 * i64::from(LANES)))
                    }
                    false => ops.zero(b, v as u8),
                }
            }
            for step in 0..steps {
                if !stay {
                    queries(step);
                }
                let left = LEFT + (step % 2) as u8;
                ops.load(b, left, b.offset(keys, b.i64c(2 * DEPTH * step)), row);
                for v in 0..vectors {
                    ops.dot_bf16(b, v as u8, left, query(step, v));
                }
            }
            for v in 0..vectors {
                ops.store(b, v as u8, self.cell(b, self.scores, key, lane(v)), b.i64c(ROW));
            }
        };
        b.for_range(b.i64c(0), self.visible, HEIGHT, tile);
    }

    /// While a tile of keys is multiplied, asks for some rows of the result and of the next queries:
    /// other threads have them, or the third level.
    fn ask(&self, b: &Builder<'_, 'c>, key: Val<'c>) {
        const ROWS: i64 = QUERIES / 4;
        const LINE: usize = 16;
        b.when(b.icmp(SLT, key, b.i64c(QUERIES / ROWS * HEIGHT)), || {
            let first = b.mul(b.ashr(key, b.i64c(4)), b.i64c(ROWS));
            b.for_range(first, b.add(first, b.i64c(ROWS)), 1, |row| {
                let next = b.mul(b.add(row, b.i64c(QUERIES)), self.query_stride);
                let next = b.index(self.q, b.f32(), next);
                for at in (0..self.spec.depth).step_by(LINE) {
                    b.prefetch(b.index(next, b.f32(), b.i64c(at)));
                }
                let to = b.index(self.out, b.f32(), b.mul(row, self.out_stride));
                for at in (0..self.spec.width).step_by(LINE) {
                    b.prefetch_write(b.index(to, b.f32(), b.i64c(at)));
                }
            });
        });
    }

    /// A register of one key's mask.
    fn mask_row(&self, b: &Builder<'_, 'c>, key: Val<'c>) -> Val<'c> {
        b.index(self.packed_mask, b.f32(), b.mul(key, b.i64c(LANES.into())))
    }

    /// Spreads the mask of each key over a register, from where sums begin.
    pub fn pack_mask(&self, b: &Builder<'_, 'c>) {
        let (Some(mask), Some([_, along_keys])) = (self.mask, self.mask_strides) else {
            return;
        };
        b.for_range(b.i64c(0), self.keys, 1, |key| {
            let value = b.load(b.f32(), b.index(mask, b.f32(), b.mul(key, along_keys)), 4);
            b.store(b.splat(value, LANES), self.mask_row(b, key), 4);
        });
    }

    /// Hides what is behind a query, and gives the largest score of each query.
    fn largest(&self, b: &Builder<'_, 'c>, vectors: u32) -> Vec<Val<'c>> {
        const UNROLL: i64 = 4;
        let ty = b.f32v(LANES);
        let step = |key: Val<'c>, largest: &[Val<'c>], hides: bool| -> Vec<Val<'c>> {
            let one = |(v, &largest): (usize, &Val<'c>)| {
                let at = self.cell(b, self.scores, key, lane(v as u32));
                let mut score = b.load(ty, at, 4);
                if hides {
                    score = self.seen(b, score, key, lane(v as u32));
                    b.store(score, at, 4);
                }
                b.fmax(score, largest)
            };
            largest.iter().enumerate().map(one).collect()
        };
        // Keys that all queries see.
        let seen = if self.spec.causal {
            let seen = b.smin(b.add(self.limit, b.i64c(1)), self.visible);
            b.smax(seen, b.i64c(0))
        } else {
            self.visible
        };
        let init = vec![b.fconst(ty, f64::NEG_INFINITY); vectors as usize];
        let whole = b.and(seen, b.i64c(-UNROLL));
        let largest = b.for_carried(b.i64c(0), whole, UNROLL, &init, |key, largest| {
            (0..UNROLL)
                .fold(largest.to_vec(), |largest, i| step(b.add(key, b.i64c(i)), &largest, false))
        });
        b.for_carried(whole, self.visible, 1, &largest, |key, largest| {
            step(key, largest, self.spec.causal)
        })
    }

    /// Zeros behind the last pair of exponentials, up to a whole tile.
    fn clear_pairs(&self, b: &Builder<'_, 'c>, vectors: u32) {
        let pairs = b.ashr(b.add(self.visible, b.i64c(1)), b.i64c(1));
        let end = b.ashr(Self::up(b, self.visible, DEPTH), b.i64c(1));
        b.for_range(pairs, end, 1, |pair| {
            for v in 0..vectors {
                b.store(b.zero(b.i32v(LANES)), self.cell(b, self.scores, pair, lane(v)), 4);
            }
        });
    }

    /// Sixteen channels of the result: sums of values by the exponentials, divided by their sum.
    fn tile_weigh(&self, b: &Builder<'_, 'c>, ops: &impl TileOps, channel: i64, vectors: u32) {
        for v in 0..vectors {
            ops.zero(b, v as u8);
        }
        b.for_range(b.i64c(0), self.visible, DEPTH, |key| {
            ops.load(b, LEFT, self.value_row(b, key, channel), b.i64c(2 * DEPTH));
            let pairs = b.ashr(key, b.i64c(1));
            for v in 0..vectors {
                let from = self.cell(b, self.scores, pairs, lane(v));
                ops.load(b, RIGHT + v as u8, from, b.i64c(ROW));
                ops.dot_bf16(b, v as u8, LEFT, RIGHT + v as u8);
            }
        });
        // Pairs take half the rows of the scores; behind them is room for a tile.
        let room = b.ashr(Self::up(b, self.keys, DEPTH), b.i64c(1));
        for v in 0..vectors {
            ops.store(b, v as u8, self.cell(b, self.scores, room, lane(v)), b.i64c(ROW));
        }
        for v in 0..vectors {
            self.store_tile(b, room, channel, lane(v));
        }
    }

    /// Stores a tile \[channel\]\[query\] at row `from` of the scores as rows of the result.
    fn store_tile(&self, b: &Builder<'_, 'c>, from: Val<'c>, channel: i64, first: i64) {
        let ty = b.f32v(LANES);
        let inverse = b.load(ty, self.cell(b, self.inverse, b.i64c(0), first), 4);
        let columns = (0..HEIGHT).map(|i| {
            let sum = b.load(ty, self.cell(b, self.scores, b.add(from, b.i64c(i)), first), 4);
            b.fmul(sum, inverse)
        });
        let rows = transpose_tile(b, columns.collect());
        let to = |i: usize| {
            let at = b.mul(b.i64c(first + i as i64), self.out_stride);
            b.index(self.out, b.f32(), b.add(at, b.i64c(channel)))
        };
        let whole = b.icmp(SLT, b.i64c(first + HEIGHT - 1), self.rows);
        b.either(
            whole,
            || rows.iter().enumerate().for_each(|(i, &row)| b.store(row, to(i), 4)),
            || {
                for (i, &row) in rows.iter().enumerate() {
                    let exists = b.icmp(SLT, b.i64c(first + i as i64), self.rows);
                    b.when(exists, || b.store(row, to(i), 4));
                }
            },
        );
    }

    /// Values of the keys from `key` on, a multiple of [`DEPTH`]: a row for each channel.
    fn value_row(&self, b: &Builder<'_, 'c>, key: Val<'c>, channel: i64) -> Val<'c> {
        let block = b.mul(key, b.i64c(2 * self.spec.width));
        b.offset(self.packed_values, b.add(block, b.i64c(2 * DEPTH * channel)))
    }

    /// Rounds all values of the head and turns them into rows along the keys, zeros behind the last.
    pub fn pack_value_rows(&self, b: &Builder<'_, 'c>) {
        let ty = b.f32v(LANES);
        let block = |key: Val<'c>, whole: bool| {
            for channel in (0..self.spec.width).step_by(LANES as usize) {
                let half = |first: i64| {
                    let row = |i: i64| {
                        let key = b.add(key, b.i64c(first + i));
                        let near = b.smin(key, b.sub(self.keys, b.i64c(1)));
                        let from = b.mul(if whole { key } else { near }, self.value_stride);
                        let from = b.index(self.v, b.f32(), b.add(from, b.i64c(channel)));
                        let value = b.load(ty, from, 4);
                        if whole {
                            return value;
                        }
                        b.select(b.icmp(SLT, key, self.keys), value, b.zero(ty))
                    };
                    transpose_tile(b, (0..i64::from(LANES)).map(row).collect())
                };
                let (low, high) = (half(0), half(i64::from(LANES)));
                for (i, (low, high)) in low.into_iter().zip(high).enumerate() {
                    let words = attention_bf16::narrow(b, low, high);
                    b.store(words, self.value_row(b, key, channel + i as i64), 2);
                }
            }
        };
        let whole = b.and(self.keys, b.i64c(-DEPTH));
        b.for_range(b.i64c(0), whole, DEPTH, |key| block(key, true));
        b.for_range(whole, self.keys, DEPTH, |key| block(key, false));
    }
}

/// First query of a register.
fn lane(vector: u32) -> i64 {
    i64::from(vector * LANES)
}
