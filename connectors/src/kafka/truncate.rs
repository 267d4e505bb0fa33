//! Turns one record that says "all rows are gone" into a delete for each row that is held.
//!
//! What was read before must be in the state first, or its rows would come after their delete: so
//! reading waits until it is durable. The record stands in one partition, and Kafka defines no order
//! between partitions: a row that was written to another one after the truncate, and read before it,
//! is deleted with the others. Debezium says the same; a truncated table should have one partition.
//!
//! Invariant: the position passes the record only behind all deletes.

use super::End;
use super::PartitionStart;
use super::outbox::Outbox;
use super::partition::PartitionReader;
use std::time::{Duration, SystemTime};
use vectide_model::{Position, SourceStart};

/// How often it is looked whether all is durable; a commit takes longer than that.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// A truncate: which partition told it, at which offset, and when it was.
pub(crate) struct Truncate {
    pub(crate) index: usize,
    pub(crate) offset: u64,
    pub(crate) at: SystemTime,
}

/// Deletes all rows of the topic; everything read before was sent.
pub(crate) fn truncate(
    truncate: Truncate,
    readers: &[PartitionReader],
    start: &SourceStart,
    outbox: &mut Outbox<'_>,
) -> Result<(), End> {
    let of = &readers[truncate.index];
    // What is only looked at never becomes durable, and holds no rows.
    if !start.is_trial {
        await_durable(&of.topic, readers, start)?;
    }
    let is_of_topic = |name: &str| {
        let parsed = PartitionStart::parse(name);
        parsed.is_some_and(|(topic, _)| topic == &*of.topic)
    };
    let keys = start.held.keys_from(&is_of_topic).map_err(End::Source)?;
    tracing::info!(
        source = &*start.name,
        rows = keys.len(),
        "{} was truncated at offset {}: its rows are deleted",
        of.name,
        truncate.offset
    );
    let position = Position {
        source: start.name.clone(),
        partition: of.name.clone(),
        offset: truncate.offset,
    };
    outbox.delete(&keys, &position, truncate.at)
}

fn await_durable(topic: &str, readers: &[PartitionReader], start: &SourceStart) -> Result<(), End> {
    let of_topic = || readers.iter().filter(|reader| &*reader.topic == topic);
    loop {
        let durable = start.held.durable_positions();
        // A partition at 0 has nothing to wait for, and may have no position yet.
        let is_durable = |reader: &PartitionReader| {
            durable.get(&reader.name).copied().unwrap_or(0) >= reader.handed
        };
        if of_topic().all(is_durable) {
            return Ok(());
        }
        if start.stop.wait(LOOK_INTERVAL) {
            return Err(End::Stopped);
        }
    }
}
