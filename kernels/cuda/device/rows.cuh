// One warp holds one row of a token's vector in registers, to normalise it.
//
// Layer normalisation (Ba, Kiros and Hinton 2016) needs the mean before the variance: with the row in
// registers both passes are free of memory traffic, and the variance is taken of centred values, so
// that a large mean costs no digits.
//
// Invariant: sums are in fp32 and in an order that depends on WIDTH alone.
#pragma once

#include "primitives.cuh"

/// Warps, and so rows, of a block of the row-wise kernels.
constexpr int ROWS_PER_BLOCK = 8;

template <int WIDTH>
struct Row {
    // A lane holds 4 columns of every 128: one 8-byte access each, together a whole line.
    static constexpr int COLUMNS_AT_ONCE = 4;
    static constexpr int ACCESSES = WIDTH / (LANES * COLUMNS_AT_ONCE);
    static_assert(WIDTH % (LANES * COLUMNS_AT_ONCE) == 0, "a lane's columns must be whole");

    float values[ACCESSES * COLUMNS_AT_ONCE];

    static __device__ __forceinline__ int access(int i) { return lane_index() + LANES * i; }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (float& value : values) value = 0.0f;
    }

    __device__ __forceinline__ void add(const Fp16* row) {
#pragma unroll
        for (int i = 0; i < ACCESSES; i++) {
            const uint2 raw = reinterpret_cast<const uint2*>(row)[access(i)];
            const float2 low = unpack(raw.x), high = unpack(raw.y);
            values[4 * i] += low.x;
            values[4 * i + 1] += low.y;
            values[4 * i + 2] += high.x;
            values[4 * i + 3] += high.y;
        }
    }

    __device__ __forceinline__ float mean() const {
        float sum = 0.0f;
#pragma unroll
        for (const float value : values) sum += value;
        return warp_sum(sum) / WIDTH;
    }

    /// Writes (row - mean) / sqrt(variance + epsilon) * scale + shift.
    __device__ __forceinline__ void normalise(const float* scale, const float* shift, float epsilon,
                                              Fp16* out) {
        const float centre = mean();
        float squares = 0.0f;
#pragma unroll
        for (float& value : values) {
            value -= centre;
            squares += value * value;
        }
        const float factor = inverse_square_root(warp_sum(squares) / WIDTH + epsilon);
#pragma unroll
        for (int i = 0; i < ACCESSES; i++) {
            const float4 by = reinterpret_cast<const float4*>(scale)[access(i)];
            const float4 plus = reinterpret_cast<const float4*>(shift)[access(i)];
            const float* v = values + 4 * i;
            uint2 raw;
            raw.x = pack(v[0] * factor * by.x + plus.x, v[1] * factor * by.y + plus.y);
            raw.y = pack(v[2] * factor * by.z + plus.z, v[3] * factor * by.w + plus.w);
            reinterpret_cast<uint2*>(out)[access(i)] = raw;
        }
    }
};

/// The row of this warp.
__device__ __forceinline__ int row_of_warp() {
    return int(blockIdx.x) * ROWS_PER_BLOCK + warp_index();
}
