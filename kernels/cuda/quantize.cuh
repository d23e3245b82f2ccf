// A row of floats to codes, digits flattened, fused with what comes before it: a residual added,
// LayerNorm or RMSNorm, or an activation and a gate.
//
//     v = x + other | act(x) * other | act(x)
//     y = (v - mean) / deviation * gamma + beta, or v
//     c = rint(y * inverse), the wide code
//     codes[j]         = c[j] cut to the codes of the width
//     codes[width + t] = digit of c[source[t]] above `below[t]`
//
// Blocks stay and take one row after the other: what belongs to a column (gamma, beta, inverse)
// stays in registers, the next row is fetched while the current one is reduced. Wide codes go
// through shared memory, for the tail alone.
#pragma once

#include "epilogue.cuh"

enum class Element { kF16, kBf16, kF32 };
enum class Norm { kNone, kLayer, kRms };
enum class Combine { kNone, kAdd, kMultiply };

struct QuantizeArguments {
    const void* x;         // [rows][width], rows `x_pitch` elements apart
    const void* other;     // the same, rows `other_pitch` apart; kAdd and kMultiply only
    void* sum;             // [rows][width]: x + other, kSum only
    void* normal;          // [rows][width]: y, kFloat only
    u8* codes;             // [rows][pitch] bytes; those from width to pitch come from `tail`
    const float* gamma;    // [width], kLayer and kRms
    const float* beta;     // [width], kLayer
    const float* inverse;  // [width]
    const u32* tail;       // [tail]: source column | (digit - 1) * q_max << 16; 0xffff0000 for zeros
    int rows, width;       // a width is a multiple of 8
    int x_pitch, other_pitch;
    int pitch;             // bytes
    int tail_count;        // a multiple of 4
    float epsilon;
};

// Config: kThreads, kChunks (of eight columns a thread), kElement, kNorm, kCombine, kActivation,
// kSum, kFloat, kTail, kMax (the largest code), kSigned, kPacked (two codes a byte).
template <class Config>
struct Quantize {
    static constexpr int kColumns = 8;
    static constexpr int kWarps = Config::kThreads / 32;
    static constexpr int kLow = Config::kSigned ? -Config::kMax : 0;
    static constexpr int kElementBytes = Config::kElement == Element::kF32 ? 4 : 2;
    static constexpr int kWords = kElementBytes / 2;  // loads of 16 bytes for a chunk
    static constexpr int kWidest = Config::kThreads * Config::kChunks * kColumns;
    static constexpr bool kCentred = Config::kNorm == Norm::kLayer;
    static constexpr bool kNormed = Config::kNorm != Norm::kNone;
    // Without the normalised floats, gamma and inverse are one factor.
    static constexpr bool kFolded = kNormed && !Config::kFloat;
    static constexpr Output kHalves = Config::kElement == Element::kBf16 ? Output::kBf16 : Output::kF16;
    // Rows of floats are twice the registers, and fetched when it is their turn.
    static constexpr bool kAhead = Config::kElement != Element::kF32;
    static_assert(Config::kThreads % 32 == 0, "whole warps");

    // Wide codes cut to 16 bits, which no digit can tell from wider ones; partial sums.
    struct Shared {
        alignas(16) short wide[Config::kTail ? kWidest : 8];
        alignas(16) float partial[2][32];
    };

    using Values = float[Config::kChunks][kColumns];
    using Raw = uint4[Config::kChunks][kWords];

    static __device__ __forceinline__ int column(int chunk) {
        return (chunk * Config::kThreads + threadIdx.x) * kColumns;
    }

    static __device__ __forceinline__ void load(Raw& raw, const void* from, int row, int pitch, int width) {
        const u8* base = static_cast<const u8*>(from) + static_cast<size_t>(row) * pitch * kElementBytes;
#pragma unroll
        for (int c = 0; c < Config::kChunks; ++c) {
#pragma unroll
            for (int w = 0; w < kWords; ++w) {
                raw[c][w] = make_uint4(0, 0, 0, 0);
                if (column(c) < width) {
                    raw[c][w] = *reinterpret_cast<const uint4*>(base + column(c) * kElementBytes + w * 16);
                }
            }
        }
    }

    static __device__ __forceinline__ void unpack(Values& values, const Raw& raw) {
#pragma unroll
        for (int c = 0; c < Config::kChunks; ++c) {
            if constexpr (Config::kElement == Element::kF32) {
#pragma unroll
                for (int w = 0; w < kWords; ++w) {
                    values[c][w * 4] = __uint_as_float(raw[c][w].x);
                    values[c][w * 4 + 1] = __uint_as_float(raw[c][w].y);
                    values[c][w * 4 + 2] = __uint_as_float(raw[c][w].z);
                    values[c][w * 4 + 3] = __uint_as_float(raw[c][w].w);
                }
            } else {
                const u32 words[4] = {raw[c][0].x, raw[c][0].y, raw[c][0].z, raw[c][0].w};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 pair = unpack_halves<kHalves>(words[i]);
                    values[c][i * 2] = pair.x;
                    values[c][i * 2 + 1] = pair.y;
                }
            }
        }
    }

    static __device__ __forceinline__ void store(const Values& values, void* to, int row, int width) {
        u8* base = static_cast<u8*>(to) + static_cast<size_t>(row) * width * kElementBytes;
#pragma unroll
        for (int c = 0; c < Config::kChunks; ++c) {
            if (column(c) >= width) continue;
            u8* at = base + column(c) * kElementBytes;
            const float* v = values[c];
            if constexpr (Config::kElement == Element::kF32) {
                reinterpret_cast<float4*>(at)[0] = make_float4(v[0], v[1], v[2], v[3]);
                reinterpret_cast<float4*>(at)[1] = make_float4(v[4], v[5], v[6], v[7]);
            } else {
                *reinterpret_cast<uint4*>(at) =
                    make_uint4(pack_halves<kHalves, false>(v[0], v[1]), pack_halves<kHalves, false>(v[2], v[3]),
                               pack_halves<kHalves, false>(v[4], v[5]), pack_halves<kHalves, false>(v[6], v[7]));
            }
        }
    }

    // What belongs to a thread's columns.
    struct Columns {
        Values factor, offset, gamma;
    };

    static __device__ __forceinline__ void load_columns(Columns& columns, const QuantizeArguments& args,
                                                        int shift) {
        load_vector(columns.factor, args.inverse + shift, args.width);
        if constexpr (kNormed) load_vector(columns.gamma, args.gamma + shift, args.width);
        if constexpr (kCentred) load_vector(columns.offset, args.beta + shift, args.width);
        if constexpr (kFolded) {
#pragma unroll
            for (int c = 0; c < Config::kChunks; ++c) {
#pragma unroll
                for (int i = 0; i < kColumns; ++i) {
                    if (kCentred) columns.offset[c][i] *= columns.factor[c][i];
                    columns.factor[c][i] *= columns.gamma[c][i];
                }
            }
        }
    }

    // values * factor, and + offset with a LayerNorm if kShift.
    template <bool kShift>
    static __device__ __forceinline__ void scale(Values& values, const Values& factor, const Values& offset) {
#pragma unroll
        for (int c = 0; c < Config::kChunks; ++c) {
#pragma unroll
            for (int i = 0; i < kColumns; ++i) {
                values[c][i] *= factor[c][i];
                if (kShift) values[c][i] += offset[c][i];
            }
        }
    }

    // A vector of one float a column.
    static __device__ __forceinline__ void load_vector(Values& values, const float* from, int width) {
#pragma unroll
        for (int c = 0; c < Config::kChunks; ++c) {
#pragma unroll
            for (int i = 0; i < kColumns; i += 4) {
                float4 four = {0.0f, 0.0f, 0.0f, 0.0f};
                if (column(c) < width) four = __ldg(reinterpret_cast<const float4*>(from + column(c) + i));
                values[c][i] = four.x;
                values[c][i + 1] = four.y;
                values[c][i + 2] = four.z;
                values[c][i + 3] = four.w;
            }
        }
    }

    // The sum over the block; one barrier. Calls in turn take `slot` 0 and 1.
    static __device__ __forceinline__ float sum_of_block(Shared& shared, float value, int slot) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffff, value, step);
        if (kWarps == 1) return value;
        if (threadIdx.x % 32 == 0) shared.partial[slot][threadIdx.x / 32] = value;
        __syncthreads();
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += shared.partial[slot][w];
        return sum;
    }

    // x and other become v.
    static __device__ __forceinline__ void combine(Values& values, const Raw& other) {
#pragma unroll
        for (int c = 0; c < Config::kChunks; ++c) {
#pragma unroll
            for (int i = 0; i < kColumns; ++i) values[c][i] = activate<Config::kActivation>(values[c][i]);
        }
        if constexpr (Config::kCombine != Combine::kNone) {
            Values more;
            unpack(more, other);
#pragma unroll
            for (int c = 0; c < Config::kChunks; ++c) {
#pragma unroll
                for (int i = 0; i < kColumns; ++i) {
                    if (Config::kCombine == Combine::kAdd) values[c][i] += more[c][i];
                    else values[c][i] *= more[c][i];
                }
            }
        }
    }

    // v becomes (v - mean) / deviation. `slot` alternates from call to call.
    static __device__ __forceinline__ void normalise(Shared& shared, Values& values, int& slot, int width,
                                                     float epsilon) {
        const float share = 1.0f / static_cast<float>(width);
        if constexpr (kCentred) {
            float sum = 0.0f;
#pragma unroll
            for (int c = 0; c < Config::kChunks; ++c) {
#pragma unroll
                for (int i = 0; i < kColumns; ++i) sum += values[c][i];
            }
            const float mean = sum_of_block(shared, sum, slot) * share;
            slot ^= 1;
#pragma unroll
            for (int c = 0; c < Config::kChunks; ++c) {
#pragma unroll
                for (int i = 0; i < kColumns; ++i) {
                    values[c][i] = column(c) < width ? values[c][i] - mean : 0.0f;
                }
            }
        }
        float square = 0.0f;
#pragma unroll
        for (int c = 0; c < Config::kChunks; ++c) {
#pragma unroll
            for (int i = 0; i < kColumns; ++i) square = fmaf(values[c][i], values[c][i], square);
        }
        const float variance = sum_of_block(shared, square, slot) * share;
        slot ^= 1;
        const float inverse = 1.0f / sqrtf(variance + epsilon);
#pragma unroll
        for (int c = 0; c < Config::kChunks; ++c) {
#pragma unroll
            for (int i = 0; i < kColumns; ++i) values[c][i] *= inverse;
        }
    }

    // rint, half to even, NaN to 0, cut to 16 bits.
    static __device__ __forceinline__ int wide_code(float x) {
        short code;
        asm("cvt.rni.sat.s16.f32 %0, %1;" : "=h"(code) : "f"(x));
        return code;
    }

    // Four codes as they lie in memory, in the low 32 or 16 bits.
    static __device__ __forceinline__ u32 pack(int a, int b, int c, int d) {
        if constexpr (Config::kPacked) {
            return (a & 0xf) | (b & 0xf) << 4 | (c & 0xf) << 8 | (d & 0xf) << 12;
        } else {
            return low_bytes(a, b, c, d);
        }
    }

    static __device__ __forceinline__ void write_codes(Shared& shared, const Values& values, u8* codes,
                                                       int width) {
#pragma unroll
        for (int c = 0; c < Config::kChunks; ++c) {
            if (column(c) >= width) continue;
            int wide[kColumns], cut[kColumns];
#pragma unroll
            for (int i = 0; i < kColumns; ++i) {
                wide[i] = wide_code(values[c][i]);
                cut[i] = min(max(wide[i], kLow), Config::kMax);
            }
            if constexpr (Config::kTail) {
                *reinterpret_cast<uint4*>(shared.wide + column(c)) =
                    make_uint4(__byte_perm(wide[0], wide[1], 0x5410), __byte_perm(wide[2], wide[3], 0x5410),
                               __byte_perm(wide[4], wide[5], 0x5410), __byte_perm(wide[6], wide[7], 0x5410));
            }
            const u32 low = pack(cut[0], cut[1], cut[2], cut[3]);
            const u32 high = pack(cut[4], cut[5], cut[6], cut[7]);
            if constexpr (Config::kPacked) {
                *reinterpret_cast<u32*>(codes + column(c) / 2) = low | high << 16;
            } else {
                *reinterpret_cast<uint2*>(codes + column(c)) = make_uint2(low, high);
            }
        }
    }

    // sgn(c) * clamp(|c| - below, 0, max) of the column that an entry names.
    static __device__ __forceinline__ int digit(const Shared& shared, u32 entry) {
        const int wide = shared.wide[entry & 0xffff];
        const int size = Config::kSigned ? abs(wide) : max(wide, 0);
        const int cut = min(max(size - static_cast<int>(entry >> 16), 0), Config::kMax);
        return wide < 0 ? -cut : cut;
    }

    static __device__ __forceinline__ void write_tail(const Shared& shared, const QuantizeArguments& args,
                                                      u8* codes) {
        for (int t = threadIdx.x * 4; t < args.tail_count; t += Config::kThreads * 4) {
            const uint4 four = __ldg(reinterpret_cast<const uint4*>(args.tail + t));
            const u32 word = pack(digit(shared, four.x), digit(shared, four.y), digit(shared, four.z),
                                  digit(shared, four.w));
            if constexpr (Config::kPacked) {
                *reinterpret_cast<u16*>(codes + (args.width + t) / 2) = static_cast<u16>(word);
            } else {
                *reinterpret_cast<u32*>(codes + args.width + t) = word;
            }
        }
    }

    // The kernel.
    static __device__ __forceinline__ void run(const QuantizeArguments& args) {
        __shared__ Shared shared;
        launch_dependents();
        Columns columns;
        if constexpr (!Config::kFloat) load_columns(columns, args, 0);
        launch_wait();
        Raw x, other;
        int slot = 0, row = blockIdx.x;
        auto fetch = [&] {
            if (row >= args.rows) return;
            load(x, args.x, row, args.x_pitch, args.width);
            if (Config::kCombine != Combine::kNone) load(other, args.other, row, args.other_pitch, args.width);
        };
        if (kAhead) fetch();
        while (row < args.rows) {
            const int now = row;
            if (!kAhead) fetch();
            Values values;
            unpack(values, x);
            combine(values, other);
            row += gridDim.x;
            if (kAhead) fetch();
            if constexpr (Config::kSum) store(values, args.sum, now, args.width);
            if constexpr (kNormed) normalise(shared, values, slot, args.width, args.epsilon);
            if constexpr (Config::kFloat) {
                // These columns' registers are worth more; an opaque zero keeps the loads in the loop.
                int zero = 0;
                asm volatile("" : "+r"(zero));
                load_columns(columns, args, zero);
            }
            if constexpr (kNormed && !kFolded) scale<kCentred>(values, columns.gamma, columns.offset);
            if constexpr (Config::kFloat) store(values, args.normal, now, args.width);
            scale<kCentred && kFolded>(values, columns.factor, columns.offset);
            u8* codes = args.codes + static_cast<size_t>(now) * args.pitch;
            // The reductions keep a block together; without one, wide codes could be overwritten.
            if (Config::kTail && (!kNormed || kWarps == 1)) __syncthreads();
            write_codes(shared, values, codes, args.width);
            if constexpr (Config::kTail) {
                __syncthreads();
                write_tail(shared, args, codes);
            }
        }
    }
};
