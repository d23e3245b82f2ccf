// Attention on Hopper with its result written back in boxes: halves like the operands, or a code a channel.
#pragma once

#include "attention_sm90.cuh"

struct AttentionBoxesArguments {
    AttentionSm90Arguments attention;
    // As the map of the queries with boxes of 64 rows; codes: boxes of the whole head dimension, no swizzle.
    TensorMap out;
    const float* inverse;  // [heads * kDim]: multiplier before rounding; code outputs only
};

// Config: that of AttentionSm90, and kOutput: kHalves, or codes. There is no mask but the causal one.
template <class Config>
struct AttentionBoxes {
    static constexpr int kDim = Config::kDim;
    static constexpr bool kAdds = false;
    const AttentionBoxesArguments& own;

    __device__ __forceinline__ void prefetch() const { prefetch_map(&own.out); }

    // Results go where the warpgroup's queries were.
    __device__ __forceinline__ void write(const AttentionSm90Arguments&, const float (&sums)[kDim / 2],
                                          const float (&factor)[2], AttentionBlock block, int consumer,
                                          u8* memory) const {
        const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
        const u32 place = shared_address(memory) + consumer * 64 * 128;
        // All four warps have done with the queries that lay here.
        named_barrier(1 + consumer, 128);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = warp * 16 + h * 8 + r;
#pragma unroll
            for (int j = 0; j < kDim / 8; ++j) {
                const float low = sums[j * 4 + h * 2] * factor[h], high = sums[j * 4 + h * 2 + 1] * factor[h];
                if constexpr (is_codes(Config::kOutput)) {
                    const int column = j * 8 + q * 2;
                    const float2 inverse =
                        *reinterpret_cast<const float2*>(own.inverse + block.head * kDim + column);
                    const u32 a = to_code<Config::kOutput, false>(low, inverse.x, 0.0f);
                    const u32 b = to_code<Config::kOutput, false>(high, inverse.y, 0.0f);
                    store_shared_2(place + row * kDim + column, __byte_perm(a, b, 0x0040));
                } else {
                    const u32 at = place + j / 8 * (kQueriesOfBlock * 128) + row * 128 + ((j % 8 ^ r) << 4) + q * 4;
                    store_shared_4(at, pack_halves<Config::kHalves, false>(low, high));
                }
            }
        }
        fence_async();
        named_barrier(1 + consumer, 128);
        if (threadIdx.x % 128 == 0) {
            const int first = block.first + consumer * 64;
            constexpr int kStep = is_codes(Config::kOutput) ? kDim : 64;
#pragma unroll
            for (int c = 0; c < kDim / kStep; ++c) {
                store_box_4d(&own.out, c * kStep, first, block.head, block.batch,
                             place + c * (kQueriesOfBlock * 128));
            }
            store_commit();
            store_wait_all();
        }
    }
};
