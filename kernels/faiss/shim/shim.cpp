// What Vectide needs of FAISS, over a C boundary: build, add, search, write, read, free.
//
// Invariants: no exception leaves this file (each becomes a message, to be freed by
// vectide_faiss_free_message); no call starts a thread; searching writes to nothing that two
// searches share.

#include <faiss/IndexIVF.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/IDSelector.h>
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
