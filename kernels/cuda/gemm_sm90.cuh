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

#include "mainloop_sm90.cuh"
#include "writeback_sm90.cuh"

// Stands for the epilogue that the configuration names. A generated one has kWrites set, loads what it
// knows of a thread's two channels of a block while K is summed, and writes the accumulators itself:
// `write<kTokens, kShift>(arguments, columns, accumulators, token, channel, scratch)`; see
// Writeback::write_direct. What would be the consumer's chunks of a staged result is its `scratch`.
struct ConfiguredEpilogue {
    static constexpr bool kWrites = false;
    struct Columns {};
    __device__ __forceinline__ void load(const GemmArguments&, Columns&, int) const {}
};

template <class Config>
struct Gemm {
    using L = Layout<Config>;
    using M = Mainloop<Config>;
    using W = Writeback<Config>;
    using Ring = typename L::Ring;
    using Shared = typename L::Shared;
    using Tile = typename L::Tile;
    static constexpr int kSharedBytes = L::kSharedBytes;

    // One thread.
    static __device__ __forceinline__ void produce(const GemmArguments& args, Shared shared) {
        const u32 rank = Config::kCluster > 1 ? cluster_rank() : 0;
        const typename L::Part part(args, Config::kSplit > 1 ? cluster_rank() : 0);
        const int clusters = gridDim.x / L::kGroup, first = blockIdx.x / L::kGroup;
        const int tiles = Tile::count(args);
        // Weights are no kernel's result: those of the first stages come while the kernels before
        // still run.
        const int early = first < tiles ? min(Config::kStages, part.end - part.begin) : 0;
        for (int i = 0; i < early; ++i) fetch_weights(args, shared, Tile(args, first, rank), part.begin + i, i);
        launch_wait();
        Ring ring;
        for (int index = first; index < tiles; index += clusters) {
            Tile tile(args, index, rank);
            for (int k = part.begin; k < part.end; ++k, ring.advance()) {
                if (index != first || k - part.begin >= early) {
                    barrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
                    fetch_weights(args, shared, tile, k, ring.stage);
                }
                const u32 full = shared.full(ring.stage);
                const u32 share = shared.tokens(ring.stage) + rank * L::kTokenShare * kBlockK;
                const int token = tile.token + rank * L::kTokenShare;
                if constexpr (Config::kCluster > 1) {
                    copy_box_multicast(share, &args.x, k * kBlockK, token, full, (1 << Config::kCluster) - 1);
                } else {
                    copy_box(share, &args.x, k * kBlockK, token, full);
                }
            }
        }
    }

    // The weights of a stage, and the announcement of all that it gets.
    static __device__ __forceinline__ void fetch_weights(const GemmArguments& args, Shared shared,
                                                         const Tile& tile, int k, int stage) {
        const int last_block = (args.n + kBlockChannels - 1) / kBlockChannels - 1;
        barrier_expect(shared.full(stage), L::kFetched);
#pragma unroll
        for (int b = 0; b < L::kTileChannels / kBlockChannels; ++b) {
            // A block past the last channel is fetched from the last one and never stored.
            const int block = min(tile.channel / kBlockChannels + b, last_block);
            const size_t at = (static_cast<size_t>(block) * args.k_blocks + k) * L::kWeightBlock;
            copy_bulk(shared.weights(stage) + b * L::kWeightBlock, args.weights + at, L::kWeightBlock,
                      shared.full(stage));
        }
    }

    // A warpgroup.
    template <class Epilogue>
    static __device__ __forceinline__ void consume(const GemmArguments& args, Shared shared,
                                                   const Epilogue& epilogue) {
        const u32 rank = Config::kCluster > 1 ? cluster_rank() : 0;
        const u32 split_rank = Config::kSplit > 1 ? cluster_rank() : 0;
        const typename L::Part part(args, split_rank);
        const int clusters = gridDim.x / L::kGroup;
        const int consumer = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
        const bool leader = threadIdx.x % 128 == 0;
        const int own_channel = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 * 2;
        const int tiles = Tile::count(args);
        Ring ring;
        int buffer = 0;
        if (Config::kResidual) launch_wait();
        for (int index = blockIdx.x / L::kGroup; index < tiles; index += clusters) {
            Tile tile(args, index, rank);
            const int first = tile.channel + consumer * Config::kBlocks * kBlockChannels;
            typename W::Pair pairs[Config::kBlocks];
#pragma unroll
            for (int b = 0; b < Config::kBlocks && !Epilogue::kWrites; ++b) {
                pairs[b] = W::load_pair(args, first + b * kBlockChannels + own_channel);
            }
            typename Epilogue::Columns columns[Config::kBlocks];
#pragma unroll
            for (int b = 0; b < Config::kBlocks; ++b) {
                epilogue.load(args, columns[b], first + b * kBlockChannels + own_channel);
            }
            // The residual of a chunk is fetched a chunk ahead, the first while K is summed; GELU
            // leaves no registers for that.
            constexpr bool kAhead = Config::kActivation != Activation::kGelu;
            typename W::Residual residual[2];
            if constexpr (Config::kResidual && kAhead) {
                W::load_residual(args, residual[0], tile.token, first + own_channel);
            }
            typename L::Accumulators acc;
            M::accumulate(acc, shared, ring, consumer, part.end - part.begin);
            if constexpr (Config::kSplit > 1) {
                if (split_rank > 0) {
                    M::hand_over(acc, shared, consumer, split_rank - 1);
                    continue;
                }
                M::take_over(acc, shared, consumer);
            }
            if constexpr (L::kStaged && !Epilogue::kWrites) {
                constexpr int kChunks = Config::kTokens / L::kChunk;
#pragma unroll
                for (int i = 0; i < Config::kBlocks * kChunks; ++i, buffer ^= 1) {
                    const int b = i / kChunks, c = i % kChunks;
                    const int channel = first + b * kBlockChannels, token = tile.token + c * L::kChunk;
                    const u32 chunk = shared.chunk(consumer, buffer);
                    if constexpr (Config::kResidual && !kAhead) {
                        W::load_residual(args, residual[i % 2], token, channel + own_channel);
                    } else if (Config::kResidual && i + 1 < Config::kBlocks * kChunks) {
                        const int next_channel = first + (i + 1) / kChunks * kBlockChannels + own_channel;
                        const int next_token = tile.token + (i + 1) % kChunks * L::kChunk;
                        W::load_residual(args, residual[(i + 1) % 2], next_token, next_channel);
                    }
                    if (leader) store_wait_read<1>();
                    named_barrier(1 + consumer, 128);
                    W::stage_chunk(args, acc[b] + c * (L::kChunk / 2), residual[i % 2], chunk, pairs[b]);
                    fence_async();
                    named_barrier(1 + consumer, 128);
                    if (leader) store_box(&args.y, channel, token, chunk);
                }
            } else {
#pragma unroll
                for (int b = 0; b < Config::kBlocks; ++b) {
                    const int channel = first + b * kBlockChannels + own_channel;
                    if constexpr (Epilogue::kWrites) {
                        launch_wait();
                        epilogue.template write<Config::kTokens, Config::kInt4 ? 4 : 0>(
                            args, columns[b], acc[b], tile.token, channel, shared.chunk(consumer, 0));
                    } else {
                        W::write_direct(args, acc[b], pairs[b], tile.token, channel);
                    }
                }
            }
        }
        if (L::kStaged && !Epilogue::kWrites && leader) store_wait_all();
    }

    // The kernel.
    static __device__ __forceinline__ void run(const GemmArguments& args) { run(args, ConfiguredEpilogue{}); }

    template <class Epilogue>
    static __device__ __forceinline__ void run(const GemmArguments& args, const Epilogue& epilogue) {
        extern __shared__ __align__(1024) u8 memory[];
        Shared shared{shared_address(memory)};
        if (threadIdx.x == 0) {
            for (int stage = 0; stage < Config::kStages; ++stage) {
                barrier_init(shared.full(stage), 1);
                barrier_init(shared.empty(stage), kConsumers * kArrivals * Config::kCluster);
            }
            if (Config::kSplit > 1) {
                for (int consumer = 0; consumer < kConsumers; ++consumer) {
                    barrier_init(shared.handed_over(consumer), 1);
                    barrier_expect(shared.handed_over(consumer), (Config::kSplit - 1) * L::kPartial);
                }
            }
            barrier_init_fence();
            prefetch_map(&args.x);
            if (L::kStaged && !Epilogue::kWrites) prefetch_map(&args.y);
        }
        if (L::kGroup > 1) cluster_sync(); else __syncthreads();
        launch_dependents();

        // The 168 registers a thread of the launch are shared out anew.
        if (threadIdx.x >= 128 * kConsumers) {
            registers_give<56>();
            if (__shfl_sync(0xffffffff, threadIdx.x / 32, 0) == 4 * kConsumers && elect_one()) {
                produce(args, shared);
            }
        } else {
            registers_take<224>();
            consume(args, shared, epilogue);
        }
        // A block must not leave while another may still write into its shared memory.
        if (L::kGroup > 1) {
            __syncwarp();
            cluster_sync();
        }
    }
};
