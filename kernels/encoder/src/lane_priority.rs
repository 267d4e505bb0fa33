//! Lets queries go before bulk work where it matters: in the operating system's scheduler.
//!
//! Both lanes compute on their callers' threads, so a query is held up only while a bulk thread
//! occupies its core. A bulk thread therefore lowers its own priority, once; no lock is involved and
//! nothing has to be handed over.
//!
//! Invariant: a thread that never embeds in bulk keeps the priority it had.

use std::cell::Cell;

/// How nice a bulk thread becomes. At 10 a waiting query thread gets about nine tenths of a core
/// that both want, while bulk work still proceeds beside a busy dataflow; 19 could starve it.
#[cfg(target_os = "linux")]
const BULK_NICENESS: libc::c_int = 10;

/// Lowers the calling thread's priority, the first time it is called on it.
///
/// A system that refuses is left as it is: only the latency of queries beside bulk work suffers.
pub fn lower_for_bulk() {
    thread_local! {
        static LOWERED: Cell<bool> = const { Cell::new(false) };
    }
    LOWERED.with(|lowered| {
        if !lowered.replace(true) {
            lower();
        }
    });
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn lower() {
    // On Linux niceness belongs to the thread, and id 0 names the calling one. On other systems the
    // same call would slow the whole process, queries included, so it is not made there.
    // SAFETY: both calls take integers only and touch no memory of this process.
    let outcome = unsafe {
        let niceness = libc::getpriority(libc::PRIO_PROCESS as _, 0).max(BULK_NICENESS);
        libc::setpriority(libc::PRIO_PROCESS as _, 0, niceness)
    };
    if outcome != 0 {
        tracing::debug!(
            error = %std::io::Error::last_os_error(),
            "could not lower the priority of a bulk embedding thread"
        );
    }
}

#[cfg(not(target_os = "linux"))]
fn lower() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[allow(unsafe_code)]
    fn niceness() -> libc::c_int {
        // SAFETY: integers only.
        unsafe { libc::getpriority(libc::PRIO_PROCESS as _, 0) }
    }

    #[test]
    fn only_the_calling_thread_gets_nicer() {
        let before = niceness();
        let bulk = std::thread::spawn(|| {
            lower_for_bulk();
            lower_for_bulk();
            niceness()
        });
        assert_eq!(bulk.join().unwrap(), BULK_NICENESS.max(before));
        assert_eq!(niceness(), before);
    }
}
