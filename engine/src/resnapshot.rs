//! A source that begins anew while its rows go on being served: `vectide run --resnapshot SOURCE`.
//!
//! It is read from its beginning as if nothing were known of it. Each change marks its key as seen,
//! and the first change of a key is told to the dataflow as a restatement, which meets no row: its
//! position may be lower than the one held. When the source has caught up, every row whose key was
//! not seen is swept away. A row that is stated as it was is no change, so nothing of it is embedded.
//!
//! ```text
//! under way (in the commit record) -- caught up --> sweeping -- all swept --> whole
//!        ^                                              |
//!        +-------- the process ends in between ---------+
//! ```
//!
//! Invariant: the commit record calls the source whole only together with the last swept row, so a
//! process that ended before starts again from the source's beginning; afterwards the source's rows
//! are those that a new state would have.
//!
//! Memory: 16 bytes and a little for each key of the source, until it is whole. Hashes of 128 bits
//! stand for keys: that two keys meet is less likely than a fault of the machine.

use crate::ingest::{Delivery, SourceEvent};
use crate::sources::{ChannelSink, FeedEnd};
use crate::state::{State, name_prefix};
use rustc_hash::FxHashSet;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;
use vectide_model::{
    Change, HeldRows, Key, Partition, Position, Row, SourceBatch, SourceError, SourceSink, Stopped,
    Table,
};

/// Rows swept with one batch: enough to spread its cost, and the pipeline may cut it anywhere.
const SWEEP_CHANGES: usize = 500;

/// The keys stated since the source began anew; `None` once the source is whole.
type SeenKeys = Option<FxHashSet<u128>>;

fn hash_of(key: &str) -> u128 {
    let hash = blake3::hash(key.as_bytes());
    let (half, _) = hash.as_bytes().split_at(16);
    half.iter()
        .fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

/// The sink of a source that states its rows again.
pub(crate) struct Restating {
    sink: ChannelSink,
    state: Arc<State>,
    source: Arc<str>,
    seen: Arc<RwLock<SeenKeys>>,
}

impl Restating {
    pub(crate) fn new(sink: ChannelSink, state: Arc<State>, source: Arc<str>) -> Self {
        tracing::info!(source = %source, "the source is read anew from its beginning");
        Self {
            sink,
            state,
            source,
            seen: Arc::new(RwLock::new(Some(FxHashSet::default()))),
        }
    }

    /// The rows that the source may know of: those it stated since it began anew.
    pub(crate) fn held(&self) -> Arc<dyn HeldRows> {
        Arc::new(RestatedRows {
            held: self.state.held_rows(self.source.clone()),
            seen: self.seen.clone(),
        })
    }

    pub(crate) fn end(&self, result: Result<(), SourceError>) {
        self.sink.end(result);
    }

    /// Deletes every row whose key was not seen; gives their number.
    fn sweep(&self, seen: &FxHashSet<u128>) -> Result<u64, FeedEnd> {
        // Rows from before are all committed, and what the source stated since is seen.
        let read = self.state.snapshot();
        let prefix = name_prefix(&self.source);
        let (mut swept, mut batch) = (0, Vec::new());
        for entry in read.scan(Table::Rows, &prefix) {
            let (key, _) = entry?;
            let key = String::from_utf8_lossy(&key[prefix.len()..]);
            if seen.contains(&hash_of(&key)) {
                continue;
            }
            swept += 1;
            batch.push(self.removal(&key));
            if batch.len() == SWEEP_CHANGES {
                self.deliver_removals(std::mem::take(&mut batch))?;
            }
        }
        self.deliver_removals(batch)?;
        Ok(swept)
    }

    /// A delete that was not read anywhere: no row keeps its position.
    fn removal(&self, key: &str) -> Change {
        Change {
            key: key.into(),
            row: None,
            unchanged_fields: Vec::new(),
            position: Position {
                source: self.source.clone(),
                partition: "".into(),
                offset: 0,
            },
            changed_at: SystemTime::now(),
        }
    }

    fn deliver_removals(&self, changes: Vec<Change>) -> Result<(), FeedEnd> {
        let delivery = Delivery {
            restates: vec![true; changes.len()],
            keeps_positions: true,
            batch: SourceBatch {
                changes,
                divisible: true,
                ..SourceBatch::default()
            },
            ..Delivery::default()
        };
        let delivered = self.sink.deliver(delivery);
        delivered.map_err(|Stopped| FeedEnd::Stopped)
    }
}

impl SourceSink for Restating {
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped> {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let restates = seen.as_mut().map(|seen| {
            let changes = batch.changes.iter();
            changes.map(|it| seen.insert(hash_of(&it.key))).collect()
        });
        // The source's own thread may ask for its rows while it waits for the pipeline.
        drop(seen);
        self.sink.deliver(Delivery {
            restates: restates.unwrap_or_default(),
            ..batch.into()
        })
    }

    fn caught_up(&mut self) {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let Some(keys) = seen.as_ref() else {
            return;
        };
        let (stated, swept) = (keys.len(), self.sweep(keys));
        drop(seen);
        match swept {
            Ok(swept) => {
                tracing::info!(source = %self.source, stated, swept, "the source is whole again");
                *self.seen.write().unwrap_or_else(PoisonError::into_inner) = None;
                self.sink.say(SourceEvent::Restated);
                self.sink.caught_up();
            }
            // The next start begins again.
            Err(FeedEnd::Stopped) => {}
            Err(end) => self.sink.end(end.of_source(&self.source, "its rows")),
        }
    }
}

/// The committed rows without those that the source has not stated again.
struct RestatedRows {
    held: Arc<dyn HeldRows>,
    seen: Arc<RwLock<SeenKeys>>,
}

impl RestatedRows {
    fn seen(&self) -> RwLockReadGuard<'_, SeenKeys> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stated(seen: &SeenKeys, key: &str) -> bool {
        seen.as_ref()
            .is_none_or(|seen| seen.contains(&hash_of(key)))
    }
}

impl HeldRows for RestatedRows {
    fn row(&self, key: &str) -> Result<Option<Row>, SourceError> {
        if Self::is_stated(&self.seen(), key) {
            self.held.row(key)
        } else {
            Ok(None)
        }
    }

    fn keys(&self) -> Result<Vec<Key>, SourceError> {
        let mut keys = self.held.keys()?;
        let seen = self.seen();
        keys.retain(|key| Self::is_stated(&seen, key));
        Ok(keys)
    }

    fn keys_from(&self, of: &dyn Fn(&str) -> bool) -> Result<Vec<Key>, SourceError> {
        let mut keys = self.held.keys_from(of)?;
        let seen = self.seen();
        keys.retain(|key| Self::is_stated(&seen, key));
        Ok(keys)
    }

    fn durable_positions(&self) -> BTreeMap<Partition, u64> {
        self.held.durable_positions()
    }
}
