// Integer matrix multiplication for Hopper: y[token][channel] = epilogue(sum_k w[channel][k] x[token][k]).
//
// Weights are on the m side of wgmma, tokens on its n side, so that the few tokens of decoding do
// not waste rows, and INT4 weights can be operands from registers: they are INT4 in memory and in
// shared memory, and unpack to INT8 with three operations for eight weights.
//
// One block a multiprocessor stays for the whole launch. One thread of the producer warpgroup
// fills a ring of stages (one stage: 128 codes of K of the tile's weights and tokens); each of
// two consumer warpgroups multiplies its own channels and writes them out. While one warpgroup is
// in its epilogue the other multiplies and the ring fills for the next tile. The blocks of a
// cluster take neighbouring channels of the same tokens; each fetches its share of the tokens for
// all of them. When there are fewer tiles than multiprocessors, the blocks of a cluster take parts
// of K of one tile instead and the first adds up: exact, since accumulators are integers.
//
// Weights come packed (kernels/src/cuda/pack.rs): blocks of 64 channels by 128 codes, in the order
// in which shared memory or the registers want them, so that loading one is a plain copy. Row
// 8h + r of a warp's sixteen is channel 2r + h: a thread then holds neighbouring channels.
#pragma once

#include "epilogue.cuh"
#include "wgmma.cuh"

constexpr int kBlockK = 128;         // codes of K in one stage
constexpr int kBlockChannels = 64;   // channels of one packed block of weights
constexpr int kConsumers = 2;        // warpgroups that multiply
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kChunkTokens = 64;     // tokens of one store of the epilogue

struct GemmArguments {
    TensorMap x;            // [m][k], boxes of 128 codes by kTokens / kCluster tokens, 128-byte swizzle
    TensorMap y;            // [m][n], boxes of 64 channels by chunk tokens; f16, bf16 and s8 only
    const u8* weights;      // [ceil(n / 64)][k_blocks] packed blocks
    const float* scale;     // [n]
    const float* bias;      // [n]
    const u16* residual;    // [m][n], of the output's type
    void* out;              // [m][n]; f32 and s32 only
    float requantise;       // 1 / scale of an s8 output
    int m, n, k_blocks;
    int raster;             // token tiles that are walked together, for the sake of L2
};

// Config: kInt4 (weights), kBlocks (packed blocks of a consumer), kTokens (of a tile), kStages,
// kCluster, kSplit, kOutput, kActivation, kBias, kResidual.
template <class Config>
struct Gemm {
    static constexpr int kTileChannels = kConsumers * Config::kBlocks * kBlockChannels;
    static constexpr int kWeightBlock = kBlockChannels * kBlockK / (Config::kInt4 ? 2 : 1);
    static constexpr int kWeightStage = kTileChannels / kBlockChannels * kWeightBlock;
    static constexpr int kTokenStage = Config::kTokens * kBlockK;
    static constexpr int kStage = kWeightStage + kTokenStage;
    static constexpr int kTokenShare = Config::kTokens / Config::kCluster;
    static constexpr bool kStaged = Config::kOutput != Output::kF32 && Config::kOutput != Output::kS32;
    static constexpr int kOutputBytes = Config::kOutput == Output::kS8 ? 1 : 2;
    static constexpr int kChunk = Config::kTokens < kChunkTokens ? Config::kTokens : kChunkTokens;
    static constexpr int kChunkBytes = kChunk * kBlockChannels * kOutputBytes;
    static constexpr int kOutputBuffers = kStaged ? 2 : 0;
    // Accumulators of one consumer that another block of the cluster hands over.
    static constexpr int kPartial = Config::kBlocks * kBlockChannels * Config::kTokens * 4;
    // Two chunks a consumer, the stages, the other blocks' accumulators, the barriers.
    static constexpr int kStagesAt = kConsumers * kOutputBuffers * kChunkBytes;
    static constexpr int kPartialsAt = kStagesAt + Config::kStages * kStage;
    static constexpr int kBarriersAt = kPartialsAt + kConsumers * (Config::kSplit - 1) * kPartial;
    static constexpr int kSharedBytes = kBarriersAt + Config::kStages * 16 + kConsumers * 8;
    static_assert(Config::kCluster == 1 || Config::kSplit == 1, "a cluster shares tokens or splits K");
    static constexpr int kGroup = Config::kCluster * Config::kSplit;  // blocks of a cluster

    // The conversion to 16 bits can do ReLU on its way.
    static constexpr bool kLateRelu = kOutputBytes == 2 && kStaged && !Config::kResidual &&
                                      Config::kActivation == Activation::kRelu;

    using Accumulators = int[Config::kBlocks][Config::kTokens / 2];

    // Position in the ring: which stage, and the parity of its round.
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

    // A tile's place. Tiles are numbered so that those in flight at a time form a near-square of
    // `raster` token tiles by many channel tiles: both operands then come from L2.
    struct Tile {
        int channel, token;
        __device__ __forceinline__ Tile(const GemmArguments& args, int index, u32 rank) {
            int channel_tiles = cluster_tiles(args);
            int token_tiles = (args.m + Config::kTokens - 1) / Config::kTokens;
            int group = index / (args.raster * channel_tiles);
            int first = group * args.raster;
            int width = min(args.raster, token_tiles - first);
            int within = index - first * channel_tiles;
            token = (first + within % width) * Config::kTokens;
            channel = ((within / width) * Config::kCluster + rank) * kTileChannels;
        }
        static __device__ __forceinline__ int cluster_tiles(const GemmArguments& args) {
            constexpr int kStep = kTileChannels * Config::kCluster;
            return (args.n + kStep - 1) / kStep;
        }
        static __device__ __forceinline__ int count(const GemmArguments& args) {
            return cluster_tiles(args) * ((args.m + Config::kTokens - 1) / Config::kTokens);
        }
    };

    // The stages of K that a block of the cluster takes; all of them unless K is split.
    struct Part {
        int begin, end;
        __device__ __forceinline__ Part(const GemmArguments& args, u32 rank)
            : begin(args.k_blocks * rank / Config::kSplit), end(args.k_blocks * (rank + 1) / Config::kSplit) {}
    };

    struct Shared {
        u32 base;
        __device__ __forceinline__ u32 weights(int stage) const { return base + kStagesAt + stage * kStage; }
        __device__ __forceinline__ u32 tokens(int stage) const { return weights(stage) + kWeightStage; }
        __device__ __forceinline__ u32 full(int stage) const { return base + kBarriersAt + stage * 16; }
        __device__ __forceinline__ u32 empty(int stage) const { return full(stage) + 8; }
        __device__ __forceinline__ u32 handed_over(int consumer) const {
            return full(Config::kStages) + consumer * 8;
        }
        __device__ __forceinline__ u32 partial(int consumer, int part) const {
            return base + kPartialsAt + (consumer * (Config::kSplit - 1) + part) * kPartial;
        }
        __device__ __forceinline__ u32 chunk(int consumer, int buffer) const {
            return base + (consumer * kOutputBuffers + buffer) * kChunkBytes;
        }
    };

    // ---- producer: one thread ---------------------------------------------------------------

    static __device__ __forceinline__ void produce(const GemmArguments& args, Shared shared) {
        const u32 rank = Config::kCluster > 1 ? cluster_rank() : 0;
        const Part part(args, Config::kSplit > 1 ? cluster_rank() : 0);
        const int clusters = gridDim.x / kGroup;
        const int last_block = (args.n + kBlockChannels - 1) / kBlockChannels - 1;
        const int tiles = Tile::count(args);
        Ring ring;
        launch_wait();
        for (int index = blockIdx.x / kGroup; index < tiles; index += clusters) {
            Tile tile(args, index, rank);
            for (int k = part.begin; k < part.end; ++k, ring.advance()) {
                barrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
                const u32 full = shared.full(ring.stage);
                barrier_expect(full, kStage);
#pragma unroll
                for (int b = 0; b < kTileChannels / kBlockChannels; ++b) {
                    // A block past the last channel is fetched from the last one and never stored.
                    int block = min(tile.channel / kBlockChannels + b, last_block);
                    size_t at = (static_cast<size_t>(block) * args.k_blocks + k) * kWeightBlock;
                    copy_bulk(shared.weights(ring.stage) + b * kWeightBlock, args.weights + at,
                              kWeightBlock, full);
                }
                const u32 share = shared.tokens(ring.stage) + rank * kTokenShare * kBlockK;
                const int token = tile.token + rank * kTokenShare;
                if constexpr (Config::kCluster > 1) {
                    copy_box_multicast(share, &args.x, k * kBlockK, token, full, (1 << Config::kCluster) - 1);
                } else {
                    copy_box(share, &args.x, k * kBlockK, token, full);
                }
            }
        }
    }

    // ---- consumers --------------------------------------------------------------------------

    // Half a stage of INT8 weights: both operands from shared memory.
    static __device__ __forceinline__ void multiply(Accumulators& acc, u32 weights, u32 tokens, int half,
                                                    int first) {
        // 32 codes further along K are 32 bytes further inside the swizzled row.
        const u64 x = operand_descriptor(tokens) + half * 4;
        wgmma_fence();
#pragma unroll
        for (int b = 0; b < Config::kBlocks; ++b) {
            const u64 w = operand_descriptor(weights + b * kWeightBlock) + half * 4;
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                Wgmma<Config::kTokens>::shared(acc[b], w + step * 2, x + step * 2,
                                               half > 0 || step > 0 || !first);
            }
        }
        wgmma_commit();
    }

    // A thread's INT4 weights of one stage: for each half of its K, four words.
    using Packed = uint4[Config::kBlocks][2];
    // Half of them as operands: two steps of K, four registers each.
    using Fragments = u32[Config::kBlocks][2][4];

    static __device__ __forceinline__ void load(Packed& packed, u32 weights) {
#pragma unroll
        for (int b = 0; b < Config::kBlocks; ++b) {
            packed[b][0] = load_shared_16(weights + b * kWeightBlock);
            packed[b][1] = load_shared_16(weights + b * kWeightBlock + kWeightBlock / 2);
        }
    }

    // A byte holds the codes of one k of two neighbouring channels, rows r and r + 8 of the
    // fragment. Both come out times 16, which the epilogue takes back.
    static __device__ __forceinline__ void unpack(Fragments& fragments, const Packed& packed, int half) {
#pragma unroll
        for (int b = 0; b < Config::kBlocks; ++b) {
            const u32 words[4] = {packed[b][half].x, packed[b][half].y, packed[b][half].z, packed[b][half].w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                u32& low = fragments[b][i / 2][i % 2 * 2];
                u32& high = fragments[b][i / 2][i % 2 * 2 + 1];
                low = (words[i] << 4) & 0xf0f0f0f0u;
                high = words[i] & 0xf0f0f0f0u;
                // Here and not between the multiplications, where ptxas would synchronise (C7519).
                asm volatile("" : "+r"(low), "+r"(high));
            }
        }
    }

    // Half a stage of INT4 weights from registers.
    static __device__ __forceinline__ void multiply(Accumulators& acc, Fragments& w, u32 tokens, int half,
                                                    int first) {
        const u64 x = operand_descriptor(tokens) + half * 4;
        wgmma_fence();
#pragma unroll
        for (int b = 0; b < Config::kBlocks; ++b) {
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                Wgmma<Config::kTokens>::registers(acc[b], w[b][step], x + step * 2,
                                                  half > 0 || step > 0 || !first);
            }
        }
        wgmma_commit();
    }

    // Gives a stage back to the producers of all blocks that write into it; each warp for itself.
    static __device__ __forceinline__ void release(Shared shared, int stage) {
        if (threadIdx.x % 32 < Config::kCluster) {
            barrier_arrive(shared.empty(stage), threadIdx.x % 32);
        }
    }

    // All of K, in batches of half a stage. At most one batch is left in flight, so that the tensor
    // cores have work while the next is prepared; when it is the next stage's, the last stage has
    // been read.
    static __device__ __forceinline__ void accumulate(Accumulators& acc, Shared shared, Ring& ring,
                                                      int consumer, int k_blocks) {
        const u32 own = consumer * Config::kBlocks * kWeightBlock;
        int held = 0;
        if (Config::kSplit > 1 && k_blocks == 0) clear(acc);
        for (int k = 0; k < k_blocks; ++k) {
            const u32 weights = shared.weights(ring.stage) + own, tokens = shared.tokens(ring.stage);
            barrier_wait(shared.full(ring.stage), ring.parity);
            if constexpr (Config::kInt4) {
                // Two sets of registers: one is unpacked while the tensor cores read the other.
                Packed packed;
                Fragments even, odd;
                load(packed, weights + threadIdx.x % 128 * 16);
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

    // Accumulator 4j + 2h + e of a thread is token 8j + 2q + e of channel 2r + h.
    static __device__ __forceinline__ float2 value(const GemmArguments& args, const int* acc, int e,
                                                   const ChannelPair& pair, int token, int channel) {
        float2 y = finish<kLateRelu ? Activation::kNone : Config::kActivation>(acc[e], acc[2 + e], pair);
        if constexpr (Config::kResidual) {
            if (token < args.m && channel < args.n) {
                const u16* at = args.residual + static_cast<size_t>(token) * args.n + channel;
                float2 before = unpack_halves<Config::kOutput>(*reinterpret_cast<const u32*>(at));
                y.x += before.x;
                y.y += before.y;
            }
        }
        return y;
    }

    // One chunk of tokens of one block of channels, into shared memory as the map's box wants it.
    static __device__ __forceinline__ void stage_chunk(const GemmArguments& args, const int* acc, u32 chunk,
                                                       const ChannelPair& pair, int token, int channel) {
        const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
        const int r = lane / 4, q = lane % 4;
        if constexpr (Config::kOutput == Output::kS8) {
            // Rows of 64 bytes, their four 16-byte pieces swizzled by bits 1 and 2 of the row.
#pragma unroll
            for (int j = 0; j < kChunk / 8; j += 4) {
                u32 words[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int at = token + (j + i) * 8 + 2 * q;
                    float2 even = value(args, acc + (j + i) * 4, 0, pair, at, channel);
                    float2 odd = value(args, acc + (j + i) * 4, 1, pair, at + 1, channel);
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
                for (int j = 0; j < kChunk / 8; ++j) {
                    float2 y = value(args, acc + j * 4, e, pair, token + j * 8 + row, channel);
                    store_shared_4(at + j * 1024, pack_halves<Config::kOutput, kLateRelu>(y.x, y.y));
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

    static __device__ __forceinline__ void consume(const GemmArguments& args, Shared shared) {
        const u32 rank = Config::kCluster > 1 ? cluster_rank() : 0;
        const u32 split_rank = Config::kSplit > 1 ? cluster_rank() : 0;
        const Part part(args, split_rank);
        const int clusters = gridDim.x / kGroup;
        const int consumer = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
        const bool leader = threadIdx.x % 128 == 0;
        const int own_channel = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 * 2;
        const int tiles = Tile::count(args);
        Ring ring;
        int buffer = 0;
        for (int index = blockIdx.x / kGroup; index < tiles; index += clusters) {
            Tile tile(args, index, rank);
            const int first = tile.channel + consumer * Config::kBlocks * kBlockChannels;
            ChannelPair pairs[Config::kBlocks];
#pragma unroll
            for (int b = 0; b < Config::kBlocks; ++b) {
                pairs[b] = channel_pair(args, first + b * kBlockChannels + own_channel);
            }
            Accumulators acc;
            accumulate(acc, shared, ring, consumer, part.end - part.begin);
            if constexpr (Config::kSplit > 1) {
                if (split_rank > 0) {
                    hand_over(acc, shared, consumer, split_rank - 1);
                    continue;
                }
                take_over(acc, shared, consumer);
            }
#pragma unroll
            for (int b = 0; b < Config::kBlocks; ++b) {
                const int channel = first + b * kBlockChannels;
                if constexpr (!kStaged) {
                    write_direct(args, acc[b], pairs[b], tile.token, channel + own_channel);
                } else {
#pragma unroll
                    for (int c = 0; c < Config::kTokens / kChunk; ++c, buffer ^= 1) {
                        const u32 chunk = shared.chunk(consumer, buffer);
                        const int token = tile.token + c * kChunk;
                        if (leader) store_wait_read<1>();
                        named_barrier(1 + consumer, 128);
                        stage_chunk(args, acc[b] + c * (kChunk / 2), chunk, pairs[b], token, channel + own_channel);
                        fence_async();
                        named_barrier(1 + consumer, 128);
                        if (leader) store_box(&args.y, channel, token, chunk);
                    }
                }
            }
        }
        if (kStaged && leader) store_wait_all();
    }

    static __device__ __forceinline__ void run(const GemmArguments& args) {
        extern __shared__ __align__(1024) u8 memory[];
        Shared shared{shared_address(memory)};
        if (threadIdx.x == 0) {
            for (int stage = 0; stage < Config::kStages; ++stage) {
                barrier_init(shared.full(stage), 1);
                barrier_init(shared.empty(stage), kConsumers * 4 * Config::kCluster);
            }
            if (Config::kSplit > 1) {
                for (int consumer = 0; consumer < kConsumers; ++consumer) {
                    barrier_init(shared.handed_over(consumer), 1);
                    barrier_expect(shared.handed_over(consumer), (Config::kSplit - 1) * kPartial);
                }
            }
            barrier_init_fence();
            prefetch_map(&args.x);
            if (kStaged) prefetch_map(&args.y);
        }
        if (kGroup > 1) cluster_sync(); else __syncthreads();
        launch_dependents();

        // The 168 registers a thread of the launch are shared out anew.
        if (threadIdx.x >= 128 * kConsumers) {
            registers_give<56>();
            if (__shfl_sync(0xffffffff, threadIdx.x / 32, 0) == 4 * kConsumers && elect_one()) {
                produce(args, shared);
            }
        } else {
            registers_take<224>();
            consume(args, shared);
        }
        // A block must not leave while another may still write into its shared memory.
        if (kGroup > 1) {
            __syncwarp();
            cluster_sync();
        }
    }
};
