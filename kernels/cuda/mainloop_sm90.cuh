// The main loop of a Hopper gemm: a consumer warpgroup multiplies its channels by the tile's tokens.
#pragma once

#include "layout_sm90.cuh"
#include "wgmma.cuh"
#include "wgmma_half.cuh"

template <class Config>
struct Mainloop {
    using L = Layout<Config>;
    using Accumulators = typename L::Accumulators;
    using Ring = typename L::Ring;
    using Shared = typename L::Shared;

    // Half a stage of INT8 weights, or of halves: both operands from shared memory.
    static __device__ __forceinline__ void multiply(Accumulators& acc, u32 weights, u32 tokens, int half,
                                                    int first) {
        // 32 codes further along K are 32 bytes further inside the swizzled row.
        const u64 x = operand_descriptor(tokens) + half * 4;
        const u64 w = operand_descriptor(weights) + half * 4;
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
            for (int b = 0; b < Config::kBlocks; ++b) {
                const u64 rows = w + b * (L::kWeightBlock / 16) + step * 2;
                const int more = half > 0 || step > 0 || !first;
                if constexpr (Config::kHalves) {
                    WgmmaHalf<Config::kTokens>::shared(acc[b], rows, x + step * 2, more);
                } else {
                    Wgmma<Config::kTokens>::shared(acc[b], rows, x + step * 2, more);
                }
            }
        }
        wgmma_commit();
    }

    // A thread's INT4 weights of one stage: for each half of its K, four words; and, a byte each, the
    // factors of its two channels in the first half, then in the second.
    struct Packed {
        uint4 codes[Config::kBlocks][2];
        u32 factors[Config::kBlocks];
    };
    // Half of them as operands: two steps of K, four registers each.
    using Fragments = u32[Config::kBlocks][2][4];

    static __device__ __forceinline__ void load(Packed& packed, u32 weights) {
        const int thread = threadIdx.x % 128;
#pragma unroll
        for (int b = 0; b < Config::kBlocks; ++b) {
            const u32 own = weights + thread * 16 + b * L::kWeightBlock;
            packed.codes[b][0] = load_shared_16(own);
            packed.codes[b][1] = load_shared_16(own + L::kCodeBytes / 2);
            packed.factors[b] = 0;
            if constexpr (Config::kGrouped) {
                const u32 factors = weights + b * L::kWeightBlock + L::kCodeBytes;
                packed.factors[b] = load_shared_4(factors + thread / 4 * 4);
            }
        }
    }

    // A byte holds the codes of one k of two neighbouring channels, rows r and r + 8 of the
    // fragment.
    static __device__ __forceinline__ void unpack(Fragments& fragments, const Packed& packed, int half) {
#pragma unroll
        for (int b = 0; b < Config::kBlocks; ++b) {
            const uint4& four = packed.codes[b][half];
            const u32 words[4] = {four.x, four.y, four.z, four.w};
            const u32 low_factor = packed.factors[b] >> (half * 16) & 0xff;
            const u32 high_factor = packed.factors[b] >> (half * 16 + 8) & 0xff;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                u32& low = fragments[b][i / 2][i % 2 * 2];
                u32& high = fragments[b][i / 2][i % 2 * 2 + 1];
                if constexpr (Config::kGrouped) {
                    low = times(words[i] & 0x0f0f0f0fu, low_factor);
                    high = times(words[i] >> 4 & 0x0f0f0f0fu, high_factor);
                } else {
                    // Both come out times 16, which the epilogue takes back.
                    low = (words[i] << 4) & 0xf0f0f0f0u;
                    high = words[i] & 0xf0f0f0f0u;
                }
                // Here and not between the multiplications, where ptxas would synchronise (C7519).
                asm volatile("" : "+r"(low), "+r"(high));
            }
        }
    }

    // Four codes, stored as code + 8, times a factor: 128 + code * factor fits a byte, so that one
    // multiplication does for all four (LiquidQuant, arXiv 2509.01229).
    static __device__ __forceinline__ u32 times(u32 codes, u32 factor) {
        return (codes * factor + (0x80808080u - 0x08080808u * factor)) ^ 0x80808080u;
    }

    // Half a stage of INT4 weights from registers.
    static __device__ __forceinline__ void multiply(Accumulators& acc, Fragments& w, u32 tokens, int half,
                                                    int first) {
        const u64 x = operand_descriptor(tokens) + half * 4;
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
            for (int b = 0; b < Config::kBlocks; ++b) {
                Wgmma<Config::kTokens>::registers(acc[b], w[b][step], x + step * 2,
                                                  half > 0 || step > 0 || !first);
            }
        }
        wgmma_commit();
    }

    // Gives a stage back to the producers of all blocks that write into it; each warp for itself.
    static __device__ __forceinline__ void release(Shared shared, int stage) {
#ifdef FQC_EVERY_LANE
        // For racecheck, which does not follow what __syncwarp orders: each lane speaks for itself.
        for (u32 rank = 0; rank < Config::kCluster; ++rank) barrier_arrive_at(shared.empty(stage), rank);
#else
        const u32 lane = threadIdx.x % 32;
        // INT4 weights were read by every lane, and one arrives for all.
        if (Config::kInt4) __syncwarp();
        if constexpr (Config::kCluster == 1) {
            if (lane == 0) barrier_arrive(shared.empty(stage));
        } else {
            if (lane < Config::kCluster) barrier_arrive_at(shared.empty(stage), lane);
        }
#endif
    }

    // All of K, in batches of half a stage. At most one batch is left in flight, so that the tensor
    // cores have work while the next is prepared; when it is the next stage's, the last stage has
    // been read.
    static __device__ __forceinline__ void accumulate(Accumulators& acc, Shared shared, Ring& ring,
                                                      int consumer, int k_blocks) {
        const u32 own = consumer * Config::kBlocks * L::kWeightBlock;
        int held = 0;
        if (Config::kSplit > 1 && k_blocks == 0) clear(acc);
        for (int k = 0; k < k_blocks; ++k) {
            const u32 weights = shared.weights(ring.stage) + own, tokens = shared.tokens(ring.stage);
            barrier_wait(shared.full(ring.stage), ring.parity);
            if constexpr (Config::kInt4) {
                // Two sets of registers: one is unpacked while the tensor cores read the other.
                Packed packed;
                Fragments even, odd;
                load(packed, weights);
                unpack(even, packed, 0);
                multiply(acc, even, tokens, 0, k == 0);
                wgmma_wait<1>();
                if (k > 0) release(shared, held);
                unpack(odd, packed, 1);
                multiply(acc, odd, tokens, 1, 0);
                wgmma_wait<1>();
            } else {
                multiply(acc, weights, tokens, 0, k == 0);
                wgmma_wait<1>();
                if (k > 0) release(shared, held);
                multiply(acc, weights, tokens, 1, 0);
                wgmma_wait<1>();
            }
            held = ring.stage;
            ring.advance();
        }
        wgmma_wait<0>();
        if constexpr (Config::kHalves) {
            // Nothing that reads a sum moves before the wait.
#pragma unroll
            for (int b = 0; b < Config::kBlocks; ++b) {
#pragma unroll
                for (int i = 0; i < Config::kTokens / 2; ++i) asm volatile("" : "+f"(acc[b][i])::"memory");
            }
        }
        if (Config::kSplit == 1 || k_blocks > 0) release(shared, held);
    }

    static __device__ __forceinline__ void clear(Accumulators& acc) {
#pragma unroll
        for (int b = 0; b < Config::kBlocks; ++b) {
#pragma unroll
            for (int i = 0; i < Config::kTokens / 2; ++i) acc[b][i] = 0;
        }
    }

    // Sends the accumulators to the first block of the cluster. A cluster has one tile, so the
    // place is free.
    static __device__ __forceinline__ void hand_over(const Accumulators& acc, Shared shared, int consumer,
                                                     int part) {
        const u32 place = shared.partial(consumer, part) + threadIdx.x % 128 * 16;
        const u32 to = in_block(place, 0), barrier = in_block(shared.handed_over(consumer), 0);
#pragma unroll
        for (int b = 0; b < Config::kBlocks; ++b) {
#pragma unroll
            for (int i = 0; i < Config::kTokens / 2; i += 4) {
                const int4 four = {acc[b][i], acc[b][i + 1], acc[b][i + 2], acc[b][i + 3]};
                store_remote_16(to + (b * (Config::kTokens / 2) + i) * 512, four, barrier);
            }
        }
    }

    static __device__ __forceinline__ void take_over(Accumulators& acc, Shared shared, int consumer) {
        barrier_wait(shared.handed_over(consumer), 0);
#pragma unroll
        for (int part = 0; part < Config::kSplit - 1; ++part) {
            const u32 from = shared.partial(consumer, part) + threadIdx.x % 128 * 16;
#pragma unroll
            for (int b = 0; b < Config::kBlocks; ++b) {
#pragma unroll
                for (int i = 0; i < Config::kTokens / 2; i += 4) {
                    const uint4 four = load_shared_16(from + (b * (Config::kTokens / 2) + i) * 512);
                    acc[b][i] += four.x;
                    acc[b][i + 1] += four.y;
                    acc[b][i + 2] += four.z;
                    acc[b][i + 3] += four.w;
                }
            }
        }
    }
};
