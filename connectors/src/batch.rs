//! A batch in the making: collects what was read until it is large or old enough to hand on.
//!
//! Invariant: positions move only together with the records they stand behind, so that a batch
//! that was taken says exactly where to resume.

use std::time::{Duration, Instant};
use vectide_model::{Change, DeadLetter, Partition, SourceBatch};

/// Changes of a batch that stand alone: enough to spread the cost of a batch over them, few enough
/// that one batch adds no noticeable delay to those behind it.
pub(crate) const RECORDS_MAX: usize = 500;

/// Bytes of a batch: a few of them queue up in front of the pipeline, and memory is bounded by that.
pub(crate) const BYTES_MAX: usize = 1024 * 1024;

/// Oldest record of a batch that waits for company: the contract of a source.
pub(crate) const AGE_MAX: Duration = Duration::from_millis(5);

/// A batch in the making.
#[derive(Default)]
pub(crate) struct PendingBatch {
    batch: SourceBatch,
    bytes: usize,
    began_at: Option<Instant>,
}

impl PendingBatch {
    pub(crate) fn push_change(&mut self, change: Change) {
        let row_bytes = change.row.as_ref().map_or(0, |row| row.len());
        self.account(change.key.len() + row_bytes);
        self.batch.changes.push(change);
    }

    pub(crate) fn push_dead_letter(&mut self, letter: DeadLetter) {
        self.account(letter.raw.len() + letter.detail.len());
        self.batch.dead_letters.push(letter);
    }

    /// Sets the offset at which reading goes on after what was pushed so far.
    pub(crate) fn set_position(&mut self, partition: &Partition, next_offset: u64) {
        match self.batch.positions.get_mut(partition) {
            Some(offset) => *offset = next_offset,
            None => drop(self.batch.positions.insert(partition.clone(), next_offset)),
        }
    }

    /// Sets what tells a partition from another one of its name.
    pub(crate) fn set_fingerprint(&mut self, key: &Partition, value: u64) {
        self.batch.fingerprints.insert(key.clone(), value);
    }

    pub(crate) fn count_split_transaction(&mut self) {
        self.batch.split_transactions += 1;
    }

    fn account(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.began_at.get_or_insert_with(Instant::now);
    }

    pub(crate) fn has_upserts_and_deletes(&self) -> bool {
        let mut changes = self.batch.changes.iter();
        let first = changes.next().map(|change| change.row.is_some());
        changes.any(|change| Some(change.row.is_some()) != first)
    }

    /// Changes and dead letters.
    pub(crate) fn records(&self) -> usize {
        self.batch.changes.len() + self.batch.dead_letters.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to say, not even a position.
    pub(crate) fn is_empty(&self) -> bool {
        self.records() == 0 && self.batch.positions.is_empty()
    }

    /// Whether it has reached one of the limits for changes that stand alone.
    pub(crate) fn is_due(&self) -> bool {
        self.is_large() || self.began_at.is_some_and(|at| at.elapsed() >= AGE_MAX)
    }

    /// Whether it is large enough, however old; this asks no clock.
    pub(crate) fn is_large(&self) -> bool {
        self.records() >= RECORDS_MAX || self.bytes >= BYTES_MAX
    }

    /// Takes the batch and begins the next one.
    pub(crate) fn take(&mut self, unity: Unity) -> SourceBatch {
        let mut batch = std::mem::take(self).batch;
        batch.divisible = unity == Unity::Changes;
        batch
    }
}

/// What the changes of a batch are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unity {
    /// Each stands alone: the pipeline may cut between them.
    Changes,
    /// They belong together and become visible together.
    Transaction,
}
