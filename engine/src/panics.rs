//! A panic in a thread of the pipeline ends the process: what such a thread leaves undone nobody else does, and a
//! state that is not changed any more must not look alive.
//!
//! Invariant: there is one hook, set once; other threads panic as they would, and a panic that is caught where it
//! happens ([`vectide_model::contained`]) is only told.

use std::sync::Once;
use vectide_model::is_contained;

/// Aborts from now on when one of the pipeline's own threads panics.
pub(crate) fn abort_on_engine_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if is_contained() {
                tracing::warn!(%panic, "a library panicked: what it was asked for fails");
                return;
            }
            before(panic);
            let current = std::thread::current();
            let name = current.name().unwrap_or_default();
            if name.starts_with("vectide-") || name.starts_with("timely:") {
                eprintln!("thread `{name}` of the pipeline panicked: ending the process");
                std::process::abort();
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::spawn;
    use vectide_model::contained;

    /// Were it not contained, this test's process would end here. That others end it `tests/panics.rs` shows.
    #[test]
    fn a_contained_panic_on_a_thread_of_the_engine_ends_nothing() {
        abort_on_engine_panic();
        let thread = spawn("test", || {
            let told: Result<(), String> = contained(|| panic!("on purpose"));
            told
        });
        let told = thread.unwrap().join().unwrap();
        assert_eq!(told, Err("on purpose".into()));
    }
}
