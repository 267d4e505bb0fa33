// One block of threads: runs its fibers, lets them meet at warp operations and barriers, and keeps
// their copies under way.
//
// Blocks run one after the other; a block's threads take turns on one thread of the operating system,
// so nothing here is atomic. What a GPU leaves undefined is made an error where it can be seen: a warp
// whose lanes do not meet, barriers of different places met by one block, addresses that do not fit. So
// is a race (watch.h), and a matrix whose rows lie in the same banks, which would only be slow.
//
// Invariant: when a block ends without an error every thread has returned.
#pragma once

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

#include "fiber.h"
#include "schedule.h"
#include "watch.h"

namespace emulated {

constexpr int WARP_LANES = 32;
constexpr size_t SHARED_ALIGNMENT = 128;

/// A cp.async that has been issued; without `from` it has been made already.
struct Copy {
    void* to;
    const void* from;
    int group;
};

enum class LaneState { READY, AT_WARP, AT_BLOCK, DONE };

struct Lane {
    Fiber fiber;
    LaneState state = LaneState::DONE;
    // Where it waits, and what it brings and takes.
    const char* site = "";
    const void* operand = nullptr;
    void* result = nullptr;
    std::vector<Copy> copies;
    int groups = 0;
};

struct Index3 {
    unsigned x, y, z;
};
inline thread_local Index3 thread_index, block_index;

class Block {
public:
    using Compute = void (*)(const void* const* operands, void* const* results);

    Block(Schedule& schedule, size_t threads, size_t shared_bytes)
        : schedule(schedule),
          lanes(pool(threads)),
          threads(threads),
          at_warp(threads / WARP_LANES),
          shared((shared_bytes + SHARED_ALIGNMENT - 1) / SHARED_ALIGNMENT * SHARED_ALIGNMENT) {}

    /// Runs `body` in every thread; false where `error` says what went wrong.
    bool run(Index3 at, Fiber::Body body) {
        block_index = at;
        // NaNs, as fp16 and as fp32: what is read before it is written shows in the results.
        std::memset(shared.start, 0xFF, shared.size);
        races.begin(shared.start, shared.size, threads / WARP_LANES);
        std::fill(at_warp.begin(), at_warp.end(), 0);
        unfinished = threads;
        for (size_t i = 0; i < threads; i++) {
            lanes[i].state = LaneState::READY;
            lanes[i].copies.clear();
            lanes[i].groups = 0;
            lanes[i].fiber.begin(body);
        }
        while (error.empty() && unfinished > 0) run_some_warp();
        return error.empty();
    }

    /// The thread has returned from the kernel.
    [[noreturn]] void finish_lane() {
        lane().state = LaneState::DONE;
        unfinished--;
        // Barriers do not wait for threads that are no more.
        release_barrier();
        for (;;) lane().fiber.leave();
    }

    /// All lanes of the warp bring an operand; the last one to come computes for all.
    void meet(const char* operation, const void* operand, void* result, Compute compute) {
        Lane& own = lane();
        own.site = operation;
        own.operand = operand;
        own.result = result;
        own.state = LaneState::AT_WARP;
        const size_t warp = current / WARP_LANES;
        if (++at_warp[warp] < WARP_LANES) return own.fiber.leave();
        at_warp[warp] = 0;
        Lane* first = lanes + warp * WARP_LANES;
        const void* operands[WARP_LANES];
        void* results[WARP_LANES];
        for (int i = 0; i < WARP_LANES; i++) {
            if (first[i].site != own.site)
                fail(std::string("lanes of a warp at ") + own.site + " and " + first[i].site);
            operands[i] = first[i].operand;
            results[i] = first[i].result;
            first[i].state = LaneState::READY;
        }
        compute(operands, results);
    }

    /// The warp that is running has met at a barrier, which orders its memory.
    void order_warp() { races.order_warp(current / WARP_LANES); }

    /// `site` is one that `reach` gave.
    void wait_for_block(const char* site) {
        lane().site = site;
        lane().state = LaneState::AT_BLOCK;
        release_barrier();
        if (lane().state == LaneState::AT_BLOCK) lane().fiber.leave();
    }

    void issue_copy(void* to, const void* from, size_t bytes) {
        check_shared(to, bytes);
        if (reinterpret_cast<uintptr_t>(from) % bytes != 0) fail("a copy from an unaligned address");
        races.write(to, bytes);
        const Unwatched by_itself;
        if (schedule.toss()) {
            std::memcpy(to, from, bytes);
            // Kept all the same: it is waited for like any other.
            from = nullptr;
        } else {
            // Until somebody waits for it the destination holds nothing of use.
            std::memset(to, 0xFF, bytes);
        }
        lane().copies.push_back({to, from, lane().groups});
    }

    void commit_copies() { lane().groups++; }

    void wait_for_copies(int pending, size_t bytes) {
        Lane& own = lane();
        const auto is_due = [&](const Copy& copy) { return copy.group < own.groups - pending; };
        for (const Copy& copy : own.copies) {
            if (!is_due(copy)) continue;
            races.write(copy.to, bytes);
            const Unwatched by_itself;
            if (copy.from != nullptr) std::memcpy(copy.to, copy.from, bytes);
        }
        own.copies.erase(std::remove_if(own.copies.begin(), own.copies.end(), is_due), own.copies.end());
    }

    /// Notes a barrier or wait; null where it is to be left out, else its name, always the same one.
    const char* reach(const char* kind, const char* file, int line) {
        const char* name = std::strrchr(file, '/');
        std::string site = std::string(kind) + " " + (name ? name + 1 : file) + ":" + std::to_string(line);
        const auto known = sites.insert(std::move(site)).first;
        return *known == schedule.skipped ? nullptr : known->c_str();
    }

    /// Ends the run: the fiber that calls it never goes on.
    [[noreturn]] void fail(const std::string& message) {
        if (error.empty()) error = message + ", thread " + std::to_string(current);
        for (;;) lane().fiber.leave();
    }

    /// A matrix load reads on behalf of the lane that brings the row's address.
    void read_row(const void* row, size_t bytes) {
        check_shared(row, bytes);
        races.read(row, bytes);
    }

    void check_shared(const void* address, size_t bytes) {
        const auto* at = static_cast<const unsigned char*>(address);
        if (at < shared.start || at + bytes > shared.start + shared.size)
            fail("an address outside of shared memory");
        if (reinterpret_cast<uintptr_t>(at) % bytes != 0) fail("an unaligned shared address");
    }

    unsigned char* shared_memory() { return shared.start; }

    std::string error;
    /// Every barrier and wait that was reached.
    std::set<std::string> sites;

private:
    /// Lanes are kept from launch to launch: their stacks cost more than most kernels.
    static Lane* pool(size_t threads) {
        static thread_local std::vector<Lane> kept;
        if (kept.size() < threads) kept.resize(threads);
        return kept.data();
    }

    Lane& lane() { return lanes[current]; }

    bool is_ready(size_t warp) const {
        const Lane* first = lanes + warp * WARP_LANES;
        return std::any_of(first, first + WARP_LANES,
                           [](const Lane& lane) { return lane.state == LaneState::READY; });
    }

    void run_some_warp() {
        const size_t warps = threads / WARP_LANES, first = schedule.below(warps);
        for (size_t i = 0; i < warps; i++) {
            const size_t warp = (first + i) % warps;
            if (!is_ready(warp)) continue;
            do {
                run_lanes(warp);
            } while (error.empty() && is_ready(warp) && !schedule.changes_warp());
            return;
        }
        for (size_t i = 0; i < threads; i++)
            if (lanes[i].state != LaneState::DONE)
                error = std::string("no thread can go on; one waits at ") + lanes[i].site;
    }

    void run_lanes(size_t warp) {
        // Some order of the lanes: an odd stride visits each of them once.
        const size_t first = schedule.below(WARP_LANES), stride = 2 * schedule.below(16) + 1;
        for (size_t i = 0; i < WARP_LANES && error.empty(); i++) {
            current = warp * WARP_LANES + (first + i * stride) % WARP_LANES;
            if (lane().state != LaneState::READY) continue;
            thread_index = {unsigned(current), 0, 0};
            races.enter(current);
            watch = &races;
            lane().fiber.resume();
            watch = nullptr;
            if (!races.race.empty() && error.empty()) error = races.race;
        }
    }

    void release_barrier() {
        const Lane* waiting = nullptr;
        for (size_t i = 0; i < threads; i++) {
            const Lane& other = lanes[i];
            if (other.state == LaneState::DONE) continue;
            if (other.state != LaneState::AT_BLOCK) return;
            if (waiting != nullptr && waiting->site != other.site)
                fail(std::string("threads at ") + waiting->site + " and " + other.site);
            waiting = &other;
        }
        races.order_block();
        for (size_t i = 0; i < threads; i++)
            if (lanes[i].state == LaneState::AT_BLOCK) lanes[i].state = LaneState::READY;
    }

    Schedule& schedule;
    Lane* const lanes;
    const size_t threads;
    /// Lanes of each warp that wait for the others.
    std::vector<int> at_warp;
    size_t unfinished = 0;
    GuardedMemory shared;
    Watch races;
    size_t current = 0;
};

inline thread_local Block* block = nullptr;

}  // namespace emulated
