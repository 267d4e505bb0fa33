// Watches every access to shared memory for races, whatever order the threads happened to run in.
//
// The compiler calls a function at each load and store (its instrumentation for ThreadSanitizer, whose
// run-time library is replaced by watch.cpp). Two accesses to the same place race when they are of
// different threads, one of them writes, and nothing between them orders memory: a barrier of the block,
// or, within a warp, a barrier of the warp. Shuffles, ballots and matrix operations make lanes meet but
// order nothing, as the PTX ISA has it. Barriers are counted: accesses race when the counts are equal.
//
// A copy under way counts as a write when it is issued and again when it is waited for.
//
// Invariant: watching changes nothing that a kernel computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulated {

class Watch {
public:
    /// A new block, whose shared memory lies there.
    void begin(const unsigned char* start, size_t bytes, size_t warps);
    /// The thread whose accesses follow.
    void enter(size_t thread) { current = uint32_t(thread); }
    /// All threads have met at a barrier.
    void order_block() { block_orders++; }
    /// The lanes of a warp have.
    void order_warp(size_t warp) { warp_orders[warp]++; }

    void read(const void* address, size_t bytes);
    void write(const void* address, size_t bytes);

    /// The first race of the launch; empty where there is none.
    std::string race;

private:
    /// Two bytes: an fp16 number, and the half of everything else.
    struct Place {
        uint32_t write_block_orders = 0, write_warp_orders = 0, writer = 0;
        uint32_t read_block_orders = 0, read_warps = 0;
        uint32_t reading_warp = 0, reading_warp_orders = 0, reading_lanes = 0;
    };

    bool find(const void* address, size_t bytes, size_t& first, size_t& end) const;
    bool races_with_write(const Place& place) const;
    bool races_with_reads(const Place& place) const;
    void tell(const char* what, size_t place, uint32_t other);

    const unsigned char* start = nullptr;
    size_t size = 0;
    uint32_t current = 0;
    // Counts go on from block to block, so that what an earlier one left never looks recent.
    uint32_t block_orders = 1;
    std::vector<uint32_t> warp_orders;
    std::vector<Place> places;
};

/// The watch of the launch that runs on this thread of the operating system, if it is to watch.
extern thread_local Watch* watch;

/// While it lives the emulator itself touches shared memory.
class Unwatched {
public:
    Unwatched() : kept(watch) { watch = nullptr; }
    ~Unwatched() { watch = kept; }
    Unwatched(const Unwatched&) = delete;

private:
    Watch* kept;
};

}  // namespace emulated
