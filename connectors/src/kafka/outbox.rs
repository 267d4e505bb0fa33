//! What was read and goes to the pipeline.
//!
//! Invariant: changes that may be cut apart and those that may not never share a batch.

use super::End;
use super::partition::PartitionReader;
use super::progress::{PartitionProgress, Progress};
use super::records::Item;
use crate::batch::{PendingBatch, Unity};
use std::time::{Duration, Instant};
use vectide_model::{Change, Key, Partition, Position, SourceSink};

/// How often positions are sent that moved over records which are no rows: retention must not
/// overtake a source that only sees heartbeats.
const POSITIONS_INTERVAL: Duration = Duration::from_secs(1);

/// Deletes of a truncated table that go together: they stand alone, so this is only a batch's size.
const DELETES_MAX: usize = crate::batch::RECORDS_MAX;

/// A batch in the making, and where it goes.
pub(crate) struct Outbox<'a> {
    sink: &'a mut dyn SourceSink,
    pending: PendingBatch,
    unity: Unity,
    sent_at: Instant,
}

impl<'a> Outbox<'a> {
    pub(crate) fn new(sink: &'a mut dyn SourceSink) -> Self {
        Self {
            sink,
            pending: PendingBatch::default(),
            unity: Unity::Changes,
            sent_at: Instant::now(),
        }
    }

    /// Says what the records that follow are to each other.
    pub(crate) fn set_unity(
        &mut self,
        unity: Unity,
        readers: &mut [PartitionReader],
        progress: &Progress,
    ) -> Result<(), End> {
        if self.unity != unity {
            if self.pending.records() > 0 {
                self.send(readers, progress)?;
            }
            self.unity = unity;
        }
        Ok(())
    }

    /// Takes a part of a record; a truncate is not one that can be taken.
    pub(crate) fn push(&mut self, item: Item) {
        match item {
            Item::Change(change) => self.pending.push_change(change),
            Item::DeadLetter(letter) => self.pending.push_dead_letter(letter),
            Item::Truncate(_) => {}
        }
    }

    /// The position behind what was pushed of a partition.
    pub(crate) fn hand(&mut self, reader: &mut PartitionReader, next: u64) {
        reader.handed = next;
        reader.is_touched = true;
        self.pending.set_position(&reader.name, next);
    }

    pub(crate) fn set_fingerprint(&mut self, key: &Partition, value: u64) {
        self.pending.set_fingerprint(key, value);
    }

    pub(crate) fn count_split(&mut self, transactions: u64) {
        for _ in 0..transactions {
            self.pending.count_split_transaction();
        }
    }

    /// Whether the batch is as large as one should be.
    pub(crate) fn is_large(&self) -> bool {
        self.pending.is_large()
    }

    /// Whether the batch is as large or as old as one should be.
    pub(crate) fn is_full(&self) -> bool {
        self.pending.is_due()
    }

    /// Whether something is to be sent although nothing more is at hand.
    pub(crate) fn is_due_when_idle(&self) -> bool {
        self.pending.records() > 0 || self.sent_at.elapsed() >= POSITIONS_INTERVAL
    }

    /// Sends what is there, and takes note of how far that is.
    pub(crate) fn send(
        &mut self,
        readers: &mut [PartitionReader],
        progress: &Progress,
    ) -> Result<(), End> {
        self.sent_at = Instant::now();
        if !self.pending.is_empty() {
            for reader in readers.iter().filter(|reader| reader.is_touched) {
                if let Some(print) = reader.print {
                    self.pending.set_fingerprint(&reader.name, print.hash);
                    self.pending
                        .set_fingerprint(&reader.offset_key, print.offset);
                }
            }
            self.sink.send(self.pending.take(self.unity))?;
        }
        let mut progress = progress.lock();
        for reader in readers.iter_mut().filter(|reader| reader.is_touched) {
            reader.is_touched = false;
            let of = PartitionProgress {
                next: reader.handed,
                is_at_end: reader.is_at_end && reader.handed == reader.next,
                print: reader.print,
            };
            match progress.get_mut(&reader.name) {
                Some(before) => *before = of,
                None => drop(progress.insert(reader.name.clone(), of)),
            }
        }
        Ok(())
    }

    /// Deletes rows, all at the place of one record; nothing else is pending. Should only a part
    /// be committed, that record is read again and finds the rest.
    pub(crate) fn delete(
        &mut self,
        keys: &[Key],
        position: &Position,
        at: std::time::SystemTime,
    ) -> Result<(), End> {
        self.unity = Unity::Changes;
        for keys in keys.chunks(DELETES_MAX) {
            for key in keys {
                self.pending.push_change(Change {
                    key: key.clone(),
                    row: None,
                    unchanged_fields: Vec::new(),
                    position: position.clone(),
                    changed_at: at,
                });
            }
            self.pending
                .set_position(&position.partition, position.offset);
            self.sink.send(self.pending.take(self.unity))?;
        }
        Ok(())
    }

    pub(crate) fn caught_up(&mut self) {
        self.sink.caught_up();
    }
}
