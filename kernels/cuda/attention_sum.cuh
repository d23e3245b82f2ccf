// The second kernel of attention whose keys are split over blocks.
#pragma once

#include "attention_arguments.cuh"

// Adds up what the splits have: a warp a row. Grid: [ceil(batch * heads * queries / warps)].
template <class Config>
struct AttentionSum {
    static __device__ __forceinline__ void run(const AttentionArguments& args) {
        constexpr int kDim = Config::kDim, kPitch = kDim + 2;
        const int lane = threadIdx.x % 32;
        const int rows = args.batch * args.heads * args.queries;
        const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
        launch_dependents();
        launch_wait();
        if (row >= rows) return;
        const float* first = args.partial + static_cast<long long>(row) * kPitch;
        const long long step = static_cast<long long>(rows) * kPitch;
        float top = 4.0f * kHidden;
        for (int split = lane; split < args.splits; split += 32) top = fmaxf(top, first[split * step + kDim]);
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, mask));
        float total = 0.0f;
        float sums[kDim / 32] = {};
        // Loads of several splits are under way at a time.
#pragma unroll 8
        for (int split = 0; split < args.splits; ++split) {
            const float* from = first + split * step;
            const float2 own = *reinterpret_cast<const float2*>(from + kDim);
            const float factor = exp2_fast(own.x - top);
            total = fmaf(own.y, factor, total);
#pragma unroll
            for (int i = 0; i < kDim / 32; ++i) sums[i] = fmaf(from[i * 32 + lane], factor, sums[i]);
        }
        const int query = row % args.queries, head = row / args.queries % args.heads;
        const long long to = row / args.queries / args.heads * args.out_at.batch + head * args.out_at.head +
                             query * args.out_at.row;
        const float factor = total > 0.0f ? 1.0f / total : 0.0f;
#pragma unroll
        for (int i = 0; i < kDim / 32; ++i) {
            const int column = i * 32 + lane;
            const float y = sums[i] * factor;
            if constexpr (is_codes(Config::kOutput)) {
                const float inverse = args.inverse[head * kDim + column];
                static_cast<u8*>(args.out)[to + column] =
                    static_cast<u8>(to_code<Config::kOutput, false>(y, inverse, 0.0f));
            } else {
                constexpr Output kHalves = Config::kOutput == Output::kBf16 ? Output::kBf16 : Output::kF16;
                static_cast<u16*>(args.out)[to + column] = static_cast<u16>(pack_halves<kHalves, false>(y, 0.0f));
            }
        }
    }
};
