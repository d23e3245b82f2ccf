//! Attention in tile registers: what becomes of the scores.

use inkwell::IntPredicate::SLE;
use inkwell::types::VectorType;

use super::attention_bf16;
use super::attention_tiles::{DEPTH, LANES, ROW, Rows, TILE, Tiled};
use super::build::{Builder, Val};
use super::tiles::{HEIGHT, TileOps};

impl<'c, T: TileOps> Tiled<'_, 'c, T> {
    /// The order of bytes that puts the lower halves of words into the upper ones. It comes from
    /// memory, as LLVM would make more instructions of a shuffle that it knows.
    pub fn write_turn(&self, b: &Builder<'_, 'c>) {
        let order = (0..64).map(|i| b.iconst(b.int(8), i % 16 / 4 * 4 + i % 2).into_int_value());
        let order = VectorType::const_vector(&order.collect::<Vec<_>>());
        b.store(order.into(), self.turn, 64);
    }

    /// The largest score of each query decides what is added to its scores.
    pub fn largest(&self, b: &Builder<'_, 'c>, plain: Val<'c>, rows: &Rows<'c>) {
        let ty = b.f32v(LANES);
        let init = vec![b.fconst(ty, f64::NEG_INFINITY); HEIGHT as usize];
        let largest = b.for_carried(b.i64c(0), plain, 1, &init, |step, largest| {
            self.largest_step(b, rows, step, largest, false)
        });
        let largest = b.for_carried(plain, rows.steps, 1, &largest, |step, largest| {
            self.largest_step(b, rows, step, largest, true)
        });
        let largest = fold(b, largest, &|x, y| b.fmax(x, y));
        b.store(attention_bf16::offset(b, largest), self.offsets, 64);
    }

    /// The same of one step of keys; hides what a query does not see if asked.
    fn largest_step(
        &self,
        b: &Builder<'_, 'c>,
        rows: &Rows<'c>,
        step: Val<'c>,
        largest: &[Val<'c>],
        hides: bool,
    ) -> Vec<Val<'c>> {
        let ty = b.f32v(LANES);
        let lanes = b.iota(b.int(32), LANES);
        let last = b.sub(self.keys, b.i64c(1));
        let one = |(query, &largest): (usize, &Val<'c>)| {
            let mut largest = largest;
            for half in 0..2_i64 {
                let tile = self.score_tile(b, rows, step, half);
                let at = b.offset(tile, b.i64c(query as i64 * ROW));
                let mut score = b.load(ty, at, 64);
                if hides {
                    let limit = match self.spec.causal {
                        true => b.smin(b.add(rows.limit, b.i64c(query as i64)), last),
                        false => last,
                    };
                    let key = b.add(b.mul(step, b.i64c(DEPTH)), b.i64c(half * HEIGHT));
                    let limit = b.trunc(b.sub(limit, key), b.int(32));
                    let seen = b.icmp(SLE, lanes, b.splat(limit, LANES));
                    score = b.select(seen, score, b.fconst(ty, f64::NEG_INFINITY));
                    b.store(score, at, 64);
                }
                largest = b.fmax(score, largest);
            }
            largest
        };
        largest.iter().enumerate().map(one).collect()
    }

    /// Exponentials of a step of keys, in place of the first half of its scores; `others` come in
    /// between.
    pub fn exponentials(
        &self,
        b: &Builder<'_, 'c>,
        rows: &Rows<'c>,
        step: Val<'c>,
        others: &[&dyn Fn()],
    ) {
        let (ty, bytes) = (b.f32v(LANES), b.vec(b.int(8), 64));
        let tile = self.score_tile(b, rows, step, 0);
        let upper = (0..64).map(|i| b.iconst(b.int(1), i % 4 / 2).into_int_value());
        let upper = VectorType::const_vector(&upper.collect::<Vec<_>>()).into();
        let mut done = 0;
        for query in 0..HEIGHT {
            let until = (others.len() * query as usize).div_ceil(HEIGHT as usize);
            others[done..until].iter().for_each(|other| other());
            done = until;
            let offset = b.load(b.f32(), b.offset(self.offsets, b.i64c(4 * query)), 4);
            let offset = b.splat(offset, LANES);
            let [low, high] = [0, 1].map(|half| {
                let at = b.offset(tile, b.i64c(half * TILE + query * ROW));
                b.bitcast(attention_bf16::exponential(b, b.load(ty, at, 64), offset), bytes)
            });
            let turn = b.load(bytes, self.turn, 64);
            let high = b.call("llvm.x86.avx512.pshuf.b.512", &[], &[high, turn]);
            let words = b.select(upper, high, low);
            b.store(words, b.offset(tile, b.i64c(query * ROW)), 64);
        }
        others[done..].iter().for_each(|other| other());
    }
}

/// Sixteen vectors to one: each folded to the lane of its number.
fn fold<'c>(
    b: &Builder<'_, 'c>,
    mut rows: Vec<Val<'c>>,
    op: &dyn Fn(Val<'c>, Val<'c>) -> Val<'c>,
) -> Val<'c> {
    let mut step = 1;
    while rows.len() > 1 {
        let lanes = |second: u32| -> Vec<u32> {
            let lane = |l: u32| match l & step {
                0 => l + second,
                _ => LANES + l - step + second,
            };
            (0..LANES).map(lane).collect()
        };
        let fold_two = |two: &[Val<'c>]| {
            let [low, high] = [0, step].map(|second| b.shuffle(two[0], two[1], &lanes(second)));
            op(low, high)
        };
        rows = rows.chunks(2).map(fold_two).collect();
        step *= 2;
    }
    rows[0]
}
