// The watch, and the functions that instrumented code calls. Compiled without instrumentation itself.
#include "watch.h"

#include <cstring>

namespace emulated {

namespace {
constexpr size_t PLACE_BYTES = 2;
constexpr uint32_t LANES_OF_A_WARP = 32;
}  // namespace

thread_local Watch* watch = nullptr;

void Watch::begin(const unsigned char* at, size_t bytes, size_t warps) {
    start = at;
    size = bytes;
    block_orders++;
    warp_orders.resize(warps, 1);
    places.resize(bytes / PLACE_BYTES);
}

bool Watch::find(const void* address, size_t bytes, size_t& first, size_t& end) const {
    const size_t offset = size_t(static_cast<const unsigned char*>(address) - start);
    if (offset >= size) return false;
    first = offset / PLACE_BYTES;
    end = (offset + bytes + PLACE_BYTES - 1) / PLACE_BYTES;
    if (end > places.size()) end = places.size();
    return true;
}

bool Watch::races_with_write(const Place& place) const {
    if (place.write_block_orders != block_orders || place.writer == current) return false;
    const uint32_t warp = current / LANES_OF_A_WARP;
    return place.writer / LANES_OF_A_WARP != warp || place.write_warp_orders == warp_orders[warp];
}

bool Watch::races_with_reads(const Place& place) const {
    if (place.read_block_orders != block_orders) return false;
    const uint32_t warp = current / LANES_OF_A_WARP, own = 1u << current % LANES_OF_A_WARP;
    if ((place.read_warps & ~(1u << warp)) != 0) return true;
    return place.reading_warp == warp && place.reading_warp_orders == warp_orders[warp] &&
           (place.reading_lanes & ~own) != 0;
}

void Watch::tell(const char* what, size_t place, uint32_t other) {
    if (!race.empty()) return;
    race = std::string(what) + " at byte " + std::to_string(place * PLACE_BYTES) +
           " of shared memory without a barrier between, thread " + std::to_string(current) +
           " and " + std::to_string(other);
}

void Watch::read(const void* address, size_t bytes) {
    size_t first, end;
    if (!find(address, bytes, first, end)) return;
    const uint32_t warp = current / LANES_OF_A_WARP, lane = 1u << current % LANES_OF_A_WARP;
    for (size_t at = first; at < end; at++) {
        Place& place = places[at];
        if (races_with_write(place)) tell("a write and a read", at, place.writer);
        if (place.read_block_orders != block_orders) place.read_warps = place.reading_lanes = 0;
        place.read_block_orders = block_orders;
        place.read_warps |= 1u << warp;
        if (place.reading_warp != warp || place.reading_warp_orders != warp_orders[warp])
            place.reading_lanes = 0;
        place.reading_warp = warp;
        place.reading_warp_orders = warp_orders[warp];
        place.reading_lanes |= lane;
    }
}

void Watch::write(const void* address, size_t bytes) {
    size_t first, end;
    if (!find(address, bytes, first, end)) return;
    for (size_t at = first; at < end; at++) {
        Place& place = places[at];
        if (races_with_write(place)) tell("two writes", at, place.writer);
        if (races_with_reads(place))
            tell("a read and a write", at, place.reading_warp * LANES_OF_A_WARP);
        place.writer = current;
        place.write_block_orders = block_orders;
        place.write_warp_orders = warp_orders[current / LANES_OF_A_WARP];
    }
}

}  // namespace emulated

namespace {

void on_read(const void* address, size_t bytes) {
    if (emulated::watch != nullptr) emulated::watch->read(address, bytes);
}

void on_write(const void* address, size_t bytes) {
    if (emulated::watch != nullptr) emulated::watch->write(address, bytes);
}

}  // namespace

// The names that compilers give to calls at accesses of each size.
#define ACCESSES(BYTES)                                                                       \
    void __tsan_read##BYTES(void* address) { on_read(address, BYTES); }                       \
    void __tsan_write##BYTES(void* address) { on_write(address, BYTES); }                     \
    void __tsan_unaligned_read##BYTES(void* address) { on_read(address, BYTES); }             \
    void __tsan_unaligned_write##BYTES(void* address) { on_write(address, BYTES); }

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* address, size_t bytes) { on_read(address, bytes); }
void __tsan_write_range(void* address, size_t bytes) { on_write(address, bytes); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    on_read(from, bytes);
    on_write(to, bytes);
    return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    on_read(from, bytes);
    on_write(to, bytes);
    return std::memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
    on_write(to, bytes);
    return std::memset(to, value, bytes);
}
}
