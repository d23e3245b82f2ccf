// The way out of a Hopper gemm: a consumer's accumulators through the epilogue to memory.
//
// A thread has, of each block of 64 channels, two neighbouring channels (2r and 2r + 1 of its
// warp's sixteen, r = lane / 4) and of every eight tokens two (2q and 2q + 1, q = lane % 4).
#pragma once

#include "layout_sm90.cuh"

template <class Config>
struct Writeback {
    using L = Layout<Config>;
    // Accumulators are sixteen times too large.
    static constexpr bool kSixteenth = Config::kInt4 && !Config::kGrouped;

    // What a thread knows of its two channels of a block.
    struct Pair {
        ChannelPair scale;
        CodePair codes;
    };

    static __device__ __forceinline__ Pair load_pair(const GemmArguments& args, int channel) {
        Pair pair = {};
        if (channel < args.n && Config::kOutput != Output::kS32) {
            pair.scale = channel_pair<Config::kBias, kSixteenth>(args.scale, args.bias, channel);
            if (is_codes(Config::kOutput)) {
                pair.codes = code_pair<Config::kDigits>(args.inverse, args.below, channel);
            }
        }
        return pair;
    }

    // A thread's residual of one chunk: word 2j + e is of token 8j + 2q + e.
    using Residual = u32[L::kChunk / 4];

    static __device__ __forceinline__ void load_residual(const GemmArguments& args, Residual& residual,
                                                         int token, int channel) {
        token += threadIdx.x % 4 * 2;
        const u16* at = args.residual + static_cast<size_t>(token) * args.pitch + channel;
        const int rows = channel < args.n ? args.m - token : 0;
#pragma unroll
        for (int j = 0; j < L::kChunk / 8; ++j) {
            residual[j * 2] = j * 8 < rows ? *reinterpret_cast<const u32*>(at) : 0;
            residual[j * 2 + 1] = j * 8 + 1 < rows ? *reinterpret_cast<const u32*>(at + args.pitch) : 0;
            at += 8 * static_cast<size_t>(args.pitch);
            // One address that moves, not sixteen that are kept.
            asm volatile("" : "+l"(at));
        }
    }

    // Accumulator 4j + 2h + e of a thread is token 8j + 2q + e of channel 2r + h.
    static __device__ __forceinline__ float2 value(const int* acc, const Residual& residual, int j, int e,
                                                   const Pair& pair) {
        constexpr Activation kActivation = L::kLateRelu ? Activation::kNone : Config::kActivation;
        float2 y = finish<kActivation>(acc[j * 4 + e], acc[j * 4 + 2 + e], pair.scale);
        if constexpr (Config::kResidual) {
            float2 before = unpack_halves<Config::kOutput>(residual[j * 2 + e]);
            y.x += before.x;
            y.y += before.y;
        }
        return y;
    }

    static __device__ __forceinline__ u32 code(float y, float inverse, float below) {
        return to_code<Config::kOutput, Config::kDigits, L::kLateRelu>(y, inverse, below);
    }

    // One chunk of tokens of one block of channels, into shared memory as the map's box wants it.
    static __device__ __forceinline__ void stage_chunk(const GemmArguments& args, const int* acc,
                                                       const Residual& residual, u32 chunk,
                                                       const Pair& pair) {
        const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
        const int r = lane / 4, q = lane % 4;
        if constexpr (is_codes(Config::kOutput)) {
            // Rows of 64 bytes, their four 16-byte pieces swizzled by bits 1 and 2 of the row.
#pragma unroll
            for (int j = 0; j < L::kChunk / 8; j += 4) {
                u32 words[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 even = value(acc, residual, j + i, 0, pair);
                    const float2 odd = value(acc, residual, j + i, 1, pair);
                    words[i] = low_bytes(code(even.x, pair.codes.inverse.x, pair.codes.below.x),
                                         code(even.y, pair.codes.inverse.y, pair.codes.below.y),
                                         code(odd.x, pair.codes.inverse.x, pair.codes.below.x),
                                         code(odd.y, pair.codes.inverse.y, pair.codes.below.y));
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
                                                        const Pair& pair, int token, int channel) {
        if (channel >= args.n) return;
        const int q = threadIdx.x % 4;
#pragma unroll
        for (int j = 0; j < Config::kTokens / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int at = token + j * 8 + 2 * q + e;
                if (at >= args.m) continue;
                const size_t place = static_cast<size_t>(at) * args.pitch + channel;
                if constexpr (Config::kOutput == Output::kS32) {
                    constexpr int kShift = kSixteenth ? 4 : 0;
                    int2 y = {acc[j * 4 + e] >> kShift, acc[j * 4 + 2 + e] >> kShift};
                    *reinterpret_cast<int2*>(static_cast<int*>(args.out) + place) = y;
                } else {
                    float2 y = finish<Config::kActivation>(acc[j * 4 + e], acc[j * 4 + 2 + e], pair.scale);
                    *reinterpret_cast<float2*>(static_cast<float*>(args.out) + place) = y;
                }
            }
        }
    }
};
