//! Calls into libraries that panic over what they are given.
//!
//! Some libraries take for granted what a file may lack. The engine ends the process when a thread of its own
//! panics, and does so in the hook of panics, before anything can be caught: so that hook asks here whether the
//! panic is one that somebody waits for.
//!
//! Invariant: a panic inside becomes an error, on the engine's threads too. Nothing that it left half done is used
//! afterwards.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// What `call` gives, or the words of its panic. What it was working on when it panicked must not be used again.
///
/// # Errors
/// When it panicked.
pub fn contained<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let was_contained = IS_CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    IS_CONTAINED.set(was_contained);
    result.map_err(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        words.unwrap_or("a panic").to_owned()
    })
}

/// Whether a panic of this thread would be contained now. Threads that a contained call starts are not part of it.
pub fn is_contained() -> bool {
    IS_CONTAINED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_words_and_what_follows_is_not_contained() {
        assert!(!is_contained());
        let told: Result<(), String> = contained(|| {
            let inner: Result<(), String> = contained(|| panic!("inside {}", 1));
            assert_eq!(inner, Err("inside 1".into()));
            assert!(is_contained(), "the outer call still is");
            panic!("outside")
        });
        assert_eq!(told, Err("outside".into()));
        assert_eq!(contained(is_contained), Ok(true));
        assert!(!is_contained());
    }
}
