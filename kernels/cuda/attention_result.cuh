// What goes into an attention and comes out of it, whichever kernel it is: a head's rows, its mask, its
// result as floats or as codes.
#pragma once

#include "scalar.cuh"

namespace scalar {

// One head of one batch: first elements and the distances of rows.
template <class T>
struct Head {
    const T* q;
    const T* k;
    const T* v;
    float* y;
    const float* mask;
    i64 q_row, k_row, v_row, y_row, mask_row, mask_key;
    int queries, keys;
};

// Where codes of a head go: rows of `padded` bytes, of which the first `base` are those of all heads'
// channels. Digits of the tail are of the channel that `source` names.
struct Codes {
    u8* out;
    const float* inverse;
    const int* source;
    const float* below;
    int first;  // channel of this head
    int base, tail, padded;
    float top;
};

// Floats from one row to the next of results that become codes, in shared memory.
template <int kWidth>
constexpr int kFloatPitch = kWidth + 4;

// A warp's sixteen rows of results, in shared memory, as codes.
template <bool kSigned, int kWidth>
__device__ __forceinline__ void write_codes(const Codes& codes, const float* rows, int first, int queries) {
    constexpr int kPitch = kFloatPitch<kWidth>;
    const int lane = threadIdx.x % 32, count = min(16, queries - first);
    for (int i = lane; i < count * (kWidth / 4); i += 32) {
        const int row = i / (kWidth / 4), c = i % (kWidth / 4) * 4;
        const float4 x = *reinterpret_cast<const float4*>(rows + row * kPitch + c);
        const float4 inverse = *reinterpret_cast<const float4*>(codes.inverse + codes.first + c);
        const u32 a = digit<kSigned>(mul(x.x, inverse.x), 0.0f, codes.top);
        const u32 b = digit<kSigned>(mul(x.y, inverse.y), 0.0f, codes.top);
        const u32 d = digit<kSigned>(mul(x.z, inverse.z), 0.0f, codes.top);
        const u32 e = digit<kSigned>(mul(x.w, inverse.w), 0.0f, codes.top);
        u8* const to = codes.out + static_cast<i64>(first + row) * codes.padded + codes.first + c;
        *reinterpret_cast<u32*>(to) = a | b << 8 | d << 16 | e << 24;
    }
    for (int t = lane; t < codes.tail; t += 32) {
        const int c = codes.source[t] - codes.first;
        if (c < 0 || c >= kWidth) continue;
        const float inverse = codes.inverse[codes.first + c], below = codes.below[t];
        u8* const to = codes.out + static_cast<i64>(first) * codes.padded + codes.base + t;
        for (int row = 0; row < count; ++row) {
            to[static_cast<i64>(row) * codes.padded] =
                digit<kSigned>(mul(rows[row * kPitch + c], inverse), below, codes.top);
        }
    }
    if (codes.first != 0) return;
    const int rest = codes.padded - codes.base - codes.tail;
    for (int i = lane; i < count * rest; i += 32) {
        const i64 at = static_cast<i64>(first + i / rest) * codes.padded + codes.base + codes.tail + i % rest;
        codes.out[at] = kSigned ? 128 : 0;
    }
}

// What becomes of the result.
enum class Result { kFloats, kUnsigned, kSigned };

// What is added to the scores: nothing, the same for all queries of a head, or something for each.
enum class Mask { kNone, kByKey, kFull };

}  // namespace scalar
