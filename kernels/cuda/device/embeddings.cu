// The first step of a BERT encoder: word + position + type embedding of each token, normalised.
//
// One warp a token and nothing written in between: three gathered rows are read, one row is written.
//
// Invariant: the host has checked every id, position and type against its table.
#include "rows.cuh"

template <int WIDTH>
__device__ __forceinline__ void embed_tokens(const int* ids, const int* positions, const int* types,
                                             const Fp16* word_table, const Fp16* position_table,
                                             const Fp16* type_table, const float* scale,
                                             const float* shift, Fp16* out, int rows,
                                             float epsilon) {
    const int row = row_of_warp();
    if (row >= rows) return;
    Row<WIDTH> sum;
    sum.clear();
    sum.add(word_table + size_t(ids[row]) * WIDTH);
    sum.add(position_table + size_t(positions[row]) * WIDTH);
    // Without types every token is of type 0, as in a batch of single texts.
    sum.add(type_table + size_t(types == nullptr ? 0 : types[row]) * WIDTH);
    sum.normalise(scale, shift, epsilon, out + size_t(row) * WIDTH);
}

#define EMBED_TOKENS(WIDTH)                                                                        \
    extern "C" __global__ void __launch_bounds__(ROWS_PER_BLOCK* LANES) embed_tokens_##WIDTH(      \
        const int* ids, const int* positions, const int* types, const Fp16* word_table,            \
        const Fp16* position_table, const Fp16* type_table, const float* scale,                    \
        const float* shift, Fp16* out, int rows, float epsilon) {                                  \
        embed_tokens<WIDTH>(ids, positions, types, word_table, position_table, type_table, scale,  \
                            shift, out, rows, epsilon);                                            \
    }

EMBED_TOKENS(384)
EMBED_TOKENS(768)
EMBED_TOKENS(1024)
