//! The elementary functions for f64, branch-free, for the few places where a model computes in
//! double. Coefficients of erf, log, sin and cos are those of FreeBSD's msun. Bounds (asserted by
//! the tests): 4 ulp; sin and cos up to |x| = 2^30; pow 2^-40 relative.

#![expect(clippy::excessive_precision, reason = "the coefficients stand as they were published")]

use inkwell::FloatPredicate::{OEQ, OGE, OGT, OLT, ONE, UNO};

use super::build::{Builder, Val};
use super::math::{horner, log1p};

/// `1/0!`, `1/1!`, … from degree 13 down to 1; without the constant term.
const EXP_TAYLOR: [f64; 13] = [
    1.605_904_383_682_161_3e-10,
    2.087_675_698_786_81e-9,
    2.505_210_838_544_172e-8,
    2.755_731_922_398_589e-7,
    2.755_731_922_398_589_3e-6,
    2.480_158_730_158_730_2e-5,
    1.984_126_984_126_984e-4,
    1.388_888_888_888_889e-3,
    8.333_333_333_333_333e-3,
    4.166_666_666_666_666_4e-2,
    1.666_666_666_666_666_6e-1,
    0.5,
    1.0,
];

/// `(n, 2^n as two factors, e^r - 1)` with `x = n ln 2 + r`.
fn exp_parts<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> ([Val<'c>; 2], Val<'c>) {
    let ty = x.get_type();
    let int = b.with_elem(ty, b.int(64));
    let c = |v: f64| b.fconst(ty, v);
    let magic = c(6_755_399_441_055_744.0);
    let shifted = b.fma(x, c(std::f64::consts::LOG2_E), magic);
    let n = b.fsub(shifted, magic);
    let bits = b.sub(b.bitcast(shifted, int), b.bitcast(magic, int));
    let r = b.fma(n, c(-6.931_471_803_691_238_164_90e-1), x);
    let r = b.fma(n, c(-1.908_214_929_270_587_700_02e-10), r);
    let q = b.fmul(horner(b, r, &EXP_TAYLOR), r);
    let i = |v: i64| b.iconst(int, v);
    let power = |n: Val<'c>| b.bitcast(b.shl(b.add(n, i(1023)), i(52)), ty);
    let half = b.ashr(bits, i(1));
    ([power(half), power(b.sub(bits, half))], q)
}

/// `e^x`.
pub fn exp<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let c = |v: f64| b.fconst(x.get_type(), v);
    let near = b.fmin(c(710.0), b.fmax(c(-746.0), x));
    let ([p0, p1], q) = exp_parts(b, near);
    b.fmul(b.fmul(b.fadd(q, c(1.0)), p0), p1)
}

/// `e^x - 1` for |x| <= 700.
fn expm1<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let one = b.fconst(x.get_type(), 1.0);
    let ([p0, p1], q) = exp_parts(b, x);
    let p = b.fmul(p0, p1);
    b.fma(p, q, b.fsub(p, one))
}

/// Natural logarithm.
pub fn log<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let ty = x.get_type();
    let int = b.with_elem(ty, b.int(64));
    let c = |v: f64| b.fconst(ty, v);
    let i = |v: i64| b.iconst(int, v);
    let tiny = b.fcmp(OLT, x, c(f64::MIN_POSITIVE));
    let scaled = b.select(tiny, b.fmul(x, c(18_014_398_509_481_984.0)), x);
    let root = i(0x3fe6_a09e_0000_0000);
    let bits = b.sub(b.bitcast(scaled, int), root);
    let e = b.ashr(bits, i(52));
    let m = b.add(b.and(bits, i(0x000f_ffff_ffff_ffff)), root);
    let f = b.fsub(b.bitcast(m, ty), c(1.0));
    // The exponent as a float without a conversion from i64, which AVX2 lacks.
    let e = b.sub(e, b.select(tiny, i(54), i(0)));
    let magic = c(6_755_399_441_055_744.0);
    let k = b.fsub(b.bitcast(b.add(e, b.bitcast(magic, int)), ty), magic);
    let hfsq = b.fmul(b.fmul(f, f), c(0.5));
    let s = b.fdiv(f, b.fadd(f, c(2.0)));
    let z = b.fmul(s, s);
    let r = horner(
        b,
        z,
        &[
            1.479_819_860_511_658_591e-1,
            1.531_383_769_920_937_332e-1,
            1.818_357_216_161_805_012e-1,
            2.222_219_843_214_978_396e-1,
            2.857_142_874_366_239_149e-1,
            3.999_999_999_940_941_908e-1,
            6.666_666_666_666_735_130e-1,
        ],
    );
    let r = b.fmul(r, z);
    let y = b.fmul(s, b.fadd(hfsq, r));
    let y = b.fsub(b.fma(k, c(1.908_214_929_270_587_700_02e-10), y), hfsq);
    let y = b.fma(k, c(6.931_471_803_691_238_164_90e-1), b.fadd(y, f));
    let y = b.select(b.fcmp(OEQ, x, c(f64::INFINITY)), x, y);
    let y = b.select(b.fcmp(OEQ, x, c(0.0)), c(f64::NEG_INFINITY), y);
    let y = b.select(b.fcmp(OLT, x, c(0.0)), c(f64::NAN), y);
    b.select(b.fcmp(UNO, x, x), x, y)
}

/// Hyperbolic tangent.
pub fn tanh<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let c = |v: f64| b.fconst(x.get_type(), v);
    let a = b.fmin(c(20.0), b.fabs(x));
    let e = expm1(b, b.fadd(a, a));
    let t = b.copysign(b.fdiv(e, b.fadd(e, c(2.0))), x);
    b.select(b.fcmp(UNO, x, x), x, t)
}

/// `numerator(x) / denominator(x)`.
fn ratio<'c>(b: &Builder<'_, 'c>, x: Val<'c>, above: &[f64], below: &[f64]) -> Val<'c> {
    b.fdiv(horner(b, x, above), horner(b, x, below))
}

/// Error function, in msun's four ranges.
pub fn erf<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let c = |v: f64| b.fconst(x.get_type(), v);
    let a = b.fabs(x);
    let y = ratio(b, b.fmul(x, x), &ERF_P, &ERF_Q);
    let near = b.fma(a, y, a);
    let s = b.fsub(a, c(1.0));
    let middle = b.fadd(c(8.450_629_115_104_675_292_97e-1), ratio(b, s, &ERF_PA, &ERF_QA));
    let big = b.fmin(c(6.0), b.fmax(c(1.0), a));
    let z = b.fmul(big, big);
    let inverse = b.fdiv(c(1.0), z);
    let low = b.fcmp(OLT, big, c(1.0 / 0.35));
    let tail =
        b.select(low, ratio(b, inverse, &ERF_RA, &ERF_SA), ratio(b, inverse, &ERF_RB, &ERF_SB));
    // -z = -(rounded square) - (what the rounding lost).
    let lost = b.fma(big, big, b.fneg(z));
    let e = exp(b, b.fsub(c(-0.5625), z));
    let rest = exp(b, b.fsub(tail, lost));
    let far = b.fsub(c(1.0), b.fdiv(b.fmul(e, rest), big));
    let y = b.select(b.fcmp(OLT, a, c(1.25)), middle, far);
    let y = b.select(b.fcmp(OLT, a, c(0.84375)), near, y);
    let y = b.select(b.fcmp(OGE, a, c(6.0)), c(1.0), y);
    b.select(b.fcmp(UNO, x, x), x, b.copysign(y, x))
}

const ERF_P: [f64; 5] = [
    -2.376_301_665_665_016_260_84e-5,
    -5.770_270_296_489_441_591_57e-3,
    -2.848_174_957_559_851_047_66e-2,
    -3.250_421_072_470_014_993_70e-1,
    1.283_791_670_955_125_585_61e-1,
];
const ERF_Q: [f64; 6] = [
    -3.960_228_278_775_368_123_20e-6,
    1.324_947_380_043_216_445_26e-4,
    5.081_306_281_875_765_627_76e-3,
    6.502_224_998_876_729_444_85e-2,
    3.979_172_239_591_553_528_19e-1,
    1.0,
];
const ERF_PA: [f64; 7] = [
    -2.166_375_594_868_790_843_00e-3,
    3.547_830_432_561_823_593_71e-2,
    -1.108_946_942_823_966_774_76e-1,
    3.183_466_199_011_617_536_74e-1,
    -3.722_078_760_357_013_238_47e-1,
    4.148_561_186_837_483_316_66e-1,
    -2.362_118_560_752_659_440_77e-3,
];
const ERF_QA: [f64; 7] = [
    1.198_449_984_679_910_741_70e-2,
    1.363_708_391_202_905_073_62e-2,
    1.261_712_198_087_616_421_12e-1,
    7.182_865_441_419_626_628_68e-2,
    5.403_979_177_021_710_489_37e-1,
    1.064_208_804_008_442_282_86e-1,
    1.0,
];
const ERF_RA: [f64; 8] = [
    -9.814_329_344_169_145_485_92e0,
    -8.128_743_550_630_659_342_46e1,
    -1.846_050_929_067_110_359_94e2,
    -1.623_966_694_625_734_703_55e2,
    -6.237_533_245_032_600_603_96e1,
    -1.055_862_622_532_329_098_14e1,
    -6.938_585_727_071_817_643_72e-1,
    -9.864_944_034_847_148_227_05e-3,
];
const ERF_SA: [f64; 9] = [
    -6.042_441_521_485_809_874_38e-2,
    6.570_249_770_319_281_701_35e0,
    1.086_350_055_417_794_351_34e2,
    4.290_081_400_275_678_333_86e2,
    6.453_872_717_332_678_803_36e2,
    4.345_658_774_752_292_288_21e2,
    1.376_577_541_435_190_426_00e2,
    1.965_127_166_743_925_712_92e1,
    1.0,
];
const ERF_RB: [f64; 7] = [
    -4.835_191_916_086_513_970_19e2,
    -1.025_095_131_611_077_249_54e3,
    -6.375_664_433_683_896_277_22e2,
    -1.606_363_848_558_219_160_62e2,
    -1.775_795_491_775_475_198_89e1,
    -7.992_832_376_805_230_065_74e-1,
    -9.864_942_924_700_099_285_97e-3,
];
const ERF_SB: [f64; 8] = [
    -2.244_095_244_658_581_833_62e1,
    4.745_285_412_069_553_672_15e2,
    2.553_050_406_433_164_425_83e3,
    3.199_858_219_508_595_539_08e3,
    1.536_729_586_084_436_959_94e3,
    3.257_925_129_965_739_188_26e2,
    3.033_806_074_348_245_829_24e1,
    1.0,
];

/// `1 / (1 + e^-x)`.
pub fn sigmoid<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let one = b.fconst(x.get_type(), 1.0);
    b.fdiv(one, b.fadd(one, exp(b, b.fneg(x))))
}

/// `x / (1 + e^-x)`.
pub fn silu<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let one = b.fconst(x.get_type(), 1.0);
    b.fdiv(x, b.fadd(one, exp(b, b.fneg(x))))
}

/// `x/2 + x/2 * erf(x / sqrt(2))`.
pub fn gelu<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let half = b.fmul(x, b.fconst(x.get_type(), 0.5));
    let e = erf(b, b.fmul(x, b.fconst(x.get_type(), std::f64::consts::FRAC_1_SQRT_2)));
    b.fma(half, e, half)
}

/// The tanh form, as `x * sigmoid(2u)`.
pub fn gelu_tanh<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let c = |v: f64| b.fconst(x.get_type(), v);
    let k = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let cubic = b.fma(b.fmul(x, x), c(-0.044_715 * k), c(-k));
    b.fdiv(x, b.fadd(c(1.0), exp(b, b.fmul(cubic, x))))
}

/// `max(x, 0) + ln(1 + e^-|x|)`.
pub fn softplus<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let zero = b.fconst(x.get_type(), 0.0);
    let t = exp(b, b.fneg(b.fabs(x)));
    b.fadd(b.fmax(zero, x), log1p(b, t, log))
}

/// Sine, or cosine if `quarter` is 1.
pub fn sin_cos<'c>(b: &Builder<'_, 'c>, x: Val<'c>, quarter: i64) -> Val<'c> {
    let c = |v: f64| b.fconst(x.get_type(), v);
    let n = b.roundeven(b.fmul(x, c(std::f64::consts::FRAC_2_PI)));
    let r = b.fma(n, c(-std::f64::consts::FRAC_PI_2), x);
    let r = b.fma(n, c(-6.123_233_995_736_766e-17), r);
    let r = b.fma(n, c(1.497_384_904_859_183_3e-33), r);
    let r = b.fmin(c(0.8), b.fmax(c(-0.8), r));
    let n = b.fadd(n, c(quarter as f64));
    let quadrant = b.fma(b.floor(b.fmul(n, c(0.25))), c(-4.0), n);
    let z = b.fmul(r, r);
    let s = horner(
        b,
        z,
        &[
            1.589_690_995_211_550_102_21e-10,
            -2.505_076_025_340_686_341_95e-8,
            2.755_731_370_707_006_767_89e-6,
            -1.984_126_982_985_794_931_34e-4,
            8.333_333_333_322_489_461_24e-3,
            -1.666_666_666_666_663_243_48e-1,
        ],
    );
    let sin = b.fma(b.fmul(s, z), r, r);
    let k = horner(
        b,
        z,
        &[
            -1.135_964_755_778_819_482_65e-11,
            2.087_572_321_298_174_827_90e-9,
            -2.755_731_435_139_066_330_35e-7,
            2.480_158_728_947_672_941_78e-5,
            -1.388_888_888_887_410_957_49e-3,
            4.166_666_666_666_660_190_37e-2,
        ],
    );
    let half = b.fmul(z, c(0.5));
    let w = b.fsub(c(1.0), half);
    let lost = b.fsub(b.fsub(c(1.0), w), half);
    let cos = b.fadd(w, b.fma(b.fmul(z, z), k, lost));
    let odd = b.or(b.fcmp(OEQ, quadrant, c(1.0)), b.fcmp(OEQ, quadrant, c(3.0)));
    let y = b.select(odd, cos, sin);
    let y = b.select(b.fcmp(OGE, quadrant, c(2.0)), b.fneg(y), y);
    // -0 stays -0 for the sine.
    if quarter == 0 { b.select(b.fcmp(OEQ, x, c(0.0)), x, y) } else { y }
}

/// `x^y` with IEEE's special cases.
pub fn pow<'c>(b: &Builder<'_, 'c>, x: Val<'c>, y: Val<'c>) -> Val<'c> {
    let c = |v: f64| b.fconst(x.get_type(), v);
    let ax = b.fabs(x);
    let magnitude = exp(b, b.fmul(y, log(b, ax)));
    let integral = b.fcmp(OEQ, b.floor(y), y);
    // Powers of whole numbers are whole, and here near enough to be found by rounding.
    let whole = b.and(b.fcmp(OEQ, b.floor(ax), ax), b.fcmp(OGE, y, c(0.0)));
    let small = b.fcmp(OLT, magnitude, c(2f64.powi(38)));
    let exact = b.and(b.and(whole, integral), small);
    let magnitude = b.select(exact, b.roundeven(magnitude), magnitude);
    let half = b.fmul(y, c(0.5));
    let odd = b.and(integral, b.fcmp(ONE, b.floor(half), half));
    let signed = b.copysign(magnitude, x);
    let r = b.select(odd, signed, magnitude);
    let finite = b.fcmp(OLT, ax, c(f64::INFINITY));
    let negative = b.and(b.fcmp(OLT, x, c(0.0)), finite);
    let fractional = b.fcmp(ONE, b.floor(y), y);
    let r = b.select(b.and(negative, fractional), c(f64::NAN), r);
    let endless = b.fcmp(OEQ, b.fabs(y), c(f64::INFINITY));
    let unit = b.and(b.fcmp(OEQ, ax, c(1.0)), endless);
    let certain = b.or(b.fcmp(OEQ, y, c(0.0)), b.fcmp(OEQ, x, c(1.0)));
    b.select(b.or(certain, unit), c(1.0), r)
}

/// C's `fmod` in `rounds` rounds of at most 50 bits of quotient each; 7 are enough for operands
/// that came from f32.
pub fn rem<'c>(b: &Builder<'_, 'c>, x: Val<'c>, y: Val<'c>, rounds: u32) -> Val<'c> {
    let ty = x.get_type();
    let c = |v: f64| b.fconst(ty, v);
    let by = b.fabs(y);
    let mut r = b.fabs(x);
    for _ in 0..rounds {
        let q = b.ftrunc(b.fdiv(r, by));
        r = b.fma(b.fneg(q), by, r);
    }
    let r = b.select(b.fcmp(OLT, r, c(0.0)), b.fadd(r, by), r);
    let r = b.select(b.fcmp(OGE, r, by), b.fsub(r, by), r);
    let finite = b.fcmp(OLT, b.fabs(x), c(f64::INFINITY));
    let endless = b.and(finite, b.fcmp(OEQ, by, c(f64::INFINITY)));
    let r = b.select(endless, x, b.copysign(r, x));
    let valid = b.and(finite, b.fcmp(OGT, by, c(0.0)));
    b.select(valid, r, c(f64::NAN))
}
