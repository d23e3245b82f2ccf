// Instructions of every architecture from sm_80 on: asynchronous copies of 16 bytes, matrices from
// shared memory to registers, mma.sync.
#pragma once

#include "ptx.cuh"

// ---- copies --------------------------------------------------------------------------------

// 16 bytes, past L1; zeros unless `valid`.
__device__ __forceinline__ void copy_16(u32 shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- fragments -----------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements; lane 8i + j names row j (16 bytes) of matrix i.
__device__ __forceinline__ void load_matrices(u32 (&words)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared)
                 : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(u32 (&words)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared)
                 : "memory");
}

// Rows of 128 bytes, their eight 16-byte pieces swizzled by the row: where piece `piece` of row
// `row` lies.
__device__ __forceinline__ u32 swizzled(int row, int piece) {
    return static_cast<u32>(row * 128 + ((piece ^ (row & 7)) << 4));
}

// ---- multiplication ------------------------------------------------------------------------

enum class Operands { kS8S8, kS8U8, kS4S4, kS4U4 };

// 16 rows of A by 8 columns of B, 32 bytes deep: 32 codes of eight bits or 64 of four.
template <Operands kOperands>
__device__ __forceinline__ void multiply_codes(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#define FQC_MMA(shape)                                                                              \
    asm volatile("mma.sync.aligned." shape " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "         \
                 "{%0, %1, %2, %3};"                                                                \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
    if constexpr (kOperands == Operands::kS8S8) FQC_MMA("m16n8k32.row.col.s32.s8.s8.s32");
    if constexpr (kOperands == Operands::kS8U8) FQC_MMA("m16n8k32.row.col.s32.s8.u8.s32");
    if constexpr (kOperands == Operands::kS4S4) FQC_MMA("m16n8k64.row.col.s32.s4.s4.s32");
    if constexpr (kOperands == Operands::kS4U4) FQC_MMA("m16n8k64.row.col.s32.s4.u4.s32");
#undef FQC_MMA
}

// 16 rows of A by 8 columns of B, 16 halves deep, into floats.
template <bool kBf16>
__device__ __forceinline__ void multiply_halves(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (kBf16) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}
