//! Attention in tile registers: operands, products, and results.

use inkwell::IntPredicate::{NE, SGT, SLT};

use super::attention_bf16;
use super::attention_tiles::{DEPTH, LANES, ROW, Rows, TILE, Tiled};
use super::build::{Builder, Val};
use super::tiles::{HEIGHT, TileOps};
use super::transpose::transpose_tile;

impl<'c, T: TileOps> Tiled<'_, 'c, T> {
    /// Rounds keys, values and mask of a group of heads.
    pub fn pack(&self, b: &Builder<'_, 'c>, batch: Val<'c>, group: Val<'c>) {
        let zero = b.i64c(0);
        self.pack_keys(b, self.operands.at(b, 1, [batch, group, zero]));
        self.pack_values(b, self.operands.at(b, 2, [batch, group, zero]));
        if self.spec.mask {
            let from = self.operands.at(b, 4, [batch, zero, zero]);
            let stride = self.operands.strides[4][3];
            self.spec.pack_mask(b, [from, self.packed_mask], stride, self.keys);
            let int = b.i32v(LANES);
            let any = b.for_carried(zero, self.keys, HEIGHT, &[b.zero(int)], |key, any| {
                let at = b.index(self.packed_mask, b.int(32), key);
                vec![b.or(any[0], b.load(int, at, 64))]
            });
            b.store(b.reduce(any[0], |x, y| b.or(x, y)), self.any_mask, 4);
        }
    }

    /// Keys: pairs of channels, sixteen keys beside each other.
    fn pack_keys(&self, b: &Builder<'_, 'c>, from: Val<'c>) {
        let (ty, depth) = (b.f32v(LANES), self.spec.depth);
        let last = b.sub(self.keys, b.i64c(1));
        b.for_range(b.i64c(0), self.keys, HEIGHT, |key| {
            let rows: Vec<Val<'c>> = (0..HEIGHT)
                .map(|i| {
                    // Those behind the last repeat it.
                    let key = b.smin(b.add(key, b.i64c(i)), last);
                    b.index(from, b.f32(), b.mul(key, self.operands.strides[1][2]))
                })
                .collect();
            let tile = b.offset(self.packed_keys, b.mul(key, b.i64c(2 * depth)));
            for step in 0..depth / DEPTH {
                let words = rows.iter().map(|&row| {
                    let half = |i: i64| {
                        let at = b.i64c(step * DEPTH + i * i64::from(LANES));
                        b.load(ty, b.index(row, b.f32(), at), 4)
                    };
                    b.bitcast(attention_bf16::narrow(b, half(0), half(1)), b.i32v(LANES))
                });
                let columns = transpose_tile(b, words.collect());
                for (i, column) in columns.into_iter().enumerate() {
                    b.store(column, b.offset(tile, b.i64c(step * TILE + ROW * i as i64)), 64);
                }
            }
        });
    }

    /// Values: of a step's keys the first sixteen are paired with the others.
    fn pack_values(&self, b: &Builder<'_, 'c>, from: Val<'c>) {
        let ty = b.f32v(LANES);
        let last = b.sub(self.keys, b.i64c(1));
        b.for_range(b.i64c(0), self.keys, DEPTH, |key| {
            let tile = b.offset(self.packed_values, b.mul(key, b.i64c(2 * self.spec.width)));
            b.for_range(b.i64c(0), b.i64c(HEIGHT), 1, |i| {
                let row = |half: i64| {
                    let key = b.smin(b.add(b.add(key, i), b.i64c(half * HEIGHT)), last);
                    b.index(from, b.f32(), b.mul(key, self.operands.strides[2][2]))
                };
                let [low, high] = [row(0), row(1)];
                let to = b.offset(tile, b.mul(i, b.i64c(ROW)));
                for (t, channel) in (0..self.spec.width).step_by(LANES as usize).enumerate() {
                    let of = |row| b.load(ty, b.index(row, b.f32(), b.i64c(channel)), 4);
                    let words = attention_bf16::pair(b, of(low), of(high));
                    b.store(words, b.offset(to, b.i64c(TILE * t as i64)), 64);
                }
            });
        });
    }

    /// `count` queries, scaled to powers of two and rounded.
    pub fn pack_queries(&self, b: &Builder<'_, 'c>, from: Val<'c>, count: Val<'c>) {
        let (ty, depth) = (b.f32v(LANES), self.spec.depth);
        let scale = b.fconst(ty, self.spec.query_scale(b));
        let last = b.sub(count, b.i64c(1));
        for i in 0..HEIGHT {
            let row = b.smin(b.i64c(i), last);
            let from = b.index(from, b.f32(), b.mul(row, self.operands.strides[0][2]));
            let to = b.offset(self.queries, b.i64c(i * 2 * depth));
            for at in (0..depth).step_by(DEPTH as usize) {
                let half = |i: i64| {
                    let at = b.i64c(at + i * i64::from(LANES));
                    b.fmul(b.load(ty, b.index(from, b.f32(), at), 4), scale)
                };
                let both = attention_bf16::narrow(b, half(0), half(1));
                b.store(both, b.offset(to, b.i64c(2 * at)), 64);
            }
        }
    }

    /// Whether the queries of a block stay in a register.
    pub fn query_stays(&self) -> bool {
        self.spec.depth == DEPTH && self.registers.query != self.registers.weights
    }

    pub fn load_query(&self, b: &Builder<'_, 'c>, step: i64) {
        let from = b.offset(self.queries, b.i64c(2 * DEPTH * step));
        self.ops.load(b, self.registers.query, from, b.i64c(2 * self.spec.depth));
    }

    /// Address of a tile of scores of a step of keys. A block's lie one place before those of the block
    /// before, round and round: a place is free by the time that it is written.
    pub fn score_tile(
        &self,
        b: &Builder<'_, 'c>,
        rows: &Rows<'c>,
        step: Val<'c>,
        half: i64,
    ) -> Val<'c> {
        let place = b.add(rows.place, step);
        let again = b.sub(place, self.places);
        let place = b.select(b.icmp(SLT, again, b.i64c(0)), place, again);
        b.offset(self.scores, b.add(b.mul(place, b.i64c(2 * TILE)), b.i64c(half * TILE)))
    }

    /// Address of the weights of a step of keys. They are read before the next block's are written.
    pub fn weight_tile(&self, b: &Builder<'_, 'c>, step: Val<'c>) -> Val<'c> {
        b.offset(self.weights, b.mul(step, b.i64c(TILE)))
    }

    /// Scores of a step of keys, piece by piece.
    pub fn products<'a>(
        &'a self,
        b: &'a Builder<'_, 'c>,
        rows: &'a Rows<'c>,
        step: Val<'c>,
    ) -> Vec<Box<dyn Fn() + 'a>> {
        let (ops, registers) = (self.ops, &self.registers);
        let parts = self.spec.depth / DEPTH;
        let mut pieces: Vec<Box<dyn Fn() + 'a>> = Vec::new();
        for half in 0..2_i64 {
            let sum = registers.scores[half as usize];
            for part in 0..parts {
                pieces.push(Box::new(move || {
                    let tile = b.add(b.mul(step, b.i64c(2)), b.i64c(half));
                    if part == 0 {
                        if self.spec.mask {
                            let any = b.load(b.int(32), self.any_mask, 4);
                            let any = b.icmp(NE, any, b.zero(any.get_type()));
                            let at = b.offset(self.packed_mask, b.mul(tile, b.i64c(ROW)));
                            b.either(any, || ops.load(b, sum, at, b.i64c(0)), || ops.zero(b, sum));
                        } else {
                            ops.zero(b, sum);
                        }
                    }
                    if !self.query_stays() {
                        self.load_query(b, part);
                    }
                    let keys = b.offset(self.packed_keys, b.mul(tile, b.i64c(parts * TILE)));
                    ops.load(b, registers.right, b.offset(keys, b.i64c(part * TILE)), b.i64c(ROW));
                    ops.dot_bf16(b, sum, registers.query, registers.right);
                }));
            }
            let store = move || {
                ops.store(b, sum, self.score_tile(b, rows, step, half), b.i64c(ROW));
            };
            pieces.push(Box::new(store));
        }
        pieces
    }

    /// Values of a step of keys and of some tiles of channels, weighted, and with the first of them
    /// the sums of weights, piece by piece.
    pub fn weighted<'a>(
        &'a self,
        b: &'a Builder<'_, 'c>,
        step: Val<'c>,
        first: i64,
        tiles: i64,
    ) -> Vec<Box<dyn Fn() + 'a>> {
        let (ops, registers) = (self.ops, &self.registers);
        let mut pieces: Vec<Box<dyn Fn() + 'a>> = Vec::new();
        pieces.push(Box::new(move || {
            ops.load(b, registers.weights, self.weight_tile(b, step), b.i64c(ROW));
            if first == 0 {
                let ones = b.iconst(b.i32v(LANES), attention_bf16::ONES).into_vector_value();
                ops.load(b, registers.right, b.constant(ones, 64), b.i64c(0));
                ops.dot_bf16(b, registers.sum, registers.weights, registers.right);
            }
        }));
        for tile in 0..tiles {
            pieces.push(Box::new(move || {
                let row = b.mul(step, b.i64c(2 * DEPTH * self.spec.width));
                let from = b.offset(self.packed_values, b.add(row, b.i64c((first + tile) * TILE)));
                ops.load(b, registers.right, from, b.i64c(ROW));
                ops.dot_bf16(b, tile as u8, registers.weights, registers.right);
            }));
        }
        pieces
    }

    fn result(&self, b: &Builder<'_, 'c>, tile: i64) -> Val<'c> {
        b.offset(self.results, b.i64c((1 + tile) * TILE))
    }

    /// Sums of some tiles of channels begin at 0; with the first of them those of weights.
    pub fn begin_results(&self, b: &Builder<'_, 'c>, first: i64, tiles: i64) {
        for tile in 0..tiles {
            self.ops.zero(b, tile as u8);
        }
        if first == 0 {
            self.ops.zero(b, self.registers.sum);
        }
    }

    /// Some tiles of channels of the result: the sums over those of weights; 0 for a query that sees no
    /// key because all lie behind it.
    pub fn finish(&self, b: &Builder<'_, 'c>, rows: &Rows<'c>, first: i64, tiles: i64) {
        b.when(b.icmp(SGT, rows.count, b.i64c(0)), || {
            if first == 0 {
                self.ops.store(b, self.registers.sum, self.results, b.i64c(ROW));
            }
            for tile in 0..tiles {
                self.ops.store(b, tile as u8, self.result(b, tile), b.i64c(ROW));
            }
            if first == 0 {
                self.invert(b, rows);
            }
            self.store_rows(b, rows, first, tiles);
        });
    }

    /// 1 / sums of weights.
    fn invert(&self, b: &Builder<'_, 'c>, rows: &Rows<'c>) {
        let ty = b.f32v(LANES);
        let mut sums = b.poison(ty);
        for query in 0..HEIGHT {
            let at = b.offset(self.results, b.i64c(query * (ROW + 4)));
            sums = b.insert(sums, b.load(b.f32(), at, 4), query as u32);
        }
        let mut inverse = b.fdiv(b.fconst(ty, 1.0), sums);
        if self.spec.causal {
            let limit = b.splat(b.trunc(rows.limit, b.int(32)), LANES);
            let limit = b.add(limit, b.iota(b.int(32), LANES));
            let blind = b.icmp(SLT, limit, b.zero(limit.get_type()));
            inverse = b.select(blind, b.zero(ty), inverse);
        }
        b.store(inverse, self.inverse, 64);
    }

    fn store_rows(&self, b: &Builder<'_, 'c>, rows: &Rows<'c>, first: i64, tiles: i64) {
        let ty = b.f32v(LANES);
        let row = |query: i64| {
            let inverse = b.offset(self.inverse, b.i64c(4 * query));
            let inverse = b.splat(b.load(b.f32(), inverse, 4), LANES);
            let to = b.mul(b.i64c(query), self.operands.strides[3][2]);
            let to = b.index(rows.out, b.f32(), to);
            for tile in 0..tiles {
                let sum = b.load(ty, b.offset(self.result(b, tile), b.i64c(query * ROW)), 64);
                let to = b.index(to, b.f32(), b.i64c((first + tile) * HEIGHT));
                b.store(b.fmul(sum, inverse), to, 4);
            }
        };
        let whole = b.icmp(SLT, b.i64c(HEIGHT - 1), rows.count);
        b.either(
            whole,
            || (0..HEIGHT).for_each(row),
            || {
                for query in 0..HEIGHT {
                    b.when(b.icmp(SLT, b.i64c(query), rows.count), || row(query));
                }
            },
        );
    }
}
