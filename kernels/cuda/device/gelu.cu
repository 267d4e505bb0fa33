// out = gelu(in + bias), for products that were computed without their epilogue.
//
// Invariant: a thread reads its eight numbers before it writes them, so `out` may be `in`.
#include "gelu.cuh"

/// Threads of a block.
constexpr int GELU_THREADS = 256;

__device__ __forceinline__ Word gelu_of_sum(Word in, Word bias) {
    const float2 x = unpack(in), b = unpack(bias);
    return pack(gelu(x.x + b.x), gelu(x.y + b.y));
}

/// `width` is a multiple of 8.
extern "C" __global__ void __launch_bounds__(GELU_THREADS)
    bias_gelu(const Fp16* in, const Fp16* bias, Fp16* out, int rows, int width) {
    const int chunks_per_row = width / CHUNK_FP16;
    const long long chunk = (long long)blockIdx.x * GELU_THREADS + threadIdx.x;
    if (chunk >= (long long)rows * chunks_per_row) return;
    const uint4 x = reinterpret_cast<const uint4*>(in)[chunk];
    const uint4 b = reinterpret_cast<const uint4*>(bias)[chunk % chunks_per_row];
    uint4 y;
    y.x = gelu_of_sum(x.x, b.x);
    y.y = gelu_of_sum(x.y, b.y);
    y.z = gelu_of_sum(x.z, b.z);
    y.w = gelu_of_sum(x.w, b.w);
    reinterpret_cast<uint4*>(out)[chunk] = y;
}
