// What happens to an accumulator on its way out: scale, bias, activation, residual, rounding.
//
//     y = act(acc * scale[o] + bias[o]) + residual
//
// `scale` is the product of the activation's and the channel's scale. Re-quantised outputs have one
// digit of a wide code a channel: c = rint(y * inverse[o]), sgn(c) * clamp(|c| - below[o], 0, max).
#pragma once

#include "ptx.cuh"

enum class Activation { kNone, kRelu, kGelu, kGeluTanh, kSilu };
// kS32: the accumulators. kS8 to kU4: codes of eight or four bits, a byte each.
enum class Output { kF16, kBf16, kF32, kS32, kS8, kU8, kS4, kU4 };

__device__ constexpr bool is_codes(Output output) { return output >= Output::kS8; }

__device__ constexpr bool is_signed(Output output) {
    return output == Output::kS8 || output == Output::kS4;
}

__device__ constexpr float code_max(Output output) {
    return output == Output::kS8 ? 127.0f : output == Output::kU8 ? 255.0f : output == Output::kS4 ? 7.0f : 15.0f;
}

// tanh with a relative error of 2^-11, one instruction.
__device__ __forceinline__ float tanh_fast(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 2^x, one instruction; zero where that is denormal.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// x Phi(x) = max(x, 0) - |x| q with q = erfc(|x| / sqrt(2)) / 2, by Abramowitz and Stegun 7.1.26:
// an absolute error of 1.5e-7 in erf, and no cancellation for negative x.
__device__ __forceinline__ float gelu(float x) {
    float t;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(fmaf(0.23164189f, fabsf(x), 1.0f)));
    const float e = exp2_fast(x * x * -0.72134752f);
    float p = fmaf(0.53070271f, t, -0.72657601f);
    p = fmaf(p, t, 0.71070687f);
    p = fmaf(p, t, -0.14224837f);
    p = fmaf(p, t, 0.12741480f);
    return fmaf(-fabsf(x), p * t * e, fmaxf(x, 0.0f));
}

template <Activation kActivation>
__device__ __forceinline__ float activate(float x) {
    if constexpr (kActivation == Activation::kRelu) return fmaxf(x, 0.0f);
    if constexpr (kActivation == Activation::kGelu) return gelu(x);
    // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    if constexpr (kActivation == Activation::kGeluTanh) {
        float half = 0.5f * x;
        float inner = x * fmaf(0.035677408f, x * x, 0.79788456f);
        return fmaf(half, tanh_fast(inner), half);
    }
    // x / (1 + exp(-x)) = 0.5 x (1 + tanh(x / 2))
    if constexpr (kActivation == Activation::kSilu) {
        float half = 0.5f * x;
        return fmaf(half, tanh_fast(half), half);
    }
    return x;
}

// Two floats as one word of 16-bit floats, `low` in the low half; negative ones become zero if
// kRelu.
template <Output kOutput, bool kRelu>
__device__ __forceinline__ u32 pack_halves(float low, float high) {
    u32 word;
    if constexpr (kOutput == Output::kBf16) {
        if constexpr (kRelu) {
            asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        } else {
            asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        }
    } else {
        if constexpr (kRelu) {
            asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        } else {
            asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        }
    }
    return word;
}

template <Output kOutput>
__device__ __forceinline__ float2 unpack_halves(u32 word) {
    float2 pair;
    if constexpr (kOutput == Output::kBf16) {
        pair.x = __uint_as_float(word << 16);
        pair.y = __uint_as_float(word & 0xffff0000u);
    } else {
        asm("{\n"
            ".reg .b16 low, high;\n"
            "mov.b32 {low, high}, %2;\n"
            "cvt.f32.f16 %0, low;\n"
            "cvt.f32.f16 %1, high;\n"
            "}"
            : "=f"(pair.x), "=f"(pair.y)
            : "r"(word));
    }
    return pair;
}

// The code in the low byte; the rest is undefined. It is the low bits of a float so large that its
// last place is 1: that addition rounds half to even, and full rate, unlike a conversion.
template <Output kOutput, bool kDigits, bool kPositive = false>
__device__ __forceinline__ u32 to_code(float y, float inverse, float below) {
    constexpr float kLarge = 12582912.0f;  // 1.5 * 2^23
    constexpr float kMax = code_max(kOutput);
    constexpr float kLow = is_signed(kOutput) && !kPositive ? -kMax : 0.0f;
    const float wide = y * inverse;
    if constexpr (!kDigits) {
        return __float_as_uint(fminf(fmaxf(wide, kLow), kMax) + kLarge);
    } else {
        // The digits that instances without a printed epilogue give end below 2^15.
        constexpr float kWidest = 32767.0f;
        const float c = (fminf(fmaxf(wide, kLow < 0.0f ? -kWidest : 0.0f), kWidest) + kLarge) - kLarge;
        const float size = fminf(fmaxf(fabsf(c) - below, 0.0f), kMax);
        return __float_as_uint((kLow < 0.0f ? copysignf(size, c) : size) + kLarge);
    }
}

// The low bytes of four words.
__device__ __forceinline__ u32 low_bytes(u32 a, u32 b, u32 c, u32 d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// Scale and bias of two neighbouring channels.
struct ChannelPair {
    float2 scale;
    float2 bias;
};

// Of accumulators that are sixteen times too large if kSixteenth.
template <bool kBias, bool kSixteenth>
__device__ __forceinline__ ChannelPair channel_pair(const float* scale, const float* bias, int channel) {
    ChannelPair pair = {*reinterpret_cast<const float2*>(scale + channel), {0.0f, 0.0f}};
    if (kBias) pair.bias = *reinterpret_cast<const float2*>(bias + channel);
    if (kSixteenth) {
        pair.scale.x *= 0.0625f;
        pair.scale.y *= 0.0625f;
    }
    return pair;
}

// What rounds two neighbouring channels.
struct CodePair {
    float2 inverse;
    float2 below;
};

template <bool kDigits>
__device__ __forceinline__ CodePair code_pair(const float* inverse, const float* below, int channel) {
    CodePair pair = {*reinterpret_cast<const float2*>(inverse + channel), {0.0f, 0.0f}};
    if (kDigits) pair.below = *reinterpret_cast<const float2*>(below + channel);
    return pair;
}

__device__ __forceinline__ float to_float(int acc) { return __int2float_rn(acc); }
__device__ __forceinline__ float to_float(float acc) { return acc; }

template <Activation kActivation, class Accumulator>
__device__ __forceinline__ float2 finish(Accumulator acc0, Accumulator acc1, const ChannelPair& pair) {
    float2 y;
    y.x = activate<kActivation>(fmaf(to_float(acc0), pair.scale.x, pair.bias.x));
    y.y = activate<kActivation>(fmaf(to_float(acc1), pair.scale.y, pair.bias.y));
    return y;
}
