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
    // The same with boxes of 64 rows; codes: boxes of the whole head dimension, no swizzle.
    TensorMap out;
    const float* inverse;  // [heads * kDim]: multiplier before rounding; code outputs only
    int queries, keys, group;
    float scale;
};

constexpr int kQueriesOfBlock = 128;
constexpr int kKeysOfTile = 128;
constexpr int kAttentionThreads = 384;

// Config: kDim (64 or 128), kStages, kCausal (the last query sees the last key), kOutput (kF16 or
// kBf16 and inputs alike, or codes and f16 inputs). Grid: [heads][query tiles][batch]: the keys of one batch's
// heads are what L2 has to hold.
template <class Config>
struct AttentionSm90 {
    static constexpr int kDim = Config::kDim;
    static constexpr int kColumns = kDim / 64;  // blocks of 64 of the head dimension
    static constexpr int kTile = kKeysOfTile * kDim * 2;
    static constexpr int kQueryBytes = kQueriesOfBlock * kDim * 2;
    static constexpr int kBarriersAt = kQueryBytes + Config::kStages * 2 * kTile;
    static constexpr int kSharedBytes = kBarriersAt + 8 + Config::kStages * 32;
    static constexpr Output kHalves = Config::kOutput == Output::kBf16 ? Output::kBf16 : Output::kF16;

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

    static __device__ __forceinline__ int first_query() {
        // The tiles that see the most keys first.
        return (gridDim.y - 1 - blockIdx.y) * kQueriesOfBlock;
    }

    // Keys that a query sees.
    static __device__ __forceinline__ int visible(const AttentionSm90Arguments& args, int query) {
        return Config::kCausal ? max(0, min(args.keys, args.keys - args.queries + query + 1)) : args.keys;
    }

    static __device__ __forceinline__ int tiles(const AttentionSm90Arguments& args) {
        const int last = min(first_query() + kQueriesOfBlock, args.queries) - 1;
        // One tile at least, so that results are written where nothing is seen.
        return max(1, (visible(args, last) + kKeysOfTile - 1) / kKeysOfTile);
    }

    // One thread.
    static __device__ __forceinline__ void produce(const AttentionSm90Arguments& args, Shared shared) {
        const int head = blockIdx.x, batch = blockIdx.z, key_head = head / args.group;
        launch_wait();
        barrier_expect(shared.queries_here(), kQueryBytes);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            copy_box_4d(shared.base + c * kQueriesOfBlock * 128, &args.q, c * 64, first_query(), head, batch,
                        shared.queries_here());
        }
        Ring ring;
        const int count = tiles(args);
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
                p[step][i] = pack_halves<kHalves, false>(pair[0], pair[1]);
                // Here and not between the multiplications, where ptxas would synchronise.
                asm volatile("" : "+r"(p[step][i]));
            }
        }
    }

    static __device__ __forceinline__ void write(const AttentionSm90Arguments& args, const Sums& sums,
                                                 float (&total)[2], u32 place, int consumer) {
        const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
        const int head = blockIdx.x, batch = blockIdx.z;
        // All four warps have done with the queries that lay here.
        named_barrier(1 + consumer, 128);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            total[h] += __shfl_xor_sync(0xffffffff, total[h], 1);
            total[h] += __shfl_xor_sync(0xffffffff, total[h], 2);
            const float factor = total[h] > 0.0f ? 1.0f / total[h] : 0.0f;
            const int row = warp * 16 + h * 8 + r;
#pragma unroll
            for (int j = 0; j < kDim / 8; ++j) {
                const float low = sums[j * 4 + h * 2] * factor, high = sums[j * 4 + h * 2 + 1] * factor;
                if constexpr (is_codes(Config::kOutput)) {
                    const int column = j * 8 + q * 2;
                    const float2 inverse =
                        *reinterpret_cast<const float2*>(args.inverse + head * kDim + column);
                    const u32 a = to_code<Config::kOutput, false>(low, inverse.x, 0.0f);
                    const u32 b = to_code<Config::kOutput, false>(high, inverse.y, 0.0f);
                    store_shared_2(place + row * kDim + column, __byte_perm(a, b, 0x0040));
                } else {
                    const u32 at = place + j / 8 * (kQueriesOfBlock * 128) + row * 128 + ((j % 8 ^ r) << 4) + q * 4;
                    store_shared_4(at, pack_halves<kHalves, false>(low, high));
                }
            }
        }
        fence_async();
        named_barrier(1 + consumer, 128);
        if (threadIdx.x % 128 == 0) {
            const int first = first_query() + consumer * 64;
            constexpr int kStep = is_codes(Config::kOutput) ? kDim : 64;
#pragma unroll
            for (int c = 0; c < kDim / kStep; ++c) {
                store_box_4d(&args.out, c * kStep, first, head, batch, place + c * (kQueriesOfBlock * 128));
            }
            store_commit();
            store_wait_all();
        }
    }

    // A warpgroup.
    static __device__ __forceinline__ void consume(const AttentionSm90Arguments& args, Shared shared) {
        const int consumer = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
        const int first = first_query() + consumer * 64;
        const int row = first + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
        const u32 queries = shared.base + consumer * 64 * 128;
        const int count = tiles(args), whole = visible(args, first) / kKeysOfTile;
        const float scale = args.scale * 1.44269504f;
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
        if (whole <= 0) hide(args, scores, 0, row);
        soften(scores, largest, total, factor, scale);
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
            if (tile >= whole) hide(args, scores, tile, row);
            soften(scores, largest, total, factor, scale);
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
        // Results go where this warpgroup's queries were.
        write(args, sums, total, queries, consumer);
    }

    // The kernel.
    static __device__ __forceinline__ void run(const AttentionSm90Arguments& args) {
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
            prefetch_map(&args.out);
        }
        __syncthreads();
        launch_dependents();
        if (threadIdx.x >= 256) {
            registers_give<24>();
            if (__shfl_sync(0xffffffff, threadIdx.x / 32, 0) == 8 && elect_one()) produce(args, shared);
        } else {
            registers_take<240>();
            consume(args, shared);
        }
    }
};
