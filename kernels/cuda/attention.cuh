// Attention on halves with mma.sync, for sm_80 and everything after, one tile of keys after the
// other (Dao, "FlashAttention-2", arXiv 2307.08691):
//
//     out[q] = sum_k softmax_k(scale * q.k + mask[q][k]) v[k]
//
// Query heads that share a key head are rows of one tile: row = query * group + head. So keys are
// read once for all of them, and the single query of decoding still fills rows. With few rows the
// keys are split over blocks, whose sums a second kernel adds up. Products are exact in float,
// sums and softmax are float, probabilities are rounded to halves.
#pragma once

#include "attention_arguments.cuh"
#include "mma.cuh"

// Config: kDim (32, 64 or 128), kKeys (of a tile, a multiple of 16), kWarps, kRowTiles (sixteens of
// rows of a warp), kCausal (the last query sees the last key), kMask, kSplit, kOutput (kF16 or
// kBf16 and inputs alike, or codes and f16 inputs).
template <class Config>
struct Attention {
    static constexpr int kDim = Config::kDim, kKeys = Config::kKeys, kRowTiles = Config::kRowTiles;
    static constexpr int kThreads = 32 * Config::kWarps;
    static constexpr int kRows = 16 * kRowTiles * Config::kWarps;
    static constexpr int kPitch = kDim * 2;       // bytes of a row in shared memory
    static constexpr int kPieces = kPitch / 16;
    static constexpr int kTile = kKeys * kPitch;  // one of keys or values
    static constexpr int kSharedBytes = kRows * kPitch > 4 * kTile ? kRows * kPitch : 4 * kTile;
    static constexpr int kSteps = kDim / 16;
    static constexpr bool kBf16 = Config::kOutput == Output::kBf16;
    static constexpr Output kHalves = kBf16 ? Output::kBf16 : Output::kF16;

    using Scores = float[kRowTiles][kKeys / 8][4];
    using Sums = float[kRowTiles][kDim / 8][4];
    using Queries = u32[kRowTiles][kSteps][4];
    // Of rows r and r + 8 of each sixteen.
    using PerRow = float[kRowTiles][2];

    // Which rows and keys a block has.
    struct Place {
        int batch, key_head, first_row, rows, split, begin, end;
    };

    static __device__ __forceinline__ u32 piece_at(int row, int piece) {
        // Eight rows that are read together lie in eight different 16-byte columns.
        constexpr int kMask = kPieces < 8 ? kPieces - 1 : 7;
        constexpr int kShift = kPieces < 8 ? 1 : 0;
        return static_cast<u32>(row * kPitch + ((piece ^ (row >> kShift & kMask)) << 4));
    }

    // Keys that a query sees.
    static __device__ __forceinline__ int visible(const AttentionArguments& args, int query) {
        return Config::kCausal ? max(0, min(args.keys, args.keys - args.queries + query + 1)) : args.keys;
    }

    static __device__ __forceinline__ Place place(const AttentionArguments& args) {
        Place at;
        const int tiles = gridDim.x / args.splits;
        at.split = blockIdx.x / tiles;
        // The tiles that see the most keys first.
        at.first_row = (tiles - 1 - blockIdx.x % tiles) * kRows;
        at.key_head = blockIdx.y;
        at.batch = blockIdx.z;
        at.rows = args.queries * args.group;
        const int last = min(at.first_row + kRows, at.rows) - 1;
        const int tiles_of_keys = (visible(args, last / args.group) + kKeys - 1) / kKeys;
        at.begin = tiles_of_keys * at.split / args.splits;
        at.end = tiles_of_keys * (at.split + 1) / args.splits;
        return at;
    }

    static __device__ __forceinline__ long long row_offset(const AttentionArguments& args, const Place& at,
                                                           const Strides& strides, int row) {
        const int head = at.key_head * args.group + row % args.group;
        return at.batch * strides.batch + head * strides.head + row / args.group * strides.row;
    }

    // A warp's queries, through shared memory.
    static __device__ __forceinline__ void load_queries(const AttentionArguments& args, const Place& at,
                                                        Queries& queries, u32 shared) {
#pragma unroll
        for (int i = threadIdx.x; i < kRows * kPieces; i += kThreads) {
            const int row = i / kPieces, piece = i % kPieces;
            const bool valid = at.first_row + row < at.rows;
            const long long offset = valid ? row_offset(args, at, args.q_at, at.first_row + row) : 0;
            copy_16(shared + piece_at(row, piece), args.q + offset + piece * 8, valid);
        }
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                const int row = (warp * kRowTiles + t) * 16 + lane % 16;
                load_matrices(queries[t][step], shared + piece_at(row, step * 2 + lane / 16));
            }
        }
        __syncthreads();
    }

    // Tile `tile` of keys or values.
    static __device__ __forceinline__ void fetch(const AttentionArguments& args, const Place& at, u32 shared,
                                                 const u16* from, const Strides& strides, int tile) {
        const u16* base = from + at.batch * strides.batch + at.key_head * strides.head;
#pragma unroll
        for (int i = threadIdx.x; i < kKeys * kPieces; i += kThreads) {
            const int row = i / kPieces, piece = i % kPieces, key = tile * kKeys + row;
            const bool valid = key < args.keys;
            copy_16(shared + piece_at(row, piece), base + (valid ? key * strides.row : 0) + piece * 8, valid);
        }
    }

    static __device__ __forceinline__ void multiply_keys(Scores& scores, const Queries& queries, u32 keys) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                u32 k[4];
                const int row = n * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(k, keys + piece_at(row, step * 2 + lane / 8 % 2));
#pragma unroll
                for (int t = 0; t < kRowTiles; ++t) {
                    multiply_halves<kBf16>(scores[t][n * 2], queries[t][step], k[0], k[1]);
                    multiply_halves<kBf16>(scores[t][n * 2 + 1], queries[t][step], k[2], k[3]);
                }
            }
        }
    }

    static __device__ __forceinline__ void multiply_values(Sums& sums, const Scores& scores, u32 values) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
            u32 p[kRowTiles][4];
#pragma unroll
            for (int t = 0; t < kRowTiles; ++t) {
                const float* even = scores[t][step * 2];
                const float* odd = scores[t][step * 2 + 1];
                p[t][0] = pack_halves<kHalves, false>(even[0], even[1]);
                p[t][1] = pack_halves<kHalves, false>(even[2], even[3]);
                p[t][2] = pack_halves<kHalves, false>(odd[0], odd[1]);
                p[t][3] = pack_halves<kHalves, false>(odd[2], odd[3]);
            }
#pragma unroll
            for (int n = 0; n < kDim / 16; ++n) {
                u32 v[4];
                const int row = step * 16 + lane % 16;
                load_matrices_transposed(v, values + piece_at(row, n * 2 + lane / 16));
#pragma unroll
                for (int t = 0; t < kRowTiles; ++t) {
                    multiply_halves<kBf16>(sums[t][n * 2], p[t], v[0], v[1]);
                    multiply_halves<kBf16>(sums[t][n * 2 + 1], p[t], v[2], v[3]);
                }
            }
        }
    }

    // Scores to base-2 logits: scaled, masked, hidden where a row must not see the key.
    static __device__ __forceinline__ void logits(const AttentionArguments& args, const Place& at,
                                                  Scores& scores, int tile) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const float scale = args.scale * kLog2E;
        const bool edge = (tile + 1) * kKeys > visible(args, at.first_row / args.group);
        if (!Config::kMask && !edge) {
#pragma unroll
            for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) scores[t][n][i] *= scale;
                }
            }
            return;
        }
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = min(at.first_row + (warp * kRowTiles + t) * 16 + h * 8 + lane / 4, at.rows - 1);
                const int query = row / args.group, limit = visible(args, query);
                const float* mask = args.mask;
                if (Config::kMask) {
                    const int head = at.key_head * args.group + row % args.group;
                    mask += at.batch * args.mask_batch + head * args.mask_head + query * args.mask_query;
                }
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const int key = tile * kKeys + n * 8 + lane % 4 * 2 + e;
                        float& x = scores[t][n][h * 2 + e];
                        x *= scale;
                        if (key >= limit) x = __int_as_float(0xff800000);
                        else if (Config::kMask) x = fmaxf(fmaf(mask[key * args.mask_key], kLog2E, x), kHidden);
                    }
                }
            }
        }
    }

    // Logits to probabilities relative to the largest so far; older sums follow.
    static __device__ __forceinline__ void rescale(Scores& scores, Sums& sums, PerRow& largest, PerRow& total) {
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float top = largest[t][h];
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) {
                    top = fmaxf(top, fmaxf(scores[t][n][h * 2], scores[t][n][h * 2 + 1]));
                }
                top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
                const float factor = exp2_fast(largest[t][h] - top);
                largest[t][h] = top;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float& x = scores[t][n][h * 2 + e];
                        x = exp2_fast(x - top);
                        sum += x;
                    }
                }
                total[t][h] = fmaf(total[t][h], factor, sum);
#pragma unroll
                for (int n = 0; n < kDim / 8; ++n) {
                    sums[t][n][h * 2] *= factor;
                    sums[t][n][h * 2 + 1] *= factor;
                }
            }
        }
    }

    static __device__ __forceinline__ void write(const AttentionArguments& args, const Place& at,
                                                 const Sums& sums, const PerRow& largest, PerRow& total) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, q = lane % 4;
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float sum = total[t][h];
                sum += __shfl_xor_sync(0xffffffff, sum, 1);
                sum += __shfl_xor_sync(0xffffffff, sum, 2);
                const int row = at.first_row + (warp * kRowTiles + t) * 16 + h * 8 + lane / 4;
                if (row >= at.rows) continue;
                const int head = at.key_head * args.group + row % args.group, query = row / args.group;
                if constexpr (Config::kSplit) {
                    const long long part = static_cast<long long>(at.split) * args.batch + at.batch;
                    float* to = args.partial +
                                ((part * args.heads + head) * args.queries + query) * (kDim + 2);
#pragma unroll
                    for (int n = 0; n < kDim / 8; ++n) {
                        *reinterpret_cast<float2*>(to + n * 8 + q * 2) =
                            make_float2(sums[t][n][h * 2], sums[t][n][h * 2 + 1]);
                    }
                    if (q == 0) *reinterpret_cast<float2*>(to + kDim) = make_float2(largest[t][h], sum);
                } else {
                    const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
                    const long long to = row_offset(args, at, args.out_at, row) + q * 2;
#pragma unroll
                    for (int n = 0; n < kDim / 8; ++n) {
                        write_pair(args, to + n * 8, head * kDim + n * 8 + q * 2, sums[t][n][h * 2] * factor,
                                   sums[t][n][h * 2 + 1] * factor);
                    }
                }
            }
        }
    }

    static __device__ __forceinline__ void write_pair(const AttentionArguments& args, long long to, int channel,
                                                      float low, float high) {
        if constexpr (is_codes(Config::kOutput)) {
            const float2 inverse = *reinterpret_cast<const float2*>(args.inverse + channel);
            const u32 a = to_code<Config::kOutput, false>(low, inverse.x, 0.0f);
            const u32 b = to_code<Config::kOutput, false>(high, inverse.y, 0.0f);
            *reinterpret_cast<u16*>(static_cast<u8*>(args.out) + to) = static_cast<u16>(__byte_perm(a, b, 0x0040));
        } else {
            *reinterpret_cast<u32*>(static_cast<u16*>(args.out) + to) = pack_halves<kHalves, false>(low, high);
        }
    }

    // The kernel. Grid: [row tiles * splits][key heads][batch].
    static __device__ __forceinline__ void run(const AttentionArguments& args) {
        extern __shared__ __align__(1024) u8 memory[];
        const u32 shared = shared_address(memory);
        const Place at = place(args);
        launch_dependents();
        launch_wait();
        Queries queries;
        load_queries(args, at, queries, shared);
        Sums sums = {};
        PerRow largest, total = {};
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) largest[t][0] = largest[t][1] = 4.0f * kHidden;
        auto fetch_both = [&](int tile) {
            const u32 stage = shared + (tile - at.begin) % 2 * 2 * kTile;
            fetch(args, at, stage, args.k, args.k_at, tile);
            copy_commit();
            fetch(args, at, stage + kTile, args.v, args.v_at, tile);
            copy_commit();
        };
        if (at.begin < at.end) fetch_both(at.begin);
        for (int tile = at.begin; tile < at.end; ++tile) {
            const u32 stage = shared + (tile - at.begin) % 2 * 2 * kTile;
            copy_wait<1>();
            // The keys are here, and everyone has done with the other stage.
            __syncthreads();
            Scores scores = {};
            multiply_keys(scores, queries, stage);
            if (tile + 1 < at.end) fetch_both(tile + 1);
            logits(args, at, scores, tile);
            rescale(scores, sums, largest, total);
            if (tile + 1 < at.end) copy_wait<2>(); else copy_wait<0>();
            __syncthreads();
            multiply_values(sums, scores, stage + kTile);
        }
        write(args, at, sums, largest, total);
    }
};
