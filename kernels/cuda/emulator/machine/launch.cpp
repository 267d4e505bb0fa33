// Launches a kernel by its name, as a driver does: arguments by address, blocks in any order.
#include "kernels.cu"

#include <algorithm>
#include <map>
#include <numeric>

namespace {

/// What every device that the binary runs on gives a block: 99 KB on 8.6, 8.9 and 12.0.
constexpr size_t SHARED_BYTES_MAX = 99 * 1024;
constexpr unsigned THREADS_MAX = 1024;

using Call = void (*)(void** arguments);

template <auto KERNEL, class Signature>
struct Entry;

template <auto KERNEL, class... Arguments>
struct Entry<KERNEL, void (*)(Arguments...)> {
    template <size_t... AT>
    static void call(void** arguments, std::index_sequence<AT...>) {
        KERNEL(*static_cast<std::remove_const_t<Arguments>*>(arguments[AT])...);
    }
    static void run(void** arguments) { call(arguments, std::index_sequence_for<Arguments...>()); }
    static constexpr size_t COUNT = sizeof...(Arguments);
};

/// A kernel, and how many arguments it has.
struct Kernel {
    Call call;
    size_t count;
};

#define ENTRY(KERNEL) \
    {#KERNEL, {Entry<&KERNEL, decltype(&KERNEL)>::run, Entry<&KERNEL, decltype(&KERNEL)>::COUNT}}

const std::map<std::string, Kernel> KERNELS = {
    ENTRY(embed_tokens_384),    ENTRY(embed_tokens_768),    ENTRY(embed_tokens_1024),
    ENTRY(normalise_rows_384),  ENTRY(normalise_rows_768),  ENTRY(normalise_rows_1024),
    ENTRY(linear_128),          ENTRY(linear_gelu_128),     ENTRY(linear_residual_128),
    ENTRY(linear_64),           ENTRY(linear_gelu_64),      ENTRY(linear_residual_64),
    ENTRY(attention_32),        ENTRY(attention_64),        ENTRY(pool_texts),
    ENTRY(nearest_rows),        ENTRY(merge_nearest),
};

thread_local Call running;
thread_local void** running_arguments;

void run_thread() {
    running(running_arguments);
    emulated::block->finish_lane();
}

int answer(const std::string& text, char* report, size_t report_bytes, int code) {
    const size_t length = std::min(text.size(), report_bytes - 1);
    std::memcpy(report, text.data(), length);
    report[length] = '\0';
    return code;
}

}  // namespace

/// What a launch is given beside the kernel's arguments.
struct VectideLaunch {
    const char* kernel;
    unsigned grid_x, grid_y, threads;
    size_t shared_bytes;
    uint64_t seed;
    const char* skipped_site;
};

/// 0, and `report` lists the barriers and waits that were reached, a line each; or 1, and `report`
/// says what went wrong.
extern "C" int vectide_emulate(const VectideLaunch* launch, void** arguments, char* report,
                               size_t report_bytes) {
    const auto found = KERNELS.find(launch->kernel);
    if (found == KERNELS.end())
        return answer("no kernel " + std::string(launch->kernel), report, report_bytes, 1);
    if (launch->threads % emulated::WARP_LANES != 0 || launch->threads == 0 ||
        launch->threads > THREADS_MAX || launch->shared_bytes > SHARED_BYTES_MAX)
        return answer("a block that not every GPU takes", report, report_bytes, 1);
    emulated::Schedule schedule(launch->seed, launch->skipped_site);
    emulated::Block block(schedule, launch->threads, launch->shared_bytes);
    emulated::block = &block;
    running = found->second.call;
    running_arguments = arguments;

    std::vector<unsigned> order(size_t(launch->grid_x) * launch->grid_y);
    std::iota(order.begin(), order.end(), 0u);
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[schedule.below(i)]);
    for (const unsigned at : order)
        if (!block.run({at % launch->grid_x, at / launch->grid_x, 0}, run_thread))
            return answer(block.error, report, report_bytes, 1);
    std::string sites;
    for (const std::string& site : block.sites) sites += site + "\n";
    return answer(sites, report, report_bytes, 0);
}

/// How many arguments a kernel has; none where it is unknown.
extern "C" size_t vectide_emulated_arguments(const char* kernel) {
    const auto found = KERNELS.find(kernel);
    return found == KERNELS.end() ? 0 : found->second.count;
}

/// The conversions, for their own test.
extern "C" float vectide_emulated_widen(uint16_t half) { return emulated::widen(half); }
extern "C" uint16_t vectide_emulated_narrow(float value) { return emulated::narrow(value); }
