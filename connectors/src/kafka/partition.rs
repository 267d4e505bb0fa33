//! One partition that is being read, and the sleep until any of them has something.
//!
//! Invariant: `handed` never passes `next`: what was read is handed on later or at once, not before.

use super::context::LogContext;
use super::fingerprint::{RecordPrint, offset_key};
use super::{End, PartitionStart};
use rdkafka::consumer::BaseConsumer;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use vectide_model::Partition;

/// Wakes the reader when a queue that was empty is not.
#[derive(Default)]
pub(crate) struct Wakeup {
    is_ready: Mutex<bool>,
    changed: Condvar,
}

impl Wakeup {
    pub(crate) fn wake(&self) {
        *self.is_ready.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    pub(crate) fn wait(&self, timeout: Duration) {
        let ready = self.is_ready.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut ready, _) = self
            .changed
            .wait_timeout_while(ready, timeout, |ready| !*ready)
            .unwrap_or_else(PoisonError::into_inner);
        *ready = false;
    }
}

/// A partition's queue in the client.
pub(crate) type Queue = Arc<PartitionQueue<LogContext>>;

/// One partition that is being read.
pub(crate) struct PartitionReader {
    pub(crate) topic: Arc<str>,
    pub(crate) id: i32,
    pub(crate) name: Partition,
    /// Where the offset of `print` stands among the fingerprints.
    pub(crate) offset_key: Partition,
    /// Whether it is the transaction topic's.
    pub(crate) is_markers: bool,
    /// The next offset to be read; without one reading begins at the first record there is.
    pub(crate) next: u64,
    /// The position that was handed on.
    pub(crate) handed: u64,
    pub(crate) print: Option<RecordPrint>,
    /// Whether something changed that others want to know.
    pub(crate) is_touched: bool,
    pub(crate) is_at_end: bool,
    is_fresh: bool,
    end_at_start: u64,
    was_at_end: bool,
}

impl PartitionReader {
    pub(crate) fn new(start: PartitionStart, is_markers: bool) -> Self {
        let name = PartitionStart::name(&start.topic, start.partition);
        let next = start.next.unwrap_or(start.first);
        Self {
            offset_key: offset_key(&name),
            name,
            topic: start.topic,
            id: start.partition,
            is_markers,
            next,
            handed: next,
            print: None,
            is_touched: true,
            is_at_end: false,
            is_fresh: start.next.is_none(),
            end_at_start: start.end,
            was_at_end: false,
        }
    }

    /// Takes note of a record; `false` when it was taken before.
    pub(crate) fn advance(&mut self, print: RecordPrint) -> bool {
        if print.offset < self.next {
            return false;
        }
        self.next = print.offset + 1;
        self.print = Some(print);
        self.is_touched = true;
        self.is_at_end = false;
        self.is_fresh = false;
        true
    }

    /// Takes note that there is nothing more for now.
    pub(crate) fn reached_end(&mut self) {
        self.is_touched = true;
        self.is_at_end = true;
        self.was_at_end = true;
    }

    /// Whether everything was handed on that was there at the start.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.handed >= self.end_at_start || (self.was_at_end && self.handed == self.next)
    }

    /// Whether everything was read that was there at the start.
    pub(crate) fn is_read(&self) -> bool {
        self.was_at_end || self.next >= self.end_at_start
    }

    pub(crate) fn place(&self) -> String {
        format!("{} at offset {}", self.name, self.next)
    }

    pub(crate) fn split_queue(
        &self,
        consumer: &Arc<BaseConsumer<LogContext>>,
        wakeup: &Arc<Wakeup>,
    ) -> Result<Queue, End> {
        let Some(mut queue) = consumer.split_partition_queue(&self.topic, self.id) else {
            return Err(End::failed(
                format!("{}: the client has no queue for the partition", self.name),
                "start again",
            ));
        };
        let wakeup = wakeup.clone();
        queue.set_nonempty_callback(move || wakeup.wake());
        Ok(Arc::new(queue))
    }
}

/// Where all partitions are read from.
pub(crate) fn assignment(readers: &[PartitionReader]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(readers.len());
    for reader in readers {
        let offset = match reader.is_fresh {
            // Retention may move the beginning until we get there.
            true => Offset::Beginning,
            false => Offset::Offset(i64::try_from(reader.next).unwrap_or(i64::MAX)),
        };
        list.add_partition_offset(&reader.topic, reader.id, offset)?;
    }
    Ok(list)
}
