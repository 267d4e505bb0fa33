//! How long a search may go on.
//!
//! Invariant: once time is up it stays up, and nobody looks at the clock again.

use std::time::Instant;

/// The time of one search.
pub(crate) struct Budget {
    until: Option<Instant>,
    is_over: bool,
}

impl Budget {
    /// Until then, or for ever.
    pub(crate) fn new(until: Option<Instant>) -> Self {
        Self {
            until,
            is_over: false,
        }
    }

    /// Whether to stop. Asked every few microseconds of work: the clock takes some 25 ns.
    pub(crate) fn is_over(&mut self) -> bool {
        if let (false, Some(until)) = (self.is_over, self.until) {
            self.is_over = Instant::now() >= until;
        }
        self.is_over
    }

    /// Whether a search was stopped.
    pub(crate) fn was_over(&self) -> bool {
        self.is_over
    }
}
