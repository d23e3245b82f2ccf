// Scalar arithmetic of the generated kernels. f32 follows codegen/src/cpu/math.rs operation by
// operation, so that the CPU and the GPU give the same bits; nothing here is contracted to a
// fused multiply-add unless it says so. Generated code lies in the same namespace.
#pragma once

namespace scalar {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i8 = signed char;
using i16 = short;
using i32 = int;
using i64 = long long;

// ---- memory's form of 16-bit floats ---------------------------------------------------------

__device__ __forceinline__ float f16_to_f32(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ u16 f32_to_f16(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float bf16_to_f32(u16 bits) {
    return __uint_as_float(static_cast<u32>(bits) << 16);
}

// Half to even; NaN stays one.
__device__ __forceinline__ u16 f32_to_bf16(float value) {
    const u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<u16>((bits | 0x00400000u) >> 16);
    return static_cast<u16>((bits + (0x7fffu + (bits >> 16 & 1))) >> 16);
}

__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__device__ __forceinline__ float round_f16(float value) { return f16_to_f32(f32_to_f16(value)); }
__device__ __forceinline__ float round_bf16(float value) { return bf16_to_f32(f32_to_bf16(value)); }

// f64 to f32, inexact results to the neighbour with an odd last bit: a second rounding to fewer
// bits then gives what one rounding would.
__device__ __forceinline__ float narrow_to_odd(double value) {
    const float near = __double2float_rn(value);
    const u32 bits = __float_as_uint(near);
    if ((bits & 1) != 0 || !(static_cast<double>(near) < value || static_cast<double>(near) > value)) return near;
    return __uint_as_float(fabs(static_cast<double>(near)) < fabs(value) ? bits + 1 : bits - 1);
}

// Truncates; beyond the type to its nearest end, NaN to 0.
__device__ __forceinline__ i64 to_i64(double value) {
    return value != value ? 0 : __double2ll_rz(value);
}

__device__ __forceinline__ i64 to_u64(double value) {
    return value >= 0.0 ? static_cast<i64>(__double2ull_rz(value)) : to_i64(value);
}

// ---- arithmetic ------------------------------------------------------------------------------

__device__ __forceinline__ float add(float x, float y) { return __fadd_rn(x, y); }
__device__ __forceinline__ float sub(float x, float y) { return __fsub_rn(x, y); }
__device__ __forceinline__ float mul(float x, float y) { return __fmul_rn(x, y); }
__device__ __forceinline__ float div(float x, float y) { return __fdiv_rn(x, y); }
__device__ __forceinline__ double add(double x, double y) { return __dadd_rn(x, y); }
__device__ __forceinline__ double sub(double x, double y) { return __dsub_rn(x, y); }
__device__ __forceinline__ double mul(double x, double y) { return __dmul_rn(x, y); }
__device__ __forceinline__ double div(double x, double y) { return __ddiv_rn(x, y); }

// Integers wrap.
template <class T> __device__ __forceinline__ T add(T x, T y) { return static_cast<T>(static_cast<u64>(x) + static_cast<u64>(y)); }
template <class T> __device__ __forceinline__ T sub(T x, T y) { return static_cast<T>(static_cast<u64>(x) - static_cast<u64>(y)); }
template <class T> __device__ __forceinline__ T mul(T x, T y) { return static_cast<T>(static_cast<u64>(x) * static_cast<u64>(y)); }

template <class T> constexpr bool kSigned = static_cast<T>(-1) < static_cast<T>(0);

// Both are 0 where the divisor is 0; nothing traps.
template <class T> __device__ __forceinline__ T div(T x, T y) {
    if (y == 0) return 0;
    if (kSigned<T> && y == static_cast<T>(-1)) return sub<T>(0, x);
    return static_cast<T>(x / y);
}
template <class T> __device__ __forceinline__ T rem(T x, T y) {
    if (y == 0 || (kSigned<T> && y == static_cast<T>(-1))) return 0;
    return static_cast<T>(x % y);
}
__device__ __forceinline__ float rem(float x, float y) { return fmodf(x, y); }
__device__ __forceinline__ double rem(double x, double y) { return fmod(x, y); }

// Remainder with the sign of the divisor.
template <class T> __device__ __forceinline__ T mod(T x, T y) {
    const T r = rem(x, y);
    return kSigned<T> && r != 0 && ((r ^ y) < 0) ? add(r, y) : r;
}
template <class T> __device__ __forceinline__ T float_mod(T x, T y) {
    T r = rem(x, y);
    if ((r < 0) != (y < 0) && r != 0) r = add(r, y);
    return r == 0 ? copysign(static_cast<T>(0), y) : r;
}
__device__ __forceinline__ float mod(float x, float y) { return float_mod(x, y); }
__device__ __forceinline__ double mod(double x, double y) { return float_mod(x, y); }

// By repeated squaring; a negative exponent gives the truncated reciprocal.
template <class T> __device__ __forceinline__ T integer_power(T x, T y) {
    if (kSigned<T> && y < 0) return x == 1 ? 1 : x == static_cast<T>(-1) ? ((y & 1) != 0 ? x : 1) : 0;
    T result = 1;
    for (u64 left = static_cast<u64>(y); left != 0; left >>= 1) {
        if ((left & 1) != 0) result = mul(result, x);
        x = mul(x, x);
    }
    return result;
}
__device__ __forceinline__ float power(float x, float y) {
    return __double2float_rn(::pow(static_cast<double>(x), static_cast<double>(y)));
}
__device__ __forceinline__ double power(double x, double y) { return ::pow(x, y); }

// NaN wins.
template <class T> __device__ __forceinline__ T larger(T x, T y) { return x > y || x != x ? x : y; }
template <class T> __device__ __forceinline__ T smaller(T x, T y) { return x < y || x != x ? x : y; }

// ---- functions of one number -----------------------------------------------------------------

__device__ __forceinline__ float negative(float x) { return -x; }
__device__ __forceinline__ double negative(double x) { return -x; }
template <class T> __device__ __forceinline__ T negative(T x) { return sub<T>(0, x); }
__device__ __forceinline__ float absolute(float x) { return fabsf(x); }
__device__ __forceinline__ double absolute(double x) { return fabs(x); }
template <class T> __device__ __forceinline__ T absolute(T x) { return kSigned<T> && x < 0 ? sub<T>(0, x) : x; }
template <class T> __device__ __forceinline__ T sign(T x) {
    return x != x ? x : static_cast<T>((x > 0 ? 1 : 0) - (kSigned<T> && x < 0 ? 1 : 0));
}
template <class T> __device__ __forceinline__ T relu(T x) { return x > 0 || x != x ? x : static_cast<T>(0); }
__device__ __forceinline__ float square_root(float x) { return __fsqrt_rn(x); }
__device__ __forceinline__ double square_root(double x) { return __dsqrt_rn(x); }
template <class T> __device__ __forceinline__ T reciprocal(T x) { return div(static_cast<T>(1), x); }
template <class T> __device__ __forceinline__ T reciprocal_root(T x) { return reciprocal(square_root(x)); }

// 2^n p for p near 1, rounded once.
__device__ __forceinline__ float scale_by_power(float p, int n) {
    const int half = n >> 1;
    const float low = __int_as_float((half + 127) << 23), high = __int_as_float((n - half + 127) << 23);
    return mul(mul(p, low), high);
}

__device__ __forceinline__ float exponential(float x) {
    const float low = -105.0f > x ? -105.0f : x;
    x = 89.5f < low ? 89.5f : low;
    const float magic = 12582912.0f;
    const float shifted = __fmaf_rn(x, 1.44269502e+0f, magic);
    const float n = sub(shifted, magic);
    float r = __fmaf_rn(n, -0.693145751953125f, x);
    r = __fmaf_rn(n, -1.42860677e-6f, r);
    float p = 1.9875691500e-4f;
    p = __fmaf_rn(p, r, 1.3981999507e-3f);
    p = __fmaf_rn(p, r, 8.3334519073e-3f);
    p = __fmaf_rn(p, r, 4.1665795894e-2f);
    p = __fmaf_rn(p, r, 1.6666665459e-1f);
    p = __fmaf_rn(p, r, 5.0000001201e-1f);
    p = add(__fmaf_rn(p, mul(r, r), r), 1.0f);
    return scale_by_power(p, __float_as_int(shifted) - __float_as_int(magic));
}
__device__ __forceinline__ double exponential(double x) { return exp(x); }

__device__ __forceinline__ float logarithm(float x) {
    const bool tiny = x < 1.17549435e-38f;
    const float scaled = tiny ? mul(x, 8388608.0f) : x;
    const int bits = __float_as_int(scaled) - 0x3f3504f3;
    const float f = sub(__int_as_float((bits & 0x007fffff) + 0x3f3504f3), 1.0f);
    const float e = __int2float_rn((bits >> 23) - (tiny ? 23 : 0));
    const float z = mul(f, f);
    float p = 7.0376836292e-2f;
    p = __fmaf_rn(p, f, -1.1514610310e-1f);
    p = __fmaf_rn(p, f, 1.1676998740e-1f);
    p = __fmaf_rn(p, f, -1.2420140846e-1f);
    p = __fmaf_rn(p, f, 1.4249322787e-1f);
    p = __fmaf_rn(p, f, -1.6668057665e-1f);
    p = __fmaf_rn(p, f, 2.0000714765e-1f);
    p = __fmaf_rn(p, f, -2.4999993993e-1f);
    p = __fmaf_rn(p, f, 3.3333331174e-1f);
    float y = mul(mul(p, z), f);
    y = __fmaf_rn(e, -2.12194442e-4f, y);
    y = __fmaf_rn(z, -0.5f, y);
    y = __fmaf_rn(e, 0.693359375f, add(f, y));
    if (x == __int_as_float(0x7f800000) || x != x) return x;
    if (x == 0.0f) return __int_as_float(0xff800000);
    return x < 0.0f ? __int_as_float(0x7fc00000) : y;
}
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// p / q rounded to nearest, for a normal q and a normal quotient: what __fdiv_rn does then, without its
// branch to the rest.
__device__ __forceinline__ float div_normal(float p, float q) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(q));
    r = __fmaf_rn(__fmaf_rn(-q, r, 1.0f), r, r);
    float y = __fmul_rn(p, r);
    y = __fmaf_rn(__fmaf_rn(-q, y, p), r, y);
    return __fmaf_rn(__fmaf_rn(-q, y, p), r, y);
}

__device__ __forceinline__ float error_function(float x) {
    const float z = mul(x, x);
    float p = -2.72614225801306e-10f;
    p = __fmaf_rn(p, z, 2.77068142495902e-08f);
    p = __fmaf_rn(p, z, -2.10102402082908e-06f);
    p = __fmaf_rn(p, z, -5.69250639462346e-05f);
    p = __fmaf_rn(p, z, -7.34990630326855e-04f);
    p = __fmaf_rn(p, z, -2.95459980854025e-03f);
    p = __fmaf_rn(p, z, -1.60960333262415e-02f);
    float q = -1.45660718464996e-05f;
    q = __fmaf_rn(q, z, -2.13374055278905e-04f);
    q = __fmaf_rn(q, z, -1.68282697438203e-03f);
    q = __fmaf_rn(q, z, -7.37332916720468e-03f);
    q = __fmaf_rn(q, z, -1.42647390514189e-02f);
    const float inner = mul(x, div_normal(p, q));
    return fabsf(x) >= 3.832506856900711f ? copysignf(1.0f, x) : inner;
}
__device__ __forceinline__ double error_function(double x) { return erf(x); }

__device__ __forceinline__ float hyperbolic_tangent(float x) {
    const float limit = 7.905311107635498f;
    const float above = -limit > x ? -limit : x;
    const float near = limit < above ? limit : above;
    const float z = mul(near, near);
    float p = -2.76076847742355e-16f;
    p = __fmaf_rn(p, z, 2.00018790482477e-13f);
    p = __fmaf_rn(p, z, -8.60467152213735e-11f);
    p = __fmaf_rn(p, z, 5.12229709037114e-08f);
    p = __fmaf_rn(p, z, 1.48572235717979e-05f);
    p = __fmaf_rn(p, z, 6.37261928875436e-04f);
    p = __fmaf_rn(p, z, 4.89352524458918e-03f);
    float q = 1.19825839466702e-06f;
    q = __fmaf_rn(q, z, 1.18534705686654e-04f);
    q = __fmaf_rn(q, z, 2.26843463243900e-03f);
    q = __fmaf_rn(q, z, 4.89352518554385e-03f);
    const float inner = fabsf(x) < 4e-4f ? x : div_normal(mul(near, p), q);
    return fabsf(x) >= 9.010913f ? copysignf(1.0f, x) : inner;
}
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }

template <class T> __device__ __forceinline__ T square(T x) { return mul(x, x); }
template <class T> __device__ __forceinline__ T cube(T x) { return mul(mul(x, x), x); }
template <class T> __device__ __forceinline__ bool is_nan(T x) { return x != x; }

template <class T> __device__ __forceinline__ T sigmoid(T x) {
    const T one = 1;
    return div(one, add(one, exponential(-x)));
}
__device__ __forceinline__ double silu(double x) { return div(x, add(1.0, exponential(-x))); }
// Without the branch of a division: below -86 the quotient, which is under 4e-36, becomes zero.
__device__ __forceinline__ float silu(float x) {
    const float c = x < -86.0f ? -86.0f : x;
    const float y = div_normal(c, add(1.0f, exponential(-c)));
    return x > 86.0f ? x : x < -86.0f ? mul(x, 0.0f) : y;
}

// max(x, 0) - a q(a) for a = min(|x|, 5.5), q the normal distribution's tail with a zero at 5.5.
__device__ __forceinline__ float gelu(float x) {
    const float size = fabsf(x);
    const float a = size > 5.5f ? 5.5f : size;
    const float u = __fmaf_rn(a, 0.363636374f, -1.0f);
    float p = 2.4388065e-3f;
    p = __fmaf_rn(p, u, 1.0374543e-4f);
    p = __fmaf_rn(p, u, -1.2094426e-2f);
    p = __fmaf_rn(p, u, 4.9194177e-3f);
    p = __fmaf_rn(p, u, 2.4234682e-2f);
    p = __fmaf_rn(p, u, -2.559305e-2f);
    p = __fmaf_rn(p, u, -1.375282e-2f);
    p = __fmaf_rn(p, u, 4.633366e-2f);
    p = __fmaf_rn(p, u, -3.283837e-2f);
    p = __fmaf_rn(p, u, -1.43770585e-2f);
    p = __fmaf_rn(p, u, 5.0008964e-2f);
    p = __fmaf_rn(p, u, -4.882918e-2f);
    p = __fmaf_rn(p, u, 2.6375964e-2f);
    p = __fmaf_rn(p, u, -8.010267e-3f);
    p = __fmaf_rn(p, u, 1.0835422e-3f);
    return __fmaf_rn(-mul(a, sub(5.5f, a)), p, fmaxf(x, 0.0f));
}
__device__ __forceinline__ double gelu(double x) { return fma(0.5 * x, erf(x * 0.70710678118654752), 0.5 * x); }

// The tanh form, as x sigmoid(2u).
__device__ __forceinline__ float gelu_tanh(float x) {
    const float cubic = __fmaf_rn(mul(x, x), -7.13548139e-2f, -1.59576917e+0f);
    return div(x, add(1.0f, exponential(mul(cubic, x))));
}
__device__ __forceinline__ double gelu_tanh(double x) {
    return x / (1.0 + exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)));
}

// max(x, 0) + ln(1 + e^-|x|)
template <class T> __device__ __forceinline__ T softplus(T x) {
    const T one = 1, zero = 0;
    const T t = exponential(-absolute(x));
    const T u = add(one, t);
    return add(zero > x ? zero : x, add(logarithm(u), div(sub(t, sub(u, one)), u)));
}

__device__ __forceinline__ float sine(float x) { return __double2float_rn(sin(static_cast<double>(x))); }
__device__ __forceinline__ float cosine(float x) { return __double2float_rn(cos(static_cast<double>(x))); }
__device__ __forceinline__ double sine(double x) { return sin(x); }
__device__ __forceinline__ double cosine(double x) { return cos(x); }
__device__ __forceinline__ bool is_infinite(float x) { return fabsf(x) == __int_as_float(0x7f800000); }
__device__ __forceinline__ bool is_infinite(double x) { return fabs(x) > 1.7976931348623157e308; }

// ---- codes -----------------------------------------------------------------------------------

// One digit of the wide code of a float that was already multiplied by its inverse scale; the byte
// is the digit, plus 128 where codes are signed. NaN gives 0.
// Rounding and the conversion are additions of a float so large that its last place is 1: conversions run
// at a fraction of the rate. No digit ends above 2^22.
template <bool kSignedCodes>
__device__ __forceinline__ u8 digit(float scaled, float below, float top) {
    constexpr float kLarge = 12582912.0f, kWidest = 4194303.0f;
    const float least = scaled < -kWidest ? -kWidest : scaled;
    const float wide = sub(add(least > kWidest ? kWidest : least, kLarge), kLarge);
    const float size = kSignedCodes ? fabsf(wide) : wide;
    const float above = sub(size, below);
    const float positive = above > 0.0f ? above : 0.0f;
    const float cut = positive < top ? positive : top;
    const float code = kSignedCodes ? copysignf(cut, wide) : cut;
    return static_cast<u8>(__float_as_uint(add(code, kLarge + (kSignedCodes ? 128.0f : 0.0f))));
}

// Four products of unsigned bytes of `x` and signed bytes of `w`.
__device__ __forceinline__ int dot(u32 x, u32 w, int sum) {
    int result;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(w), "r"(sum));
    return result;
}

// ---- sums over a warp or a block -------------------------------------------------------------

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = add(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// Of a block of `kThreads`; every thread gets it. One barrier: calls in turn take `slot` 0 and 1.
template <int kThreads>
__device__ __forceinline__ float row_sum(float x, int& slot) {
    x = warp_sum(x);
    if constexpr (kThreads == 32) return x;
    __shared__ float parts[2][kThreads / 32];
    if (threadIdx.x % 32 == 0) parts[slot][threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kThreads / 32; ++i) sum = add(sum, parts[slot][i]);
    slot ^= 1;
    return sum;
}

// ---- launches --------------------------------------------------------------------------------

// What every generated kernel is called with: addresses of its arguments, run-time sizes, the
// number of work items, and the address of the status word.
template <int kWords>
struct Words {
    u64 w[kWords];
};

// Lets the next kernel of the stream begin its launch, and waits for those before to end.
__device__ __forceinline__ void begin_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

// An index in [0, n), negative ones from the end; one outside is reported and becomes 0.
__device__ __forceinline__ i64 checked_index(i64 index, i64 n, u64 status) {
    if (index < 0) index += n;
    if (index >= 0 && index < n) return index;
    *reinterpret_cast<volatile u32*>(status) = 1;
    return 0;
}

}  // namespace scalar
