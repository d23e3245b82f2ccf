// Instructions as functions, most of them Hopper's: barriers, bulk copies, the order around wgmma,
// register hand-over. No includes, so that NVRTC needs nothing but these files. Addresses named
// `shared` are 32-bit addresses of the shared window.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// An opaque CUtensorMap, made by the host.
struct alignas(64) TensorMap {
    u64 words[16];
};

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// ---- barriers ------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(u32 shared, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to copies and to the other blocks of the cluster.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One arrival that also announces `bytes` of copies.
__device__ __forceinline__ void barrier_expect(u32 shared, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared), "r"(bytes)
                 : "memory");
}

// Arrives at a barrier of this block.
__device__ __forceinline__ void barrier_arrive(u32 shared) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared) : "memory");
}

// Arrives at the barrier that lies at `shared` in block `rank` of the cluster. It orders no
// writes for the other block (which would cost a fence of the whole device): those who use it
// have only read what the other block will overwrite.
__device__ __forceinline__ void barrier_arrive_at(u32 shared, u32 rank) {
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
                 "}" ::"r"(shared), "r"(rank)
                 : "memory");
}

// Waits until the phase with this parity is complete.
__device__ __forceinline__ void barrier_wait(u32 shared, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared), "r"(parity)
                 : "memory");
}

// A barrier of `threads` threads that name the same `id`; 0 is __syncthreads.
__device__ __forceinline__ void named_barrier(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- clusters ------------------------------------------------------------------------------

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of the cluster have come here; orders no memory.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// The address, as other blocks write it, of `shared` in block `rank`.
__device__ __forceinline__ u32 in_block(u32 shared, u32 rank) {
    u32 remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared), "r"(rank));
    return remote;
}

// Writes 16 bytes into another block, counted at a barrier there that expects them. Both
// addresses are from in_block.
__device__ __forceinline__ void store_remote_16(u32 remote, int4 value, u32 barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];"
                 ::"r"(remote), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier)
                 : "memory");
}

// ---- programmatic dependent launch (nothing before Hopper) -----------------------------------

// Lets the next kernel of the stream start its blocks where there is room.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until what the kernels before have written can be read. Nothing before it may read or
// write what they write or read.
__device__ __forceinline__ void launch_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- copies between global and shared memory ------------------------------------------------

// `bytes` contiguous bytes, a multiple of 16 at multiples of 16.
__device__ __forceinline__ void copy_bulk(u32 shared, const void* global, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier)
                 : "memory");
}

// The box of a two-dimensional map at (column, row); what lies outside arrives as zeros.
__device__ __forceinline__ void copy_box(u32 shared, const TensorMap* map, int column, int row,
                                         u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared), "l"(map), "r"(column), "r"(row),
                 "r"(barrier)
                 : "memory");
}

// The same into the same place of every block in `mask`, at whose barriers it is counted.
__device__ __forceinline__ void copy_box_multicast(u32 shared, const TensorMap* map, int column,
                                                   int row, u32 barrier, u16 mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared), "l"(map),
                 "r"(column), "r"(row), "r"(barrier), "h"(mask)
                 : "memory");
}

__device__ __forceinline__ void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Writes a box back; what lies outside the map is left out.
__device__ __forceinline__ void store_box(const TensorMap* map, int column, int row, u32 shared) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];"
                 ::"l"(map), "r"(column), "r"(row), "r"(shared)
                 : "memory");
    store_commit();
}

// The same of a map with four axes.
__device__ __forceinline__ void copy_box_4d(u32 shared, const TensorMap* map, int column, int row, int head,
                                            int batch, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared), "l"(map), "r"(column), "r"(row),
                 "r"(head), "r"(batch), "r"(barrier)
                 : "memory");
}

// Writes back; the group is committed by store_commit.
__device__ __forceinline__ void store_box_4d(const TensorMap* map, int column, int row, int head, int batch,
                                             u32 shared) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];"
                 ::"l"(map), "r"(column), "r"(row), "r"(head), "r"(batch), "r"(shared)
                 : "memory");
}

// Waits until at most `kPending` of this thread's stores still read shared memory.
template <int kPending>
__device__ __forceinline__ void store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void store_wait_all() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Orders this thread's ordinary writes to shared memory before later copies and wgmma reads.
__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- around wgmma --------------------------------------------------------------------------

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Descriptor of an operand with 128-byte rows, swizzled in atoms of eight rows (1024 bytes).
__device__ __forceinline__ u64 operand_descriptor(u32 shared) {
    constexpr u64 kSwizzle128 = 1ull << 62;
    constexpr u64 kAtomStride = static_cast<u64>(1024 >> 4) << 32;
    return kSwizzle128 | kAtomStride | ((shared & 0x3ffff) >> 4);
}

// True in one thread of the warp; the compiler then knows that what it issues is uniform.
__device__ __forceinline__ bool elect_one() {
    u32 elected;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "elect.sync _|p, 0xffffffff;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(elected));
    return elected != 0;
}

// ---- registers and small things -------------------------------------------------------------

template <int kRegisters>
__device__ __forceinline__ void registers_take() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void registers_give() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ u32 load_shared_4(u32 shared) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(shared));
    return value;
}

__device__ __forceinline__ uint4 load_shared_16(u32 shared) {
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(shared));
    return value;
}

__device__ __forceinline__ void store_shared_1(u32 shared, u32 value) {
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(shared), "r"(value) : "memory");
}

__device__ __forceinline__ void store_shared_2(u32 shared, u32 value) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared), "h"(static_cast<u16>(value)) : "memory");
}

__device__ __forceinline__ void store_shared_4(u32 shared, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared), "r"(value) : "memory");
}

__device__ __forceinline__ void store_shared_16(u32 shared, uint4 value) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(value.x), "r"(value.y),
                 "r"(value.z), "r"(value.w)
                 : "memory");
}

// Four 8x8 matrices of 16-bit elements, stored transposed; lane 8i + j names row j of matrix i.
__device__ __forceinline__ void store_matrices_transposed(u32 shared, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}
