//! Exponentials of an attention whose products are those of f32. Where the plan lets them be those of
//! bf16, which the level lacks, exponentials need not be finer than bf16 would take them.

use fqc_ir::plan::Precision;
use inkwell::FloatPredicate::UGE;

use super::attention::Attention;
use super::build::{Builder, Val};
use super::math::{self, Multiple};

impl Attention {
    /// `e^x` of a score that is `x`, at most 0, above the largest of its query. Coarse ones are within
    /// 2^-13 and what their argument is rounded by, and 0 below 2^-126.
    pub(super) fn weight<'c>(&self, b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
        if self.precision != Precision::Bf16 || b.lanes(x) != 16 {
            return math::exp(b, x);
        }
        let ty = x.get_type();
        let x = b.fmul(x, b.fconst(ty, std::f64::consts::LOG2_E));
        let f = math::remainder(b, x, 0, Multiple::Below);
        let p = math::horner(b, f, &math::EXP2);
        // Multiplies by 2^floor(x). Numbers below 2^-126 cost some processors a hundred cycles.
        let normal = b.bitcast(b.fcmp(UGE, x, b.fconst(ty, -126.0)), b.int(16));
        let args = [p, x, b.zero(ty), normal, b.i32c(4)];
        b.call("llvm.x86.avx512.mask.scalef.ps.512", &[], &args)
    }
}
