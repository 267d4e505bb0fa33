//! What tells a topic from another one that was made under its name: a hash of a record that was read.
//!
//! A topic that is deleted and made anew may have as many records as before, so offsets alone do not
//! tell. The record before a position is remembered by a hash of its offset, time, key and value, and
//! read again before reading goes on.
//!
//! | key among the fingerprints | value |
//! | --- | --- |
//! | `topic/3` | the hash of a record |
//! | `topic/3@offset` | that record's offset: a batch may be committed in part, so it is not always the last before the position |
//! | `@cluster` | a hash of the cluster's id |
//!
//! Invariant: only a record that is there and differs is a proof; one that is gone (retention,
//! compaction) proves nothing.

use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use std::collections::BTreeMap;
use vectide_model::Partition;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The key of the cluster's id.
const CLUSTER: &str = "@cluster";

/// A record as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordPrint {
    pub(crate) offset: u64,
    pub(crate) hash: u64,
}

impl RecordPrint {
    pub(crate) fn of(message: &BorrowedMessage<'_>) -> Self {
        let mut head = [0; 16];
        head[..8].copy_from_slice(&message.offset().to_le_bytes());
        let milliseconds = message.timestamp().to_millis().unwrap_or(-1);
        head[8..].copy_from_slice(&milliseconds.to_le_bytes());
        // Each part is hashed at once, with what came before it as the seed: this is done for every
        // record, and short ones would pay for a hasher's state.
        let mut hash = xxh3_64_with_seed(&head, 0);
        for part in [message.key(), message.payload()] {
            // A missing part differs from an empty one, and where one ends is told.
            let length = part.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hash = xxh3_64_with_seed(part.unwrap_or_default(), hash ^ length);
        }
        Self {
            offset: u64::try_from(message.offset()).unwrap_or(0),
            hash,
        }
    }

    /// The committed print of a partition.
    pub(crate) fn committed(
        partition: &Partition,
        fingerprints: &BTreeMap<Partition, u64>,
    ) -> Option<Self> {
        Some(Self {
            offset: *fingerprints.get(&offset_key(partition))?,
            hash: *fingerprints.get(partition)?,
        })
    }
}

/// Under which key a record's offset stands.
pub(crate) fn offset_key(partition: &Partition) -> Partition {
    Partition::from(format!("{partition}@offset"))
}

/// The cluster's id as a fingerprint.
pub(crate) fn of_cluster(id: &str) -> (Partition, u64) {
    (Partition::from(CLUSTER), xxh3_64(id.as_bytes()))
}
