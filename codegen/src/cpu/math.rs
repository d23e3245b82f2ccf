//! Elementary functions of f32 as branch-free polynomials, scalar or vector, with the same bits at
//! every level. Bounds (asserted by the tests against f64, denormals included): tanh and erf 5 ulp;
//! exp, log, sigmoid and softplus 4 ulp; sin and cos 1 ulp for |x| <= 2^40 and some number in
//! [-1, 1] beyond; gelu and gelu_tanh 2^-22 * max(|x|, 1) absolute, silu twice that; pow 1 ulp.

use inkwell::FloatPredicate::{OEQ, OGE, OGT, OLT, ONE, UNO};
use inkwell::IntPredicate::{EQ, SGT, SLT};

use super::build::{Builder, Val};
use super::math64;

/// Horner's scheme, highest coefficient first.
pub(super) fn horner<'c>(b: &Builder<'_, 'c>, x: Val<'c>, coefficients: &[f64]) -> Val<'c> {
    let ty = x.get_type();
    let (first, rest) = coefficients.split_first().expect("a polynomial has coefficients");
    rest.iter().fold(b.fconst(ty, *first), |sum, &c| b.fma(sum, x, b.fconst(ty, c)))
}

/// `2^n` times `p` for `p` near 1 and integral `n` in [-152, 130], given as float and as integer;
/// rounds once, with the same bits whichever way it goes.
fn scale<'c>(b: &Builder<'_, 'c>, p: Val<'c>, whole: Val<'c>, n: Val<'c>) -> Val<'c> {
    let (float, int) = (p.get_type(), n.get_type());
    if b.level().has_avx512() && b.lanes(p) == 16 {
        let all = b.iconst(b.int(16), -1);
        let args = [p, whole, b.zero(float), all, b.i32c(4)];
        return b.call("llvm.x86.avx512.mask.scalef.ps.512", &[], &args);
    }
    let power =
        |n: Val<'c>| b.bitcast(b.shl(b.add(n, b.iconst(int, 127)), b.iconst(int, 23)), float);
    let half = b.ashr(n, b.iconst(int, 1));
    b.fmul(b.fmul(p, power(half)), power(b.sub(n, half)))
}

/// `e^x`.
pub fn exp<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    exp_above(b, x, -105.0)
}

/// `1 + e^x`. What e^-87 adds to 1 is lost already: nothing below is made, which would be denormal
/// and cost some processors a hundred cycles.
fn one_plus_exp<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    b.fadd(b.fconst(x.get_type(), 1.0), exp_above(b, x, -87.0))
}

/// `e^x` for x from `low`, at least -105, and that of `low` below.
fn exp_above<'c>(b: &Builder<'_, 'c>, x: Val<'c>, low: f64) -> Val<'c> {
    let ty = x.get_type();
    let int = b.with_elem(ty, b.int(32));
    let c = |v: f64| b.fconst(ty, v);
    // The constant stands first so that NaN passes through.
    let x = b.fmin(c(89.5), b.fmax(c(low), x));
    let magic = c(12_582_912.0);
    let shifted = b.fma(x, c(std::f64::consts::LOG2_E), magic);
    let n = b.fsub(shifted, magic);
    let bits = b.sub(b.bitcast(shifted, int), b.bitcast(magic, int));
    let r = b.fma(n, c(-0.693_145_751_953_125), x);
    let r = b.fma(n, c(-1.428_606_820_309_417_2e-6), r);
    let p = horner(
        b,
        r,
        &[
            1.987_569_150_0e-4,
            1.398_199_950_7e-3,
            8.333_451_907_3e-3,
            4.166_579_589_4e-2,
            1.666_666_545_9e-1,
            5.000_000_120_1e-1,
        ],
    );
    let p = b.fma(p, b.fmul(r, r), r);
    let p = b.fadd(p, c(1.0));
    scale(b, p, n, bits)
}

/// Natural logarithm: -inf at 0, NaN below.
pub fn log<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let ty = x.get_type();
    let int = b.with_elem(ty, b.int(32));
    let c = |v: f64| b.fconst(ty, v);
    let i = |v: i64| b.iconst(int, v);
    let tiny = b.fcmp(OLT, x, c(f64::from(f32::MIN_POSITIVE)));
    let scaled = b.select(tiny, b.fmul(x, c(8_388_608.0)), x);
    // Mantissa in [sqrt(1/2), sqrt(2)).
    let bits = b.sub(b.bitcast(scaled, int), i(0x3f35_04f3));
    let e = b.ashr(bits, i(23));
    let m = b.add(b.and(bits, i(0x007f_ffff)), i(0x3f35_04f3));
    let f = b.fsub(b.bitcast(m, ty), c(1.0));
    let e = b.sub(e, b.select(tiny, i(23), i(0)));
    let e = b.sitofp(e, ty);
    let z = b.fmul(f, f);
    let p = horner(
        b,
        f,
        &[
            7.037_683_629_2e-2,
            -1.151_461_031_0e-1,
            1.167_699_874_0e-1,
            -1.242_014_084_6e-1,
            1.424_932_278_7e-1,
            -1.666_805_766_5e-1,
            2.000_071_476_5e-1,
            -2.499_999_399_3e-1,
            3.333_333_117_4e-1,
        ],
    );
    let y = b.fmul(b.fmul(p, z), f);
    let y = b.fma(e, c(-2.121_944_400_546_905_8e-4), y);
    let y = b.fma(z, c(-0.5), y);
    let y = b.fma(e, c(0.693_359_375), b.fadd(f, y));
    let infinite = b.fcmp(OEQ, x, c(f64::INFINITY));
    let y = b.select(infinite, x, y);
    let y = b.select(b.fcmp(OEQ, x, c(0.0)), c(f64::NEG_INFINITY), y);
    let invalid = b.fcmp(OLT, x, c(0.0));
    let y = b.select(invalid, c(f64::NAN), y);
    b.select(b.fcmp(UNO, x, x), x, y)
}

/// `sign(x)` where `|x| >= limit`, else `inner`.
fn saturate<'c>(b: &Builder<'_, 'c>, x: Val<'c>, limit: f64, inner: Val<'c>) -> Val<'c> {
    let ty = x.get_type();
    let beyond = b.fcmp(OGE, b.fabs(x), b.fconst(ty, limit));
    b.select(beyond, b.copysign(b.fconst(ty, 1.0), x), inner)
}

/// Error function: an odd rational function.
pub fn erf<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let z = b.fmul(x, x);
    let p = horner(
        b,
        z,
        &[
            -2.726_142_258_013_06e-10,
            2.770_681_424_959_02e-8,
            -2.101_024_020_829_08e-6,
            -5.692_506_394_623_46e-5,
            -7.349_906_303_268_55e-4,
            -2.954_599_808_540_25e-3,
            -1.609_603_332_624_15e-2,
        ],
    );
    let q = horner(
        b,
        z,
        &[
            -1.456_607_184_649_96e-5,
            -2.133_740_552_789_05e-4,
            -1.682_826_974_382_03e-3,
            -7.373_329_167_204_68e-3,
            -1.426_473_905_141_89e-2,
        ],
    );
    saturate(b, x, 3.832_506_856_900_711, b.fmul(x, b.fdiv(p, q)))
}

/// Hyperbolic tangent: an odd rational function.
pub fn tanh<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let ty = x.get_type();
    let limit = b.fconst(ty, 7.905_311_107_635_498);
    let near = b.fmin(limit, b.fmax(b.fneg(limit), x));
    let z = b.fmul(near, near);
    let p = horner(
        b,
        z,
        &[
            -2.760_768_477_423_55e-16,
            2.000_187_904_824_77e-13,
            -8.604_671_522_137_35e-11,
            5.122_297_090_371_14e-8,
            1.485_722_357_179_79e-5,
            6.372_619_288_754_36e-4,
            4.893_525_244_589_18e-3,
        ],
    );
    let q = horner(
        b,
        z,
        &[
            1.198_258_394_667_02e-6,
            1.185_347_056_866_54e-4,
            2.268_434_632_439_00e-3,
            4.893_525_185_543_85e-3,
        ],
    );
    let inner = b.fdiv(b.fmul(near, p), q);
    let small = b.fcmp(OLT, b.fabs(x), b.fconst(ty, 4e-4));
    saturate(b, x, 9.010_913, b.select(small, x, inner))
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    b.fdiv(b.fconst(x.get_type(), 1.0), one_plus_exp(b, b.fneg(x)))
}

/// `max(x, 0) - a * q(a)` for `a = |x|`, where `q` is the tail of the normal distribution. The
/// product is a polynomial around each multiple of a half and zero from 6.25 on, so that no operand
/// is looked up in more than sixteen entries: a table is one register, and this takes half of the
/// multiplications that one polynomial for all would. For small x the error is relative, 2^-22.
pub fn gelu<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    /// Nothing is left of the product from here on.
    const FAR: f64 = 7.5;
    /// Highest coefficient first.
    const PIECES: [[f64; 16]; 6] = [
        [
            -7.191_845_7e-3,
            -2.206_297e-2,
            -1.597_580_9e-2,
            2.547_622_7e-3,
            8.861_707_5e-3,
            4.285_080_4e-3,
            4.522_508e-5,
            -8.347_6e-4,
            -4.395_453_7e-4,
            -1.257_177_2e-4,
            -2.365_661_2e-5,
            -3.126_024e-6,
            -2.994_050_3e-7,
            0.0,
            0.0,
            0.0,
        ],
        [
            6.843_965_5e-2,
            3.363_903_2e-2,
            -1.960_341_4e-2,
            -3.563_403e-2,
            -1.803_615e-2,
            -6.835_662e-4,
            3.989_537_3e-3,
            2.488_519_3e-3,
            8.391_209_4e-4,
            1.871_230_2e-4,
            2.947_262_7e-5,
            3.382_360_5e-6,
            2.878_803_4e-7,
            0.0,
            0.0,
            0.0,
        ],
        [
            -2.408_104_5e-4,
            1.100_056_84e-1,
            1.209_796e-1,
            5.667_076e-2,
            4.959_877e-6,
            -1.643_340_8e-2,
            -1.108_129_6e-2,
            -4.200_265_3e-3,
            -1.070_554_8e-3,
            -1.947_033_6e-4,
            -2.598_558_4e-5,
            -2.585_4e-6,
            -1.936_605_7e-7,
            0.0,
            0.0,
            0.0,
        ],
        [
            -3.989_292_7e-1,
            -3.080_505_4e-1,
            -1.209_984_5e-1,
            1.617_904_6e-2,
            5.399_184_3e-2,
            3.725_188e-2,
            1.551_318_2e-2,
            4.472_397_3e-3,
            9.364_88e-4,
            1.457_163_2e-4,
            1.706_553_7e-5,
            1.516_313_8e-6,
            1.027_563_6e-7,
            0.0,
            0.0,
            0.0,
        ],
        [
            4.999_997_6e-1,
            1.325_050_2e-1,
            -8.331_542e-2,
            -1.274_692_6e-1,
            -8.523_185e-2,
            -3.761_108e-2,
            -1.194_563e-2,
            -2.821_755_8e-3,
            -5.036_505e-4,
            -6.853_013_5e-5,
            -7.147_262_3e-6,
            -5.734_073_6e-7,
            -3.547_632e-8,
            0.0,
            0.0,
            0.0,
        ],
        [
            0.0,
            1.542_687_4e-1,
            1.586_553e-1,
            1.002_108_4e-1,
            4.550_026e-2,
            1.552_414_9e-2,
            4.049_688e-3,
            8.142_021e-4,
            1.266_860_9e-4,
            1.529e-5,
            1.433_368_2e-6,
            1.044_597_1e-7,
            5.921_386e-9,
            0.0,
            0.0,
            0.0,
        ],
    ];
    positive_less(b, x, &PIECES, 1, FAR)
}

/// Which multiple [`remainder`] takes away.
#[derive(Clone, Copy)]
pub(super) enum Multiple {
    Nearest = 0,
    Below = 1,
}

/// Sixteen floats less their multiples of `2^-digits`, exactly, in one instruction of AVX-512; 0 for
/// an infinity.
pub(super) fn remainder<'c>(
    b: &Builder<'_, 'c>,
    x: Val<'c>,
    digits: i32,
    multiple: Multiple,
) -> Val<'c> {
    let how = b.i32c(digits << 4 | multiple as i32);
    let args = [x, how, b.zero(x.get_type()), b.iconst(b.int(16), -1), b.i32c(4)];
    b.call("llvm.x86.avx512.mask.reduce.ps.512", &[], &args)
}

/// A polynomial of f that is `2^f` for f in [0, 1), within 2^-13, and 1 at 0.
pub(super) const EXP2: [f64; 4] = [7.706_724e-2, 2.276_449_8e-1, 6.951_166_3e-1, 1.0];

/// `max(x, 0) - t(|x|)` for a `t` that is nothing from `far` on: a polynomial of the distance to the
/// nearest multiple of `2^-fraction`, the highest coefficient first, whose coefficients are the entries
/// at that multiple's number.
pub(super) fn positive_less<'c>(
    b: &Builder<'_, 'c>,
    x: Val<'c>,
    pieces: &[[f64; 16]],
    fraction: i32,
    far: f64,
) -> Val<'c> {
    let ty = x.get_type();
    let c = |v: f64| b.fconst(ty, v);
    // Adding it rounds to such a multiple, whose number the low bits then hold.
    let magic = 12_582_912.0 / f64::from(1 << fraction);
    let wide = b.level().has_avx512() && b.lanes(x) == 16;
    let a = if wide { least_magnitude(b, x, far) } else { b.fmin(c(far), b.fabs(x)) };
    let shifted = b.fadd(a, c(magic));
    let near = if wide {
        remainder(b, a, fraction, Multiple::Nearest)
    } else {
        b.fsub(a, b.fsub(shifted, c(magic)))
    };
    let piece = b.bitcast(shifted, b.with_elem(ty, b.int(32)));
    let tail = pieces
        .iter()
        .map(|table| one_of_sixteen(b, table, piece))
        .reduce(|sum, coefficient| b.fma(sum, near, coefficient))
        .expect("a polynomial has coefficients");
    // The constant stands first so that NaN passes through.
    b.fsub(b.fmax(c(0.0), x), tail)
}

/// Sixteen x with AVX-512, cut to `[-most, most]`; NaN becomes one of the two.
pub fn nearer_zero<'c>(b: &Builder<'_, 'c>, x: Val<'c>, most: f64) -> Val<'c> {
    range(b, x, most, 0b0010)
}

/// `min(|x|, most)` of sixteen x with AVX-512; NaN becomes `most`.
fn least_magnitude<'c>(b: &Builder<'_, 'c>, x: Val<'c>, most: f64) -> Val<'c> {
    range(b, x, most, 0b1010)
}

/// What is smaller in magnitude, x or `most`: without its sign if the choice has 8, otherwise with
/// that of x.
fn range<'c>(b: &Builder<'_, 'c>, x: Val<'c>, most: f64, choice: i32) -> Val<'c> {
    let (ty, all) = (x.get_type(), b.iconst(b.int(16), -1));
    let args = [x, b.fconst(ty, most), b.i32c(choice), b.zero(ty), all, b.i32c(4)];
    b.call("llvm.x86.avx512.mask.range.ps.512", &[], &args)
}

/// The entries of a table at the lowest four bits of `index`.
fn one_of_sixteen<'c>(b: &Builder<'_, 'c>, table: &[f64; 16], index: Val<'c>) -> Val<'c> {
    match b.lanes(index) {
        16 if b.level().has_avx512() => {
            b.call("llvm.x86.avx512.permvar.sf.512", &[], &[b.fconst_each(table), index])
        }
        8 => {
            let [low, high] = [&table[..8], &table[8..]]
                .map(|half| b.call("llvm.x86.avx2.permps", &[], &[b.fconst_each(half), index]));
            let fourth = b.shl(index, b.iconst(index.get_type(), 28));
            b.select(b.icmp(SLT, fourth, b.zero(index.get_type())), high, low)
        }
        1 => {
            let at = b.and(b.zext(index, b.int(64)), b.i64c(15));
            let table = b.fconst_each(table).into_vector_value();
            b.load(b.f32(), b.index(b.constant(table, 64), b.f32(), at), 4)
        }
        16 => {
            let half = |first| one_of_sixteen(b, table, b.slice(index, first, 8));
            b.concat(half(0), half(8))
        }
        lanes => (0..lanes).fold(b.zero(b.f32v(lanes)), |all, lane| {
            let one = one_of_sixteen(b, table, b.extract(index, lane));
            b.insert(all, one, lane)
        }),
    }
}

/// The tanh form, as `x * sigmoid(2u)`.
pub fn gelu_tanh<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let ty = x.get_type();
    let c = |v: f64| b.fconst(ty, v);
    let k = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let cubic = b.fma(b.fmul(x, x), c(-0.044_715 * k), c(-k));
    b.fdiv(x, one_plus_exp(b, b.fmul(cubic, x)))
}

/// `max(x, 0) + ln(1 + e^-|x|)`.
pub fn softplus<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let zero = b.fconst(x.get_type(), 0.0);
    let t = exp(b, b.fneg(b.fabs(x)));
    b.fadd(b.fmax(zero, x), log1p(b, t, log))
}

/// `ln(1 + t)` for t in [0, 1]: what `1 + t` rounds away is put back.
pub(super) fn log1p<'c>(
    b: &Builder<'_, 'c>,
    t: Val<'c>,
    log: impl Fn(&Builder<'_, 'c>, Val<'c>) -> Val<'c>,
) -> Val<'c> {
    let one = b.fconst(t.get_type(), 1.0);
    let u = b.fadd(one, t);
    let lost = b.fsub(t, b.fsub(u, one));
    b.fadd(log(b, u), b.fdiv(lost, u))
}

/// Sine, or cosine if `quarter` is 1: reduced and evaluated in f64.
pub fn sin_cos<'c>(b: &Builder<'_, 'c>, x: Val<'c>, quarter: i64) -> Val<'c> {
    let ty = x.get_type();
    let wide = b.with_elem(ty, b.f64());
    b.fptrunc(math64::sin_cos(b, b.fpext(x, wide), quarter), ty)
}

/// `x^y` as IEEE `pow`, through f64.
pub fn pow<'c>(b: &Builder<'_, 'c>, x: Val<'c>, y: Val<'c>) -> Val<'c> {
    let ty = x.get_type();
    let wide = b.with_elem(ty, b.f64());
    b.fptrunc(math64::pow(b, b.fpext(x, wide), b.fpext(y, wide)), ty)
}

/// C's `fmod`, exact, through f64.
pub fn rem<'c>(b: &Builder<'_, 'c>, x: Val<'c>, y: Val<'c>) -> Val<'c> {
    let ty = x.get_type();
    let wide = b.with_elem(ty, b.f64());
    b.fptrunc(math64::rem(b, b.fpext(x, wide), b.fpext(y, wide), 7), ty)
}

/// Larger, or with `least` smaller, of two floats of any width; NaN wins.
pub fn extreme<'c>(b: &Builder<'_, 'c>, x: Val<'c>, y: Val<'c>, largest: bool) -> Val<'c> {
    let better = b.fcmp(if largest { OGT } else { OLT }, x, y);
    let unordered = b.fcmp(UNO, x, x);
    b.select(b.or(better, unordered), x, y)
}

/// Rounds the bits of an f32 to bf16, half to even, and gives them as f32 again.
pub fn round_bf16<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let ty = x.get_type();
    let int = b.with_elem(ty, b.int(32));
    let i = |v: i64| b.iconst(int, v);
    let bits = b.bitcast(x, int);
    let odd = b.and(b.lshr(bits, i(16)), i(1));
    let rounded = b.add(bits, b.add(odd, i(0x7fff)));
    let nan = b.icmp(SGT, b.and(bits, i(0x7fff_ffff)), i(0x7f80_0000));
    let quiet = b.or(bits, i(0x0040_0000));
    b.bitcast(b.and(b.select(nan, quiet, rounded), i(-0x1_0000)), ty)
}

/// f64 to f32, inexact results to the neighbour with an odd last bit: a second rounding to fewer
/// bits then gives what one rounding would.
pub fn narrow_to_odd<'c>(b: &Builder<'_, 'c>, x: Val<'c>) -> Val<'c> {
    let wide = x.get_type();
    let ty = b.with_elem(wide, b.f32());
    let int = b.with_elem(wide, b.int(32));
    let i = |v: i64| b.iconst(int, v);
    let near = b.fptrunc(x, ty);
    let back = b.fpext(near, wide);
    let bits = b.bitcast(near, int);
    let even = b.icmp(EQ, b.and(bits, i(1)), i(0));
    let inexact = b.fcmp(ONE, back, x);
    // Away from zero if the magnitude was rounded down.
    let down = b.fcmp(OLT, b.fabs(back), b.fabs(x));
    let moved = b.add(bits, b.select(down, i(1), i(-1)));
    b.bitcast(b.select(b.and(even, inexact), moved, bits), ty)
}
