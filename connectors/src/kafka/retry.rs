//! Asking a decoder again that could not say what a record is: a registry that does not answer.
//!
//! Invariant: one line when it begins and one when it is over, however long it lasts.

use super::End;
use super::telemetry;
use std::sync::Arc;
use std::time::Duration;
use vectide_model::StopSignal;

/// The first wait: most troubles are over at once.
const WAIT_MIN: Duration = Duration::from_millis(100);

/// The longest: what comes back is noticed soon enough, and is not kept down by those who ask.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// One record that is tried again.
pub(crate) struct Retry {
    source: Arc<str>,
    wait: Duration,
    tries: u64,
}

impl Retry {
    pub(crate) fn new(source: &Arc<str>) -> Self {
        Self {
            source: source.clone(),
            wait: WAIT_MIN,
            tries: 0,
        }
    }

    /// Waits before the next try.
    pub(crate) fn wait(&mut self, why: &str, stop: &StopSignal) -> Result<(), End> {
        if self.tries == 0 {
            tracing::warn!(
                source = &*self.source,
                "records can't be decoded now, reading waits until they can: {why}"
            );
        }
        self.tries += 1;
        telemetry::count_error(&self.source, "decoder_unavailable");
        if stop.wait(self.wait) {
            return Err(End::Stopped);
        }
        self.wait = (self.wait * 2).min(WAIT_MAX);
        Ok(())
    }

    /// The record was decoded.
    pub(crate) fn is_over(&self) {
        if self.tries > 0 {
            let tries = self.tries;
            tracing::info!(source = &*self.source, tries, "records are decoded again");
        }
    }
}
