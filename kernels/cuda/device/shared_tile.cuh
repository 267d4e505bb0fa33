// A tile of fp16 rows in shared memory, laid out so that neither copies nor matrix loads conflict.
//
// ldmatrix reads one 16-byte chunk of each of eight rows at once; those must lie in different groups
// of four banks, of which there are eight in 128 bytes. Rows of 128 bytes have chunk c of row r at
// place c XOR (r mod 8); of rows of 64 bytes two share 128 bytes, so there it is c XOR (r / 2 mod 4).
// Nothing is padded, so stages stay powers of two.
//
// Invariant: for a fixed c, eight consecutive rows occupy eight different bank groups.
#pragma once

#include "primitives.cuh"

/// A tile of `ROWS` rows of `COLUMNS` fp16 numbers, 32 or 64.
template <int ROWS, int COLUMNS>
struct SharedTile {
    static constexpr int CHUNKS = COLUMNS / CHUNK_FP16;
    static constexpr int BYTES = ROWS * COLUMNS * int(sizeof(Fp16));
    static_assert(CHUNKS == 4 || CHUNKS == 8, "rows are 64 or 128 bytes");

    Fp16* memory;

    __device__ __forceinline__ Fp16* chunk(int row, int chunk) const {
        const int place = chunk ^ (CHUNKS == 8 ? row & 7 : (row >> 1) & 3);
        return memory + row * COLUMNS + place * CHUNK_FP16;
    }

    /// Begins to copy rows `first`, `first` + 1, ... of `from`, `stride` apart, with `THREADS`
    /// threads. Rows from `rows` on, which do not exist, are read as the last one: what is made of
    /// them is thrown away, but must be read from memory that is there.
    template <int THREADS>
    __device__ __forceinline__ void begin_copy(const Fp16* from, size_t stride, int first,
                                               int rows) const {
        static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as many chunks");
#pragma unroll
        for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
            const int at = int(threadIdx.x) + i * THREADS;
            const int row = at / CHUNKS, column = at % CHUNKS;
            const Fp16* source = from + size_t(smaller(first + row, rows - 1)) * stride;
            copy_chunk(chunk(row, column), source + column * CHUNK_FP16);
        }
    }
};
