// What the two kernels of attention are told.
#pragma once

#include "epilogue.cuh"

struct Strides {
    long long batch, head, row;  // elements; the last axis is contiguous
};

struct AttentionArguments {
    const u16* q;       // [batch][heads][queries][kDim]
    const u16* k;       // [batch][heads / group][keys][kDim]
    const u16* v;       // like k
    void* out;          // like q; halves, or codes of kOutput
    const float* mask;  // [batch][heads][queries][keys], any strides; kMask only
    float* partial;     // [splits][batch][heads][queries][kDim + 2]; kSplit only
    const float* inverse;  // [heads * kDim]: multiplier before rounding; code outputs only
    Strides q_at, k_at, v_at, out_at;
    long long mask_batch, mask_head, mask_query, mask_key;
    int batch, queries, keys, heads;
    int group;          // query heads of a key head
    int splits;         // parts of the keys; 1 unless kSplit
    float scale;
};

// What a key that must not be seen adds; softmax of nothing else is then still a mean.
constexpr float kHidden = -1e30f;
constexpr float kLog2E = 1.44269504f;
