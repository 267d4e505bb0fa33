// From the rows of a text to its vector: the mean of all rows or the first one, the first
// `dimensions` columns of it (Matryoshka representations, Kusupati et al. 2022), at length 1.
//
// One block a text. Groups of threads take every n-th row, eight columns a thread, so that a row is
// read in whole lines; their sums meet in shared memory.
//
// Invariant: a vector depends on its text's rows alone, in their order; a text without rows is zeros.
#include "primitives.cuh"

constexpr int POOLING_THREADS = 256;
/// `how` of the kernel.
constexpr int POOL_MEAN = 0;
constexpr int POOL_FIRST = 1;
/// The least length that is divided by: no encoder gives less, and the division stays defined.
constexpr float LENGTH_MIN = 1e-12f;

/// Adds a thread's eight columns over its rows.
__device__ __forceinline__ void add_columns(const Fp16* rows, int count, int width, int group,
                                            int groups, float (&sums)[CHUNK_FP16]) {
    for (int row = group; row < count; row += groups) {
        const uint4 raw = *reinterpret_cast<const uint4*>(rows + size_t(row) * width);
        const Word words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 pair = unpack(words[i]);
            sums[2 * i] += pair.x;
            sums[2 * i + 1] += pair.y;
        }
    }
}

/// The sum over a block, the same in every thread.
__device__ __forceinline__ float block_sum(float value, float* of_warps) {
    const float sum = warp_sum(value);
    if (lane_index() == 0) of_warps[warp_index()] = sum;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < POOLING_THREADS / LANES; warp++) total += of_warps[warp];
    return total;
}

/// Shared memory: one float for each group and column, and one for each warp.
extern "C" __global__ void __launch_bounds__(POOLING_THREADS)
    pool_texts(const Fp16* rows, const int* starts, float* out, int width, int dimensions, int how) {
    const int text = int(blockIdx.x), first = starts[text], tokens = starts[text + 1] - first;
    const int pooled = how == POOL_FIRST ? smaller(tokens, 1) : tokens;
    const int chunks = width / CHUNK_FP16, groups = POOLING_THREADS / chunks;
    const int group = int(threadIdx.x) / chunks, chunk = int(threadIdx.x) % chunks;
    float* partial = reinterpret_cast<float*>(dynamic_shared_memory());
    float* of_warps = partial + groups * width;

    if (group < groups) {
        float sums[CHUNK_FP16] = {};
        add_columns(rows + size_t(first) * width + chunk * CHUNK_FP16, pooled, width, group, groups,
                    sums);
#pragma unroll
        for (int i = 0; i < CHUNK_FP16; i++)
            partial[group * width + chunk * CHUNK_FP16 + i] = sums[i];
    }
    __syncthreads();

    float squares = 0.0f;
    for (int column = int(threadIdx.x); column < dimensions; column += POOLING_THREADS) {
        float sum = 0.0f;
        for (int other = 0; other < groups; other++) sum += partial[other * width + column];
        const float value = pooled > 0 ? sum / float(pooled) : 0.0f;
        // Each thread reads its own columns of all groups before it writes them.
        partial[column] = value;
        squares += value * value;
    }
    const float length = sqrtf(block_sum(squares, of_warps));
    const float factor = 1.0f / fmaxf(length, LENGTH_MIN);
    for (int column = int(threadIdx.x); column < dimensions; column += POOLING_THREADS)
        out[size_t(text) * dimensions + column] = partial[column] * factor;
}
