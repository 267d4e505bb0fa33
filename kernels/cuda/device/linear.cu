// A fully connected layer: out = finish(in * weights^T + bias), over ragged rows.
//
// All texts' rows stand one after the other, so a batch is one product whatever its texts' lengths.
// Weights are [outputs][inputs] as model files have them. The finish is computed in fp32 before the
// one rounding to fp16: nothing, GELU, or the residual. Results go through shared memory, so that
// global memory sees whole chunks; the residual comes the same way.
//
// Two shapes of tiles: 128 x 128 for batches, 64 x 64 for a few rows, where more blocks count more
// than fewer bytes.
//
// Invariant: rows from `rows` on are never written, and what is read for them is never used.
#include "gelu.cuh"
#include "tile_product.cuh"

enum class Finish { PLAIN, GELU, RESIDUAL };

struct LinearArguments {
    const Fp16* in;
    const Fp16* weights;
    const Fp16* bias;
    const Fp16* residual;
    Fp16* out;
    int rows;
    int outputs;
    int inputs;
};

/// The finished tile in shared memory. A row is one chunk longer than its numbers: the eight rows
/// that a warp writes at once are then in different banks.
template <int TILE_M, int TILE_N, int THREADS>
struct FinishedTile {
    static constexpr int STRIDE = TILE_N + CHUNK_FP16;
    static constexpr int BYTES = TILE_M * STRIDE * int(sizeof(Fp16));
    static constexpr int CHUNKS = TILE_N / CHUNK_FP16;

    Fp16* memory;

    __device__ __forceinline__ Word* pair(int row, int column) const {
        return reinterpret_cast<Word*>(memory + row * STRIDE + column);
    }

    /// Calls `with(place in shared memory, offset in the matrix)` for this thread's chunks.
    template <class With>
    static __device__ __forceinline__ void each_chunk(Fp16* memory, const LinearArguments& to,
                                                      int first_row, int first_column, With with) {
        for (int at = int(threadIdx.x); at < TILE_M * CHUNKS; at += THREADS) {
            const int row = at / CHUNKS, column = at % CHUNKS * CHUNK_FP16;
            if (first_row + row < to.rows)
                with(memory + row * STRIDE + column,
                     size_t(first_row + row) * to.outputs + first_column + column);
        }
    }
};

template <Finish FINISH, int TILE_M, int TILE_N, int WARPS_M, int WARPS_N>
__device__ __forceinline__ void linear(const LinearArguments& to) {
    using Product = TileProduct<TILE_M, TILE_N, WARPS_M, WARPS_N>;
    using Finished = FinishedTile<TILE_M, TILE_N, Product::THREADS>;
    static_assert(Finished::BYTES <= Product::SHARED_BYTES, "the stages' memory is used again");
    unsigned char* shared = dynamic_shared_memory();
    const int first_row = int(blockIdx.y) * TILE_M, first_column = int(blockIdx.x) * TILE_N;

    Product product;
    product.compute(shared, {to.in, to.rows, first_row}, {to.weights, to.outputs, first_column},
                    to.inputs);
    // The finished tile goes where the stages were.
    __syncthreads();

    const Finished finished{reinterpret_cast<Fp16*>(shared)};
    if (FINISH == Finish::RESIDUAL) {
        Finished::each_chunk(finished.memory, to, first_row, first_column,
                             [&](Fp16* place, size_t offset) { copy_chunk(place, to.residual + offset); });
        commit_copies();
        wait_copies<0>();
        __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < Product::FRAGMENTS_N; n++) {
        const int column = Product::column_of(n);
        const float2 bias = unpack(*reinterpret_cast<const Word*>(to.bias + first_column + column));
#pragma unroll
        for (int m = 0; m < Product::FRAGMENTS_M; m++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                Word* place = finished.pair(Product::row_of(m) + 8 * below, column);
                float left = product.sums[m][n][2 * below] + bias.x;
                float right = product.sums[m][n][2 * below + 1] + bias.y;
                if (FINISH == Finish::GELU) {
                    left = gelu(left);
                    right = gelu(right);
                }
                if (FINISH == Finish::RESIDUAL) {
                    const float2 residual = unpack(*place);
                    left += residual.x;
                    right += residual.y;
                }
                *place = pack(left, right);
            }
    }
    __syncthreads();
    Finished::each_chunk(finished.memory, to, first_row, first_column,
                         [&](Fp16* place, size_t offset) {
                             *reinterpret_cast<uint4*>(to.out + offset) =
                                 *reinterpret_cast<const uint4*>(place);
                         });
}

// At most 128 registers a thread, so that two blocks of 256 threads share a multiprocessor.
#define LINEAR(NAME, FINISH, TILE_M, TILE_N, WARPS_M, WARPS_N)                                     \
    extern "C" __global__ void __launch_bounds__(WARPS_M* WARPS_N* LANES, 2)                       \
        NAME(const Fp16* in, const Fp16* weights, const Fp16* bias, const Fp16* residual,          \
             Fp16* out, int rows, int outputs, int inputs) {                                       \
        linear<FINISH, TILE_M, TILE_N, WARPS_M, WARPS_N>(                                          \
            {in, weights, bias, residual, out, rows, outputs, inputs});                            \
    }

LINEAR(linear_128, Finish::PLAIN, 128, 128, 2, 4)
LINEAR(linear_gelu_128, Finish::GELU, 128, 128, 2, 4)
LINEAR(linear_residual_128, Finish::RESIDUAL, 128, 128, 2, 4)
LINEAR(linear_64, Finish::PLAIN, 64, 64, 2, 2)
LINEAR(linear_gelu_64, Finish::GELU, 64, 64, 2, 2)
LINEAR(linear_residual_64, Finish::RESIDUAL, 64, 64, 2, 2)
