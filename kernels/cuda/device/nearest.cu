// The exact nearest rows by inner product: a tiled product whose scores never reach global memory.
//
// A block has 64 queries and goes through one part of the rows, 64 at a time. The product leaves a
// tile of scores in shared memory; each warp then walks over 16 of the queries, asks by ballot which
// scores beat the query's k-th best so far, and inserts those few into its sorted list. After n rows
// a list has seen about k (1 + ln(n / k)) insertions, so the walk costs one comparison a score. A
// second kernel merges the parts' lists.
//
// Invariant: lists are ordered by falling score, then by rising row, and hold live rows only; what
// is not there has row NOTHING. Parts and tiles rise with the rows, so a later equal score is never
// the better one, and insertion behind equals keeps the order.
#include "tile_product.cuh"

/// Rows and queries of a block's tile.
constexpr int NEAREST_TILE = 64;
/// The longest list: four entries a lane.
constexpr int NEAREST_K_MAX = 128;
constexpr int ENTRIES_PER_LANE = NEAREST_K_MAX / LANES;
constexpr Word NOTHING = 0xffffffffu;
constexpr float NO_SCORE = -3.0e38f;
/// A row of scores is 8 floats longer than its numbers, so that the rows that half a warp writes at
/// once are in different banks.
constexpr int SCORES_STRIDE = NEAREST_TILE + 8;
constexpr int MERGE_WARPS = 4;

/// The best of one query, in shared memory, worked on by one warp.
struct BestList {
    float* scores;
    Word* rows;
    int k;

    __device__ __forceinline__ void clear() const {
        for (int i = lane_index(); i < k; i += LANES) {
            scores[i] = NO_SCORE;
            rows[i] = NOTHING;
        }
        warp_barrier();
    }

    __device__ __forceinline__ float worst() const { return scores[k - 1]; }

    /// Inserts behind all entries that are as good; does nothing where k of them are.
    __device__ __forceinline__ void insert(float score, Word row) const {
        float moved_scores[ENTRIES_PER_LANE];
        Word moved_rows[ENTRIES_PER_LANE];
        int place = 0;
#pragma unroll
        for (int i = 0; i < ENTRIES_PER_LANE; i++) {
            const int at = lane_index() + i * LANES;
            place += count_bits(warp_ballot(at < k && scores[at] >= score));
            const int from = at > 0 ? smaller(at, k) - 1 : 0;
            moved_scores[i] = scores[from];
            moved_rows[i] = rows[from];
        }
        warp_barrier();
#pragma unroll
        for (int i = 0; i < ENTRIES_PER_LANE; i++) {
            const int at = lane_index() + i * LANES;
            if (at >= place && at < k) {
                scores[at] = at == place ? score : moved_scores[i];
                rows[at] = at == place ? row : moved_rows[i];
            }
        }
        warp_barrier();
    }

    /// Offers each lane's entry, lowest lane first.
    __device__ __forceinline__ void offer(float score, Word row) const {
        Word better = warp_ballot(score > worst());
        while (better != 0) {
            const int lane = lowest_bit(better);
            insert(warp_shuffle_from(score, lane), warp_shuffle_from(row, lane));
            // The list has become better: some of the lanes behind no longer are.
            const Word behind = ALL_LANES << lane << 1;
            better = warp_ballot(score > worst()) & behind;
        }
    }
};

using NearestProduct = TileProduct<NEAREST_TILE, NEAREST_TILE, 2, 2>;
static_assert(NEAREST_TILE * SCORES_STRIDE * int(sizeof(float)) <= NearestProduct::SHARED_BYTES,
              "scores lie over the stages");

/// Writes a tile's scores to shared memory.
__device__ __forceinline__ void put_scores(const NearestProduct& product, float* scores) {
#pragma unroll
    for (int m = 0; m < NearestProduct::FRAGMENTS_M; m++)
#pragma unroll
        for (int n = 0; n < NearestProduct::FRAGMENTS_N; n++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                const int row = NearestProduct::row_of(m) + 8 * below;
                float2 pair;
                pair.x = product.sums[m][n][2 * below];
                pair.y = product.sums[m][n][2 * below + 1];
                *reinterpret_cast<float2*>(scores + row * SCORES_STRIDE +
                                           NearestProduct::column_of(n)) = pair;
            }
}

__device__ __forceinline__ bool is_live(const Word* live, int row, int end) {
    return row < end && (live == nullptr || (live[row / 32] >> (row % 32) & 1) != 0);
}

/// Shared memory: the product's stages and over them the scores, then for each query k scores and k
/// rows. Beside the stages the scores would not fit on devices that give a block 99 KB (8.6, 8.9, 12.0).
/// `live` has a bit a row, or is null where all are. `part_rows` is a multiple of the tile.
/// The lists go to best_scores and best_rows, [parts][queries][k].
extern "C" __global__ void __launch_bounds__(NearestProduct::THREADS)
    nearest_rows(const Fp16* queries, const Fp16* rows, const Word* live, float* best_scores,
                 Word* best_rows, int query_count, int row_count, int depth, int k, int part_rows) {
    unsigned char* shared = dynamic_shared_memory();
    float* scores = reinterpret_cast<float*>(shared);
    float* list_scores = reinterpret_cast<float*>(shared + NearestProduct::SHARED_BYTES);
    Word* list_rows = reinterpret_cast<Word*>(list_scores + NEAREST_TILE * k);
    constexpr int QUERIES_PER_WARP = NEAREST_TILE / (NearestProduct::THREADS / LANES);
    const int part = int(blockIdx.x), first_query = int(blockIdx.y) * NEAREST_TILE;
    const int own_query = warp_index() * QUERIES_PER_WARP;
    const int own_count = smaller(QUERIES_PER_WARP, query_count - first_query - own_query);
    const int end = smaller((part + 1) * part_rows, row_count);

    for (int i = own_query; i < own_query + own_count; i++)
        BestList{list_scores + i * k, list_rows + i * k, k}.clear();
    for (int first = part * part_rows; first < end; first += NEAREST_TILE) {
        NearestProduct product;
        product.compute(shared, {queries, query_count, first_query}, {rows, row_count, first}, depth);
        // Other warps may still read the stages, where the scores go.
        __syncthreads();
        put_scores(product, scores);
        // Makes the scores visible.
        __syncthreads();
        for (int i = own_query; i < own_query + own_count; i++) {
            const BestList list{list_scores + i * k, list_rows + i * k, k};
            for (int column = lane_index(); column < NEAREST_TILE; column += LANES) {
                const bool counts = is_live(live, first + column, end);
                list.offer(counts ? scores[i * SCORES_STRIDE + column] : NO_SCORE, first + column);
            }
        }
        // The next product's copies go where the scores are.
        __syncthreads();
    }
    for (int i = own_query; i < own_query + own_count; i++) {
        const size_t to = (size_t(part) * query_count + first_query + i) * k;
        for (int at = lane_index(); at < k; at += LANES) {
            best_scores[to + at] = list_scores[i * k + at];
            best_rows[to + at] = list_rows[i * k + at];
        }
    }
}

/// Merges the parts' lists of each query. Shared memory: for each warp k scores and k rows.
extern "C" __global__ void __launch_bounds__(MERGE_WARPS* LANES)
    merge_nearest(const float* part_scores, const Word* part_rows, float* best_scores,
                  Word* best_rows, int query_count, int parts, int k) {
    const int query = int(blockIdx.x) * MERGE_WARPS + warp_index();
    if (query >= query_count) return;
    float* scores = reinterpret_cast<float*>(dynamic_shared_memory()) + warp_index() * k;
    Word* rows = reinterpret_cast<Word*>(dynamic_shared_memory()) + (MERGE_WARPS + warp_index()) * k;
    const BestList list{scores, rows, k};
    list.clear();
    for (int part = 0; part < parts; part++) {
        const size_t from = (size_t(part) * query_count + query) * k;
        for (int first = 0; first < k; first += LANES) {
            const int at = first + lane_index();
            const bool exists = at < k;
            list.offer(exists ? part_scores[from + at] : NO_SCORE,
                       exists ? part_rows[from + at] : NOTHING);
        }
    }
    for (int at = lane_index(); at < k; at += LANES) {
        best_scores[size_t(query) * k + at] = scores[at];
        best_rows[size_t(query) * k + at] = rows[at];
    }
}
