// The primitives of primitives.cuh in plain C++, and the words of CUDA that the kernels use.
//
// Fragments are laid out over lanes as the PTX ISA says for ldmatrix.x4 and mma.m16n8k16.
//
// Invariant: whatever a GPU does for a warp at once is computed only when all its lanes are there.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "block.h"
#include "fp16.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

#define threadIdx (emulated::thread_index)
#define blockIdx (emulated::block_index)

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    if (const char* site = emulated::block->reach("barrier", file, line))
        emulated::block->wait_for_block(site);
}

inline float2 unpack(Word packed) {
    return {emulated::widen(uint16_t(packed)), emulated::widen(uint16_t(packed >> 16))};
}

inline Word pack(float low, float high) {
    return emulated::narrow(low) | Word(emulated::narrow(high)) << 16;
}

inline int count_bits(Word bits) { return __builtin_popcount(bits); }
inline int lowest_bit(Word bits) { return __builtin_ffs(int(bits)) - 1; }

inline float exponential2(float x) { return std::exp2(x); }
inline float inverse_square_root(float x) { return 1.0f / std::sqrt(x); }
inline float error_function(float x) { return std::erf(x); }

inline unsigned char* dynamic_shared_memory() { return emulated::block->shared_memory(); }

namespace emulated {

template <class T>
struct FromLane {
    T value;
    int lane;
};

template <class T>
T exchange(T value, int lane) {
    const FromLane<T> operand{value, lane};
    T result;
    block->meet("a shuffle", &operand, &result, [](const void* const* operands, void* const* results) {
        const auto of = [&](int i) { return static_cast<const FromLane<T>*>(operands[i]); };
        for (int i = 0; i < WARP_LANES; i++)
            *static_cast<T*>(results[i]) = of(of(i)->lane % WARP_LANES)->value;
    });
    return result;
}

/// Shared memory has 32 banks of four bytes, so 16-byte rows at the same place modulo 128 take turns.
constexpr size_t BANKS_BYTES = 128, MATRIX_ROW_BYTES = 16;

/// The eight rows of a matrix are read at once: two of them in the same banks would take twice as long.
inline void refuse_conflicts(const void* const* rows) {
    unsigned taken = 0;
    for (int row = 0; row < 8; row++)
        taken |= 1u << reinterpret_cast<uintptr_t>(rows[row]) % BANKS_BYTES / MATRIX_ROW_BYTES;
    if (taken != 0xFF) block->fail("rows of a matrix in the same banks");
}

/// Lane 8 m + i brings the address of row i of matrix m; lane l takes two numbers of each matrix.
template <bool TRANSPOSED>
void load_four_matrices(Word (&out)[4], const void* row) {
    block->read_row(row, MATRIX_ROW_BYTES);
    const char* operation = TRANSPOSED ? "a load of transposed matrices" : "a load of matrices";
    const Unwatched by_itself;
    block->meet(operation, row, out, [](const void* const* rows, void* const* results) {
        const auto at = [&](int matrix, int row, int column) {
            return static_cast<const uint16_t*>(rows[8 * matrix + row])[column];
        };
        for (int m = 0; m < 4; m++) refuse_conflicts(rows + 8 * m);
        for (int lane = 0; lane < WARP_LANES; lane++)
            for (int m = 0; m < 4; m++) {
                const int g = lane / 4, t = lane % 4 * 2;
                const uint16_t low = TRANSPOSED ? at(m, t, g) : at(m, g, t);
                const uint16_t high = TRANSPOSED ? at(m, t + 1, g) : at(m, g, t + 1);
                static_cast<Word*>(results[lane])[m] = low | Word(high) << 16;
            }
    });
}

struct Fragments {
    float (&sums)[4];
    const Word (&a)[4];
    Word b[2];
};

/// Products are exact in fp32; sums are rounded once a term, in the order of the depth.
inline void multiply_fragments(const void* const* operands, void* const*) {
    const auto of = [&](int lane) { return static_cast<const Fragments*>(operands[lane]); };
    float a[16][16], b[16][8], sums[16][8];
    for (int lane = 0; lane < WARP_LANES; lane++) {
        const int g = lane / 4, t = lane % 4 * 2;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++)
                a[g + i % 2 * 8][t + i / 2 * 8 + half] = widen(uint16_t(of(lane)->a[i] >> 16 * half));
            for (int i = 0; i < 2; i++)
                b[t + i * 8 + half][g] = widen(uint16_t(of(lane)->b[i] >> 16 * half));
        }
        for (int i = 0; i < 4; i++) sums[g + i / 2 * 8][t + i % 2] = of(lane)->sums[i];
    }
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++) sums[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < WARP_LANES; lane++)
        for (int i = 0; i < 4; i++)
            of(lane)->sums[i] = sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

}  // namespace emulated

inline float warp_shuffle_xor(float value, int distance) {
    return emulated::exchange(value, int(threadIdx.x % emulated::WARP_LANES) ^ distance);
}

template <class T>
T warp_shuffle_from(T value, int lane) {
    return emulated::exchange(value, lane);
}

inline Word warp_ballot(bool predicate) {
    Word result;
    emulated::block->meet("a ballot", &predicate, &result,
                          [](const void* const* operands, void* const* results) {
                              Word bits = 0;
                              for (int i = 0; i < emulated::WARP_LANES; i++)
                                  bits |= Word(*static_cast<const bool*>(operands[i])) << i;
                              for (int i = 0; i < emulated::WARP_LANES; i++)
                                  *static_cast<Word*>(results[i]) = bits;
                          });
    return result;
}

inline void warp_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    if (emulated::block->reach("warp barrier", file, line) == nullptr) return;
    emulated::block->meet("a warp barrier", nullptr, nullptr,
                          [](const void* const*, void* const*) { emulated::block->order_warp(); });
}

inline void load_matrices(Word (&out)[4], const void* row) {
    emulated::load_four_matrices<false>(out, row);
}

inline void load_matrices_transposed(Word (&out)[4], const void* row) {
    emulated::load_four_matrices<true>(out, row);
}

inline void multiply_add(float (&sums)[4], const Word (&a)[4], Word b0, Word b1) {
    const emulated::Fragments operand{sums, a, {b0, b1}};
    emulated::block->meet("a multiplication", &operand, nullptr, emulated::multiply_fragments);
}

inline void copy_chunk(void* shared, const void* global) {
    emulated::block->issue_copy(shared, global, CHUNK_BYTES);
}

inline void commit_copies() { emulated::block->commit_copies(); }

template <int PENDING>
void wait_copies(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    if (emulated::block->reach("wait", file, line) == nullptr) return;
    emulated::block->wait_for_copies(PENDING, CHUNK_BYTES);
}
