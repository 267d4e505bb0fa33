// Attention over ragged texts, read from packed queries, keys and values.
//
// One block computes 64 queries of one head of one text; four warps have 16 of them each. Keys and
// values pass by in blocks of 64, the next block's copies under way while one is computed. The softmax
// is computed online (Milakov and Gimelshein 2018): maximum and sum are corrected as blocks pass, so
// the scores are never stored, and they go from one product to the next in registers, as in
// FlashAttention-2 (Dao 2023): the layout in which mma.sync returns sums is the one in which it takes
// its first operand.
//
// Rows of a token are [queries of all heads | keys | values]. `starts` has the first row of each text
// and one past the last; `tiles` has (text, first query) for each block along x. A tile that begins
// behind its text's end does nothing: launches of a fixed size are filled up with such.
//
// Invariant: only keys of the query's own text take part, and a text's results do not depend on where
// in the batch it stands.
#include "shared_tile.cuh"

constexpr int ATTENTION_WARPS = 4;
constexpr int ATTENTION_THREADS = ATTENTION_WARPS * LANES;
/// Queries of a block and keys of a step.
constexpr int QUERIES = 16 * ATTENTION_WARPS;
constexpr int KEYS = 64;
/// Keys that mma.sync takes at once as the depth of the second product.
constexpr int KEY_GROUP = 16;
/// Stands for minus infinity, of which differences would not be defined.
constexpr float NEVER = -1e30f;

template <int HEAD>
struct Attention {
    using Tile = SharedTile<KEYS, HEAD>;
    static constexpr int SHARED_BYTES = 4 * Tile::BYTES;
    static constexpr int GROUPS = KEYS / KEY_GROUP;

    // This text's rows of this head.
    const Fp16* head;
    size_t stride;
    int part;
    int length;
    unsigned char* shared;
    // Where this lane's two rows are: the first, and the one eight below.
    int query;
    float scale;

    Word queries[HEAD / 16][4];
    float sums[HEAD / 8][4];
    float maximum[2];
    float total[2];

    __device__ __forceinline__ Tile keys(int step) const {
        return {reinterpret_cast<Fp16*>(shared + step % 2 * 2 * Tile::BYTES)};
    }
    __device__ __forceinline__ Tile values(int step) const {
        return {reinterpret_cast<Fp16*>(shared + (step % 2 * 2 + 1) * Tile::BYTES)};
    }

    __device__ __forceinline__ void begin_step(int step) const {
        if (step * KEYS < length) {
            keys(step).template begin_copy<ATTENTION_THREADS>(head + part, stride, step * KEYS, length);
            values(step).template begin_copy<ATTENTION_THREADS>(head + 2 * part, stride, step * KEYS,
                                                                length);
        }
        commit_copies();
    }

    __device__ __forceinline__ Word query_pair(int row, int column) const {
        if (row >= length) return 0;
        return *reinterpret_cast<const Word*>(head + size_t(row) * stride + column);
    }

    __device__ __forceinline__ void start() {
#pragma unroll
        for (int i = 0; i < HEAD / 16; i++) {
            const int column = 16 * i + lane_index() % 4 * 2;
            queries[i][0] = query_pair(query, column);
            queries[i][1] = query_pair(query + 8, column);
            queries[i][2] = query_pair(query, column + 8);
            queries[i][3] = query_pair(query + 8, column + 8);
        }
#pragma unroll
        for (int n = 0; n < HEAD / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
        maximum[0] = maximum[1] = NEVER;
        total[0] = total[1] = 0.0f;
    }

    /// Scores of 16 queries and 16 keys, in units of powers of two; NEVER for keys that do not exist.
    __device__ __forceinline__ void score_group(const Tile& tile, int group, int first_key,
                                                float (&scores)[2][4]) const {
        const int lane = lane_index();
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const int row = group * KEY_GROUP + n * 8 + lane % 8;
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] = 0.0f;
#pragma unroll
            for (int i = 0; i < HEAD / 32; i++) {
                Word b[4];
                load_matrices(b, tile.chunk(row, 4 * i + lane / 8));
                multiply_add(scores[n], queries[2 * i], b[0], b[1]);
                multiply_add(scores[n], queries[2 * i + 1], b[2], b[3]);
            }
            const int key = first_key + group * KEY_GROUP + n * 8 + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 4; i++)
                scores[n][i] = key + i % 2 < length ? scores[n][i] * scale : NEVER;
        }
    }

    /// Takes a step's scores into maximum and total, and makes weights of them.
    __device__ __forceinline__ void weigh(float (&scores)[GROUPS][2][4], Word (&weights)[GROUPS][4]) {
        float corrections[2];
#pragma unroll
        for (int below = 0; below < 2; below++) {
            float best = maximum[below];
#pragma unroll
            for (int group = 0; group < GROUPS; group++)
#pragma unroll
                for (int n = 0; n < 2; n++)
                    best = fmaxf(best, fmaxf(scores[group][n][2 * below],
                                             scores[group][n][2 * below + 1]));
            // The four lanes that share a row.
            best = fmaxf(best, warp_shuffle_xor(best, 1));
            best = fmaxf(best, warp_shuffle_xor(best, 2));
            corrections[below] = exponential2(maximum[below] - best);
            maximum[below] = best;
            total[below] *= corrections[below];
        }
#pragma unroll
        for (int group = 0; group < GROUPS; group++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int below = 0; below < 2; below++) {
                    const float* pair = scores[group][n] + 2 * below;
                    const float left = exponential2(pair[0] - maximum[below]);
                    const float right = exponential2(pair[1] - maximum[below]);
                    total[below] += left + right;
                    weights[group][2 * n + below] = pack(left, right);
                }
#pragma unroll
        for (int n = 0; n < HEAD / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][i] *= corrections[i / 2];
    }

    /// Adds the weighted values of 16 keys.
    __device__ __forceinline__ void add_group(const Tile& tile, int group, const Word (&weights)[4]) {
        const int lane = lane_index();
#pragma unroll
        for (int n = 0; n < HEAD / 8; n += 2) {
            Word b[4];
            load_matrices_transposed(b, tile.chunk(group * KEY_GROUP + lane % 16, n + lane / 16));
            multiply_add(sums[n], weights, b[0], b[1]);
            multiply_add(sums[n + 1], weights, b[2], b[3]);
        }
    }

    __device__ __forceinline__ void compute_step(int step) {
        const int left = length - step * KEYS;
        float scores[GROUPS][2][4];
        Word weights[GROUPS][4];
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            // Short texts are the rule: groups without a key cost nothing but these numbers.
            if (group * KEY_GROUP < left) {
                score_group(keys(step), group, step * KEYS, scores[group]);
            } else {
#pragma unroll
                for (int i = 0; i < 8; i++) scores[group][i / 4][i % 4] = NEVER;
            }
        }
        weigh(scores, weights);
#pragma unroll
        for (int group = 0; group < GROUPS; group++)
            if (group * KEY_GROUP < left) add_group(values(step), group, weights[group]);
    }

    /// Writes this lane's part of its two rows.
    __device__ __forceinline__ void finish(Fp16* out, size_t out_stride) {
#pragma unroll
        for (int below = 0; below < 2; below++) {
            float sum = total[below];
            sum += warp_shuffle_xor(sum, 1);
            sum += warp_shuffle_xor(sum, 2);
            const int row = query + 8 * below;
            if (row >= length) continue;
            Fp16* to = out + size_t(row) * out_stride + lane_index() % 4 * 2;
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++)
                *reinterpret_cast<Word*>(to + 8 * n) =
                    pack(sums[n][2 * below] / sum, sums[n][2 * below + 1] / sum);
        }
    }
};

template <int HEAD>
__device__ __forceinline__ void attention(const Fp16* packed, const int* starts, const int2* tiles,
                                          Fp16* out, int heads, float scale) {
    const int2 tile = tiles[blockIdx.x];
    const int first_row = starts[tile.x], width = heads * HEAD;
    Attention<HEAD> work;
    work.length = starts[tile.x + 1] - first_row;
    if (tile.y >= work.length) return;
    work.stride = size_t(3) * width;
    work.part = width;
    work.head = packed + size_t(first_row) * work.stride + int(blockIdx.y) * HEAD;
    work.shared = dynamic_shared_memory();
    work.query = tile.y + warp_index() * 16 + lane_index() / 4;
    work.scale = scale;

    work.begin_step(0);
    work.start();
    // Warps whose queries do not exist still copy, and still stand at the barriers.
    const bool has_queries = tile.y + warp_index() * 16 < work.length;
    for (int step = 0; step * KEYS < work.length; step++) {
        work.begin_step(step + 1);
        wait_copies<1>();
        __syncthreads();
        if (has_queries) work.compute_step(step);
        // The next copies go where these keys are.
        __syncthreads();
    }
    if (has_queries)
        work.finish(out + size_t(first_row) * width + int(blockIdx.y) * HEAD, size_t(width));
}

/// `scale` is log2(e) / sqrt(head size), so that weights are powers of two.
#define ATTENTION(HEAD)                                                                            \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)                                \
        attention_##HEAD(const Fp16* packed, const int* starts, const int2* tiles, Fp16* out,      \
                         int heads, float scale) {                                                 \
        attention<HEAD>(packed, starts, tiles, out, heads, scale);                                 \
    }

ATTENTION(32)
ATTENTION(64)
