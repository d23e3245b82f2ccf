//! Attention in tile registers: what becomes of the scores.

use inkwell::IntPredicate::SLE;

use super::attention_bf16;
use super::attention_tiles::{DEPTH, LANES, ROW, Rows, TILE, Tiled};
use super::build::{Builder, Val};
use super::tiles::{HEIGHT, TileOps};

impl<'c, T: TileOps> Tiled<'_, 'c, T> {
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

    /// Exponentials of a step of keys; `others` come in between.
    pub fn exponentials(
        &self,
        b: &Builder<'_, 'c>,
        rows: &Rows<'c>,
        step: Val<'c>,
        others: &[&dyn Fn()],
    ) {
        // Queries side by side: many operations wait for few others then.
        const SIDE: usize = 2;
        let (ty, bytes) = (b.f32v(LANES), b.vec(b.int(8), 64));
        let tile = self.score_tile(b, rows, step, 0);
        let weights = self.weight_tile(b, step);
        let groups = HEIGHT as usize / SIDE;
        let mut done = 0;
        for group in 0..groups {
            let until = (others.len() * group).div_ceil(groups).max(1).min(others.len());
            others[done..until].iter().for_each(|other| other());
            done = until;
            let query = |i: usize| (group * SIDE + i / 2) as i64;
            let offset = |i: usize| {
                let offset = b.load(b.f32(), b.offset(self.offsets, b.i64c(4 * query(i))), 4);
                b.splat(offset, LANES)
            };
            let scores = std::array::from_fn::<_, { 2 * SIDE }, _>(|i| {
                let at = i as i64 % 2 * TILE + query(i) * ROW;
                b.load(ty, b.offset(tile, b.i64c(at)), 64)
            });
            let halves = attention_bf16::exponential(b, scores, offset);
            for (i, half) in halves.chunks(2).enumerate() {
                let [low, high] = [half[0], half[1]].map(|x| b.bitcast(x, bytes));
                let turn = b.load(bytes, self.turn, 64);
                let high = b.call("llvm.x86.avx512.pshuf.b.512", &[], &[high, turn]);
                let words = b.select(self.upper, high, low);
                b.store(words, b.offset(weights, b.i64c(query(2 * i) * ROW)), 64);
            }
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
