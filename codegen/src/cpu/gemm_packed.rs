//! Codes of two rows of a tile at once: four vectors share what makes bytes of integers.
//!
//! Floats become integers without being cut before, where the panel's tables say that none is out of
//! their range; the instructions that pack integers then cut them. A further digit is what is left of
//! an integer that its lower digits are taken from. So the codes are those of `Epilogue::row`.

use fqc_ir::expr::{BinaryOp, Expr, Literal, UnaryOp};
use fqc_ir::plan::GemmOutput;
use fqc_ir::quant::q_max;
use inkwell::FloatPredicate::{OLE, ORD};
use inkwell::IntPredicate::EQ;

use super::build::{Builder, Val};
use super::gemm_epilogue::{Digits, Epilogue};
use super::math;
use super::quantize;

/// Largest magnitude of an accumulator.
const ACCUMULATOR_MAX: f64 = 2_147_483_648.0;

/// Floats up to here are integers of 32 bits once they are rounded, however their bound was.
const FITS: f64 = 1_073_741_824.0;

/// Most that lower digits may take: with a digit on top that still fits sixteen bits.
const BELOW_MAX: f64 = 16_384.0;

/// Floats are cut here where they may be out of range; it fits sixteen bits.
const CUT: f64 = 32_767.0;

/// What the columns of a tile need beyond the tables of its epilogue.
#[derive(Clone, Copy)]
pub(super) struct Packing<'c> {
    bits: u8,
    signed: bool,
    /// Whether floats may be out of range.
    cuts: bool,
    /// What lower digits take, of each column of a row in the order of packed integers.
    below: Val<'c>,
    /// Whether all columns hold first digits.
    first_digits: Val<'c>,
    /// Whether the tables allow this form.
    pub fits: Val<'c>,
}

impl<'c> Epilogue<'_, '_, '_, 'c> {
    /// What [`Self::packed_rows`] needs; `None` where the tile is not two vectors of sixteen a row, or
    /// the result no codes.
    pub fn packing(&self) -> Option<Packing<'c>> {
        let (b, tables) = (self.gemm.b, &self.tables);
        let GemmOutput::Codes { signed, bits } = self.gemm.desc.output else {
            return None;
        };
        let whole = self.vectors.len() == 2 && self.vectors.iter().all(|lane| lane.count == 16);
        if !whole || self.pairs.is_some() {
            return None;
        }
        let first_digits = self.first_digits()?;
        let below = tables.lo.iter().map(|&lo| nearest(b, lo)).collect::<Vec<_>>();
        let mut checks: Vec<_> = tables.lo.iter().map(|&lo| (lo, BELOW_MAX)).collect();
        let largest = |v: usize| {
            let y = self.largest(&self.gemm.desc.epilogue, v)?;
            Some((b.fmul(y, b.fabs(tables.inverse[v])), FITS))
        };
        let largest: Option<Vec<_>> = (0..2).map(largest).collect();
        let cuts = largest.is_none();
        checks.extend(largest.into_iter().flatten());
        let within = |(x, most): (Val<'c>, f64)| b.fcmp(OLE, x, b.fconst(x.get_type(), most));
        let fits = checks.into_iter().map(within).reduce(|x, y| b.and(x, y))?;
        let fits = b.icmp(EQ, b.bitcast(fits, b.int(16)), b.iconst(b.int(16), -1));
        let below = quantize::packed_words(b, &below);
        Some(Packing { bits, signed, cuts, below, first_digits, fits })
    }

    /// The largest magnitude of an expression in a vector of columns, but for rounding; `None` where
    /// the tables do not say.
    fn largest(&self, expr: &Expr, v: usize) -> Option<Val<'c>> {
        let (b, tables) = (self.gemm.b, &self.tables);
        let ty = tables.inverse[v].get_type();
        match expr {
            Expr::Arg(0) => {
                Some(b.fmul(b.fabs(*tables.scale.get(v)?), b.fconst(ty, ACCUMULATOR_MAX)))
            }
            Expr::Arg(i) => Some(b.fabs(*tables.operands.get(i - 1)?.get(v)?)),
            Expr::Literal(Literal::F32(value)) => Some(b.fconst(ty, f64::from(value.abs()))),
            Expr::Unary(UnaryOp::Relu, x) => self.largest(x, v),
            Expr::Unary(UnaryOp::Gelu | UnaryOp::GeluTanh | UnaryOp::Silu, x) => {
                Some(b.fadd(self.largest(x, v)?, b.fconst(ty, 1.0)))
            }
            Expr::Binary(BinaryOp::Add | BinaryOp::Sub, x, y) => {
                Some(b.fadd(self.largest(x, v)?, self.largest(y, v)?))
            }
            Expr::Binary(BinaryOp::Mul, x, y) => {
                Some(b.fmul(self.largest(x, v)?, self.largest(y, v)?))
            }
            _ => None,
        }
    }

    /// Finishes an even number of rows of a tile whose rows lie in scratch in order.
    pub fn packed_rows(&self, [from, to]: [Val<'c>; 2], packing: &Packing<'c>) {
        let b = self.gemm.b;
        let rows = |d| b.for_range(from, to, 2, |row| self.two_rows(row, packing, d));
        b.either(packing.first_digits, || rows(Digits::First), || rows(Digits::Any));
    }

    /// Finishes rows `row` and `row + 1`.
    fn two_rows(&self, row: Val<'c>, packing: &Packing<'c>, digits: Digits) {
        let b = self.gemm.b;
        let Packing { bits, signed, below, .. } = *packing;
        let rows = [row, b.add(row, b.i64c(1))];
        let words = rows.map(|row| {
            let codes = [0, 1].map(|v| {
                let x = b.fmul(self.value(row, row, v), self.tables.inverse[v]);
                if packing.cuts { cut_nearest(b, x) } else { nearest(b, x) }
            });
            let codes = quantize::packed_words(b, &codes);
            let ty = codes.get_type();
            let words = match (digits, signed) {
                (Digits::First, _) => codes,
                (Digits::Any, true) => {
                    let least = b.sub(b.zero(ty), below);
                    b.sub(codes, b.smax(b.smin(codes, below), least))
                }
                (Digits::Any, false) => b.sub(codes, b.smin(codes, below)),
            };
            // Bytes are cut when they are packed.
            let top = b.iconst(ty, q_max(bits, signed).into());
            match (bits, signed) {
                (8, _) => words,
                (_, true) => b.smax(b.smin(words, top), b.sub(b.zero(ty), top)),
                (_, false) => b.smin(words, top),
            }
        });
        let bytes = quantize::packed_bytes(b, &words, signed);
        let ty = bytes.get_type();
        let bytes = match (signed, bits) {
            (false, _) => bytes,
            (true, 8) => b.xor(b.smax(bytes, b.iconst(ty, -127)), b.iconst(ty, 128)),
            (true, _) => b.xor(bytes, b.iconst(ty, 128)),
        };
        let fours = b.bitcast(bytes, b.i32v(16));
        for (first, row) in [0, 2].into_iter().zip(rows) {
            let order = quantize::fours_of(first..first + 2);
            b.store(b.shuffle(fours, fours, &order), self.out_of(row, 0), 1);
        }
    }
}

/// The nearest integers, halves to even, of floats that have such of 32 bits.
fn nearest<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    quantize::integers(b, x, b.iconst(b.int(16), -1))
}

/// The same of any floats, cut to sixteen bits; NaN becomes zero.
fn cut_nearest<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let number = b.bitcast(b.fcmp(ORD, x, x), b.int(16));
    quantize::integers(b, math::nearer_zero(b, x, CUT), number)
}
