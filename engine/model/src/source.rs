//! The contract of a source: a blocking reader that turns the outside world into positioned batches.
//!
//! Invariant: a batch that is not `divisible` is one transaction: all its changes become visible in
//! one epoch. `positions` say where to resume when exactly the batches up to and including it are
//! committed.

use crate::{Change, DeadLetter, Key, Partition, Row, StopSignal};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Changes read together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceBatch {
    /// The changes in the order of the source.
    pub changes: Vec<Change>,
    /// Records of the same stretch that could not be decoded.
    pub dead_letters: Vec<DeadLetter>,
    /// For each partition touched: the offset at which reading goes on after this batch.
    pub positions: BTreeMap<Partition, u64>,
    /// What tells this source from another one under the same name, by partition or for the whole:
    /// a hash of its first record, of its system's identifier. Committed with the positions, and
    /// given back in [`SourceStart::fingerprints`]; one that is sent again replaces the one before.
    pub fingerprints: BTreeMap<Partition, u64>,
    /// Whether the pipeline may cut between the changes: true unless they are one transaction of
    /// the source. A cut before change `i` resumes each partition at the `position.offset` of its
    /// first change from `i` on, so those offsets must be places where reading can start. Without
    /// it a batch of many documents would be one epoch, and every other source would wait for all
    /// its embedding.
    pub divisible: bool,
    /// How many transactions were longer than the source's limit and had to be split here.
    pub split_transactions: u64,
}

/// Whether a source ends at what is there now or waits for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// Return from [`Source::run`] once everything that was there at the start has been sent.
    UntilCaughtUp,
    /// Go on until stopped (a source that has an end returns there).
    Follow,
}

/// This source in the committed state: what it holds, and how far its positions are durable. For
/// sources that find out what changed by comparing (a directory), that must turn one record into
/// many deletes (a truncated table), or that tell the outside world what they will not ask for again
/// (a replication slot, a consumer group's offsets).
pub trait HeldRows: Send + Sync {
    /// The row under a key.
    ///
    /// # Errors
    /// When the store can't be read.
    fn row(&self, key: &str) -> Result<Option<Row>, SourceError>;

    /// All keys, sorted by bytes.
    ///
    /// # Errors
    /// When the store can't be read.
    fn keys(&self) -> Result<Vec<Key>, SourceError>;

    /// All keys whose row was last written by a change of a partition that `of` accepts.
    ///
    /// # Errors
    /// When the store can't be read.
    fn keys_from(&self, of: &dyn Fn(&str) -> bool) -> Result<Vec<Key>, SourceError>;

    /// The positions committed by now: everything before them is durable. They grow while the
    /// source runs, and asking is cheap.
    fn durable_positions(&self) -> BTreeMap<Partition, u64>;
}

/// Where and how a source starts.
pub struct SourceStart {
    /// Name of the source in the configuration: goes into every position.
    pub name: Arc<str>,
    /// The committed positions: the next offset of each partition; empty on the first start.
    pub positions: BTreeMap<Partition, u64>,
    /// The committed fingerprints; empty on the first start.
    pub fingerprints: BTreeMap<Partition, u64>,
    /// The committed rows and positions.
    pub held: Arc<dyn HeldRows>,
    /// Whether to end when caught up.
    pub mode: ReadMode,
    /// Whether what is read is only looked at and never committed: then the source leaves no trace
    /// in the outside world (no replication slot, no committed offsets).
    pub is_trial: bool,
    /// Set when the process ends; ask it at least every 100 ms.
    pub stop: StopSignal,
}

/// The process is ending: stop reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pipeline is stopping")]
pub struct Stopped;

/// Where a source puts what it read.
pub trait SourceSink: Send {
    /// Hands a batch on; blocks while the pipeline is full (this is the backpressure).
    ///
    /// # Errors
    /// [`Stopped`] when the pipeline is ending: the batch was not taken.
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped>;

    /// Says that everything which was there at the start has been sent. Call it once, also in
    /// [`ReadMode::Follow`].
    fn caught_up(&mut self);
}

/// A reader of changes. It runs on a thread of its own.
///
/// Obligations of an implementation:
/// - resume exactly at `start.positions`: nothing skipped, nothing read twice after a clean commit;
/// - never skip silently: a recorded position which the source no longer has is
///   [`SourceError::PositionLost`], a record that can't be decoded is a dead letter;
/// - keep memory bounded whatever the size of the source; a record above the source's limit is a
///   dead letter;
/// - keep a transaction of the source in one batch, up to a configured number of changes; above it
///   split and count in `split_transactions`;
/// - send a batch at least every 5 ms while changes are at hand, so that an idle pipeline is fresh;
/// - return `Ok` when stopped.
pub trait Source: Send {
    /// Reads until the end, the stop signal or an error.
    ///
    /// # Errors
    /// What keeps the source from going on; the process ends with it.
    fn run(
        self: Box<Self>,
        start: SourceStart,
        sink: &mut dyn SourceSink,
    ) -> Result<(), SourceError>;
}

/// Why a source can't go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The position in the state is not in the source any more, or the source is another one.
    #[error("source `{source_name}` no longer has the recorded position: {detail}\nhint: {hint}")]
    PositionLost {
        /// Name of the source.
        source_name: String,
        /// What was recorded and what is there.
        detail: String,
        /// The way out.
        hint: String,
    },
    /// The outside world failed.
    #[error("source `{source_name}`: {detail}\nhint: {hint}")]
    Failed {
        /// Name of the source.
        source_name: String,
        /// What happened.
        detail: String,
        /// What can be done.
        hint: String,
    },
}
