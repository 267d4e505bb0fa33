//! Between reading and handing on, where the source tells its transactions: feeds the records and
//! markers to [`super::transactions`], and finds the partitions that an END speaks of.
//!
//! A record without a place in a transaction (a tombstone, a dead letter, a truncate) is handed on when
//! what stands before it in its partition was. A transaction that END counts such a record in is
//! waited for until its timeout.
//!
//! Invariants: an END is judged only when every topic that it counts and that the configuration wants is
//! known; until then no later marker is read. And the timeout of what is missing runs only while the
//! partitions are read.

use super::collections::{Place, find};
use super::config::TransactionsConfig;
use super::housekeeping::Shared;
use super::partition::PartitionReader;
use super::reading_clock::ReadingClock;
use super::records::{Item, Record};
use super::topics::TopicSelection;
use super::transactions::{Buffered, Cut, Limits, TransactionBuffer, TransactionEnd};
use super::{End, KafkaConfig};
use crate::envelope::TransactionMarker;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Bytes that wait for their transactions: with the queue in front of the pipeline this bounds the
/// memory of a source whose rows are large.
const WAITING_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Warnings about transactions that are not complete: the first ones tell what is wrong.
const WARNINGS_MAX: u64 = 10;

/// Records on their way into transactions.
pub(crate) struct Gathering {
    buffer: TransactionBuffer<Vec<Item>>,
    topics: TopicSelection,
    topic: String,
    source_topics: HashMap<Arc<str>, BTreeSet<usize>>,
    partitions: usize,
    /// An END that waits for partitions to be found.
    held: Option<(u64, HeldEnd)>,
    clock: ReadingClock,
    /// When the turn began in which the partitions are polled.
    turn_at: Instant,
    warnings: u64,
}

struct HeldEnd {
    id: Arc<str>,
    event_count: u64,
    collections: Vec<(Arc<str>, u64)>,
}

impl Gathering {
    pub(crate) fn new(
        config: &KafkaConfig,
        transactions: &TransactionsConfig,
        readers: &[PartitionReader],
    ) -> Result<Self, End> {
        let markers = readers.iter().filter(|reader| reader.is_markers).count();
        if markers != 1 {
            return Err(End::failed(
                format!(
                    "transaction topic `{}` has {markers} partitions; the order of transactions is \
                     told by one",
                    transactions.topic
                ),
                "make it anew with one partition (`topic.creation.default.partitions=1`)",
            ));
        }
        let mut clock = ReadingClock::new();
        let mut gathering = Self {
            buffer: TransactionBuffer::new(Limits {
                changes_max: config.max_transaction_changes.get(),
                bytes_max: WAITING_BYTES_MAX,
                timeout: transactions.timeout.as_duration(),
            }),
            topics: TopicSelection::of(config),
            topic: transactions.topic.clone(),
            source_topics: HashMap::new(),
            partitions: 0,
            held: None,
            turn_at: clock.now(),
            clock,
            warnings: 0,
        };
        gathering.heard_of_partitions(readers);
        Ok(gathering)
    }

    /// Whether an END waits for partitions to be found.
    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Whether the next record of a partition is to be read.
    pub(crate) fn wants(&self, index: usize, reader: &PartitionReader) -> bool {
        if reader.is_markers {
            return self.held.is_none() && self.buffer.wants_markers();
        }
        self.buffer.wants(index)
    }

    /// The partitions are polled, one after the other.
    pub(crate) fn begin_turn(&mut self) {
        self.turn_at = self.clock.now();
    }

    /// A partition was polled in this turn and has nothing more.
    pub(crate) fn found_empty(&mut self, index: usize, reader: &PartitionReader) {
        match reader.is_markers {
            true => self.buffer.found_no_marker(self.turn_at),
            false => self.buffer.found_empty(index, self.turn_at),
        }
    }

    /// A record was polled, which is not taken before it is decoded.
    pub(crate) fn polled(&mut self, index: usize, reader: &PartitionReader) {
        match reader.is_markers {
            true => self.buffer.polled_marker(),
            false => self.buffer.polled(index),
        }
    }

    /// All partitions are read by another client, which tells their ends anew.
    pub(crate) fn forget_ends(&mut self) {
        self.buffer.forget_ends();
    }

    pub(crate) fn reached_end(&mut self, index: usize, reader: &PartitionReader) {
        match reader.is_markers {
            true => self.buffer.set_markers_at_end(),
            false => self.buffer.set_at_end(index),
        }
    }

    /// Takes a record. Items of the transaction topic (a marker that is a dead letter) stay in it:
    /// they wait for nothing.
    pub(crate) fn take(
        &mut self,
        (index, offset): (usize, u64),
        record: &mut Record,
        readers: &[PartitionReader],
        shared: &Shared,
    ) {
        if !readers[index].is_markers {
            let bytes = record.bytes();
            let changes = record.items.len();
            let buffered = Buffered {
                offset,
                payload: std::mem::take(&mut record.items),
                changes,
                bytes,
                place: record.place.take(),
            };
            self.buffer.push(index, buffered, self.clock.now());
            return;
        }
        match record.marker.take() {
            Some(TransactionMarker::End {
                id,
                event_count,
                collections,
            }) => {
                let end = HeldEnd {
                    id,
                    event_count,
                    collections,
                };
                if self.is_topic_missing(&end, readers) {
                    shared.is_discovery_wanted.store(true, Ordering::Release);
                    self.held = Some((offset, end));
                } else {
                    self.end(offset, end, readers);
                }
            }
            _ => self.buffer.pass_marker(offset),
        }
    }

    /// More partitions are read, or those that were looked for were not found.
    pub(crate) fn heard_of_partitions(&mut self, readers: &[PartitionReader]) {
        while self.partitions < readers.len() {
            self.buffer.add_partition();
            self.partitions += 1;
        }
        self.source_topics.clear();
        if let Some((offset, end)) = self.held.take() {
            self.end(offset, end, readers);
        }
    }

    /// Whether an END counts records of a topic that is wanted and not read yet.
    fn is_topic_missing(&mut self, end: &HeldEnd, readers: &[PartitionReader]) -> bool {
        end.collections.iter().any(|(collection, _)| {
            if self.source_topics.contains_key(collection) {
                return false;
            }
            match find(&self.topic, collection, readers) {
                Place::Partitions(partitions) => {
                    self.source_topics.insert(collection.clone(), partitions);
                    false
                }
                Place::Elsewhere(topic) => {
                    let is_wanted = self.topics.matches(&topic);
                    if !is_wanted {
                        self.source_topics
                            .insert(collection.clone(), BTreeSet::new());
                    }
                    is_wanted
                }
            }
        })
    }

    fn end(&mut self, offset: u64, end: HeldEnd, readers: &[PartitionReader]) {
        let mut partitions = BTreeSet::new();
        let mut expected = 0;
        for (collection, count) in &end.collections {
            let known = self.source_topics.entry(collection.clone());
            let of_collection =
                known.or_insert_with(|| match find(&self.topic, collection, readers) {
                    Place::Partitions(partitions) => partitions,
                    Place::Elsewhere(_) => BTreeSet::new(),
                });
            if !of_collection.is_empty() {
                partitions.extend(of_collection.iter().copied());
                expected += count;
            }
        }
        if end.collections.is_empty() && end.event_count > 0 {
            expected = end.event_count;
            let all = readers
                .iter()
                .enumerate()
                .filter(|(_, reader)| !reader.is_markers);
            partitions.extend(all.map(|(index, _)| index));
        }
        let end = TransactionEnd {
            id: end.id,
            expected,
            partitions,
        };
        self.buffer.end(offset, end, self.clock.now());
    }

    /// What can be handed on now.
    pub(crate) fn release(&mut self) -> Option<Cut<Vec<Item>>> {
        let cut = self.buffer.release(self.clock.now())?;
        for id in &cut.incomplete {
            self.warnings += 1;
            if self.warnings <= WARNINGS_MAX {
                tracing::warn!(
                    "transaction {id} misses changes or its end in `{}` and was not waited for any \
                     longer: what there is of it becomes visible",
                    self.topic
                );
            }
        }
        Some(cut)
    }
}
