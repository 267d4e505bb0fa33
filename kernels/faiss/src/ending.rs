//! The end of a process in which segments may still be built.
//!
//! A build runs in native code that can't be stopped in the middle. When `main` returns, the libraries'
//! own destructors free what such a build works on, and the process ends by a segmentation fault
//! although everything is committed. A build that is cut off leaves files that no commit names, which
//! the next opening sweeps.
//!
//! Invariant: nothing runs after this call, and the operating system frees everything.

use std::io::Write;

/// Ends the process with this status, without the destructors of the libraries.
pub fn end_process(status: u8) -> ! {
    unsafe extern "C" {
        fn _exit(status: std::ffi::c_int) -> !;
    }
    // What can't be written now can't be told either.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    // SAFETY: `_exit` is POSIX's; it takes any status, touches no memory of the process and does not
    // return. That no destructor runs is what it is called for.
    unsafe { _exit(status.into()) }
}
