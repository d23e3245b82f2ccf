// Matrix multiplication with mma.sync, for sm_80 and everything after:
// y[token][channel] = epilogue(sum_k w[channel][k] x[token][k]).
//
// As on Hopper, weights are the rows of the instruction and tokens its columns, and INT8 and INT4
// weights come in the same packing (kernels/src/cuda/pack.rs): blocks of 64 channels by 128 codes
// in the order in which shared memory or the registers want them. INT4 weights are multiplied as
// INT8 after three operations for eight of them, or natively by INT4 activations, which doubles
// the rate before Hopper and is emulated on it; native blocks hold 256 codes in the same bytes, and
// activations, a byte each in memory, are packed by the threads on their way to shared memory. Layers
// that stay float are multiplied as halves into float sums; their blocks hold 64 halves of K.
//
// A block has one tile. All its threads copy a stage (128 bytes of packed K) while older ones are
// multiplied, each warp for its part of the tile.
#pragma once

#include "epilogue.cuh"
#include "mma.cuh"

enum class Weights { kInt8, kInt4, kNative4, kF16, kBf16 };

struct GemmSm80Arguments {
    const u8* x;            // [m] rows of `x_pitch` bytes: codes, or halves
    const u8* weights;      // [ceil(n / 64)][k_blocks] packed blocks
    const float* scale;     // [n]
    const float* bias;      // [n]
    const u16* residual;    // [m][n], halves of the output's kind (f16 with codes)
    const float* inverse;   // [n]: multiplier before rounding; code outputs only
    const float* below;     // [n]: (digit - 1) * max of a channel; kDigits only
    void* out;              // [m][n]
    int m, n, k_blocks;
    int k_bytes, x_pitch;   // of a row of x: multiples of 16, native k_bytes of 32
    int raster;             // token tiles that are walked together, for the sake of L2
};

// Stands for the epilogue that the configuration names. A generated one has kWrites set, and writes a
// thread's sums of a pair of channels as on Hopper: `write<kTokens, kShift>(arguments, columns, sums,
// token, channel, 0)`, where accumulator 4j + 2h + e is token 8j + 2q + e of channel 2r + h.
struct ConfiguredEpilogueSm80 {
    static constexpr bool kWrites = false;
};

// Config: kWeights, kUnsigned (activations), kChannels and kTokens (of a tile), kChannelWarps,
// kTokenWarps, kStages, kOutput, kActivation, kBias, kResidual, kDigits.
template <class Config>
struct GemmSm80 {
    static constexpr bool kInRegisters = Config::kWeights == Weights::kInt4;
    static constexpr bool kNative = Config::kWeights == Weights::kNative4;
    static constexpr Operands kOperands = kNative ? (Config::kUnsigned ? Operands::kS4U4 : Operands::kS4S4)
                                                  : (Config::kUnsigned ? Operands::kS8U8 : Operands::kS8S8);
    static constexpr bool kFloat = Config::kWeights == Weights::kF16 || Config::kWeights == Weights::kBf16;
    static_assert(!kFloat || Config::kOutput != Output::kS32, "sums of halves are floats");
    static constexpr int kThreads = 32 * Config::kChannelWarps * Config::kTokenWarps;
    static constexpr int kWeightBlock = kInRegisters ? 4096 : 8192;
    static constexpr int kWeightStage = Config::kChannels / 64 * kWeightBlock;
    static constexpr int kStage = kWeightStage + Config::kTokens * 128;
    static constexpr int kSharedBytes = Config::kStages * kStage;
    // Sixteen channels and eight tokens at a time.
    static constexpr int kRows = Config::kChannels / Config::kChannelWarps / 16;
    static constexpr int kColumns = Config::kTokens / Config::kTokenWarps / 8;
    static_assert(kRows >= 1 && kColumns % 2 == 0, "a warp has 16 channels and 16 tokens at least");

    template <bool kIsFloat, class Unused = void>
    struct Sum { using Type = int; };
    template <class Unused>
    struct Sum<true, Unused> { using Type = float; };
    using Accumulator = typename Sum<kFloat>::Type;
    using Accumulators = Accumulator[kRows][kColumns][4];

    // Pieces of 16 bytes of a stage's activations, and those of one thread.
    static constexpr int kPieces = Config::kTokens * 8;
    static constexpr int kOwnPieces = (kPieces + kThreads - 1) / kThreads;

    // Codes, a byte each, on their way to becoming a thread's pieces.
    struct Held {
        uint4 codes[kOwnPieces][2];
    };

    struct Place {
        int channel, token;
    };

    static __device__ __forceinline__ Place place(const GemmSm80Arguments& args) {
        const int channel_tiles = (args.n + Config::kChannels - 1) / Config::kChannels;
        const int token_tiles = (args.m + Config::kTokens - 1) / Config::kTokens;
        const int index = blockIdx.x;
        const int first = index / (args.raster * channel_tiles) * args.raster;
        const int width = min(args.raster, token_tiles - first);
        const int within = index - first * channel_tiles;
        return {within / width * Config::kChannels, (first + within % width) * Config::kTokens};
    }

    static __device__ __forceinline__ void fetch(const GemmSm80Arguments& args, Place tile, u32 stage, int k) {
        if (k < args.k_blocks) {
            const int last_block = (args.n + 63) / 64 - 1;
#pragma unroll
            for (int i = threadIdx.x; i < kWeightStage / 16; i += kThreads) {
                constexpr int kOfBlock = kWeightBlock / 16;
                // A block past the last channel is the last one again and never stored.
                const int block = min(tile.channel / 64 + i / kOfBlock, last_block);
                const size_t at = (static_cast<size_t>(block) * args.k_blocks + k) * kWeightBlock;
                copy_16(stage + i * 16, args.weights + at + i % kOfBlock * 16, true);
            }
#pragma unroll
            for (int i = threadIdx.x; i < (kNative ? 0 : kPieces); i += kThreads) {
                const int row = i / 8, piece = i % 8, byte = k * 128 + piece * 16;
                const bool valid = tile.token + row < args.m && byte < args.k_bytes;
                const u8* from = args.x + static_cast<size_t>(tile.token + row) * args.x_pitch + byte;
                copy_16(stage + kWeightStage + swizzled(row, piece), valid ? from : args.x, valid);
            }
        }
        // Groups are counted, so an empty one stands for a stage that is not there.
        copy_commit();
    }

    // Starts to load what the thread packs of stage `k`.
    static __device__ __forceinline__ void load(Held& held, const GemmSm80Arguments& args, Place tile, int k) {
#pragma unroll
        for (int p = 0; p < kOwnPieces; ++p) {
            const int i = p * kThreads + threadIdx.x, row = i / 8, code = k * 256 + i % 8 * 32;
            const bool valid = i < kPieces && tile.token + row < args.m && code < args.k_bytes;
            const u8* const at = args.x + static_cast<size_t>(tile.token + row) * args.x_pitch + code;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                held.codes[p][half] = valid ? reinterpret_cast<const uint4*>(at)[half] : make_uint4(0, 0, 0, 0);
            }
        }
    }

    // The low halves of eight bytes, the first lowest: the code itself, of signed codes with 128 added, too.
    static __device__ __forceinline__ u32 pack(u32 low, u32 high) {
        low &= 0x0f0f0f0fu;
        high &= 0x0f0f0f0fu;
        return __byte_perm(low | low >> 4, high | high >> 4, 0x6420);
    }

    static __device__ __forceinline__ void store(const Held& held, u32 stage) {
#pragma unroll
        for (int p = 0; p < kOwnPieces; ++p) {
            const int i = p * kThreads + threadIdx.x;
            const uint4 a = held.codes[p][0], b = held.codes[p][1];
            const uint4 packed = {pack(a.x, a.y), pack(a.z, a.w), pack(b.x, b.y), pack(b.z, b.w)};
            if (i < kPieces) store_shared_16(stage + kWeightStage + swizzled(i / 8, i % 8), packed);
        }
    }

    // A stage of 128 bytes of K, in four steps.
    static __device__ __forceinline__ void multiply(Accumulators& acc, u32 stage, int row, int token) {
        const int lane = threadIdx.x % 32;
        uint4 packed[kRows];
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            u32 x[kColumns / 2][4];
#pragma unroll
            for (int j = 0; j < kColumns / 2; ++j) {
                const int at = token + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(x[j], stage + kWeightStage + swizzled(at, step * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                u32 w[4];
                if constexpr (kInRegisters) {
                    if (step % 2 == 0) {
                        const int sixteen = row / 16 + i;
                        packed[i] = load_shared_16(stage + sixteen / 4 * 4096 + step / 2 * 2048 +
                                                   (sixteen % 4 * 32 + lane) * 16);
                    }
                    const u32 low = step % 2 ? packed[i].z : packed[i].x;
                    const u32 high = step % 2 ? packed[i].w : packed[i].y;
                    // Both channels of a byte come out times 16, which the epilogue takes back.
                    w[0] = (low << 4) & 0xf0f0f0f0u;
                    w[1] = low & 0xf0f0f0f0u;
                    w[2] = (high << 4) & 0xf0f0f0f0u;
                    w[3] = high & 0xf0f0f0f0u;
                } else {
                    const int at = row + i * 16 + lane / 8 % 2 * 8 + lane % 8;
                    load_matrices(w, stage + swizzled(at, step * 2 + lane / 16));
                }
#pragma unroll
                for (int j = 0; j < kColumns; ++j) {
                    const u32 b0 = x[j / 2][j % 2 * 2], b1 = x[j / 2][j % 2 * 2 + 1];
                    if constexpr (kFloat) {
                        multiply_halves<Config::kWeights == Weights::kBf16>(acc[i][j], w, b0, b1);
                    } else {
                        multiply_codes<kOperands>(acc[i][j], w, b0, b1);
                    }
                }
            }
        }
    }

    // A pair of neighbouring channels of one token.
    static __device__ __forceinline__ void write(const GemmSm80Arguments& args, Accumulator acc0, Accumulator acc1,
                                                 const ChannelPair& pair, const CodePair& codes, int channel,
                                                 int token) {
        const size_t at = static_cast<size_t>(token) * args.n + channel;
        if constexpr (Config::kOutput == Output::kS32) {
            constexpr int kShift = kInRegisters ? 4 : 0;
            static_cast<int2*>(args.out)[at / 2] = make_int2(acc0 >> kShift, acc1 >> kShift);
            return;
        }
        float2 y = finish<Config::kActivation>(acc0, acc1, pair);
        if constexpr (Config::kResidual) {
            const u32 word = *reinterpret_cast<const u32*>(args.residual + at);
            const float2 before = unpack_halves<Config::kOutput>(word);
            y.x += before.x;
            y.y += before.y;
        }
        if constexpr (Config::kOutput == Output::kF32) {
            static_cast<float2*>(args.out)[at / 2] = y;
        } else if constexpr (is_codes(Config::kOutput)) {
            const u32 low = to_code<Config::kOutput, Config::kDigits>(y.x, codes.inverse.x, codes.below.x);
            const u32 high = to_code<Config::kOutput, Config::kDigits>(y.y, codes.inverse.y, codes.below.y);
            static_cast<u16*>(args.out)[at / 2] = static_cast<u16>(__byte_perm(low, high, 0x0040));
        } else {
            static_cast<u32*>(args.out)[at / 2] = pack_halves<Config::kOutput, false>(y.x, y.y);
        }
    }

    template <class Epilogue>
    static __device__ __forceinline__ void write_all(const GemmSm80Arguments& args, const Accumulators& acc,
                                                     int channel, int token, const Epilogue& epilogue) {
        if constexpr (Epilogue::kWrites) {
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                const int first = channel + i * 16 + threadIdx.x % 32 / 4 * 2;
                typename Epilogue::Columns columns;
                epilogue.load(args, columns, first);
                epilogue.template write<kColumns * 8, kInRegisters ? 4 : 0>(args, columns, &acc[i][0][0], token,
                                                                            first, 0);
            }
        } else {
            write_all(args, acc, channel, token);
        }
    }

    // Accumulator 2h + e of (i, j) is token 8j + 2q + e of channel 16i + 2r + h.
    static __device__ __forceinline__ void write_all(const GemmSm80Arguments& args, const Accumulators& acc,
                                                     int channel, int token) {
        const int r = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            const int first = channel + i * 16 + 2 * r;
            if (first >= args.n) continue;
            ChannelPair pair = {{0.0f, 0.0f}, {0.0f, 0.0f}};
            CodePair codes = {{0.0f, 0.0f}, {0.0f, 0.0f}};
            if (Config::kOutput != Output::kS32) {
                pair = channel_pair<Config::kBias, kInRegisters>(args.scale, args.bias, first);
            }
            if (is_codes(Config::kOutput)) {
                codes = code_pair<Config::kDigits>(args.inverse, args.below, first);
            }
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int at = token + j * 8 + 2 * q + e;
                    if (at < args.m) write(args, acc[i][j][e], acc[i][j][2 + e], pair, codes, first, at);
                }
            }
        }
    }

    // The kernel.
    static __device__ __forceinline__ void run(const GemmSm80Arguments& args) {
        run(args, ConfiguredEpilogueSm80{});
    }

    template <class Epilogue>
    static __device__ __forceinline__ void run(const GemmSm80Arguments& args, const Epilogue& epilogue) {
        extern __shared__ __align__(1024) u8 memory[];
        const u32 shared = shared_address(memory);
        const int warp = threadIdx.x / 32;
        const int row = warp % Config::kChannelWarps * kRows * 16;
        const int token = warp / Config::kChannelWarps * kColumns * 8;
        const Place tile = place(args);
        launch_dependents();
        launch_wait();
#pragma unroll
        for (int k = 0; k < Config::kStages - 1; ++k) {
            fetch(args, tile, shared + k * kStage, k);
            if constexpr (kNative) {
                Held held;
                load(held, args, tile, k);
                store(held, shared + k * kStage);
            }
        }
        Accumulators acc = {};
        int stage = 0, next = Config::kStages - 1;
        for (int k = 0; k < args.k_blocks; ++k) {
            copy_wait<Config::kStages - 2>();
            // Everyone's copies are here, and everyone has done with the stage that is filled next.
            __syncthreads();
            fetch(args, tile, shared + next * kStage, k + Config::kStages - 1);
            Held held;
            if constexpr (kNative) load(held, args, tile, k + Config::kStages - 1);
            multiply(acc, shared + stage * kStage, row, token);
            if constexpr (kNative) store(held, shared + next * kStage);
            stage = stage + 1 == Config::kStages ? 0 : stage + 1;
            next = next + 1 == Config::kStages ? 0 : next + 1;
        }
        write_all(args, acc, tile.channel + row, tile.token + token, epilogue);
    }
};
