// What one run of a kernel leaves to chance, all of it from one seed.
//
// Greedy runs let one warp run ahead as far as barriers let it: what lacks a barrier reads too early
// or overwrites too soon. Fine-grained ones change warps at every step. Copies that need not be there
// yet are made at once or only when they are waited for.
#pragma once

#include <cstdint>
#include <string>

namespace emulated {

class Schedule {
public:
    Schedule(uint64_t seed, std::string skipped_site)
        : skipped(std::move(skipped_site)), state(seed * 0x9E3779B97F4A7C15ull | 1) {
        constexpr uint64_t PATIENCES[] = {1, 8, 1u << 30};
        patience = PATIENCES[seed % 3];
    }

    /// xorshift64* (Vigna 2016).
    uint64_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return state * 0x2545F4914F6CDD1Dull >> 16;
    }

    size_t below(size_t bound) { return size_t(next() % bound); }
    bool toss() { return next() & 1; }
    bool changes_warp() { return next() % patience == 0; }

    /// The planted error: this barrier or wait does nothing.
    const std::string skipped;

private:
    uint64_t state;
    uint64_t patience;
};

}  // namespace emulated
