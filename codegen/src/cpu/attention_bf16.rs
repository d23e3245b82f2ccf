//! What attention does differently where its products are those of bf16 pairs: operands are rounded and
//! laid out so that one 32-bit word holds the two factors that an instruction adds up. Queries and keys
//! pair neighbouring channels, exponentials and values neighbouring keys. Sums, and all of the softmax,
//! stay f32.

use super::attention::QUERIES;
use super::attention_parts::Block;
use super::build::{Builder, Val};

/// Words of a register.
const LANES: u32 = 16;

/// Bytes behind a packed matrix that its last row may touch.
pub(super) const SLACK: i64 = 64;

/// Two vectors of f32 as one of bf16, `low` in front.
pub(super) fn narrow<'c>(b: &Builder<'_, 'c>, low: Val<'c>, high: Val<'c>) -> Val<'c> {
    b.call("llvm.x86.avx512bf16.cvtne2ps2bf16.512", &[], &[high, low])
}

/// Two vectors of f32 as one of pairs, lane by lane: `low` in the lower halves of the words.
pub(super) fn pair<'c>(b: &Builder<'_, 'c>, low: Val<'c>, high: Val<'c>) -> Val<'c> {
    let both = narrow(b, low, high);
    let halves = b.bitcast(both, b.vec(b.int(16), 2 * LANES));
    let order: Vec<u32> = (0..LANES).flat_map(|lane| [lane, LANES + lane]).collect();
    b.bitcast(b.shuffle(halves, halves, &order), b.i32v(LANES))
}

/// `sum + x.low * y.low + x.high * y.high` in every lane.
pub(super) fn dot<'c>(b: &Builder<'_, 'c>, sum: Val<'c>, x: Val<'c>, y: Val<'c>) -> Val<'c> {
    let pairs = b.vec(b.bf16(), 2 * LANES);
    let args = [sum, b.bitcast(x, pairs), b.bitcast(y, pairs)];
    b.call("llvm.x86.avx512bf16.dpbf16ps.512", &[], &args)
}

impl<'c> Block<'_, 'c> {
    /// Pairs the channels of the transposed queries, in place.
    pub fn pair_queries(&self, b: &Builder<'_, 'c>) {
        let ty = b.f32v(LANES);
        for channel in (0..self.spec.depth).step_by(2) {
            for first in (0..QUERIES).step_by(LANES as usize) {
                let row = |row: i64| self.cell(b, self.packed, b.i64c(row), first);
                let [low, high] = [channel, channel + 1].map(|c| b.load(ty, row(c), 4));
                b.store(pair(b, low, high), row(channel / 2), 4);
            }
        }
    }

    /// Rounds all keys of the head into rows of `depth / 2` words.
    pub fn pack_keys(&self, b: &Builder<'_, 'c>) {
        let (ty, depth) = (b.f32v(LANES), self.spec.depth);
        b.for_range(b.i64c(0), self.keys, 1, |key| {
            let from = b.index(self.k, b.f32(), b.mul(key, self.key_stride));
            let to = b.index(self.packed_keys, b.bf16(), b.mul(key, b.i64c(depth)));
            for first in (0..depth).step_by(2 * LANES as usize) {
                let half = |start: i64| match depth - start {
                    left if left <= 0 => b.zero(ty),
                    left => self.part(b, b.index(from, b.f32(), b.i64c(start)), left),
                };
                let both = narrow(b, half(first), half(first + i64::from(LANES)));
                b.store(both, b.index(to, b.bf16(), b.i64c(first)), 2);
            }
        });
    }

    /// Pairs the values of neighbouring keys into rows of `width` words; the last key of an odd number
    /// has a row of zeros beside it.
    pub fn pack_values(&self, b: &Builder<'_, 'c>) {
        let (ty, width) = (b.f32v(LANES), self.spec.width);
        let value = |key: Val<'c>| b.index(self.v, b.f32(), b.mul(key, self.value_stride));
        let row = |key: Val<'c>, second: bool| {
            let to = b.mul(b.ashr(key, b.i64c(1)), b.i64c(width));
            let to = b.index(self.packed_values, b.int(32), to);
            for first in (0..width).step_by(LANES as usize) {
                let of =
                    |key| self.part(b, b.index(value(key), b.f32(), b.i64c(first)), width - first);
                let high = if second { of(b.add(key, b.i64c(1))) } else { b.zero(ty) };
                let words = pair(b, of(key), high);
                b.store(words, b.index(to, b.int(32), b.i64c(first)), 4);
            }
        };
        let whole = b.and(self.keys, b.i64c(-2));
        b.for_range(b.i64c(0), whole, 2, |key| row(key, true));
        b.for_range(whole, self.keys, 1, |key| row(key, false));
    }

    /// The first `count` floats at `from`, at most a vector of them, zeros behind.
    fn part(&self, b: &Builder<'_, 'c>, from: Val<'c>, count: i64) -> Val<'c> {
        let ty = b.f32v(LANES);
        if count >= i64::from(LANES) {
            return b.load(ty, from, 4);
        }
        b.masked_load(ty, from, b.mask_first(b.i64c(count), LANES), b.zero(ty))
    }
}
