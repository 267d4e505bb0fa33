//! The time in which a source is read.
//!
//! What is missing is waited for only while it could come: not while the pipeline takes nothing, a
//! record waits for its schema, or the cluster is asked something. All of that shows as a long time
//! between two looks at the clock, whatever it was.
//!
//! Invariant: between two looks it moves by no more than `STEP_MAX`, and never back.

use std::time::{Duration, Instant};

/// A reader without work looks at the clock after each of its sleeps, which are half as long.
const STEP_MAX: Duration = Duration::from_millis(100);

/// A clock that stands still while nothing is read.
pub(crate) struct ReadingClock {
    looked_at: Instant,
    shows: Instant,
}

impl ReadingClock {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            looked_at: now,
            shows: now,
        }
    }

    /// What it shows now.
    pub(crate) fn now(&mut self) -> Instant {
        self.look(Instant::now())
    }

    fn look(&mut self, now: Instant) -> Instant {
        let step = now.saturating_duration_since(self.looked_at);
        self.looked_at = now;
        self.shows += step.min(STEP_MAX);
        self.shows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_still_while_nothing_is_read() {
        let mut clock = ReadingClock::new();
        let start = clock.shows;
        let looked_at = clock.looked_at;
        let mut at = |milliseconds| {
            let shown = clock.look(looked_at + Duration::from_millis(milliseconds));
            shown.duration_since(start).as_millis()
        };
        assert_eq!(at(50), 50);
        assert_eq!(at(150), 150);
        assert_eq!(at(60_150), 250, "a minute in which nothing was read");
        assert_eq!(at(60_160), 260);
    }
}
