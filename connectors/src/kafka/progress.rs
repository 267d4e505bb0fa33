//! How far each partition was read, shared by the thread that reads and the one that watches.
//!
//! Invariant: what stands here was handed on to the pipeline; it never runs ahead of it.

use super::fingerprint::RecordPrint;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use vectide_model::Partition;

/// One partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartitionProgress {
    /// The next offset.
    pub(crate) next: u64,
    /// Whether everything that is there was handed on. Control records may stand behind `next`.
    pub(crate) is_at_end: bool,
    /// The last record.
    pub(crate) print: Option<RecordPrint>,
}

/// All partitions of a source.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<BTreeMap<Partition, PartitionProgress>>);

impl Progress {
    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<Partition, PartitionProgress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
