//! Work goes on after an outage of the embedder: a call that found it away is made again until it answers.
//!
//! Invariant: an outage gives no answer to any text, so that its epoch waits; and whoever ends the pipeline
//! never waits for the outage to end: what was under way is given up, and read again at the next start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// The last call that ended found an embedder away.
    is_away: Arc<AtomicBool>,
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
        if self.is_away.load(Ordering::Acquire) && self.stop.is_stopped() {
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
        loop {
            let start = Instant::now();
            let result = call();
            let is_away = matches!(result, Err(EmbedError::Unavailable(_)));
            self.is_away.store(is_away, Ordering::Release);
            if !is_away {
                return Some((result, start.elapsed()));
            }
            self.stop.wait(PAUSE);
            if self.is_given_up() {
                return None;
            }
        }
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

    #[test]
    fn giving_up_ends_the_wait() {
        let outage = Outage::default();
        outage.give_up();
        assert_eq!(outage.wait_out(away_for(u32::MAX, vectors())), None);
    }
}
