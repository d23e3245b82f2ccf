//! Exponentials of an attention whose products are those of f32. Where the plan lets them be those of
//! bf16, which the level lacks, exponentials need not be finer than bf16 would take them.

use fqc_ir::plan::Precision;
use inkwell::FloatPredicate::UGE;

use super::attention::Attention;
use super::build::{Builder, Val};
use super::math;

/// `2^f` for f in [0, 1), within 2^-13; 1 at 0.
const EXP2: [f64; 4] = [7.706_724e-2, 2.276_449_8e-1, 6.951_166_3e-1, 1.0];

impl Attention {
    /// `e^x` of a score that is `x`, at most 0, above the largest of its query. Coarse ones are within
    /// 2^-13 and what their argument is rounded by, and 0 below 2^-126.
    pub(super) fn weight<'c>(&self, b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
        if self.precision != Precision::Bf16 || b.lanes(x) != 16 {
            return math::exp(b, x);
        }
        let ty = x.get_type();
        let all = b.iconst(b.int(16), -1);
        let x = b.fmul(x, b.fconst(ty, std::f64::consts::LOG2_E));
        // x - floor(x), and 0 for -inf.
        let args = [x, b.i32c(1), b.zero(ty), all, b.i32c(4)];
        let f = b.call("llvm.x86.avx512.mask.reduce.ps.512", &[], &args);
        let p = math::horner(b, f, &EXP2);
        // Multiplies by 2^floor(x). Numbers below 2^-126 cost some processors a hundred cycles.
        let normal = b.bitcast(b.fcmp(UGE, x, b.fconst(ty, -126.0)), b.int(16));
        let args = [p, x, b.zero(ty), normal, b.i32c(4)];
        b.call("llvm.x86.avx512.mask.scalef.ps.512", &[], &args)
    }
}
