// The product of a tile of rows with a tile of columns, both along fp16 rows in memory: A * B^T.
//
// Tiles of A and B come through shared memory in steps of 32 along the depth. Four stages are in
// flight, so that copies of three steps run while one is multiplied (cp.async and mma.sync; the
// scheme is that of NVIDIA's CUTLASS for compute capability 8.0, "multistage"). One barrier a step
// serves both ways: it makes a stage's copies visible to all threads, and it tells that all threads
// have finished with the stage that is overwritten next.
//
// Invariant: a sum's terms are added in an order that the depth alone determines, so a row's product
// does not depend on which rows stand beside it.
#pragma once

#include "shared_tile.cuh"

template <int TILE_M, int TILE_N, int WARPS_M, int WARPS_N>
struct TileProduct {
    static constexpr int DEPTH = 32;
    static constexpr int STAGES = 4;
    static constexpr int THREADS = WARPS_M * WARPS_N * LANES;
    static constexpr int WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N;
    // What mma.sync computes at once, and how many of them a warp has.
    static constexpr int FRAGMENT_M = 16, FRAGMENT_N = 8, FRAGMENT_DEPTH = 16;
    static constexpr int FRAGMENTS_M = WARP_M / FRAGMENT_M, FRAGMENTS_N = WARP_N / FRAGMENT_N;
    static_assert(WARP_M % FRAGMENT_M == 0 && WARP_N % (2 * FRAGMENT_N) == 0, "whole fragments");

    using TileA = SharedTile<TILE_M, DEPTH>;
    using TileB = SharedTile<TILE_N, DEPTH>;
    static constexpr int STAGE_BYTES = TileA::BYTES + TileB::BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES;

    /// `rows` rows of `depth` numbers, the tile beginning at row `first`.
    struct Operand {
        const Fp16* data;
        int rows;
        int first;
    };

    float sums[FRAGMENTS_M][FRAGMENTS_N][4];

    static __device__ __forceinline__ TileA tile_a(unsigned char* shared, int step) {
        return {reinterpret_cast<Fp16*>(shared + step % STAGES * STAGE_BYTES)};
    }

    static __device__ __forceinline__ TileB tile_b(unsigned char* shared, int step) {
        return {reinterpret_cast<Fp16*>(shared + step % STAGES * STAGE_BYTES + TileA::BYTES)};
    }

    static __device__ __forceinline__ void begin_step(unsigned char* shared, int step,
                                                      const Operand& a, const Operand& b,
                                                      int depth) {
        const int column = step * DEPTH;
        if (column < depth) {
            tile_a(shared, step).template begin_copy<THREADS>(a.data + column, depth, a.first, a.rows);
            tile_b(shared, step).template begin_copy<THREADS>(b.data + column, depth, b.first, b.rows);
        }
        // A group a step even where there is nothing left, so that waiting counts steps.
        commit_copies();
    }

    /// First row (M) and column (N) of this warp in the tile.
    static __device__ __forceinline__ int warp_row() { return warp_index() / WARPS_N * WARP_M; }
    static __device__ __forceinline__ int warp_column() { return warp_index() % WARPS_N * WARP_N; }

    /// Where in the tile this lane's sums[m][n][0] and [1] are; [2] and [3] are eight rows below.
    static __device__ __forceinline__ int row_of(int m) {
        return warp_row() + m * FRAGMENT_M + lane_index() / 4;
    }
    static __device__ __forceinline__ int column_of(int n) {
        return warp_column() + n * FRAGMENT_N + lane_index() % 4 * 2;
    }

    __device__ __forceinline__ void multiply_step(const TileA& tile_a, const TileB& tile_b) {
        const int lane = lane_index();
#pragma unroll
        for (int half = 0; half < DEPTH / FRAGMENT_DEPTH; half++) {
            Word a[FRAGMENTS_M][4];
#pragma unroll
            for (int m = 0; m < FRAGMENTS_M; m++) {
                const int row = warp_row() + m * FRAGMENT_M + lane % 16;
                load_matrices(a[m], tile_a.chunk(row, 2 * half + lane / 16));
            }
#pragma unroll
            for (int n = 0; n < FRAGMENTS_N; n += 2) {
                const int row = warp_column() + n * FRAGMENT_N + lane / 16 * 8 + lane % 8;
                Word b[4];
                load_matrices(b, tile_b.chunk(row, 2 * half + lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < FRAGMENTS_M; m++) {
                    multiply_add(sums[m][n], a[m], b[0], b[1]);
                    multiply_add(sums[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    /// Fills `sums`. `depth` is a multiple of 32. Other threads may still read `shared` afterwards: a
    /// barrier must stand before anything is written there.
    __device__ __forceinline__ void compute(unsigned char* shared, const Operand& a,
                                            const Operand& b, int depth) {
#pragma unroll
        for (int m = 0; m < FRAGMENTS_M; m++)
#pragma unroll
            for (int n = 0; n < FRAGMENTS_N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[m][n][i] = 0.0f;
#pragma unroll
        for (int step = 0; step < STAGES - 1; step++) begin_step(shared, step, a, b, depth);
        const int steps = depth / DEPTH;
        for (int step = 0; step < steps; step++) {
            wait_copies<STAGES - 2>();
            __syncthreads();
            begin_step(shared, step + STAGES - 1, a, b, depth);
            multiply_step(tile_a(shared, step), tile_b(shared, step));
        }
    }
};
