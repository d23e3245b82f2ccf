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
        float top = 4.0f * kHidden, total = 0.0f;
        float sums[kDim / 32] = {};
        for (int split = 0; split < args.splits; ++split) {
            const float* from = args.partial + (static_cast<long long>(split) * rows + row) * kPitch;
            const float2 own = *reinterpret_cast<const float2*>(from + kDim);
            const float next = fmaxf(top, own.x);
            const float old_factor = exp2_fast(top - next), factor = exp2_fast(own.x - next);
            top = next;
            total = total * old_factor + own.y * factor;
#pragma unroll
            for (int i = 0; i < kDim / 32; ++i) {
                sums[i] = sums[i] * old_factor + from[i * 32 + lane] * factor;
            }
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
