// Attention on floats in memory with products in bf16 (mma.sync, sm_80 and later); sums and softmax
// are f32. A block of four warps has 64 queries of one head, a warp sixteen of them; keys and values
// pass through shared memory in tiles of 64, the values transposed.
#pragma once

#include "scalar.cuh"

namespace scalar {

__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// 16 rows of A by 8 columns of B, 16 deep. Of A a thread has rows lane / 4 and that + 8, columns
// 2 (lane % 4) and that + 8, two each; of B column lane / 4 and those rows.
__device__ __forceinline__ void multiply_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// One head of one batch: first elements and the distances of rows.
struct Head {
    const float* q;
    const float* k;
    const float* v;
    float* y;
    const float* mask;
    i64 q_row, k_row, v_row, y_row, mask_row, mask_key;
    int queries, keys;
};

// The queries from `first` on. Rows of q, k and v are aligned to 16 bytes, those of y to 8.
template <int kDepth, int kWidth, bool kCausal, bool kMask>
__device__ __forceinline__ void attention_bf16(const Head& head, int first, float scale) {
    constexpr int kKeys = 64, kThreads = 128;
    constexpr float kLog2E = 1.44269504f, kHidden = -1e30f;
    // The pitches keep the reads below free of bank conflicts, or nearly so.
    __shared__ alignas(16) u32 keys[kKeys][kDepth / 2 + 4];
    __shared__ u32 values[kWidth][kKeys / 2 + 2];
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row = first + static_cast<int>(threadIdx.x) / 32 * 16 + g, rows[2] = {row, row + 8};
    const float infinity = __int_as_float(0x7f800000);
    u32 q[kDepth / 16][4];
#pragma unroll
    for (int c = 0; c < kDepth / 16; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = rows[i % 2];
            q[c][i] = 0;
            if (row < head.queries) {
                const float* const at = head.q + row * head.q_row + c * 16 + i / 2 * 8 + t * 2;
                const float2 pair = *reinterpret_cast<const float2*>(at);
                q[c][i] = pack_bf16(pair.x, pair.y);
            }
        }
    }
    // Query i sees keys up to i + keys - queries.
    const int shift = head.keys - head.queries;
    int visible = head.keys;
    if (kCausal) visible = min(visible, first + 64 + shift);
    const float factor = scale * kLog2E;
    float sums[kWidth / 8][4] = {};
    float largest[2] = {-infinity, -infinity}, total[2] = {};
    for (int start = 0; start < visible; start += kKeys) {
        __syncthreads();
#pragma unroll
        for (int i = threadIdx.x; i < kKeys * kDepth / 4; i += kThreads) {
            const int row = i / (kDepth / 4), c = i % (kDepth / 4);
            float4 x = {};
            if (start + row < head.keys) {
                x = *reinterpret_cast<const float4*>(head.k + (start + row) * head.k_row + c * 4);
            }
            *reinterpret_cast<uint2*>(&keys[row][c * 2]) = {pack_bf16(x.x, x.y), pack_bf16(x.z, x.w)};
        }
#pragma unroll
        for (int i = threadIdx.x; i < kKeys / 2 * kWidth; i += kThreads) {
            const int pair = i / kWidth, c = i % kWidth, row = start + pair * 2;
            const float low = row < head.keys ? head.v[row * head.v_row + c] : 0.0f;
            const float high = row + 1 < head.keys ? head.v[(row + 1) * head.v_row + c] : 0.0f;
            values[c][pair] = pack_bf16(low, high);
        }
        __syncthreads();
        float scores[kKeys / 8][4] = {};
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
            for (int c = 0; c < kDepth / 16; ++c) {
                multiply_bf16(scores[n], q[c], keys[n * 8 + g][c * 8 + t], keys[n * 8 + g][c * 8 + 4 + t]);
            }
        }
        float best[2] = {largest[0], largest[1]};
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = start + n * 8 + t * 2 + i % 2, row = rows[i / 2];
                float& score = scores[n][i];
                score *= factor;
                if (kMask && key < head.keys && row < head.queries) {
                    const float added = head.mask[row * head.mask_row + key * head.mask_key];
                    score = fmaxf(fmaf(added, kLog2E, score), kHidden);
                }
                if (key >= head.keys || kCausal && key > row + shift) score = -infinity;
                best[i / 2] = fmaxf(best[i / 2], score);
            }
        }
        float keep[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            best[r] = fmaxf(best[r], __shfl_xor_sync(0xffffffffu, best[r], 1));
            best[r] = fmaxf(best[r], __shfl_xor_sync(0xffffffffu, best[r], 2));
            // A row that has seen no key yet has nothing to keep.
            keep[r] = largest[r] == -infinity ? 0.0f : power_of_two(largest[r] - best[r]);
            largest[r] = best[r];
            total[r] *= keep[r];
        }
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float top = largest[i / 2];
                scores[n][i] = top == -infinity ? 0.0f : power_of_two(scores[n][i] - top);
                total[i / 2] += scores[n][i];
            }
        }
#pragma unroll
        for (int n = 0; n < kWidth / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[n][i] *= keep[i / 2];
        }
#pragma unroll
        for (int c = 0; c < kKeys / 16; ++c) {
            const float(&a)[4] = scores[c * 2];
            const float(&b)[4] = scores[c * 2 + 1];
            const u32 weights[4] = {pack_bf16(a[0], a[1]), pack_bf16(a[2], a[3]), pack_bf16(b[0], b[1]),
                                    pack_bf16(b[2], b[3])};
#pragma unroll
            for (int n = 0; n < kWidth / 8; ++n) {
                multiply_bf16(sums[n], weights, values[n * 8 + g][c * 8 + t], values[n * 8 + g][c * 8 + 4 + t]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
        if (rows[r] >= head.queries) continue;
        const float inverse = 1.0f / total[r];
#pragma unroll
        for (int n = 0; n < kWidth / 8; ++n) {
            const float2 pair = {sums[n][r * 2] * inverse, sums[n][r * 2 + 1] * inverse};
            *reinterpret_cast<float2*>(head.y + rows[r] * head.y_row + n * 8 + t * 2) = pair;
        }
    }
}

}  // namespace scalar
