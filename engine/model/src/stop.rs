//! One flag that tells every thread of the process to end, and wakes those that wait.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Cloneable; once set it stays set.
#[derive(Clone, Default, Debug)]
pub struct StopSignal {
    state: Arc<(Mutex<bool>, Condvar)>,
}

impl StopSignal {
    /// A signal that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the signal and wakes all waiters.
    pub fn stop(&self) {
        *self.state.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.state.1.notify_all();
    }

    /// Whether the signal is set.
    pub fn is_stopped(&self) -> bool {
        *self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits at most `timeout`; returns whether the signal is set.
    pub fn wait(&self, timeout: Duration) -> bool {
        let guard = self.state.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = self
            .state
            .1
            .wait_timeout_while(guard, timeout, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *guard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_is_woken() {
        let signal = StopSignal::new();
        assert!(!signal.wait(Duration::from_millis(1)));
        let other = signal.clone();
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(60)));
        signal.stop();
        assert!(waiter.join().unwrap());
        assert!(signal.is_stopped());
    }
}
