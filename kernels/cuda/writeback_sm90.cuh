// The way out of a Hopper gemm: a consumer's accumulators through the epilogue to memory.
//
// A thread has, of each block of 64 channels, two neighbouring channels (2r and 2r + 1 of its
// warp's sixteen, r = lane / 4) and of every eight tokens two (2q and 2q + 1, q = lane % 4).
#pragma once

#include "layout_sm90.cuh"

template <class Config>
struct Writeback {
    using L = Layout<Config>;

    static __device__ __forceinline__ ChannelPair channel_pair(const GemmArguments& args, int channel) {
        ChannelPair pair = {{0.0f, 0.0f}, {0.0f, 0.0f}};
        if (channel < args.n) {
            pair.scale = *reinterpret_cast<const float2*>(args.scale + channel);
            if (Config::kBias) pair.bias = *reinterpret_cast<const float2*>(args.bias + channel);
        }
        if (Config::kInt4) {
            pair.scale.x *= 0.0625f;
            pair.scale.y *= 0.0625f;
        }
        return pair;
    }

    // A thread's residual of one chunk: word 2j + e is of token 8j + 2q + e.
    using Residual = u32[L::kChunk / 4];

    static __device__ __forceinline__ void load_residual(const GemmArguments& args, Residual& residual,
                                                         int token, int channel) {
        token += threadIdx.x % 4 * 2;
        const u16* at = args.residual + static_cast<size_t>(token) * args.n + channel;
        const int rows = channel < args.n ? args.m - token : 0;
#pragma unroll
        for (int j = 0; j < L::kChunk / 8; ++j) {
            residual[j * 2] = j * 8 < rows ? *reinterpret_cast<const u32*>(at) : 0;
            residual[j * 2 + 1] = j * 8 + 1 < rows ? *reinterpret_cast<const u32*>(at + args.n) : 0;
            at += 8 * static_cast<size_t>(args.n);
            // One address that moves, not sixteen that are kept.
            asm volatile("" : "+l"(at));
        }
    }

    // Accumulator 4j + 2h + e of a thread is token 8j + 2q + e of channel 2r + h.
    static __device__ __forceinline__ float2 value(const int* acc, const Residual& residual, int j, int e,
                                                   const ChannelPair& pair) {
        constexpr Activation kActivation = L::kLateRelu ? Activation::kNone : Config::kActivation;
        float2 y = finish<kActivation>(acc[j * 4 + e], acc[j * 4 + 2 + e], pair);
        if constexpr (Config::kResidual) {
            float2 before = unpack_halves<Config::kOutput>(residual[j * 2 + e]);
            y.x += before.x;
            y.y += before.y;
        }
        return y;
    }

    // One chunk of tokens of one block of channels, into shared memory as the map's box wants it.
    static __device__ __forceinline__ void stage_chunk(const GemmArguments& args, const int* acc,
                                                       const Residual& residual, u32 chunk,
                                                       const ChannelPair& pair) {
        const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
        const int r = lane / 4, q = lane % 4;
        if constexpr (Config::kOutput == Output::kS8) {
            // Rows of 64 bytes, their four 16-byte pieces swizzled by bits 1 and 2 of the row.
#pragma unroll
            for (int j = 0; j < L::kChunk / 8; j += 4) {
                u32 words[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float2 even = value(acc, residual, j + i, 0, pair);
                    float2 odd = value(acc, residual, j + i, 1, pair);
                    words[i] = to_code(even.x * args.requantise) | to_code(even.y * args.requantise) << 8 |
                               to_code(odd.x * args.requantise) << 16 | to_code(odd.y * args.requantise) << 24;
                }
                const int row = j * 8 + lane;
                store_matrices_transposed(chunk + row * 64 + ((warp ^ (row >> 1 & 3)) << 4), words[0],
                                          words[1], words[2], words[3]);
            }
        } else {
            // Rows of 128 bytes, their eight 16-byte pieces swizzled by the low bits of the row.
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int row = 2 * q + e;
                const u32 at = chunk + row * 128 + (((2 * warp + r / 4) ^ row) << 4) + r % 4 * 4;
#pragma unroll
                for (int j = 0; j < L::kChunk / 8; ++j) {
                    float2 y = value(acc, residual, j, e, pair);
                    store_shared_4(at + j * 1024, pack_halves<Config::kOutput, L::kLateRelu>(y.x, y.y));
                }
            }
        }
    }

    static __device__ __forceinline__ void write_direct(const GemmArguments& args, const int* acc,
                                                        const ChannelPair& pair, int token, int channel) {
        if (channel >= args.n) return;
        const int q = threadIdx.x % 4;
#pragma unroll
        for (int j = 0; j < Config::kTokens / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int at = token + j * 8 + 2 * q + e;
                if (at >= args.m) continue;
                const size_t place = static_cast<size_t>(at) * args.n + channel;
                if constexpr (Config::kOutput == Output::kS32) {
                    constexpr int kShift = Config::kInt4 ? 4 : 0;
                    int2 y = {acc[j * 4 + e] >> kShift, acc[j * 4 + 2 + e] >> kShift};
                    *reinterpret_cast<int2*>(static_cast<int*>(args.out) + place) = y;
                } else {
                    float2 y = finish<Config::kActivation>(acc[j * 4 + e], acc[j * 4 + 2 + e], pair);
                    *reinterpret_cast<float2*>(static_cast<float*>(args.out) + place) = y;
                }
            }
        }
    }
};
