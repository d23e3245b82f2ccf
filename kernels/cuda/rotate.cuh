// Rotary position embedding of halves, in place: the two halves of a head are the coordinates of
// points in the plane, each turned by its angle.
//
//     low'  = low cos - high sin
//     high' = high cos + low sin
#pragma once

#include "epilogue.cuh"

struct RotateArguments {
    u16* x;            // [rows][heads][dim], rows `pitch` elements apart
    const float* cos;  // [length][dim / 2]
    const float* sin;  // the same
    int rows, heads, dim;  // a dim is a multiple of 16
    int pitch, length;     // row i has position i % length
};

// Config: kOutput (kF16 or kBf16). A thread has eight points. Grid: any, of any number of threads.
template <class Config>
struct Rotate {
    static __device__ __forceinline__ void run(const RotateArguments& args) {
        launch_dependents();
        launch_wait();
        const int pieces = args.dim / 16;
        const int count = args.rows * args.heads * pieces;
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
            const int piece = i % pieces * 8, head = i / pieces % args.heads, row = i / pieces / args.heads;
            u16* at = args.x + static_cast<size_t>(row) * args.pitch + head * args.dim + piece;
            uint4& low = *reinterpret_cast<uint4*>(at);
            uint4& high = *reinterpret_cast<uint4*>(at + args.dim / 2);
            const size_t table = static_cast<size_t>(row % args.length) * (args.dim / 2) + piece;
            const float4* cos = reinterpret_cast<const float4*>(args.cos + table);
            const float4* sin = reinterpret_cast<const float4*>(args.sin + table);
            uint4 a = low, b = high;
            const float4 c0 = cos[0], c1 = cos[1], s0 = sin[0], s1 = sin[1];
            turn(a.x, b.x, c0.x, c0.y, s0.x, s0.y);
            turn(a.y, b.y, c0.z, c0.w, s0.z, s0.w);
            turn(a.z, b.z, c1.x, c1.y, s1.x, s1.y);
            turn(a.w, b.w, c1.z, c1.w, s1.z, s1.w);
            low = a;
            high = b;
        }
    }

    // Two points.
    static __device__ __forceinline__ void turn(u32& low, u32& high, float c0, float c1, float s0, float s1) {
        const float2 a = unpack_halves<Config::kOutput>(low), b = unpack_halves<Config::kOutput>(high);
        low = pack_halves<Config::kOutput, false>(a.x * c0 - b.x * s0, a.y * c1 - b.y * s1);
        high = pack_halves<Config::kOutput, false>(b.x * c0 + a.x * s0, b.y * c1 + a.y * s1);
    }
};
