//! The epilogue of a gemm with pairs: an expression over the two groups of a panel, codes of sixteen
//! channels, and those codes of the tail that belong to them. The arithmetic is that of `quantize`.

use fqc_ir::plan::GemmOutput;
use fqc_ir::quant::{WIDE_MAX, q_max};
use fqc_kernels::gemm::Pairs;
use fqc_kernels::pack::GROUP;
use inkwell::FloatPredicate::UNO;
use inkwell::IntPredicate::{EQ, SLT};

use super::build::{Builder, Val};
use super::gemm::Gemm;
use super::quantize::{bytes, clamp, nearest};

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
    /// A vector for each part of a group.
    inverse: Vec<Val<'c>>,
    below: Val<'c>,
    source: Val<'c>,
    /// Codes of the tail that belong to these channels.
    from: Val<'c>,
    to: Val<'c>,
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

impl<'c> PairTables<'c> {
    pub fn load(gemm: &Gemm<'_, '_, 'c>, buffers: PairBuffers<'c>, panel: Val<'c>) -> Self {
        let b = gemm.b;
        let PairBuffers { pairs, inverse, below, source, first } = buffers;
        let GemmOutput::Codes { signed, bits } = gemm.desc.output else {
            unreachable!("pairs give codes")
        };
        let lanes = b.level().f32_lanes();
        let channel = b.mul(panel, b.i64c(GROUP as i64));
        let part = |at: u32| {
            let at = b.add(channel, b.i64c(at.into()));
            b.load(b.f32v(lanes), b.index(inverse, b.f32(), at), 4)
        };
        let entry = |panel| {
            let entry = b.load(b.int(32), b.index(first, b.int(32), panel), 4);
            b.sext(entry, b.int(64))
        };
        let end = b.dim(pairs.end);
        let is_last = b.icmp(EQ, panel, b.i64c(gemm.desc.panels() as i64 - 1));
        PairTables {
            inverse: (0..GROUP as u32).step_by(lanes as usize).map(part).collect(),
            below,
            source,
            from: entry(panel),
            to: entry(b.add(panel, b.i64c(1))),
            base: b.i64c(gemm.desc.n as i64 / 2),
            end,
            padded: b.select(is_last, gemm.stride_bytes(gemm.desc.out_stride, 1), end),
            signed,
            top: f64::from(q_max(bits, signed)),
            wide: (!b.level().has_avx512()).then(|| b.alloca(b.f32v(GROUP as u32), 64).into()),
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
            let wide: Vec<Val<'c>> = scaled.iter().map(|&x| self.wide_code(b, x)).collect();
            let tail = b.offset(row, self.base);
            match (self.wide, &wide[..]) {
                (None, &[wide]) => self.digits(b, wide, tail),
                (Some(memory), parts) => {
                    for (i, &part) in parts.iter().enumerate() {
                        let first = b.i64c((i as u32 * b.lanes(part)).into());
                        b.store(part, b.index(memory, b.f32(), first), 32);
                    }
                    self.digits_one_by_one(b, memory, tail);
                }
                (None, parts) => unreachable!("a group in {} registers", parts.len()),
            }
        });
        let zero = b.iconst(b.int(8), if self.signed { 128 } else { 0 });
        b.for_range(self.end, self.padded, 1, |at| b.store(zero, b.offset(row, at), 1));
    }

    /// The wide codes of floats in units of a step; NaN becomes zero.
    fn wide_code(&self, b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
        let most = f64::from(WIDE_MAX);
        let code = b.select(b.fcmp(UNO, x, x), b.zero(x.get_type()), b.roundeven(x));
        clamp(b, code, if self.signed { -most } else { 0.0 }, most)
    }

    fn digit(&self, b: &Builder<'_, 'c>, code: Val<'c>, below: Val<'c>) -> Val<'c> {
        let digit = clamp(b, b.fsub(b.fabs(code), below), 0.0, self.top);
        bytes(b, b.copysign(digit, code), self.signed)
    }

    /// Codes of the tail, sixteen at a time, from the register that their channels are in.
    fn digits(&self, b: &Builder<'_, 'c>, wide: Val<'c>, tail: Val<'c>) {
        let lanes = GROUP as u32;
        b.for_range(self.from, self.to, lanes.into(), |at| {
            let mask = b.mask_first(b.sub(self.to, at), lanes);
            let load = |ty, table| {
                let from = b.index(table, b.int(32), at);
                b.masked_load(ty, from, mask, b.zero(ty))
            };
            // No more than the lowest four bits of an index count.
            let (source, below) =
                (load(b.i32v(lanes), self.source), load(b.f32v(lanes), self.below));
            let codes = b.call("llvm.x86.avx512.permvar.sf.512", &[], &[wide, source]);
            b.masked_store(self.digit(b, codes, below), b.offset(tail, at), mask);
        });
    }

    fn digits_one_by_one(&self, b: &Builder<'_, 'c>, wide: Val<'c>, tail: Val<'c>) {
        b.for_range(self.from, self.to, 1, |at| {
            let source = b.load(b.int(32), b.index(self.source, b.int(32), at), 4);
            let lane = b.and(b.zext(source, b.int(64)), b.i64c(GROUP as i64 - 1));
            let code = b.load(b.f32(), b.index(wide, b.f32(), lane), 4);
            let below = b.load(b.f32(), b.index(self.below, b.f32(), at), 4);
            b.store(self.digit(b, code, below), b.offset(tail, at), 1);
        });
    }
}
