//! Calls into libraries that panic over some damaged files.
//!
//! The `tokenizers` crate and the binding to ONNX Runtime take for granted what a file may lack. What is known of
//! that is checked before; this is for what is not.
//!
//! Invariant: a panic inside becomes an error. Nothing that it left half done is used afterwards.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `call` gives, or the words of its panic.
pub(crate) fn contained<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        words.unwrap_or("a panic").to_owned()
    })
}
