// Memory that ends at a page nobody may touch: what is written past it ends the test at once.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace emulated {

/// `bytes` up to the forbidden page above; a forbidden page lies below as well, for stacks.
class GuardedMemory {
public:
    explicit GuardedMemory(size_t bytes) {
        const size_t page = size_t(sysconf(_SC_PAGESIZE));
        const size_t inside = (bytes + page - 1) / page * page;
        mapped_bytes = inside + 2 * page;
        void* at = mmap(nullptr, mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) no_memory();
        mapping = static_cast<unsigned char*>(at);
        if (mprotect(mapping + page, inside, PROT_READ | PROT_WRITE) != 0) no_memory();
        start = mapping + page + inside - bytes;
        size = bytes;
    }
    GuardedMemory(GuardedMemory&& other) noexcept { *this = std::move(other); }
    GuardedMemory& operator=(GuardedMemory&& other) noexcept {
        std::swap(mapping, other.mapping);
        std::swap(mapped_bytes, other.mapped_bytes);
        std::swap(start, other.start);
        std::swap(size, other.size);
        return *this;
    }
    ~GuardedMemory() {
        if (mapping != nullptr) munmap(mapping, mapped_bytes);
    }

    unsigned char* start = nullptr;
    size_t size = 0;

private:
    [[noreturn]] static void no_memory() {
        std::fputs("the emulator has no memory\n", stderr);
        std::abort();
    }

    unsigned char* mapping = nullptr;
    size_t mapped_bytes = 0;
};

}  // namespace emulated
