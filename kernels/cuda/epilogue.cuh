// What happens to an accumulator on its way out: scale, bias, activation, residual, rounding.
//
//     y = act(acc * scale[o] + bias[o]) + residual
//
// `scale` is the product of the activation's and the channel's scale. A re-quantised output has
// its own 1/scale folded into `requantise`.
#pragma once

#include "ptx.cuh"

enum class Activation { kNone, kRelu, kGelu, kGeluTanh, kSilu };
enum class Output { kF16, kBf16, kF32, kS32, kS8 };

// tanh with a relative error of 2^-11, one instruction.
__device__ __forceinline__ float tanh_fast(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// x Phi(x) = max(x, 0) - |x| q with q = erfc(|x| / sqrt(2)) / 2, by Abramowitz and Stegun 7.1.26:
// an absolute error of 1.5e-7 in erf, and no cancellation for negative x.
__device__ __forceinline__ float gelu(float x) {
    float t, e;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(fmaf(0.23164189f, fabsf(x), 1.0f)));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * x * -0.72134752f));
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

// Rounds half to even and clamps to the codes -127..127.
__device__ __forceinline__ u32 to_code(float x) {
    int code;
    asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(code) : "f"(fmaxf(x, -127.0f)));
    return static_cast<u32>(code) & 0xffu;
}

// Scale and bias of two neighbouring channels.
struct ChannelPair {
    float2 scale;
    float2 bias;
};

template <Activation kActivation>
__device__ __forceinline__ float2 finish(int acc0, int acc1, const ChannelPair& pair) {
    float2 y;
    y.x = activate<kActivation>(fmaf(__int2float_rn(acc0), pair.scale.x, pair.bias.x));
    y.y = activate<kActivation>(fmaf(__int2float_rn(acc1), pair.scale.y, pair.bias.y));
    return y;
}
