// What Vectide needs of FAISS, over a C boundary: build, add, search, write, read, free.
//
// Invariants: no exception leaves this file (each becomes a message, to be freed by
// vectide_faiss_free_message); no call starts a thread; searching writes to nothing that two
// searches share.

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/ProductQuantizer.h>
#include <faiss/impl/io.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

#include <dlfcn.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

namespace {

// OpenMP keeps this setting per calling thread, so every entry point sets it: batching over cores
// is done by the callers, and a pool per query thread would be threads times cores.
void use_one_thread() {
    omp_set_num_threads(1);
    // OpenBLAS keeps a pool of its own; the symbol is absent from other BLAS libraries.
    static const bool once = [] {
        using set_threads = void (*)(int);
        if (auto set = reinterpret_cast<set_threads>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"))) {
            set(1);
        }
        return true;
    }();
    (void)once;
}

char* message_of(const char* text) {
    char* copy = strdup(text);
    // Out of memory even for the message: the caller only looks at null or not.
    return copy != nullptr ? copy : strdup("");
}

template <class Body>
char* guarded(Body body) {
    try {
        use_one_thread();
        body();
        return nullptr;
    } catch (const std::exception& error) {
        return message_of(error.what());
    } catch (...) {
        return message_of("an exception of unknown type");
    }
}

struct BufferReader : faiss::IOReader {
    const uint8_t* at;
    size_t left;

    size_t operator()(void* into, size_t size, size_t items) override {
        if (size == 0) {
            return items;
        }
        size_t whole = std::min(items, left / size);
        if (whole > 0) {
            std::memcpy(into, at, whole * size);
        }
        at += whole * size;
        left -= whole * size;
        return whole;
    }
};

const faiss::Index* index_of(const void* handle) {
    return static_cast<const faiss::Index*>(handle);
}

void search_ivf(
        const faiss::IndexIVF& ivf,
        const float* query,
        faiss::idx_t k,
        size_t nprobe,
        const faiss::IDSelector* live,
        float* scores,
        faiss::idx_t* rows) {
    nprobe = std::clamp<size_t>(nprobe, 1, ivf.nlist);
    std::vector<float> list_scores(nprobe);
    std::vector<faiss::idx_t> lists(nprobe);
    ivf.quantizer->search(1, query, nprobe, list_scores.data(), lists.data());
    faiss::SearchParametersIVF parameters;
    parameters.nprobe = nprobe;
    parameters.sel = const_cast<faiss::IDSelector*>(live);
    // Without statistics of its own the call would write to a global that all threads share.
    faiss::IndexIVFStats statistics;
    ivf.search_preassigned(
            1, query, k, lists.data(), list_scores.data(), scores, rows, false, &parameters, &statistics);
}

// Bits of a product code: what the scan's tables of 16 entries are made for.
constexpr size_t CODE_BITS = 4;

// Assigns vectors to lists, and codes what is left of them.
struct Encoder {
    faiss::IndexFlatL2 centroids;
    faiss::ProductQuantizer codebook;

    Encoder(size_t dimension, size_t subquantizers)
            : centroids(static_cast<faiss::idx_t>(dimension)),
              codebook(dimension, subquantizers, CODE_BITS) {}

    // The list of each vector, and the vectors less the centroids of their lists.
    std::vector<float> assign(size_t rows, const float* vectors, faiss::idx_t* lists) const {
        std::vector<float> distances(rows);
        centroids.search(static_cast<faiss::idx_t>(rows), vectors, 1, distances.data(), lists);
        std::vector<float> residuals(rows * codebook.d);
        centroids.compute_residual_n(static_cast<faiss::idx_t>(rows), vectors, residuals.data(), lists);
        return residuals;
    }
};

faiss::ClusteringParameters clustering(int iterations) {
    faiss::ClusteringParameters parameters;
    parameters.niter = iterations;
    // The caller has chosen the rows.
    parameters.max_points_per_centroid = 1 << 20;
    parameters.min_points_per_centroid = 1;
    parameters.seed = 1;
    return parameters;
}

} // namespace

extern "C" {

void vectide_faiss_free_message(char* message) {
    std::free(message);
}

void vectide_faiss_free_index(void* handle) {
    delete static_cast<faiss::Index*>(handle);
}

// How many threads OpenMP would use for the calling thread's next parallel region.
int vectide_faiss_threads_max() {
    return omp_get_max_threads();
}

// Makes an index by factory string, for inner products, and trains it.
char* vectide_faiss_build(
        int dimension,
        const char* description,
        int iterations,
        int points_per_list_max,
        size_t training_rows,
        const float* training,
        void** out) {
    *out = nullptr;
    return guarded([&] {
        std::unique_ptr<faiss::Index> index(
                faiss::index_factory(dimension, description, faiss::METRIC_INNER_PRODUCT));
        if (auto* ivf = dynamic_cast<faiss::IndexIVF*>(index.get())) {
            ivf->cp.niter = iterations;
            ivf->cp.max_points_per_centroid = points_per_list_max;
            ivf->cp.min_points_per_centroid = 1;
            ivf->cp.seed = 1;
        }
        if (auto* scalar = dynamic_cast<faiss::IndexIVFScalarQuantizer*>(index.get())) {
            // The codes are then the stored fp16 values themselves, not roundings of residuals.
            scalar->by_residual = false;
        }
        index->train(static_cast<faiss::idx_t>(training_rows), training);
        *out = index.release();
    });
}

char* vectide_faiss_add(void* handle, size_t rows, const float* vectors) {
    return guarded([&] {
        static_cast<faiss::Index*>(handle)->add(static_cast<faiss::idx_t>(rows), vectors);
    });
}

// The k best rows; `rows` is filled up with -1. `live` is a bitmap by row, or null for all.
char* vectide_faiss_search(
        const void* handle,
        const float* query,
        size_t k,
        size_t nprobe,
        const uint8_t* live,
        size_t live_bytes,
        float* scores,
        int64_t* rows) {
    return guarded([&] {
        std::optional<faiss::IDSelectorBitmap> selector;
        if (live != nullptr) {
            selector.emplace(live_bytes, live);
        }
        const faiss::IDSelector* chosen = selector ? &*selector : nullptr;
        const faiss::Index* index = index_of(handle);
        if (auto* ivf = dynamic_cast<const faiss::IndexIVF*>(index)) {
            search_ivf(*ivf, query, static_cast<faiss::idx_t>(k), nprobe, chosen, scores, rows);
            return;
        }
        faiss::SearchParameters parameters;
        parameters.sel = const_cast<faiss::IDSelector*>(chosen);
        index->search(1, query, static_cast<faiss::idx_t>(k), scores, rows, &parameters);
    });
}

// Trains `lists` centroids and a codebook of `subquantizers` for what is left of the vectors; both are
// written to the caller's memory: lists x dimension and 16 x dimension floats.
char* vectide_faiss_train(
        size_t dimension,
        size_t lists,
        size_t subquantizers,
        int iterations,
        size_t codebook_rows_max,
        size_t rows,
        const float* vectors,
        float* centroids,
        float* codebook) {
    return guarded([&] {
        Encoder encoder(dimension, subquantizers);
        faiss::Clustering coarse(
                static_cast<int>(dimension), static_cast<int>(lists), clustering(iterations));
        coarse.train(static_cast<faiss::idx_t>(rows), vectors, encoder.centroids);
        std::copy(coarse.centroids.begin(), coarse.centroids.end(), centroids);

        size_t coded = std::min(rows, codebook_rows_max);
        std::vector<faiss::idx_t> assigned(coded);
        std::vector<float> residuals = encoder.assign(coded, vectors, assigned.data());
        encoder.codebook.cp = clustering(iterations);
        encoder.codebook.train(coded, residuals.data());
        std::copy(encoder.codebook.centroids.begin(), encoder.codebook.centroids.end(), codebook);
    });
}

char* vectide_faiss_encoder_new(
        size_t dimension,
        size_t lists,
        size_t subquantizers,
        const float* centroids,
        const float* codebook,
        void** out) {
    *out = nullptr;
    return guarded([&] {
        auto encoder = std::make_unique<Encoder>(dimension, subquantizers);
        encoder->centroids.add(static_cast<faiss::idx_t>(lists), centroids);
        std::copy_n(codebook, encoder->codebook.centroids.size(), encoder->codebook.centroids.begin());
        *out = encoder.release();
    });
}

void vectide_faiss_encoder_free(void* handle) {
    delete static_cast<Encoder*>(handle);
}

// The list of each vector, and its code of (subquantizers + 1) / 2 bytes, the first subquantizer in the
// low half of the first byte.
char* vectide_faiss_encode(
        const void* handle, size_t rows, const float* vectors, int64_t* lists, uint8_t* codes) {
    return guarded([&] {
        auto* encoder = static_cast<const Encoder*>(handle);
        std::vector<float> residuals = encoder->assign(rows, vectors, lists);
        encoder->codebook.compute_codes(residuals.data(), codes, rows);
    });
}

void vectide_faiss_shape(const void* handle, size_t* dimension, size_t* rows, size_t* lists) {
    const faiss::Index* index = index_of(handle);
    *dimension = static_cast<size_t>(index->d);
    *rows = static_cast<size_t>(index->ntotal);
    auto* ivf = dynamic_cast<const faiss::IndexIVF*>(index);
    *lists = ivf != nullptr ? ivf->nlist : 1;
}

char* vectide_faiss_write(const void* handle, const char* path) {
    return guarded([&] { faiss::write_index(index_of(handle), path); });
}

char* vectide_faiss_read(const uint8_t* bytes, size_t length, void** out) {
    *out = nullptr;
    return guarded([&] {
        BufferReader reader;
        reader.name = "segment";
        reader.at = bytes;
        reader.left = length;
        *out = faiss::read_index(&reader);
    });
}

} // extern "C"
