// Attention on halves for Hopper (Shah and others, "FlashAttention-3", arXiv 2407.08608):
//
//     out[q] = sum_k softmax_k(scale * q.k) v[k]
//
// A block has 128 queries of one head. A producer warp fetches keys and values tile by tile; each of
// two consumer warpgroups has 64 queries. While the tensor cores multiply the probabilities of one
// tile by its values, and the next tile's scores, the warpgroup works on its softmax.
#pragma once

#include "epilogue.cuh"
#include "wgmma_half.cuh"

struct AttentionSm90Arguments {
    // Four axes: head dimension, row, head, batch; boxes of 64 by 128 rows, 128-byte swizzle.
    TensorMap q, k, v;
    int queries, keys, heads, group;  // group: query heads of a key head
};

// What a block has: a head of a batch, and its queries from `first` on.
struct AttentionBlock {
    int head, batch, first;
};

constexpr int kQueriesOfBlock = 128;
constexpr int kKeysOfTile = 128;
constexpr int kAttentionThreads = 384;

// Config: kDim (64 or 128), kStages, kCausal (the last query sees the last key), kScale, kHalves (kF16 or
// kBf16, of the operands). Outside says what is added to scores and where results go: kAdds, prefetch, add,
// write. Grid: heads, then query tiles, then batches: the keys of one batch's heads are what L2 has to hold.
template <class Config>
struct AttentionSm90 {
    static constexpr int kDim = Config::kDim;
    static constexpr int kColumns = kDim / 64;  // blocks of 64 of the head dimension
    static constexpr int kTile = kKeysOfTile * kDim * 2;
    static constexpr int kQueryBytes = kQueriesOfBlock * kDim * 2;
    static constexpr int kBarriersAt = kQueryBytes + Config::kStages * 2 * kTile;
    static constexpr int kSharedBytes = kBarriersAt + 8 + Config::kStages * 32;

    using Scores = float[kKeysOfTile / 2];
    using Sums = float[kDim / 2];
    using Probabilities = u32[kKeysOfTile / 16][4];

    struct Shared {
        u32 base;
        __device__ __forceinline__ u32 keys(int stage) const { return base + kQueryBytes + stage * 2 * kTile; }
        __device__ __forceinline__ u32 values(int stage) const { return keys(stage) + kTile; }
        __device__ __forceinline__ u32 queries_here() const { return base + kBarriersAt; }
        __device__ __forceinline__ u32 keys_here(int stage) const { return base + kBarriersAt + 8 + stage * 32; }
        __device__ __forceinline__ u32 keys_free(int stage) const { return keys_here(stage) + 8; }
        __device__ __forceinline__ u32 values_here(int stage) const { return keys_here(stage) + 16; }
        __device__ __forceinline__ u32 values_free(int stage) const { return keys_here(stage) + 24; }
    };

    struct Ring {
        int stage = 0;
        u32 parity = 0;
        __device__ __forceinline__ void advance() {
            if (++stage == Config::kStages) {
                stage = 0;
                parity ^= 1;
            }
        }
    };

    static __device__ __forceinline__ AttentionBlock block(const AttentionSm90Arguments& args) {
        // Volatile, so that it is computed anew where it is needed again: registers are short.
        u32 index;
        asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
        const int tiles = (args.queries + kQueriesOfBlock - 1) / kQueriesOfBlock;
        const int head = index % args.heads, rest = index / args.heads;
        // The tiles that see the most keys first.
        return {head, rest / tiles, (tiles - 1 - rest % tiles) * kQueriesOfBlock};
    }

    // Keys that a query sees.
    static __device__ __forceinline__ int visible(const AttentionSm90Arguments& args, int query) {
        return Config::kCausal ? max(0, min(args.keys, args.keys - args.queries + query + 1)) : args.keys;
    }

    static __device__ __forceinline__ int tiles(const AttentionSm90Arguments& args, int first) {
        const int last = min(first + kQueriesOfBlock, args.queries) - 1;
        // One tile at least, so that results are written where nothing is seen.
        return max(1, (visible(args, last) + kKeysOfTile - 1) / kKeysOfTile);
    }

    // One thread.
    static __device__ __forceinline__ void produce(const AttentionSm90Arguments& args, AttentionBlock own,
                                                   Shared shared) {
        const int batch = own.batch, key_head = own.head / args.group;
        launch_wait();
        barrier_expect(shared.queries_here(), kQueryBytes);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            copy_box_4d(shared.base + c * kQueriesOfBlock * 128, &args.q, c * 64, own.first, own.head, batch,
                        shared.queries_here());
        }
        Ring ring;
        const int count = tiles(args, own.first);
        for (int tile = 0; tile < count; ++tile, ring.advance()) {
            barrier_wait(shared.keys_free(ring.stage), ring.parity ^ 1);
            barrier_expect(shared.keys_here(ring.stage), kTile);
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                copy_box_4d(shared.keys(ring.stage) + c * kKeysOfTile * 128, &args.k, c * 64,
                            tile * kKeysOfTile, key_head, batch, shared.keys_here(ring.stage));
            }
            barrier_wait(shared.values_free(ring.stage), ring.parity ^ 1);
            barrier_expect(shared.values_here(ring.stage), kTile);
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                copy_box_4d(shared.values(ring.stage) + c * kKeysOfTile * 128, &args.v, c * 64,
                            tile * kKeysOfTile, key_head, batch, shared.values_here(ring.stage));
            }
        }
    }

    // Starts scores = queries * keys.
    static __device__ __forceinline__ void start_scores(Scores& scores, u32 queries, u32 keys) {
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) {
            const u64 q = operand_descriptor(queries + step / 4 * kQueriesOfBlock * 128) + step % 4 * 2;
            const u64 k = operand_descriptor(keys + step / 4 * kKeysOfTile * 128) + step % 4 * 2;
            WgmmaHalf<kKeysOfTile>::shared(scores, q, k, step > 0);
        }
        wgmma_commit();
    }

    // Starts sums += probabilities * values. Values have the keys along their rows, so they are read
    // transposed; their blocks of 64 columns lie a tile's rows apart.
    static __device__ __forceinline__ void start_sums(Sums& sums, Probabilities& p, u32 values, int first) {
        constexpr u64 kBlockStride = static_cast<u64>(kKeysOfTile * 128 >> 4) << 16;
        const u64 v = operand_descriptor(values) | kBlockStride;
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kKeysOfTile / 16; ++step) {
            WgmmaHalf<kDim>::registers_transposed(sums, p[step], v + step * (16 * 128 >> 4), step > 0 || !first);
        }
        wgmma_commit();
    }

    static __device__ __forceinline__ void arrive(u32 barrier) {
        if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
    }

    // Hides what a row must not see; score 4j + 2h + e is key 8j + 2q + e of row r + 8h.
    static __device__ __forceinline__ void hide(const AttentionSm90Arguments& args, Scores& scores, int tile,
                                                int row) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int limit = visible(args, row + h * 8) - tile * kKeysOfTile - threadIdx.x % 4 * 2;
#pragma unroll
            for (int j = 0; j < kKeysOfTile / 8; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    if (j * 8 + e >= limit) scores[j * 4 + h * 2 + e] = __int_as_float(0xff800000);
                }
            }
        }
    }

    // Scores to probabilities relative to the largest so far; `factor` is what older sums lose.
    static __device__ __forceinline__ void soften(Scores& scores, float (&largest)[2], float (&total)[2],
                                                  float (&factor)[2], float scale) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float top = largest[h];
#pragma unroll
            for (int j = 0; j < kKeysOfTile / 8; ++j) {
                top = fmaxf(top, fmaxf(scores[j * 4 + h * 2], scores[j * 4 + h * 2 + 1]));
            }
            top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
            factor[h] = exp2_fast((largest[h] - top) * scale);
            largest[h] = top;
            const float below = top * scale;
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < kKeysOfTile / 8; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& x = scores[j * 4 + h * 2 + e];
                    x = exp2_fast(fmaf(x, scale, -below));
                    sum += x;
                }
            }
            total[h] = fmaf(total[h], factor[h], sum);
        }
    }

    static __device__ __forceinline__ void to_halves(Probabilities& p, const Scores& scores) {
#pragma unroll
        for (int step = 0; step < kKeysOfTile / 16; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = scores + step * 8 + i * 2;
                p[step][i] = pack_halves<Config::kHalves, false>(pair[0], pair[1]);
                // Here and not between the multiplications, where ptxas would synchronise.
                asm volatile("" : "+r"(p[step][i]));
            }
        }
    }

    // Scores of a tile to probabilities.
    template <class Outside>
    static __device__ __forceinline__ void weigh(const AttentionSm90Arguments& args, AttentionBlock own,
                                                 const Outside& outside, Scores& scores, float (&largest)[2],
                                                 float (&total)[2], float (&factor)[2], int tile, bool whole,
                                                 int row) {
        constexpr float kScale = Config::kScale * 1.44269504f;
        if constexpr (Outside::kAdds) outside.add(args, own, scores, kScale, tile * kKeysOfTile);
        if (!whole) hide(args, scores, tile, row);
        soften(scores, largest, total, factor, Outside::kAdds ? 1.0f : kScale);
    }

    // A warpgroup.
    template <class Outside>
    static __device__ __forceinline__ void consume(const AttentionSm90Arguments& args, AttentionBlock own,
                                                   const Outside& outside, Shared shared, u8* memory) {
        const int consumer = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
        const int first = own.first + consumer * 64;
        const int row = first + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
        const u32 queries = shared.base + consumer * 64 * 128;
        const int count = tiles(args, own.first), whole = visible(args, first) / kKeysOfTile;
        // A query that sees nothing gets zeros; a hidden score must stay below.
        float largest[2] = {-1e30f, -1e30f}, total[2] = {}, factor[2];
        Scores scores;
        Sums sums;
        Probabilities p;
        Ring ring;

        barrier_wait(shared.queries_here(), 0);
        barrier_wait(shared.keys_here(0), 0);
        start_scores(scores, queries, shared.keys(0));
        wgmma_wait<0>();
        arrive(shared.keys_free(0));
        weigh(args, own, outside, scores, largest, total, factor, 0, whole > 0, row);
        to_halves(p, scores);
        for (int tile = 1; tile < count; ++tile) {
            Ring next = ring;
            next.advance();
            barrier_wait(shared.keys_here(next.stage), next.parity);
            start_scores(scores, queries, shared.keys(next.stage));
            barrier_wait(shared.values_here(ring.stage), ring.parity);
            start_sums(sums, p, shared.values(ring.stage), tile == 1);
            wgmma_wait<1>();
            arrive(shared.keys_free(next.stage));
            weigh(args, own, outside, scores, largest, total, factor, tile, tile < whole, row);
            wgmma_wait<0>();
            arrive(shared.values_free(ring.stage));
#pragma unroll
            for (int i = 0; i < kDim / 2; ++i) sums[i] *= factor[i / 2 % 2];
            to_halves(p, scores);
            ring = next;
        }
        barrier_wait(shared.values_here(ring.stage), ring.parity);
        start_sums(sums, p, shared.values(ring.stage), count == 1);
        wgmma_wait<0>();
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            total[h] += __shfl_xor_sync(0xffffffff, total[h], 1);
            total[h] += __shfl_xor_sync(0xffffffff, total[h], 2);
            factor[h] = total[h] > 0.0f ? 1.0f / total[h] : 0.0f;
        }
        outside.write(args, sums, factor, block(args), consumer, memory);
    }

    // The kernel.
    template <class Outside>
    static __device__ __forceinline__ void run(const AttentionSm90Arguments& args, const Outside& outside) {
        extern __shared__ __align__(1024) u8 memory[];
        Shared shared{shared_address(memory)};
        if (threadIdx.x == 0) {
            barrier_init(shared.queries_here(), 1);
            for (int stage = 0; stage < Config::kStages; ++stage) {
                barrier_init(shared.keys_here(stage), 1);
                barrier_init(shared.keys_free(stage), 8);
                barrier_init(shared.values_here(stage), 1);
                barrier_init(shared.values_free(stage), 8);
            }
            barrier_init_fence();
            prefetch_map(&args.q);
            prefetch_map(&args.k);
            prefetch_map(&args.v);
            outside.prefetch();
        }
        __syncthreads();
        launch_dependents();
        const AttentionBlock own = block(args);
        if (threadIdx.x >= 256) {
            registers_give<24>();
            if (__shfl_sync(0xffffffff, threadIdx.x / 32, 0) == 8 && elect_one()) produce(args, own, shared);
        } else {
            registers_take<240>();
            consume(args, own, outside, shared, memory);
        }
    }
};
