// What a kernel may ask of the machine, so that one source runs on a GPU and on a processor.
//
// Kernels name no intrinsic and no assembly of their own: they use the functions that are listed
// here. hardware.cuh has them as instructions; the emulator has them in plain C++ and brings the
// few words of the language (__global__, threadIdx, __syncthreads) with it.
//
//   unpack, pack              two fp16 numbers in 32 bits, from and to fp32 (to nearest even)
//   warp_shuffle_xor, _from   another lane's value
//   warp_ballot               one bit a lane
//   warp_barrier              orders a warp's own shared memory
//                             (a shuffle or ballot makes lanes meet, but orders no memory)
//   load_matrices             ldmatrix .x4: four 8x8 matrices of fp16; `_transposed` likewise
//   multiply_add              mma.sync m16n8k16, fp16 times fp16 into fp32
//   copy_chunk, commit_copies, wait_copies   cp.async of 16 bytes into shared memory
//   exponential2, inverse_square_root, error_function
//   dynamic_shared_memory     what the launch asked for, at an address that 128 divides
//
// Invariant: all 32 lanes of a warp reach each warp_*, load_matrices* and multiply_add together.
#pragma once

/// fp16 as it lies in memory; arithmetic is in fp32 only.
typedef unsigned short Fp16;
typedef unsigned int Word;

constexpr int LANES = 32;
constexpr Word ALL_LANES = 0xffffffffu;
/// Bytes and fp16 numbers of one cp.async, the unit in which tiles are laid out.
constexpr int CHUNK_BYTES = 16;
constexpr int CHUNK_FP16 = 8;

#ifdef VECTIDE_EMULATOR
#include "emulated_hardware.h"
#else
#include "hardware.cuh"
#endif

__device__ __forceinline__ int lane_index() { return int(threadIdx.x) & (LANES - 1); }
__device__ __forceinline__ int warp_index() { return int(threadIdx.x) / LANES; }

/// The sum over a warp, the same in every lane, always added in the same order.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        value += warp_shuffle_xor(value, distance);
    return value;
}

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
