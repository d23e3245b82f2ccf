//! The epilogue of a gemm with pairs: an expression over the two groups of a panel, codes of sixteen
//! channels, and those codes of the tail that belong to them. The arithmetic is that of `quantize`.

use fqc_ir::plan::GemmOutput;
use fqc_ir::quant::q_max;
use fqc_kernels::gemm::Pairs;
use fqc_kernels::pack::GROUP;
use inkwell::IntPredicate::{EQ, SLT};

use super::build::{Builder, Val};
use super::gemm::Gemm;
use super::quantize::{bytes, nearest};

/// Buffers of the tail.
#[derive(Clone, Copy)]
pub(super) struct PairBuffers<'c> {
    pub pairs: Pairs,
    pub inverse: Val<'c>,
    pub below: Val<'c>,
    pub source: Val<'c>,
    pub first: Val<'c>,
}

/// Sixteen channels of a tile.
pub(super) struct PairTables<'c> {
    buffers: PairBuffers<'c>,
    /// A vector for each part of a group.
    inverse: Vec<Val<'c>>,
    /// Codes of the tail that belong to these channels.
    from: Val<'c>,
    to: Val<'c>,
    /// The first sixteen of them, where lanes are permuted at once.
    some: Option<TailCodes<'c>>,
    /// Codes before the padding, whose tail begins behind `base`.
    base: Val<'c>,
    end: Val<'c>,
    /// Codes with the padding where these are the last channels, `end` elsewhere.
    padded: Val<'c>,
    signed: bool,
    top: f64,
    /// Memory for a group of floats, where lanes are not permuted at once.
    wide: Option<Val<'c>>,
}

/// Up to sixteen codes of the tail.
#[derive(Clone, Copy)]
struct TailCodes<'c> {
    mask: Val<'c>,
    /// Lanes of their channels, in the lowest four bits.
    source: Val<'c>,
    below: Val<'c>,
}

impl<'c> TailCodes<'c> {
    /// The codes from `at` on.
    fn load(b: &Builder<'_, 'c>, buffers: PairBuffers<'c>, at: Val<'c>, end: Val<'c>) -> Self {
        let lanes = GROUP as u32;
        let mask = b.mask_first(b.sub(end, at), lanes);
        let load = |ty, table| {
            let from = b.index(table, b.int(32), at);
            b.masked_load(ty, from, mask, b.zero(ty))
        };
        let source = load(b.i32v(lanes), buffers.source);
        TailCodes { mask, source, below: load(b.f32v(lanes), buffers.below) }
    }
}

impl<'c> PairTables<'c> {
    pub fn load(gemm: &Gemm<'_, '_, 'c>, buffers: PairBuffers<'c>, panel: Val<'c>) -> Self {
        let b = gemm.b;
        let GemmOutput::Codes { signed, bits } = gemm.desc.output else {
            unreachable!("pairs give codes")
        };
        let lanes = b.level().f32_lanes();
        let channel = b.mul(panel, b.i64c(GROUP as i64));
        let part = |at: u32| {
            let at = b.add(channel, b.i64c(at.into()));
            b.load(b.f32v(lanes), b.index(buffers.inverse, b.f32(), at), 4)
        };
        let entry = |panel| {
            let entry = b.load(b.int(32), b.index(buffers.first, b.int(32), panel), 4);
            b.sext(entry, b.int(64))
        };
        let (from, to) = (entry(panel), entry(b.add(panel, b.i64c(1))));
        let permutes = b.level().has_avx512();
        let end = b.dim(buffers.pairs.end);
        let is_last = b.icmp(EQ, panel, b.i64c(gemm.desc.panels() as i64 - 1));
        PairTables {
            buffers,
            inverse: (0..GROUP as u32).step_by(lanes as usize).map(part).collect(),
            from,
            to,
            some: permutes.then(|| TailCodes::load(b, buffers, from, to)),
            base: b.i64c(gemm.desc.n as i64 / 2),
            end,
            padded: b.select(is_last, gemm.stride_bytes(gemm.desc.out_stride, 1), end),
            signed,
            top: f64::from(q_max(bits, signed)),
            wide: (!permutes).then(|| b.alloca(b.f32v(GROUP as u32), 64).into()),
        }
    }

    /// Writes the codes of the values `y` of a row, a vector for each part of a group; `row` is the
    /// row's first code, `to` that of these channels.
    pub fn row(&self, b: &Builder<'_, 'c>, y: &[Val<'c>], row: Val<'c>, to: Val<'c>) {
        let scaled: Vec<Val<'c>> =
            y.iter().zip(&self.inverse).map(|(&y, &inverse)| b.fmul(y, inverse)).collect();
        for (i, &x) in scaled.iter().enumerate() {
            let at = b.offset(to, b.i64c((i as u32 * b.lanes(x)).into()));
            b.store(nearest(b, x, self.top, self.signed), at, 1);
        }
        b.when(b.icmp(SLT, self.from, self.to), || {
            let tail = b.offset(row, self.base);
            match (self.some, &scaled[..]) {
                (Some(some), &[x]) => {
                    let lanes = GROUP as i64;
                    self.digits(b, x, some, b.offset(tail, self.from));
                    b.for_range(b.add(self.from, b.i64c(lanes)), self.to, lanes, |at| {
                        let more = TailCodes::load(b, self.buffers, at, self.to);
                        self.digits(b, x, more, b.offset(tail, at));
                    });
                }
                (_, parts) => {
                    let memory = self.wide.expect("lanes are not permuted");
                    for (i, &part) in parts.iter().enumerate() {
                        let first = b.i64c((i as u32 * b.lanes(part)).into());
                        b.store(part, b.index(memory, b.f32(), first), 32);
                    }
                    self.digits_one_by_one(b, memory, tail);
                }
            }
        });
        let zero = b.iconst(b.int(8), if self.signed { 128 } else { 0 });
        b.for_range(self.end, self.padded, 1, |at| b.store(zero, b.offset(row, at), 1));
    }

    /// A digit of floats in units of a step, as the byte that is stored. No digit lies so far out that
    /// a wide code is cut; maximum and minimum give their second operand for a NaN, which so becomes
    /// zero.
    fn digit(&self, b: &Builder<'_, 'c>, x: Val<'c>, below: Val<'c>) -> Val<'c> {
        let (ty, wide) = (x.get_type(), b.roundeven(x));
        let size = if self.signed { b.fabs(wide) } else { wide };
        let above = b.fmax(b.fsub(size, below), b.zero(ty));
        let digit = b.fmin(above, b.fconst(ty, self.top));
        bytes(b, if self.signed { b.copysign(digit, wide) } else { digit }, self.signed)
    }

    /// Some codes of the tail, from the register that their channels are in.
    fn digits(&self, b: &Builder<'_, 'c>, x: Val<'c>, codes: TailCodes<'c>, to: Val<'c>) {
        // No more than the lowest four bits of an index count.
        let x = b.call("llvm.x86.avx512.permvar.sf.512", &[], &[x, codes.source]);
        b.masked_store(self.digit(b, x, codes.below), to, codes.mask);
    }

    fn digits_one_by_one(&self, b: &Builder<'_, 'c>, memory: Val<'c>, tail: Val<'c>) {
        let PairBuffers { below, source, .. } = self.buffers;
        b.for_range(self.from, self.to, 1, |at| {
            let source = b.load(b.int(32), b.index(source, b.int(32), at), 4);
            let lane = b.and(b.zext(source, b.int(64)), b.i64c(GROUP as i64 - 1));
            let x = b.load(b.f32(), b.index(memory, b.f32(), lane), 4);
            let below = b.load(b.f32(), b.index(below, b.f32(), at), 4);
            b.store(self.digit(b, x, below), b.offset(tail, at), 1);
        });
    }
}
