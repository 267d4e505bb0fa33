//! Time that a thread computes. Unlike the clock on the wall it does not count what other programs
//! take, so rates and shares of a peak mean something on a busy machine too.
//!
//! Invariant: only the calling thread's work is counted.

use std::hint::black_box;

/// Seconds that the calling thread has computed; by the clock on the wall where a system does not tell.
#[cfg(unix)]
#[allow(unsafe_code)]
pub fn thread_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live, writable timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(unix))]
pub fn thread_seconds() -> f64 {
    use std::time::Instant;
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Runs work and returns the seconds that this thread computed on it.
pub fn thread_time<T>(work: impl FnOnce() -> T) -> f64 {
    let start = thread_seconds();
    black_box(work());
    thread_seconds() - start
}
