// A stack of its own for each emulated thread, and the jumps between it and the scheduler's.
//
// The first entry goes through ucontext; every later change of stacks is _setjmp and _longjmp, which
// do not ask the kernel for the signal mask and so take some nanoseconds. Kernels have no destructors
// that matter, so a fiber may be left where it stands for good.
//
// Invariant: a fiber is resumed by the operating system's thread that started it.
#pragma once

#include <csetjmp>
#include <ucontext.h>

#include "memory.h"

namespace emulated {

/// Deep enough for the largest kernel's registers as an unoptimising compiler lays them out.
constexpr size_t STACK_BYTES = 128 * 1024;

class Fiber {
public:
    using Body = void (*)();

    Fiber() : stack(STACK_BYTES) {}

    /// The next `resume` begins `body`, which must end in `leave`.
    void begin(Body body) {
        getcontext(&entry);
        entry.uc_stack.ss_sp = stack.start;
        entry.uc_stack.ss_size = stack.size;
        entry.uc_link = nullptr;
        makecontext(&entry, body, 0);
        is_fresh = true;
    }

    /// Runs it until it leaves.
    void resume() {
        if (_setjmp(scheduler) != 0) return;
        if (is_fresh) {
            is_fresh = false;
            setcontext(&entry);
        }
        _longjmp(place, 1);
    }

    /// Goes back to `resume`; returns when resumed again.
    void leave() {
        if (_setjmp(place) == 0) _longjmp(scheduler, 1);
    }

private:
    GuardedMemory stack;
    ucontext_t entry;
    std::jmp_buf place;
    std::jmp_buf scheduler;
    bool is_fresh = false;
};

}  // namespace emulated
