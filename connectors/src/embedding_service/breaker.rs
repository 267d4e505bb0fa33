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
//! Requests that were sent before it opened end while it is open. What they find is older than what opened
//! it: threads that fail together are one failure, and a late answer ends no wait that the service asked for.
//!
//! A query gives up sooner than the service may take, which says nothing of the service. So that queries
//! keep no chunks from finding out, a request in a hurry and a patient one may try at the same time.
//!
//! Invariant: while it is open nothing is given leave, and half-open one request of each kind at a time; only
//! those close it or double the wait; the waits are bounded, so a service that returns is found within
//! [`WAIT_MAX`], or within what it asked for itself.

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
    /// A call is finding out whether the service is back: a patient one, and one in a hurry.
    is_probing: [bool; 2],
    /// Changes whenever it opens, closes or has found out something: leaves of before are stale.
    generation: u64,
    /// The service was told to be away: that is more than a short wait that it asked for.
    is_told: bool,
}

/// What an outcome did to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing new.
    None,
    /// The service is there, as it was.
    Steady,
    /// The service is taken for away.
    Opened,
    /// The service is back.
    Closed,
}

/// Leave for one request. Dropped without an outcome it counts as one that failed.
#[derive(Debug)]
pub(super) struct Leave<'a> {
    breaker: &'a Breaker,
    generation: u64,
    /// Which place in [`State::is_probing`] it has, where it finds out whether the service is back.
    probe: Option<usize>,
    is_settled: bool,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
        }
    }

    /// Leave to send, or how long nothing is sent.
    pub(super) fn ask(&self, now: Instant, is_hurried: bool) -> Result<Leave<'_>, Duration> {
        let mut state = self.state();
        let mut probe = None;
        if let Some(until) = state.open_until {
            if now < until {
                return Err(until - now);
            }
            let kind = usize::from(is_hurried);
            if std::mem::replace(&mut state.is_probing[kind], true) {
                return Err(WAIT_MIN);
            }
            probe = Some(kind);
        }
        Ok(Leave {
            breaker: self,
            generation: state.generation,
            probe,
            is_settled: false,
        })
    }

    fn answered(&self, generation: u64) -> Turn {
        let mut state = self.state();
        if generation != state.generation {
            return Turn::None;
        }
        let was_told = state.is_told;
        // Other requests of a time without waits are as new as this one.
        let is_over = state.open_until.is_some();
        *state = State {
            generation: generation + u64::from(is_over),
            ..State::default()
        };
        if was_told { Turn::Closed } else { Turn::Steady }
    }

    fn failed(&self, generation: u64, now: Instant, asked: Option<Duration>) -> Turn {
        let mut state = self.state();
        let mut wait = asked.unwrap_or_default().min(WAIT_ASKED_MAX);
        let mut is_outage = false;
        if generation == state.generation {
            state.failures = state.failures.saturating_add(1);
            is_outage = state.failures >= FAILURES_MAX || state.is_told;
            if is_outage {
                state.wait = (state.wait * 2).clamp(WAIT_MIN, WAIT_MAX);
                wait = wait.max(jittered(state.wait));
            }
            if state.open_until.is_some() {
                state.begin();
            }
        }
        if !wait.is_zero() {
            if state.open_until.is_none() {
                state.begin();
            }
            // Never shorter than what another call found out meanwhile.
            let until = now + wait;
            state.open_until = Some(state.open_until.unwrap_or(until).max(until));
        }
        let is_new = !state.is_told && (is_outage || wait > PAUSE_MAX);
        state.is_told |= is_new;
        if is_new { Turn::Opened } else { Turn::None }
    }

    /// Nothing was found out.
    fn released(&self, leave: &Leave<'_>) {
        let mut state = self.state();
        if let Some(kind) = leave.probe
            && leave.generation == state.generation
        {
            state.is_probing[kind] = false;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What was sent before says nothing of the time that begins.
    fn begin(&mut self) {
        self.generation += 1;
        self.is_probing = [false; 2];
    }
}

impl Leave<'_> {
    /// Whether it finds out that the service is back.
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// The service answered, whatever it said of the texts.
    pub(super) fn answered(mut self) -> Turn {
        self.is_settled = true;
        self.breaker.answered(self.generation)
    }

    /// It can't be said whether the service would have answered.
    pub(super) fn released(mut self) -> Turn {
        self.is_settled = true;
        self.breaker.released(&self);
        Turn::None
    }

    /// The service did not, and perhaps asked for a wait.
    pub(super) fn failed(mut self, now: Instant, asked: Option<Duration>) -> Turn {
        self.is_settled = true;
        self.breaker.failed(self.generation, now, asked)
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.breaker.failed(self.generation, Instant::now(), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Breaker, now: Instant, times: u32) -> Turn {
        let mut turn = Turn::None;
        for _ in 0..times {
            turn = breaker.ask(now, false).unwrap().failed(now, None);
        }
        turn
    }

    #[test]
    fn it_opens_probes_and_closes() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        assert_eq!(fail(&breaker, now, FAILURES_MAX - 1), Turn::None);
        assert_eq!(fail(&breaker, now, 1), Turn::Opened);
        assert!(breaker.ask(now, false).unwrap_err() <= WAIT_MIN);
        let later = now + WAIT_MIN;
        let probe = breaker.ask(later, false).unwrap();
        assert!(breaker.ask(later, false).is_err(), "one at a time");
        assert_eq!(probe.failed(later, None), Turn::None);
        assert!(breaker.ask(later, false).is_err());
        let back = later + 2 * WAIT_MIN;
        assert_eq!(breaker.ask(back, false).unwrap().answered(), Turn::Closed);
        assert!(
            breaker
                .ask(back, false)
                .is_ok_and(|leave| leave.answered() == Turn::Steady)
        );
    }

    #[test]
    fn an_answer_forgives_failures_before_it() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        for _ in 0..3 {
            assert_eq!(fail(&breaker, now, FAILURES_MAX - 1), Turn::None);
            breaker.ask(now, false).unwrap().answered();
        }
    }

    #[test]
    fn a_wait_that_the_service_asks_for_is_kept_and_bounded() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        let asked = Some(Duration::from_secs(7));
        assert_eq!(
            breaker.ask(now, false).unwrap().failed(now, asked),
            Turn::Opened
        );
        assert_eq!(breaker.ask(now, false).unwrap_err(), Duration::from_secs(7));
        let later = now + Duration::from_secs(7);
        let forever = Some(Duration::from_secs(1_000_000));
        breaker.ask(later, false).unwrap().failed(later, forever);
        assert_eq!(breaker.ask(later, false).unwrap_err(), WAIT_ASKED_MAX);
    }

    /// A service that is busy for a moment is not away, but is left alone.
    #[test]
    fn a_short_wait_is_no_outage() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        let asked = Duration::from_millis(300);
        assert_eq!(
            breaker.ask(now, false).unwrap().failed(now, Some(asked)),
            Turn::None
        );
        assert_eq!(breaker.ask(now, false).unwrap_err(), asked);
        let later = now + asked;
        assert_eq!(breaker.ask(later, false).unwrap().answered(), Turn::Steady);
    }

    #[test]
    fn waits_grow_to_their_limit() {
        let (breaker, mut now) = (Breaker::new(), Instant::now());
        fail(&breaker, now, FAILURES_MAX);
        for _ in 0..20 {
            let wait = breaker.ask(now, false).unwrap_err();
            assert!(wait <= WAIT_MAX);
            now += wait;
            fail(&breaker, now, 1);
        }
        assert!(breaker.ask(now, false).unwrap_err() >= WAIT_MAX / 2);
    }

    #[test]
    fn a_call_that_never_tells_its_outcome_does_not_keep_the_breaker_half_open() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        fail(&breaker, now, FAILURES_MAX);
        let later = now + WAIT_MAX;
        drop(breaker.ask(later, false).unwrap());
        assert!(breaker.ask(later + 2 * WAIT_MAX, false).is_ok());
    }

    /// Threads that fail together are one failure, however many they are.
    #[test]
    fn what_was_sent_before_it_opened_neither_doubles_the_wait_nor_closes_it() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        let leaves: Vec<_> = (0..64).map(|_| breaker.ask(now, false).unwrap()).collect();
        let mut leaves = leaves.into_iter();
        let late = leaves.next().unwrap();
        let told = leaves.map(|leave| leave.failed(now, None));
        assert_eq!(told.filter(|turn| *turn == Turn::Opened).count(), 1);
        assert!(breaker.ask(now, false).unwrap_err() <= WAIT_MIN);
        assert_eq!(late.answered(), Turn::None);
        assert!(breaker.ask(now, false).is_err(), "it is open still");
    }

    #[test]
    fn a_late_failure_lets_no_second_probe_through_and_a_late_wait_is_kept() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        let late = [(); 2].map(|()| breaker.ask(now, false).unwrap());
        fail(&breaker, now, FAILURES_MAX);
        let later = now + WAIT_MIN;
        let probe = breaker.ask(later, false).unwrap();
        assert!(probe.is_probe());
        let [late, asking] = late;
        late.failed(later, None);
        assert!(breaker.ask(later, false).is_err(), "one at a time");
        let asked = Duration::from_secs(60);
        asking.failed(later, Some(asked));
        assert_eq!(breaker.ask(later, false).unwrap_err(), asked);
        assert_eq!(probe.answered(), Turn::Closed);
        assert!(breaker.ask(later, false).is_ok());
    }

    /// An answer that is on its way while the service asks for a wait does not end that.
    #[test]
    fn a_late_answer_ends_no_wait_that_was_asked_for() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        let late = breaker.ask(now, false).unwrap();
        let asked = Duration::from_secs(7);
        breaker.ask(now, false).unwrap().failed(now, Some(asked));
        assert_eq!(late.answered(), Turn::None);
        assert_eq!(breaker.ask(now, false).unwrap_err(), asked);
    }

    #[test]
    fn who_is_in_a_hurry_keeps_nobody_from_finding_out() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        for _ in 0..2 * FAILURES_MAX {
            assert_eq!(breaker.ask(now, true).unwrap().released(), Turn::None);
        }
        fail(&breaker, now, FAILURES_MAX);
        let later = now + WAIT_MIN;
        let hurried = breaker.ask(later, true).unwrap();
        assert!(breaker.ask(later, true).is_err(), "one at a time");
        let patient = breaker.ask(later, false).unwrap();
        hurried.released();
        assert!(breaker.ask(later, false).is_err(), "only its own is free");
        breaker.ask(later, true).unwrap().released();
        assert_eq!(patient.answered(), Turn::Closed);
    }
}
