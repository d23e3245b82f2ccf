//! What attention does differently where its products are those of bf16 pairs: operands are rounded and
//! laid out so that one 32-bit word holds the two factors that an instruction adds up. Queries and keys
//! pair neighbouring channels, weights and values neighbouring keys. Scores are f32 and count powers of
//! two, so that a weight is made as the bits of its bf16; what was rounded is summed, in f32. A score
//! that is no number counts as hidden.

use inkwell::FloatPredicate::OEQ;

use super::attention::{Attention, QUERIES, stored};
use super::attention_parts::Block;
use super::build::{Builder, Ty, Val};
use super::math::{self, EXP2, Multiple};
use super::spec::Size;

/// Words of a register.
const LANES: u32 = 16;

/// Bytes behind a packed matrix that its last row may touch.
pub(super) const SLACK: i64 = 64;

/// Ones as pairs.
pub(super) const ONES: i64 = 0x3f80_3f80;

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

/// 1.5 * 2^16: sums with it are rounded to multiples of 2^-7, and their lower halves count these
/// from 0.
const MAGIC: f64 = 98_304.0;

/// Exponent of 1 in a bf16.
const BIAS: f64 = 127.0;

/// What [`exponential`] adds to scores of queries whose largest are these: weights are at most 1 then.
pub(super) fn offset<'c>(b: &Builder<'_, 'c>, largest: Val<'c>) -> Val<'c> {
    b.fsub(b.fconst(largest.get_type(), MAGIC + BIAS), b.ceil(largest))
}

/// In the lower half of each word `2^(score - m)` rounded to bf16, of some vectors side by side, where m is
/// what [`offset`] has rounded up. Before it is rounded it is within 2^-13, and what the score itself is
/// rounded by beside that; products take it for 0 below 2^-126. What is no number gives 0. Largest
/// scores have to be below 2^31: beyond, the sum with `BIAS` is lost.
///
/// The bits of a positive bf16 count 2^-7 of `BIAS + floor(x) + (2^f - 1)` for `f = x - floor(x)`.
/// That is `BIAS + x` and a polynomial of f, which is the same for `score` as m is whole, and adding
/// `MAGIC` rounds it and moves it into place.
pub(super) fn exponential<'c, const N: usize>(
    b: &Builder<'_, 'c>,
    scores: [Val<'c>; N],
    offset: impl Fn(usize) -> Val<'c>,
) -> [Val<'c>; N] {
    let ty = scores[0].get_type();
    let c = |x: f64| b.fconst(ty, x);
    let f = scores.map(|x| math::remainder(b, x, 0, Multiple::Below));
    // `2^f - 1 - f`, over f.
    let [third, second, first, _] = EXP2;
    let [third, second, first] = [third, second, first - 1.0].map(c);
    let p = f.map(|f| b.fma(third, f, second));
    let each = std::array::from_fn::<usize, N, _>(|i| i);
    let p = each.map(|i| b.fma(p[i], f[i], first));
    let exponents = each.map(|i| b.fma(p[i], f[i], scores[i]));
    let moved = each.map(|i| b.fadd(exponents[i], offset(i)));
    moved.map(|x| b.bitcast(b.fmax(x, c(MAGIC)), b.i32v(LANES)))
}

impl Attention {
    /// What queries are multiplied by. In pairs, scores count powers of two.
    pub(super) fn query_scale(&self, b: &Builder<'_, '_>) -> f64 {
        let scale = f64::from(self.scale);
        if self.in_pairs(b) { scale * std::f64::consts::LOG2_E } else { scale }
    }

    /// Values of the mask in the units of the scores. Where powers of two are counted, what is finite
    /// stays above -2^30, so that differences stay numbers. Beside that a score counts in steps of 64:
    /// keys that are all hidden so have about the same weights.
    pub(super) fn in_units<'c>(&self, b: &Builder<'_, 'c>, mask: Val<'c>) -> Val<'c> {
        if !self.in_pairs(b) {
            return mask;
        }
        let c = |x: f64| b.fconst(mask.get_type(), x);
        let scaled = b.fmul(mask, c(std::f64::consts::LOG2_E));
        let hidden = b.fcmp(OEQ, mask, c(f64::NEG_INFINITY));
        // The constant stands first so that NaN passes through.
        b.select(hidden, mask, b.fmax(c(-1_073_741_824.0), scaled))
    }

    /// Writes the mask of `keys` keys in the units of the scores, zeros up to a whole step.
    pub(super) fn pack_mask<'c>(
        &self,
        b: &Builder<'_, 'c>,
        [from, to]: [Val<'c>; 2],
        stride: Val<'c>,
        keys: Val<'c>,
    ) {
        let put = |x, key| b.store(x, b.index(to, b.f32(), key), 4);
        let map = |key: Val<'c>, ty: Ty<'c>| {
            let value = b.load(ty, b.index(from, b.f32(), b.mul(key, stride)), 4);
            put(self.in_units(b, value), key);
        };
        let whole = match self.strides[4][3] {
            Size::Const(1) => b.and(keys, b.i64c(-i64::from(LANES))),
            _ => b.i64c(0),
        };
        b.for_range(b.i64c(0), whole, LANES.into(), |key| map(key, b.f32v(LANES)));
        b.for_range(whole, keys, 1, |key| map(key, b.f32()));
        b.for_range(keys, stored(b, keys), 1, |key| put(b.f32c(0.0), key));
    }
}

impl<'c> Block<'_, 'c> {
    /// Pairs the channels of the transposed queries, in place.
    pub fn pair_queries(&self, b: &Builder<'_, 'c>) {
        let ty = b.f32v(LANES);
        for channel in (0..self.spec.depth).step_by(2) {
            for first in (0..QUERIES).step_by(LANES as usize) {
                let row = |row: i64| self.cell(b, self.scratch.queries, b.i64c(row), first);
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
            let to = b.index(self.scratch.keys, b.bf16(), b.mul(key, b.i64c(depth)));
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
            let to = b.index(self.scratch.values, b.int(32), to);
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
