// The plan of a Hopper gemm: its arguments, how shared memory is laid out, which tile is whose.
#pragma once

#include "epilogue.cuh"

constexpr int kBlockK = 128;         // codes of K in one stage
constexpr int kBlockChannels = 64;   // channels of one packed block of weights
constexpr int kConsumers = 2;        // warpgroups that multiply
#ifdef FQC_EVERY_LANE
constexpr int kArrivals = 128;       // of a consumer, when it has read a stage
#else
constexpr int kArrivals = 4;
#endif
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kChunkTokens = 64;     // tokens of one store of the epilogue

// The order is known to runtime/engine/src/cuda/engine.rs.
struct GemmArguments {
    TensorMap x;            // [m][k], boxes of 128 codes by kTokens / kCluster tokens, 128-byte swizzle
    TensorMap y;            // [m][n], boxes of 64 channels by chunk tokens; not f32 and s32
    const u8* weights;      // [ceil(n / 64)][k_blocks] packed blocks
    const float* scale;     // [n]
    const float* bias;      // [n]
    const u16* residual;    // [m] rows, halves of the output's kind (f16 with codes)
    const float* inverse;   // [n]: multiplier before rounding; code outputs only
    const float* below;     // [n]: (digit - 1) * max of a channel; kDigits only
    void* out;              // [m] rows; f32 and s32 only
    int m, n, k_blocks;
    int pitch;              // elements of a row of `residual` and `out`: n, or more where n is a part
    int raster;             // token tiles that are walked together, for the sake of L2
};

// What a product sums up to.
template <bool kHalves>
struct SumOf { using Type = int; };
template <>
struct SumOf<true> { using Type = float; };

// Config: kHalves (both operands are FQC_HALF, K counts their bytes), kInt4 (weights), kGrouped (an integer factor for each 64 codes of an INT4 channel), kBlocks
// (packed blocks of a consumer), kTokens (of a tile), kStages, kCluster, kSplit, kOutput, kActivation,
// kBias, kResidual, kDigits.
template <class Config>
struct Layout {
    static constexpr int kTileChannels = kConsumers * Config::kBlocks * kBlockChannels;
    // Codes, and after them the factors of 64 channels and two groups, a byte each.
    static constexpr int kCodeBytes = kBlockChannels * kBlockK / (Config::kInt4 ? 2 : 1);
    static constexpr int kWeightBlock = kCodeBytes + (Config::kGrouped ? kBlockChannels * 2 : 0);
    static constexpr int kWeightBytes = kTileChannels / kBlockChannels * kWeightBlock;
    // Tokens are swizzled by their address, which is a multiple of 1024.
    static constexpr int kWeightStage = (kWeightBytes + 1023) / 1024 * 1024;
    static constexpr int kTokenStage = Config::kTokens * kBlockK;
    static constexpr int kStage = kWeightStage + kTokenStage;
    static constexpr int kFetched = kWeightBytes + kTokenStage;
    static constexpr int kTokenShare = Config::kTokens / Config::kCluster;
    static constexpr bool kStaged = Config::kOutput != Output::kF32 && Config::kOutput != Output::kS32;
    static constexpr int kOutputBytes = is_codes(Config::kOutput) ? 1 : 2;
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

    // The conversion to 16 bits, or the cut to codes, can do ReLU on its way.
    static constexpr bool kLateRelu = kStaged && !Config::kResidual && Config::kActivation == Activation::kRelu;

    using Sum = typename SumOf<Config::kHalves>::Type;
    using Accumulators = Sum[Config::kBlocks][Config::kTokens / 2];

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
};
