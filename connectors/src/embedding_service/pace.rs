//! How long to wait before a request is sent again: exponentially longer, and never in step with others.
//!
//! Invariant: a wait is at least half of what is said and at most all of it.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The wait before the first repetition.
const FIRST: Duration = Duration::from_millis(200);
/// The longest wait between two requests of a call, which a thread spends asleep: beyond it the call ends
/// and the breaker waits instead.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The wait before repetition `number`, the first being 0.
pub(super) fn before_repetition(number: u32) -> Duration {
    let doubled = FIRST.saturating_mul(2_u32.saturating_pow(number.min(16)));
    jittered(doubled.min(PAUSE_MAX))
}

/// Between half of `wait` and all of it: processes that failed together do not come back together.
pub(super) fn jittered(wait: Duration) -> Duration {
    // Every `RandomState` has other keys; how random they are does not matter here.
    let thousandths = RandomState::new().hash_one(wait) % 500;
    wait.mul_f64(1.0 - thousandths as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_bounds() {
        for number in 0..40 {
            let whole = FIRST.saturating_mul(2_u32.saturating_pow(number.min(16)));
            let whole = whole.min(PAUSE_MAX);
            let wait = before_repetition(number);
            assert!(wait <= whole && wait >= whole / 2, "{number}: {wait:?}");
        }
    }
}
