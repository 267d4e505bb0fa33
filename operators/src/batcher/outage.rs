//! Work goes on after an outage of the embedder: a call that found it away is made again until it answers.
//!
//! Invariant: an outage gives no answer to any text, so that its epoch waits; and whoever ends the pipeline
//! never waits for the outage to end: what was under way is given up, and read again at the next start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vectide_model::{EmbedError, StopSignal};

/// Between two calls. The embedder knows when it pays to ask what is away, and fails at once before that.
const PAUSE: Duration = Duration::from_millis(200);

/// What a call gives.
pub(super) type Embedded = Result<Vec<Vec<f32>>, EmbedError>;

/// What the threads of all embedders know of an end of the pipeline.
#[derive(Clone, Default)]
pub struct Outage {
    stop: StopSignal,
    /// Threads whose last call found their embedder away; each has texts that wait for it.
    away_threads: Arc<AtomicUsize>,
    is_given_up: Arc<AtomicBool>,
}

impl Outage {
    /// Of a pipeline that ends when `stop` is set.
    pub fn new(stop: &StopSignal) -> Self {
        Self {
            stop: stop.clone(),
            ..Self::default()
        }
    }

    /// Whether texts are left without an answer, so that their epochs will never be complete: also while a
    /// call still finds out whether the embedder is back. Once true it stays true.
    pub fn is_given_up(&self) -> bool {
        if self.away_threads.load(Ordering::Acquire) > 0 && self.stop.is_stopped() {
            self.give_up();
        }
        self.is_given_up.load(Ordering::Acquire)
    }

    /// Nothing waits for an outage any more.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
    }

    /// Makes a call of the bulk lane as soon as the embedder can be had, with what the last try took; `None`
    /// when the pipeline ends before.
    pub(super) fn wait_out(&self, call: impl Fn() -> Embedded) -> Option<(Embedded, Duration)> {
        let mut away = None;
        loop {
            let start = Instant::now();
            let result = call();
            if !matches!(result, Err(EmbedError::Unavailable(_))) {
                return Some((result, start.elapsed()));
            }
            away.get_or_insert_with(|| Away::begin(&self.away_threads));
            self.stop.wait(PAUSE);
            if self.is_given_up() {
                return None;
            }
        }
    }
}

/// The time in which a thread knows its embedder to be away.
struct Away<'a>(&'a AtomicUsize);

impl<'a> Away<'a> {
    fn begin(threads: &'a AtomicUsize) -> Self {
        threads.fetch_add(1, Ordering::AcqRel);
        Self(threads)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// An embedder that is away for the first calls.
    fn away_for(calls: u32, then: Embedded) -> impl Fn() -> Embedded {
        let left = Cell::new(calls);
        move || match left.get() {
            0 => then.clone(),
            more => {
                left.set(more - 1);
                Err(EmbedError::Unavailable("away".into()))
            }
        }
    }

    fn vectors() -> Embedded {
        Ok(vec![vec![1.0]])
    }

    #[test]
    fn an_outage_is_waited_for_and_a_fault_of_texts_is_not() {
        let outage = Outage::default();
        let (made, took) = outage.wait_out(away_for(2, vectors())).unwrap();
        assert_eq!(made, vectors());
        assert!(took < PAUSE, "the outage is not part of it");
        let poison = Err(EmbedError::Texts("poison".into()));
        let (refused, _) = outage.wait_out(away_for(0, poison.clone())).unwrap();
        assert_eq!(refused, poison);
        assert!(!outage.is_given_up());
    }

    #[test]
    fn a_stop_ends_the_wait_and_lets_what_can_be_embedded_be() {
        let stop = StopSignal::new();
        let outage = Outage::new(&stop);
        stop.stop();
        assert!(outage.wait_out(away_for(0, vectors())).is_some());
        assert!(!outage.is_given_up());
        assert_eq!(outage.wait_out(away_for(u32::MAX, vectors())), None);
        assert!(outage.is_given_up());
    }

    /// Another embedder that answers, or another thread, does not make this one be there.
    #[test]
    fn an_outage_is_one_until_its_own_call_is_answered() {
        let stop = StopSignal::new();
        let outage = Outage::new(&stop);
        let hung = std::cell::Cell::new(0);
        let call = || {
            hung.set(hung.get() + 1);
            if hung.get() == 2 {
                // While it finds out whether it is back, another is answered, and the pipeline is stopped.
                assert!(outage.wait_out(away_for(0, vectors())).is_some());
                stop.stop();
                assert!(outage.is_given_up());
            }
            Err(EmbedError::Unavailable("away".into()))
        };
        assert_eq!(outage.wait_out(call), None);
    }

    #[test]
    fn giving_up_ends_the_wait() {
        let outage = Outage::default();
        outage.give_up();
        assert_eq!(outage.wait_out(away_for(u32::MAX, vectors())), None);
    }
}
