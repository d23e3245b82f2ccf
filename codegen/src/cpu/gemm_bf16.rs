//! Gemms of floats whose weight is bf16. The rows of the left operand are rounded to bf16 into
//! scratch, once for all panels that pass by. Where there are instructions for pairs of bf16, that is
//! what is kept there, rows of zeros behind K; elsewhere f32 that bf16 holds, for fused multiply-adds
//! with lines of the weight that are widened in registers.
//!
//! So all levels add the same products, which are exact in f32, in an order of their own: one by one,
//! or two (`vdpbf16ps`) or thirty-two (`tdpbf16ps`) of them first. Those two instructions, and what
//! rounds to bf16 beside them, take numbers below 2^-126 for zero, operands and sums.

use fqc_ir::Elem;
use fqc_kernels::Stride;
use fqc_kernels::pack::{GROUP, PAIR};

use super::attention_bf16::narrow;
use super::build::Val;
use super::gemm::Gemm;
use super::math;
use super::walk::{self, Tail};

/// Lanes of a vector of f32 at levels with pairs.
const LANES: u32 = 16;

impl<'c> Gemm<'_, '_, 'c> {
    /// Whether the left operand is rounded on the way in.
    pub fn rounds(&self) -> bool {
        self.desc.weight == Elem::BF16
    }

    /// Whether code of this level multiplies pairs of bf16.
    pub fn in_pairs(&self) -> bool {
        self.rounds() && self.b.level().has_bf16()
    }

    /// Where rounded rows are kept.
    pub fn rounded(&self) -> Val<'c> {
        self.b.offset(self.b.scratch(), self.b.i64c(self.desc.scratch_rounded() as i64))
    }

    /// Distance between them in elements.
    pub fn rounded_stride(&self) -> Stride {
        Stride::Const(self.desc.packed_rows() as i64)
    }

    /// Rounds the rows `[first, end)` of the left operand into scratch.
    pub fn round_rows(&self, first: Val<'c>, end: Val<'c>) {
        let b = self.b;
        let from = self.stride_bytes(self.desc.row_stride, 4);
        let to = self.stride_bytes(self.rounded_stride(), self.left_bytes());
        b.for_range(first, end, 1, |row| {
            let from = b.offset(self.left, b.mul(row, from));
            let to = b.offset(self.rounded(), b.mul(b.sub(row, first), to));
            if self.in_pairs() { self.round_pairs(from, to) } else { self.round_floats(from, to) }
        });
    }

    /// One row as bf16, zeros behind it.
    fn round_pairs(&self, from: Val<'c>, to: Val<'c>) {
        let b = self.b;
        let (depth, lanes) = (self.desc.k as i64, i64::from(LANES));
        let half = |at: Val<'c>, left: i64| {
            let (ty, from) = (b.f32v(LANES), b.index(from, b.f32(), at));
            match left {
                left if left >= lanes => b.load(ty, from, 4),
                left if left <= 0 => b.zero(ty),
                left => b.masked_load(ty, from, b.mask_first(b.i64c(left), LANES), b.zero(ty)),
            }
        };
        let step = |at: Val<'c>, left: i64| {
            let both = narrow(b, half(at, left), half(b.add(at, b.i64c(lanes)), left - lanes));
            b.store(both, b.index(to, b.bf16(), at), 64);
        };
        let whole = depth / (2 * lanes) * (2 * lanes);
        b.for_range(b.i64c(0), b.i64c(whole), 2 * lanes, |at| step(at, 2 * lanes));
        if whole < depth {
            step(b.i64c(whole), depth - whole);
        }
    }

    /// One row as f32.
    fn round_floats(&self, from: Val<'c>, to: Val<'c>) {
        let b = self.b;
        let end = b.i64c(self.desc.k as i64);
        walk::span(b, b.i64c(0), end, b.level().f32_lanes(), Tail::Masked, |at, chunk| {
            let ty = b.f32v(chunk.lanes);
            let (from, to) = (b.index(from, b.f32(), at), b.index(to, b.f32(), at));
            match chunk.mask {
                None => b.store(math::round_bf16(b, b.load(ty, from, 4)), to, 4),
                Some(mask) => {
                    let x = b.masked_load(ty, from, mask, b.zero(ty));
                    b.masked_store(math::round_bf16(b, x), to, mask);
                }
            }
        });
    }

    /// The values of row `k + u` of a float weight, `k` a multiple of two, in the columns that begin
    /// `byte` bytes behind the first line of the panel at `first`.
    pub fn float_line(&self, first: Val<'c>, k: Val<'c>, u: i64, byte: i64) -> Val<'c> {
        const LINE: i64 = 4 * GROUP as i64;
        let b = self.b;
        let lanes = b.level().f32_lanes();
        let rows = if self.rounds() { PAIR as i64 } else { 1 };
        let line = b.offset(first, b.mul(k, b.i64c(LINE / rows)));
        let at = b.offset(line, b.i64c(byte + LINE * (u / rows)));
        if !self.rounds() {
            return b.load(b.f32v(lanes), at, 16);
        }
        let ints = b.i32v(lanes);
        let line = b.load(ints, at, 16);
        let bits = match u % rows {
            0 => b.shl(line, b.iconst(ints, 16)),
            _ => b.and(line, b.iconst(ints, -0x1_0000)),
        };
        b.bitcast(bits, b.f32v(lanes))
    }
}
