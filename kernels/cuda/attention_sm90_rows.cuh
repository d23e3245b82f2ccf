// Attention on Hopper as a compiled model has it: perhaps a mask that is the same for all queries of a head, and
// a result of floats, or of codes that are quantised and flattened.
#pragma once

#include "attention_result.cuh"
#include "attention_sm90.cuh"

namespace scalar {

// Parts: of(block, head, codes) says where the rows, the mask and the codes of a block lie.
template <int kDim, Mask kMask, Result kResult, class Parts>
struct AttentionRows {
    static_assert(kMask != Mask::kFull, "registers are too few");
    static constexpr bool kAdds = kMask != Mask::kNone;
    static constexpr float kLog2E = 1.44269504f, kHidden = -1e30f;
    Parts parts;

    __device__ __forceinline__ void prefetch() const {}

    // Score 4j + 2h + e is key 8j + 2q + e of the tile. Scores get the scale of exponents of two.
    __device__ __forceinline__ void add(const AttentionSm90Arguments& args, AttentionBlock block,
                                        float (&scores)[kKeysOfTile / 2], float scale, int start) const {
        Head<u16> head = {};
        Codes codes = {};
        parts.of(block, head, codes);
        int key = start + threadIdx.x % 4 * 2;
#pragma unroll
        for (int j = 0; j < kKeysOfTile / 8; ++j, key += 8) {
            // One address after the other, not all at once: registers are short.
            asm volatile("" : "+r"(key));
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                // What lies outside is hidden afterwards.
                const float added = head.mask[min(key + e, args.keys - 1) * head.mask_key];
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float& score = scores[j * 4 + h * 2 + e];
                    score = fmaxf(fmaf(added, kLog2E, score * scale), kHidden);
                }
            }
        }
    }

    __device__ __forceinline__ void write(const AttentionSm90Arguments& args, const float (&sums)[kDim / 2],
                                          const float (&factor)[2], AttentionBlock block, int consumer,
                                          u8* memory) const {
        Head<u16> head = {};
        Codes codes = {};
        parts.of(block, head, codes);
        const int lane = threadIdx.x % 32, r = lane / 4, q = lane % 4, warp = threadIdx.x / 32 * 16;
        float* const rows = reinterpret_cast<float*>(memory) + warp * kFloatPitch<kDim>;
        // Both warpgroups have done with what lay in shared memory.
        if (kResult != Result::kFloats) named_barrier(1, 256);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int own = h * 8 + r, row = block.first + warp + own;
            if (kResult == Result::kFloats && row >= args.queries) continue;
            float* const to = kResult == Result::kFloats ? head.y + row * head.y_row : rows + own * kFloatPitch<kDim>;
#pragma unroll
            for (int j = 0; j < kDim / 8; ++j) {
                const float2 pair = {sums[j * 4 + h * 2] * factor[h], sums[j * 4 + h * 2 + 1] * factor[h]};
                *reinterpret_cast<float2*>(to + j * 8 + q * 2) = pair;
            }
        }
        if constexpr (kResult != Result::kFloats) {
            __syncwarp();
            write_codes<kResult == Result::kSigned, kDim>(codes, rows, block.first + warp, args.queries);
        }
    }
};

}  // namespace scalar
