// Attention with products in bf16 (mma.sync, sm_80 and later); sums and softmax are f32. Queries, keys
// and values lie in memory as bf16 or as floats, which are rounded on their way in. A block of four
// warps has 64 queries of one head, a warp sixteen of them; tiles of 64 keys and values pass through
// shared memory, the next while one is multiplied where there is room for two. The result is floats,
// or codes that are quantised and flattened.
#pragma once

#include "attention_result.cuh"
#include "mma.cuh"

namespace scalar {

__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two neighbours as a word.
__device__ __forceinline__ u32 pair_of(const float* at) {
    const float2 pair = *reinterpret_cast<const float2*>(at);
    return pack_bf16(pair.x, pair.y);
}
__device__ __forceinline__ u32 pair_of(const u16* at) { return *reinterpret_cast<const u32*>(at); }

// Eight neighbours to shared memory, zeros unless `valid`; complete after copy_wait and a barrier.
__device__ __forceinline__ void copy_eight(u32 shared, const float* at, bool valid) {
    float4 low = {}, high = {};
    if (valid) {
        low = reinterpret_cast<const float4*>(at)[0];
        high = reinterpret_cast<const float4*>(at)[1];
    }
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(pack_bf16(low.x, low.y)),
                 "r"(pack_bf16(low.z, low.w)), "r"(pack_bf16(high.x, high.y)), "r"(pack_bf16(high.z, high.w))
                 : "memory");
}
__device__ __forceinline__ void copy_eight(u32 shared, const u16* at, bool valid) { copy_16(shared, at, valid); }

// Shared memory of a block. The pitches keep rows that are read together in different banks.
template <int kDepth, int kWidth>
struct AttentionTiles {
    static constexpr int kKeys = 64;
    static constexpr int kKeyPitch = kDepth * 2 + 16, kValuePitch = kWidth * 2 + 16;
    static constexpr int kStage = kKeys * (kKeyPitch + kValuePitch);
    static constexpr int kStages = 2 * kStage <= 48 * 1024 ? 2 : 1;
    static constexpr int kResult = 64 * kFloatPitch<kWidth> * 4;
    static constexpr int kBytes = kStages * kStage > kResult ? kStages * kStage : kResult;
};

// The queries from `first` on. Rows of k and v are aligned to 16 bytes, those of q and y to 8.
template <int kDepth, int kWidth, bool kCausal, Mask kMask, Result kResult, class T>
__device__ __forceinline__ void attention_bf16(const Head<T>& head, const Codes& codes, int first, float scale) {
    using Tiles = AttentionTiles<kDepth, kWidth>;
    constexpr int kKeys = Tiles::kKeys, kThreads = 128, kStages = Tiles::kStages;
    constexpr float kLog2E = 1.44269504f, kHidden = -1e30f;
    __shared__ alignas(16) u8 memory[Tiles::kBytes];
    const u32 shared = shared_address(memory);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int warp_first = first + static_cast<int>(threadIdx.x) / 32 * 16, rows[2] = {warp_first + g, warp_first + g + 8};
    const float infinity = __int_as_float(0x7f800000);
    // Query i sees keys up to i + keys - queries.
    const int shift = head.keys - head.queries;
    int visible = head.keys;
    if (kCausal) visible = min(visible, first + 64 + shift);
    const int tiles = (visible + kKeys - 1) / kKeys;
    auto fetch = [&](int tile) {
        if (tile < tiles) {
            const u32 keys = shared + tile % kStages * Tiles::kStage, values = keys + kKeys * Tiles::kKeyPitch;
            const int start = tile * kKeys;
#pragma unroll
            for (int i = threadIdx.x; i < kKeys * kDepth / 8; i += kThreads) {
                const int row = i / (kDepth / 8), c = i % (kDepth / 8);
                const bool valid = start + row < head.keys;
                copy_eight(keys + row * Tiles::kKeyPitch + c * 16,
                           head.k + (valid ? (start + row) * head.k_row : 0) + c * 8, valid);
            }
#pragma unroll
            for (int i = threadIdx.x; i < kKeys * kWidth / 8; i += kThreads) {
                const int row = i / (kWidth / 8), c = i % (kWidth / 8);
                const bool valid = start + row < head.keys;
                copy_eight(values + row * Tiles::kValuePitch + c * 16,
                           head.v + (valid ? (start + row) * head.v_row : 0) + c * 8, valid);
            }
        }
        // Groups are counted, so an empty one stands for a tile that is not there.
        copy_commit();
    };
    fetch(0);
    u32 q[kDepth / 16][4];
#pragma unroll
    for (int c = 0; c < kDepth / 16; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = rows[i % 2];
            q[c][i] = row < head.queries ? pair_of(head.q + row * head.q_row + c * 16 + i / 2 * 8 + t * 2) : 0;
        }
    }
    const float factor = scale * kLog2E;
    float sums[kWidth / 8][4] = {};
    float largest[2] = {-infinity, -infinity}, total[2] = {};
    for (int tile = 0; tile < tiles; ++tile) {
        const int start = tile * kKeys;
        if (kStages > 1) fetch(tile + 1);
        // On its way while the scores are made.
        float added[kKeys / 8][2] = {};
        if constexpr (kMask == Mask::kByKey) {
#pragma unroll
            for (int i = 0; i < kKeys / 4; ++i) {
                const int key = start + i / 2 * 8 + t * 2 + i % 2;
                if (key < head.keys) added[i / 2][i % 2] = head.mask[key * head.mask_key];
            }
        }
        copy_wait<kStages - 1>();
        __syncthreads();
        const u32 keys = shared + tile % kStages * Tiles::kStage, values = keys + kKeys * Tiles::kKeyPitch;
        float scores[kKeys / 8][4] = {};
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n) {
#pragma unroll
            for (int c = 0; c < kDepth / 16; ++c) {
                u32 k[4];
                const int row = n * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(k, keys + row * Tiles::kKeyPitch + c * 32 + lane / 8 % 2 * 16);
                multiply_halves<true>(scores[n * 2], q[c], k[0], k[1]);
                multiply_halves<true>(scores[n * 2 + 1], q[c], k[2], k[3]);
            }
        }
        // Only the last tiles hold keys that a row of this warp must not see.
        const bool edge = start + kKeys > head.keys || kCausal && start + kKeys > warp_first + shift + 1;
        float best[2] = {largest[0], largest[1]};
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = start + n * 8 + t * 2 + i % 2, row = rows[i / 2];
                float& score = scores[n][i];
                score *= factor;
                if (kMask == Mask::kFull && key < head.keys && row < head.queries) {
                    added[n][i % 2] = head.mask[row * head.mask_row + key * head.mask_key];
                }
                if (kMask != Mask::kNone) score = fmaxf(fmaf(added[n][i % 2], kLog2E, score), kHidden);
                if (edge && (key >= head.keys || kCausal && key > row + shift)) score = -infinity;
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
            for (int n = 0; n < kWidth / 16; ++n) {
                u32 v[4];
                const int row = c * 16 + lane % 16;
                load_matrices_transposed(v, values + row * Tiles::kValuePitch + n * 32 + lane / 16 * 16);
                multiply_halves<true>(sums[n * 2], weights, v[0], v[1]);
                multiply_halves<true>(sums[n * 2 + 1], weights, v[2], v[3]);
            }
        }
        // Everyone has read this tile.
        __syncthreads();
        if (kStages == 1) fetch(tile + 1);
    }
    float* const own = reinterpret_cast<float*>(memory) + (threadIdx.x / 32 * 16 + g) * kFloatPitch<kWidth> + t * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
        total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
        const float inverse = 1.0f / total[r];
        if (kResult == Result::kFloats && rows[r] >= head.queries) continue;
#pragma unroll
        for (int n = 0; n < kWidth / 8; ++n) {
            const float2 pair = {sums[n][r * 2] * inverse, sums[n][r * 2 + 1] * inverse};
            float* const to = kResult == Result::kFloats ? head.y + rows[r] * head.y_row + n * 8 + t * 2
                                                          : own + r * 8 * kFloatPitch<kWidth> + n * 8;
            *reinterpret_cast<float2*>(to) = pair;
        }
    }
    if constexpr (kResult != Result::kFloats) {
        __syncwarp();
        const float* const all = reinterpret_cast<const float*>(memory) + threadIdx.x / 32 * 16 * kFloatPitch<kWidth>;
        write_codes<kResult == Result::kSigned, kWidth>(codes, all, warp_first, head.queries);
    }
}

}  // namespace scalar
