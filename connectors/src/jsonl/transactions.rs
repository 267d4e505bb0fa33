//! Puts consecutive lines of one transaction into one batch.
//!
//! Invariant: a transaction is divided only above the limits, and then it is counted once. Changes
//! that name no transaction stand alone and are grouped as it suits.

use crate::batch::{PendingBatch, Unity};
use vectide_model::{Change, DeadLetter, Partition, SourceBatch};

/// Bytes of one transaction that are held together: with the queue in front of the pipeline this
/// bounds the memory of a source whose rows are large.
const TRANSACTION_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Lines on their way into batches.
pub(crate) struct TransactionBatches {
    partition: Partition,
    changes_max: usize,
    pending: PendingBatch,
    /// The transaction that the pending changes belong to and that may go on.
    open: Option<OpenTransaction>,
    /// Whether the open transaction was divided already.
    is_divided: bool,
}

struct OpenTransaction {
    /// Its value as JSON text.
    name: Box<str>,
    /// Offset of its first line.
    since: u64,
}

impl TransactionBatches {
    pub(crate) fn new(partition: Partition, changes_max: usize) -> Self {
        Self {
            partition,
            changes_max,
            pending: PendingBatch::default(),
            open: None,
            is_divided: false,
        }
    }

    /// Where the transaction began that may go on with the next line.
    pub(crate) fn open_since(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.since)
    }

    fn is_of_open(&self, transaction: Option<&str>) -> bool {
        let open = self.open.as_ref().map(|open| &*open.name);
        open.is_some() && open == transaction
    }

    /// Adds a change; returns the batch that is complete before it, if one is.
    pub(crate) fn add_change(
        &mut self,
        change: Change,
        transaction: Option<&str>,
        next_offset: u64,
    ) -> Option<SourceBatch> {
        let done = if self.is_of_open(transaction) {
            self.divide()
        } else {
            let is_boundary = self.open.is_some() || transaction.is_some();
            let done = is_boundary.then(|| self.take()).flatten();
            self.open = transaction.map(|name| OpenTransaction {
                name: name.into(),
                since: change.position.offset,
            });
            self.is_divided = false;
            done
        };
        self.pending.push_change(change);
        self.pending.set_position(&self.partition, next_offset);
        done
    }

    /// Adds a line that is no change; it belongs to whatever stands before it.
    pub(crate) fn add_dead_letter(
        &mut self,
        letter: DeadLetter,
        next_offset: u64,
    ) -> Option<SourceBatch> {
        let done = if self.open.is_some() {
            self.divide()
        } else {
            None
        };
        self.pending.push_dead_letter(letter);
        self.pending.set_position(&self.partition, next_offset);
        done
    }

    /// Cuts the open transaction when it has reached a limit.
    fn divide(&mut self) -> Option<SourceBatch> {
        let is_full = self.pending.records() >= self.changes_max
            || self.pending.bytes() >= TRANSACTION_BYTES_MAX;
        let done = is_full.then(|| self.take()).flatten()?;
        if !self.is_divided {
            self.is_divided = true;
            self.pending.count_split_transaction();
        }
        Some(done)
    }

    /// The pending changes when none of them waits for its transaction and they are due.
    pub(crate) fn take_due(&mut self) -> Option<SourceBatch> {
        if self.open.is_some() || !self.pending.is_due() {
            return None;
        }
        self.take()
    }

    /// All pending changes: their transaction is taken to be complete.
    pub(crate) fn finish(&mut self) -> Option<SourceBatch> {
        let rest = self.take();
        self.open = None;
        self.is_divided = false;
        rest
    }

    fn take(&mut self) -> Option<SourceBatch> {
        let unity = match self.open {
            Some(_) => Unity::Transaction,
            None => Unity::Changes,
        };
        (!self.pending.is_empty()).then(|| self.pending.take(unity))
    }
}
