//! Reads all partitions in turns and makes batches of what is at hand.
//!
//! Each partition has a queue of its own in the client, so that its end and its errors are known to
//! be its own, and a busy partition does not hide a quiet one.
//!
//! Invariant: records of one partition enter batches in the order of their offsets, and the
//! position behind a record enters the batch that the record is in.

use super::connection::{Connection, creation_failed};
use super::context::LogContext;
use super::errors::{Verdict, judge};
use super::properties::client_config;
use super::{End, KafkaConfig, PartitionStart};
use crate::batch::{PendingBatch, Unity};
use crate::envelope::format::{DecodeError, RecordDecoder};
use crate::envelope::{Decoded, RawRecord, Rejected, time_of_milliseconds};
use rdkafka::Message;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use vectide_model::{
    Change, DeadLetter, DeadLetterReason, Partition, Position, ReadMode, SourceSink, SourceStart,
};

/// Records of one partition before it is the next one's turn.
const TURN_RECORDS: usize = 100;

/// Longest sleep while nothing comes: the stop signal is seen this often.
const IDLE_WAIT: Duration = Duration::from_millis(50);

/// How often positions are sent that moved over records which are no rows: retention must not
/// overtake a source that only sees heartbeats.
const POSITIONS_INTERVAL: Duration = Duration::from_secs(1);

/// Wait before the cluster is asked whether a topic which the client doubts is really gone: a
/// broker that starts may not know its topics yet.
const DOUBT_WAIT: Duration = Duration::from_secs(3);

/// Time for a seek, which is an order to the client's own thread.
const SEEK_TIMEOUT: Duration = Duration::from_secs(1);

/// Wakes the reader when a queue that was empty is not.
#[derive(Default)]
struct Wakeup {
    is_ready: Mutex<bool>,
    changed: Condvar,
}

impl Wakeup {
    fn wake(&self) {
        *self.is_ready.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    fn wait(&self, timeout: Duration) {
        let ready = self.is_ready.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut ready, _) = self
            .changed
            .wait_timeout_while(ready, timeout, |ready| !*ready)
            .unwrap_or_else(PoisonError::into_inner);
        *ready = false;
    }
}

/// One partition that is being read.
struct PartitionReader {
    topic: Arc<str>,
    partition: i32,
    name: Partition,
    queue: Arc<PartitionQueue<LogContext>>,
    next: u64,
    end_at_start: u64,
    was_at_end: bool,
}

impl PartitionReader {
    fn is_caught_up(&self) -> bool {
        self.was_at_end || self.next >= self.end_at_start
    }

    fn place(&self) -> String {
        format!("{} at offset {}", self.name, self.next)
    }
}

/// All partitions of a source.
pub(crate) struct Reader {
    connection: Connection,
    consumer: Arc<BaseConsumer<LogContext>>,
    partitions: Vec<PartitionReader>,
    decoder: RecordDecoder,
    decoded: Vec<Decoded>,
    record_bytes_max: usize,
    source: Arc<str>,
    pending: PendingBatch,
    sent_at: Instant,
    wakeup: Arc<Wakeup>,
}

impl Reader {
    /// Assigns all partitions at their positions.
    pub(crate) fn assign(
        connection: Connection,
        config: &KafkaConfig,
        start: &SourceStart,
    ) -> Result<Self, End> {
        let starts = connection.partitions.clone();
        let opened = config.format.open();
        let decoder = opened.map_err(|error| End::failed(error.fact, error.hint))?;
        let consumer: BaseConsumer<LogContext> = client_config(config, &start.name, starts.len())
            .create_with_context(LogContext::new(&start.name))
            .map_err(|error| creation_failed(&error))?;
        let consumer = Arc::new(consumer);
        let refused = |error: KafkaError| {
            let detail = format!("the partitions can't be assigned: {error}");
            End::failed(detail, "check the client's properties")
        };
        consumer
            .assign(&assignment(&starts).map_err(refused)?)
            .map_err(refused)?;
        let wakeup = Arc::new(Wakeup::default());
        let mut pending = PendingBatch::default();
        let mut partitions = Vec::with_capacity(starts.len());
        for start in starts {
            let partition = PartitionReader::split(&consumer, start, &wakeup)?;
            // Also of partitions without records: what retention removes from them is told then.
            pending.set_position(&partition.name, partition.next);
            partitions.push(partition);
        }
        Ok(Self {
            connection,
            consumer,
            partitions,
            decoder,
            decoded: Vec::new(),
            record_bytes_max: config.max_message.as_usize(),
            source: start.name.clone(),
            pending,
            sent_at: Instant::now(),
            wakeup,
        })
    }

    /// Reads until stopped, or until caught up where that is asked for.
    pub(crate) fn run(mut self, start: &SourceStart, sink: &mut dyn SourceSink) -> Result<(), End> {
        let mut is_caught_up = false;
        while !start.stop.is_stopped() {
            self.serve_client(start)?;
            let has_read = self.take_turns(start, sink)?;
            if has_read {
                continue;
            }
            let is_first_time = !is_caught_up && self.is_caught_up();
            let is_due = self.pending.records() > 0
                || self.sent_at.elapsed() >= POSITIONS_INTERVAL
                || is_first_time;
            if is_due {
                self.send(sink)?;
            }
            if is_first_time {
                is_caught_up = true;
                sink.caught_up();
                if start.mode == ReadMode::UntilCaughtUp {
                    return Ok(());
                }
            }
            self.wakeup.wait(IDLE_WAIT);
        }
        Ok(())
    }

    fn is_caught_up(&self) -> bool {
        self.partitions.iter().all(PartitionReader::is_caught_up)
    }

    /// Gives each partition its turn; whether any had a record.
    fn take_turns(&mut self, start: &SourceStart, sink: &mut dyn SourceSink) -> Result<bool, End> {
        let mut has_read = false;
        for index in 0..self.partitions.len() {
            let queue = self.partitions[index].queue.clone();
            for _ in 0..TURN_RECORDS {
                let Some(polled) = queue.poll(Duration::ZERO) else {
                    break;
                };
                has_read = true;
                self.take(index, polled, start)?;
                if self.pending.is_due() {
                    self.send(sink)?;
                }
            }
        }
        Ok(has_read)
    }

    /// Takes what the client has for us outside of the partitions' queues: its complaints, and what
    /// it fetched in the instant before the queues were split off.
    fn serve_client(&mut self, start: &SourceStart) -> Result<(), End> {
        let consumer = self.consumer.clone();
        while let Some(polled) = consumer.poll(Duration::ZERO) {
            match polled {
                Ok(message) => {
                    let is_of = |reader: &PartitionReader| {
                        reader.partition == message.partition() && *reader.topic == *message.topic()
                    };
                    if let Some(index) = self.partitions.iter().position(is_of) {
                        self.take(index, Ok(message), start)?;
                    }
                }
                Err(KafkaError::PartitionEOF(partition)) => self.end_of_some(partition)?,
                Err(error) => self.judge(&error, "the client", None, start)?,
            }
        }
        Ok(())
    }

    /// The end of a partition of which only the number is known. When several topics have it, those
    /// not yet known to be at their end are read on from where they stand, so that their end is
    /// told again.
    fn end_of_some(&mut self, partition: i32) -> Result<(), End> {
        let of_number = |reader: &&mut PartitionReader| reader.partition == partition;
        let mut readers: Vec<_> = self.partitions.iter_mut().filter(of_number).collect();
        if let [reader] = &mut readers[..] {
            reader.was_at_end = true;
            return Ok(());
        }
        for reader in readers.iter().filter(|reader| !reader.is_caught_up()) {
            let offset = Offset::Offset(i64::try_from(reader.next).unwrap_or(i64::MAX));
            let sought = self
                .consumer
                .seek(&reader.topic, partition, offset, SEEK_TIMEOUT);
            sought.map_err(|error| {
                End::failed(format!("{}: {error}", reader.place()), "start again")
            })?;
        }
        Ok(())
    }

    /// Takes a record, an end or an error of one partition.
    fn take(
        &mut self,
        index: usize,
        polled: KafkaResult<BorrowedMessage<'_>>,
        start: &SourceStart,
    ) -> Result<(), End> {
        match polled {
            Ok(message) => {
                self.take_record(index, &message);
                Ok(())
            }
            Err(KafkaError::PartitionEOF(_)) => {
                self.partitions[index].was_at_end = true;
                Ok(())
            }
            Err(error) => {
                let place = self.partitions[index].place();
                self.judge(&error, &place, Some(index), start)
            }
        }
    }

    fn take_record(&mut self, index: usize, message: &BorrowedMessage<'_>) {
        let reader = &mut self.partitions[index];
        let offset = u64::try_from(message.offset()).unwrap_or(0);
        if offset < reader.next {
            // A record again after a seek: it was taken.
            return;
        }
        let record = RawRecord {
            topic: &reader.topic,
            key: message.key(),
            value: message.payload(),
            headers: &[],
        };
        let position = Position {
            source: self.source.clone(),
            partition: reader.name.clone(),
            offset,
        };
        self.decoded.clear();
        let decoded = check_size(&record, self.record_bytes_max)
            .map_err(DecodeError::Rejected)
            .and_then(|()| self.decoder.decode(&record, &mut self.decoded));
        if let Err(error) = decoded {
            let rejected = match error {
                DecodeError::Rejected(rejected) => rejected,
                DecodeError::Unavailable(why) => Rejected::new(DeadLetterReason::Schema, why),
            };
            self.pending.push_dead_letter(DeadLetter::of_record(
                rejected.reason,
                position.clone(),
                rejected.key,
                rejected.detail,
                (record.key, record.value),
            ));
        }
        for decoded in self.decoded.drain(..) {
            match decoded {
                Decoded::Change(change) => self.pending.push_change(Change {
                    key: change.key,
                    row: change.row,
                    unchanged_fields: change.unchanged_fields,
                    position: position.clone(),
                    changed_at: change.changed_at.unwrap_or_else(|| written_at(message)),
                }),
                other => tracing::trace!(partition = &*reader.name, offset, ?other, "not a row"),
            }
        }
        reader.next = offset + 1;
        self.pending.set_position(&reader.name, reader.next);
    }

    fn judge(
        &mut self,
        error: &KafkaError,
        place: &str,
        index: Option<usize>,
        start: &SourceStart,
    ) -> Result<(), End> {
        match judge(error, place) {
            Verdict::Passing => Ok(()),
            Verdict::Final(end) => Err(end),
            Verdict::Unknown => {
                let Some(index) = index else {
                    return Ok(());
                };
                let PartitionReader {
                    topic, partition, ..
                } = &self.partitions[index];
                if start.stop.wait(DOUBT_WAIT) {
                    return Err(End::Stopped);
                }
                if self
                    .connection
                    .has_partition(&start.stop, topic, *partition)?
                {
                    return Ok(());
                }
                Err(End::PositionLost(format!("{place}: the partition is gone")))
            }
        }
    }

    fn send(&mut self, sink: &mut dyn SourceSink) -> Result<(), End> {
        self.sent_at = Instant::now();
        if !self.pending.is_empty() {
            sink.send(self.pending.take(Unity::Changes))?;
        }
        Ok(())
    }
}

impl PartitionReader {
    fn split(
        consumer: &Arc<BaseConsumer<LogContext>>,
        start: PartitionStart,
        wakeup: &Arc<Wakeup>,
    ) -> Result<Self, End> {
        let name = PartitionStart::name(&start.topic, start.partition);
        let Some(mut queue) = consumer.split_partition_queue(&start.topic, start.partition) else {
            return Err(End::failed(
                format!("{name}: the client has no queue for the partition"),
                "start again",
            ));
        };
        let wakeup = wakeup.clone();
        queue.set_nonempty_callback(move || wakeup.wake());
        Ok(Self {
            name,
            topic: start.topic,
            partition: start.partition,
            queue: Arc::new(queue),
            next: start.next.unwrap_or(start.first),
            end_at_start: start.end,
            was_at_end: false,
        })
    }
}

fn assignment(starts: &[PartitionStart]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(starts.len());
    for start in starts {
        let offset = match start.next {
            Some(next) => Offset::Offset(i64::try_from(next).unwrap_or(i64::MAX)),
            // Retention may move the beginning until we get there.
            None => Offset::Beginning,
        };
        list.add_partition_offset(&start.topic, start.partition, offset)?;
    }
    Ok(list)
}

fn check_size(record: &RawRecord<'_>, record_bytes_max: usize) -> Result<(), Rejected> {
    let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
    if bytes <= record_bytes_max {
        return Ok(());
    }
    Err(Rejected::new(
        DeadLetterReason::TooLarge,
        format!("the record has {bytes} bytes, `max_message` is {record_bytes_max}"),
    ))
}

fn written_at(message: &BorrowedMessage<'_>) -> SystemTime {
    let milliseconds = message.timestamp().to_millis();
    milliseconds
        .and_then(time_of_milliseconds)
        .unwrap_or_else(SystemTime::now)
}
