//! How many bytes of changes an epoch may hold, so that no change waits long behind others.
//!
//! What an epoch costs is almost all embedding, and how much of it has to be embedded is known only
//! afterwards: an update reuses most chunks. So the budget follows what the last epochs cost.
//!
//! Invariant: the budget grows at most twofold an epoch, from a small start, so that a wrong guess
//! costs one short epoch and not a long one.

use schemars::JsonSchema;
use serde::Deserialize;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vectide_model::{ByteSize, HumanDuration};

/// When changes become durable and visible, together: the `commit:` section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CommitConfig {
    /// Shortest time from the close of one epoch to that of the next, unless it is full. With `0s`
    /// an epoch is closed as soon as the commit before is done: an idle system answers a change at
    /// once, a busy one groups what came while the disk synced. More saves syncs and costs freshness.
    pub interval: HumanDuration,
    /// Changes and dead letters after which an epoch is full.
    pub rows: NonZeroUsize,
    /// Bytes of changes, or of dead letters, after which an epoch is full. What embedding costs may close
    /// it sooner.
    pub bytes: ByteSize,
}

/// Thousands share a sync, and an epoch's memory stays small.
const ROWS: NonZeroUsize = NonZeroUsize::new(5_000).expect("not zero");

/// Beyond this a larger epoch saves nothing: the sync is shared by thousands of rows already.
const BYTES: ByteSize = ByteSize::mebibytes(8);

impl Default for CommitConfig {
    fn default() -> Self {
        Self {
            interval: HumanDuration::from_milliseconds(0),
            rows: ROWS,
            bytes: BYTES,
        }
    }
}

/// Embedding time aimed at for one epoch. With [`crate::ingest::EPOCHS_IN_FLIGHT_MAX`] of them in
/// flight a change that arrives during a backfill waits for less than a second of embedding.
const EPOCH_TARGET: Duration = Duration::from_millis(200);
const BYTES_START: u64 = 16 * 1024;
/// One document of a usual size must fit, or every epoch would hold one change.
const BYTES_MIN: u64 = 2 * 1024;
/// Weight of the newest epoch in the moving average.
const NEWEST_WEIGHT: f64 = 0.4;

/// Shared between the commit, which observes, and the ingest, which asks.
pub(crate) struct EpochBudget {
    bytes_max: u64,
    bytes: AtomicU64,
    seconds_per_byte: AtomicU64,
}

impl EpochBudget {
    /// No epoch holds more than `bytes_max`, but for a change that is larger.
    pub(crate) fn new(bytes_max: ByteSize) -> Self {
        let unknown = f64::NAN.to_bits();
        let bytes_max = bytes_max.as_bytes();
        Self {
            bytes_max,
            bytes: AtomicU64::new(BYTES_START.min(bytes_max)),
            seconds_per_byte: AtomicU64::new(unknown),
        }
    }

    /// Bytes of changes after which the open epoch is full.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes note of what an epoch cost. Only the commit's thread calls it.
    pub(crate) fn observe(&self, input_bytes: u64, embedding: Duration) {
        if input_bytes == 0 {
            return;
        }
        let newest = embedding.as_secs_f64() / input_bytes as f64;
        let before = f64::from_bits(self.seconds_per_byte.load(Ordering::Relaxed));
        let average = if before.is_nan() {
            newest
        } else {
            NEWEST_WEIGHT * newest + (1.0 - NEWEST_WEIGHT) * before
        };
        self.seconds_per_byte
            .store(average.to_bits(), Ordering::Relaxed);
        let wanted = EPOCH_TARGET.as_secs_f64() / average.max(1e-12);
        let grown = self.bytes().saturating_mul(2);
        let bytes = (wanted as u64)
            .min(grown)
            .max(BYTES_MIN)
            .min(self.bytes_max);
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheap_epochs_grow_to_the_limit_and_dear_ones_shrink_at_once() {
        let budget = EpochBudget::new(BYTES);
        (0..20).for_each(|_| budget.observe(1_000_000, Duration::from_micros(1)));
        assert_eq!(budget.bytes(), BYTES.as_bytes());
        (0..20).for_each(|_| budget.observe(16_000, Duration::from_secs(1)));
        assert!(
            (BYTES_MIN..10_000).contains(&budget.bytes()),
            "{}",
            budget.bytes()
        );
    }
}
