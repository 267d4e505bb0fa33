// The primitives as a GPU's instructions (PTX ISA, for compute capability 8.0 and later).
//
// Invariant: nothing here computes; each function is one instruction or one library call.
#pragma once

#include <cuda_fp16.h>

__device__ __forceinline__ float2 unpack(Word packed) {
    return __half22float2(*reinterpret_cast<__half2*>(&packed));
}

__device__ __forceinline__ Word pack(float low, float high) {
    __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<Word*>(&both);
}

__device__ __forceinline__ float warp_shuffle_xor(float value, int distance) {
    return __shfl_xor_sync(ALL_LANES, value, distance);
}

template <class T>
__device__ __forceinline__ T warp_shuffle_from(T value, int lane) {
    return __shfl_sync(ALL_LANES, value, lane);
}

__device__ __forceinline__ Word warp_ballot(bool predicate) {
    return __ballot_sync(ALL_LANES, predicate);
}

__device__ __forceinline__ void warp_barrier() { __syncwarp(); }

__device__ __forceinline__ int count_bits(Word bits) { return __popc(bits); }
__device__ __forceinline__ int lowest_bit(Word bits) { return __ffs(int(bits)) - 1; }

__device__ __forceinline__ Word shared_address(const void* pointer) {
    return Word(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void load_matrices(Word (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(Word (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void multiply_add(float (&sums)[4], const Word (&a)[4], Word b0, Word b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Goes around the first-level cache: a tile is read once by the block that asks for it.
__device__ __forceinline__ void copy_chunk(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"(shared_address(shared)), "l"(global)
                 : "memory");
}

__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most `PENDING` of this thread's groups are under way.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" : : "n"(PENDING) : "memory");
}

__device__ __forceinline__ float exponential2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__device__ __forceinline__ float inverse_square_root(float x) { return rsqrtf(x); }
__device__ __forceinline__ float error_function(float x) { return erff(x); }

__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
    extern __shared__ __align__(128) unsigned char memory[];
    return memory;
}
