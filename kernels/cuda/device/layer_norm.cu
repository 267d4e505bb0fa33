// out = normalise(in): what stands after attention and after the feed-forward network.
//
// The product before it has added bias and residual itself, so a row is read once and written once.
//
// Invariant: a warp has read its whole row before it writes it, so `out` may be `in`.
#include "rows.cuh"

template <int WIDTH>
__device__ __forceinline__ void normalise_rows(const Fp16* in, const float* scale,
                                               const float* shift, Fp16* out, int rows,
                                               float epsilon) {
    const int row = row_of_warp();
    if (row >= rows) return;
    Row<WIDTH> sum;
    sum.clear();
    sum.add(in + size_t(row) * WIDTH);
    sum.normalise(scale, shift, epsilon, out + size_t(row) * WIDTH);
}

#define NORMALISE_ROWS(WIDTH)                                                                      \
    extern "C" __global__ void __launch_bounds__(ROWS_PER_BLOCK* LANES) normalise_rows_##WIDTH(    \
        const Fp16* in, const float* scale, const float* shift, Fp16* out, int rows,               \
        float epsilon) {                                                                           \
        normalise_rows<WIDTH>(in, scale, shift, out, rows, epsilon);                               \
    }

NORMALISE_ROWS(384)
NORMALISE_ROWS(768)
NORMALISE_ROWS(1024)
