//! Calls into libraries that panic over some damaged files.
//!
//! The `tokenizers` crate and the binding to ONNX Runtime take for granted what a file may lack. What is known of
//! that is checked before; this is for what is not.
//!
//! The engine ends the process when a thread of its own panics. It does so in the hook of panics, before anything
//! can be caught, so a hook here stands before that one.
//!
//! Invariant: a panic inside becomes an error, on the engine's threads too. Nothing that it left half done is used
//! afterwards.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// What `call` gives, or the words of its panic.
pub(crate) fn contained<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    stand_before_the_engine();
    let was_contained = IS_CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    IS_CONTAINED.set(was_contained);
    result.map_err(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        words.unwrap_or("a panic").to_owned()
    })
}

/// Puts a hook before the engine's. It is there once a thread of the engine runs, and the last hook is the first
/// that is asked; set any earlier, this one would stand behind it.
fn stand_before_the_engine() {
    static ONCE: Once = Once::new();
    if ONCE.is_completed() || std::thread::panicking() || !is_engines_thread() {
        return;
    }
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| match IS_CONTAINED.get() {
            true => tracing::warn!(%panic, "a library panicked: what it was asked for fails"),
            false => before(panic),
        }));
    });
}

/// The engine's threads by their names, as its own hook knows them.
fn is_engines_thread() -> bool {
    let current = std::thread::current();
    let name = current.name().unwrap_or_default();
    name.starts_with("vectide-") || name.starts_with("timely:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// The engine's hook must not see what is contained, and must see what is not.
    #[test]
    fn panics_on_the_engines_threads_are_contained() {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        let outer = take_hook();
        set_hook(Box::new(move |panic| {
            match is_engines_thread() {
                true => drop(SEEN.fetch_add(1, Ordering::SeqCst)),
                false => outer(panic),
            };
        }));
        let thread = std::thread::Builder::new().name("vectide-test".into());
        let thread = thread.spawn(|| {
            let told = contained(|| {
                let inner: Result<(), String> = contained(|| panic!("inside"));
                assert_eq!(inner, Err("inside".into()));
                panic!("outside")
            });
            let told: Result<(), String> = told;
            let seen = SEEN.load(Ordering::SeqCst);
            assert_eq!((told, seen), (Err("outside".into()), 0));
            panic!("not contained");
        });
        assert!(thread.unwrap().join().is_err());
        assert_eq!(SEEN.load(Ordering::SeqCst), 1);
    }
}
