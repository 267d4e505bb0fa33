//! Whether it pays to ask the service now: a circuit breaker over all calls of one embedder.
//!
//! ```text
//!          FAILURES_MAX in a row, or
//!          a wait is asked for                the wait is over: one call may
//!   closed ----------------------------> open -------------------------------> half-open
//!     ^                                   ^                                      | |
//!     |                                   +--------------------------------------+ |
//!     |                                      it failed: in an outage the wait      |
//!     |                                      doubles                               |
//!     +----------------------------------------------------------------------------+
//!                                            it was answered
//! ```
//!
//! Invariant: while it is open nothing is sent, and half-open one request at a time; the waits are bounded,
//! so a service that returns is found within [`WAIT_MAX`], or within what it asked for itself.

use super::pace::{PAUSE_MAX, jittered};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Failures in a row that are taken for an outage: fewer happen to services that only restart.
const FAILURES_MAX: u32 = 5;
/// The first wait of an outage.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// The longest wait of an outage: a service that is back waits no longer for its first text.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// The longest wait that a service can ask for (`Retry-After`).
const WAIT_ASKED_MAX: Duration = Duration::from_secs(300);

/// The breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Failures since the last answer.
    failures: u32,
    /// Nothing is sent until then.
    open_until: Option<Instant>,
    /// The wait that opened it last.
    wait: Duration,
    /// A call is finding out whether the service is back.
    is_probing: bool,
    /// The service was told to be away: that is more than a short wait that it asked for.
    is_told: bool,
}

/// What an outcome did to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing new.
    None,
    /// The service is taken for away.
    Opened,
    /// The service is back.
    Closed,
}

/// Leave for one request. Dropped without an outcome it counts as one that failed.
#[derive(Debug)]
pub(super) struct Leave<'a> {
    breaker: &'a Breaker,
    is_settled: bool,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
        }
    }

    /// Leave to send, or how long nothing is sent.
    pub(super) fn ask(&self, now: Instant) -> Result<Leave<'_>, Duration> {
        let mut state = self.state();
        if let Some(until) = state.open_until {
            if now < until {
                return Err(until - now);
            }
            if state.is_probing {
                return Err(WAIT_MIN);
            }
            state.is_probing = true;
        }
        Ok(Leave {
            breaker: self,
            is_settled: false,
        })
    }

    fn answered(&self) -> Turn {
        let mut state = self.state();
        let was_told = state.is_told;
        *state = State::default();
        if was_told { Turn::Closed } else { Turn::None }
    }

    fn failed(&self, now: Instant, asked: Option<Duration>) -> Turn {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        state.is_probing = false;
        let is_outage = state.failures >= FAILURES_MAX || state.is_told;
        let mut wait = asked.unwrap_or_default().min(WAIT_ASKED_MAX);
        if is_outage {
            state.wait = (state.wait * 2).clamp(WAIT_MIN, WAIT_MAX);
            wait = wait.max(jittered(state.wait));
        }
        if !wait.is_zero() {
            // Never shorter than what another call found out meanwhile.
            let until = now + wait;
            state.open_until = Some(state.open_until.unwrap_or(until).max(until));
        }
        let is_new = !state.is_told && (is_outage || wait > PAUSE_MAX);
        state.is_told |= is_new;
        if is_new { Turn::Opened } else { Turn::None }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leave<'_> {
    /// The service answered, whatever it said of the texts.
    pub(super) fn answered(mut self) -> Turn {
        self.is_settled = true;
        self.breaker.answered()
    }

    /// The service did not, and perhaps asked for a wait.
    pub(super) fn failed(mut self, now: Instant, asked: Option<Duration>) -> Turn {
        self.is_settled = true;
        self.breaker.failed(now, asked)
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.breaker.failed(Instant::now(), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Breaker, now: Instant, times: u32) -> Turn {
        let mut turn = Turn::None;
        for _ in 0..times {
            turn = breaker.ask(now).unwrap().failed(now, None);
        }
        turn
    }

    #[test]
    fn it_opens_probes_and_closes() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        assert_eq!(fail(&breaker, now, FAILURES_MAX - 1), Turn::None);
        assert_eq!(fail(&breaker, now, 1), Turn::Opened);
        assert!(breaker.ask(now).unwrap_err() <= WAIT_MIN);
        let later = now + WAIT_MIN;
        let probe = breaker.ask(later).unwrap();
        assert!(breaker.ask(later).is_err(), "one at a time");
        assert_eq!(probe.failed(later, None), Turn::None);
        assert!(breaker.ask(later).is_err());
        let back = later + 2 * WAIT_MIN;
        assert_eq!(breaker.ask(back).unwrap().answered(), Turn::Closed);
        assert!(
            breaker
                .ask(back)
                .is_ok_and(|leave| leave.answered() == Turn::None)
        );
    }

    #[test]
    fn an_answer_forgives_failures_before_it() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        for _ in 0..3 {
            assert_eq!(fail(&breaker, now, FAILURES_MAX - 1), Turn::None);
            breaker.ask(now).unwrap().answered();
        }
    }

    #[test]
    fn a_wait_that_the_service_asks_for_is_kept_and_bounded() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        let asked = Some(Duration::from_secs(7));
        assert_eq!(breaker.ask(now).unwrap().failed(now, asked), Turn::Opened);
        assert_eq!(breaker.ask(now).unwrap_err(), Duration::from_secs(7));
        let later = now + Duration::from_secs(7);
        let forever = Some(Duration::from_secs(1_000_000));
        breaker.ask(later).unwrap().failed(later, forever);
        assert_eq!(breaker.ask(later).unwrap_err(), WAIT_ASKED_MAX);
    }

    /// A service that is busy for a moment is not away, but is left alone.
    #[test]
    fn a_short_wait_is_no_outage() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        let asked = Duration::from_millis(300);
        assert_eq!(
            breaker.ask(now).unwrap().failed(now, Some(asked)),
            Turn::None
        );
        assert_eq!(breaker.ask(now).unwrap_err(), asked);
        let later = now + asked;
        assert_eq!(breaker.ask(later).unwrap().answered(), Turn::None);
    }

    #[test]
    fn waits_grow_to_their_limit() {
        let (breaker, mut now) = (Breaker::new(), Instant::now());
        fail(&breaker, now, FAILURES_MAX);
        for _ in 0..20 {
            let wait = breaker.ask(now).unwrap_err();
            assert!(wait <= WAIT_MAX);
            now += wait;
            fail(&breaker, now, 1);
        }
        assert!(breaker.ask(now).unwrap_err() >= WAIT_MAX / 2);
    }

    #[test]
    fn a_call_that_never_tells_its_outcome_does_not_keep_the_breaker_half_open() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        fail(&breaker, now, FAILURES_MAX);
        let later = now + WAIT_MAX;
        drop(breaker.ask(later).unwrap());
        assert!(breaker.ask(later + 2 * WAIT_MAX).is_ok());
    }
}
