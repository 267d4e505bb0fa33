//! Reads all partitions in turns and hands on what is at hand.
//!
//! Each partition has a queue of its own in the client, so that its end and its errors are known to
//! be its own, and a busy partition does not hide a quiet one. Without transactions a record goes
//! straight into the batch; with them it waits in [`super::transactions`] for the rest of its own.
//!
//! Invariant: records of one partition enter batches in the order of their offsets, and the
//! position behind a record enters the batch that the record is in.

use super::connection::{Connection, creation_failed};
use super::context::LogContext;
use super::errors::{Verdict, judge, refused};
use super::fingerprint::RecordPrint;
use super::gathering::Gathering;
use super::housekeeping::{News, Shared};
use super::outbox::Outbox;
use super::partition::{PartitionReader, Queue, Wakeup, assignment};
use super::properties::client_config;
use super::records::{Decode, Item, Record, RecordReader};
use super::retry::Retry;
use super::truncate::{Truncate, truncate};
use super::{End, KafkaConfig, PartitionStart};
use crate::batch::Unity;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::Offset;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use vectide_model::{Partition, ReadMode, SourceSink, SourceStart};

/// Records of one partition before it is the next one's turn.
const TURN_RECORDS: usize = 100;

/// Records between two looks at the clock, which cost as much as a part of decoding one: even of
/// large records so few take no noticeable part of a batch's age.
const CLOCK_RECORDS: usize = 16;

/// Longest sleep while nothing comes: the stop signal is seen this often.
const IDLE_WAIT: Duration = Duration::from_millis(50);

/// Wait before the cluster is asked whether a topic which the client doubts is really gone: a
/// broker that starts may not know its topics yet.
const DOUBT_WAIT: Duration = Duration::from_secs(3);

/// Time for a seek, which is an order to the client's own thread.
const SEEK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long brokers may refuse a client that they let in before: the place where tokens come from
/// may be away, and is asked again every ten seconds.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(60);

/// What a reader is made of.
pub(crate) struct ReaderParts<'a> {
    pub(crate) config: &'a KafkaConfig,
    pub(crate) start: &'a SourceStart,
    pub(crate) connection: &'a Connection,
    pub(crate) shared: &'a Shared,
    pub(crate) news: Receiver<News>,
}

/// All partitions of a source.
pub(crate) struct Reader<'a> {
    parts: ReaderParts<'a>,
    consumer: Arc<BaseConsumer<LogContext>>,
    readers: Vec<PartitionReader>,
    /// The queue of each of them.
    queues: Vec<Queue>,
    records: RecordReader,
    record: Record,
    gathering: Option<Gathering>,
    outbox: Outbox<'a>,
    wakeup: Arc<Wakeup>,
}

impl<'a> Reader<'a> {
    /// Assigns all partitions at their positions.
    pub(crate) fn new(
        parts: ReaderParts<'a>,
        starts: Vec<PartitionStart>,
        decode: Decode,
        cluster: Option<(Partition, u64)>,
        sink: &'a mut dyn SourceSink,
    ) -> Result<Self, End> {
        let config = parts.config;
        let source = &parts.start.name;
        let wakeup = Arc::new(Wakeup::default());
        let transactions = config.transactions.as_ref().map(|it| &*it.topic);
        let mut outbox = Outbox::new(sink);
        if let Some((key, id)) = cluster {
            outbox.set_fingerprint(&key, id);
        }
        let mut readers = Vec::with_capacity(starts.len());
        for start in starts {
            let is_markers = transactions == Some(&*start.topic);
            let mut reader = PartitionReader::new(start, is_markers);
            // Also of partitions without records: what retention removes from them is told then.
            let next = reader.next;
            outbox.hand(&mut reader, next);
            readers.push(reader);
        }
        let gathering = config.transactions.as_ref();
        let gathering = gathering
            .map(|of| Gathering::new(config, of, &readers))
            .transpose()?;
        let (consumer, queues) = assign(config, source, &readers, &wakeup)?;
        let bytes_max = config.max_message.as_usize();
        Ok(Self {
            records: RecordReader::new(source.clone(), decode, bytes_max),
            record: Record::default(),
            consumer,
            readers,
            queues,
            gathering,
            outbox,
            wakeup,
            parts,
        })
    }

    /// Reads until stopped, or until caught up where that is asked for.
    pub(crate) fn run(mut self) -> Result<(), End> {
        let mut is_caught_up = false;
        while !self.parts.start.stop.is_stopped() {
            self.hear_news()?;
            self.serve_client()?;
            let has_read = self.take_turns()?;
            self.release()?;
            if !is_caught_up && self.is_caught_up() {
                is_caught_up = true;
                self.send()?;
                self.outbox.caught_up();
                if self.parts.start.mode == ReadMode::UntilCaughtUp {
                    self.parts.shared.is_finished.store(true, Ordering::Release);
                    return Ok(());
                }
            }
            if has_read {
                continue;
            }
            if self.outbox.is_due_when_idle() {
                self.send()?;
            }
            self.wakeup.wait(IDLE_WAIT);
        }
        Ok(())
    }

    fn is_caught_up(&self) -> bool {
        let is_at_rest = self
            .gathering
            .as_ref()
            .is_none_or(|gathering| !gathering.is_held());
        is_at_rest && self.readers.iter().all(PartitionReader::is_caught_up)
    }

    fn send(&mut self) -> Result<(), End> {
        self.outbox
            .send(&mut self.readers, &self.parts.shared.progress)
    }

    fn hear_news(&mut self) -> Result<(), End> {
        while let Ok(news) = self.parts.news.try_recv() {
            match news {
                News::End(end) => return Err(end),
                News::Partitions(found) => self.add_partitions(found)?,
            }
        }
        Ok(())
    }

    /// Goes on with more partitions. The client is made anew: its memory is shared out among
    /// partitions when it is made.
    fn add_partitions(&mut self, found: Vec<PartitionStart>) -> Result<(), End> {
        let before = self.readers.len();
        for start in found {
            let name = PartitionStart::name(&start.topic, start.partition);
            // Found twice when it was looked for twice before we heard of it.
            if self.readers.iter().all(|reader| reader.name != name) {
                tracing::info!(
                    source = &*self.parts.start.name,
                    "{name} is new and is read now"
                );
                let mut reader = PartitionReader::new(start, false);
                let next = reader.next;
                self.outbox.hand(&mut reader, next);
                self.readers.push(reader);
            }
        }
        if let Some(gathering) = &mut self.gathering {
            gathering.heard_of_partitions(&self.readers);
        }
        if self.readers.len() == before {
            return Ok(());
        }
        // The old client goes before the new one takes its memory.
        self.queues.clear();
        let (config, source) = (self.parts.config, &self.parts.start.name);
        (self.consumer, self.queues) = assign(config, source, &self.readers, &self.wakeup)?;
        if let Some(gathering) = &mut self.gathering {
            gathering.forget_ends();
        }
        // Its places of work are known to the other thread from here on.
        self.send()
    }

    /// Gives each partition its turn; whether any had a record.
    fn take_turns(&mut self) -> Result<bool, End> {
        let mut has_read = false;
        if let Some(gathering) = &mut self.gathering {
            gathering.begin_turn();
        }
        for index in 0..self.queues.len() {
            let queue = self.queues[index].clone();
            for taken in 1..=TURN_RECORDS {
                if !self.wants(index) {
                    break;
                }
                let Some(polled) = queue.poll(Duration::ZERO) else {
                    if let Some(gathering) = &mut self.gathering {
                        gathering.found_empty(index, &self.readers[index]);
                    }
                    break;
                };
                has_read = true;
                self.take(index, polled)?;
                let is_due = match taken % CLOCK_RECORDS {
                    0 => self.outbox.is_full(),
                    _ => self.outbox.is_large(),
                };
                if is_due {
                    self.send()?;
                }
            }
            if self.outbox.is_full() {
                self.send()?;
            }
        }
        Ok(has_read)
    }

    fn wants(&self, index: usize) -> bool {
        let gathering = self.gathering.as_ref();
        gathering.is_none_or(|gathering| gathering.wants(index, &self.readers[index]))
    }

    /// Takes what the client has for us outside of the partitions' queues: its complaints, and what
    /// it fetched in the instant before the queues were split off.
    fn serve_client(&mut self) -> Result<(), End> {
        let consumer = self.consumer.clone();
        while let Some(polled) = consumer.poll(Duration::ZERO) {
            match polled {
                Ok(message) => {
                    let is_of = |reader: &PartitionReader| {
                        reader.id == message.partition() && *reader.topic == *message.topic()
                    };
                    if let Some(index) = self.readers.iter().position(is_of) {
                        self.take(index, Ok(message))?;
                    }
                }
                Err(KafkaError::PartitionEOF(partition)) => self.end_of_some(partition)?,
                Err(error) => self.judge(&error, "the client", None)?,
            }
        }
        match consumer.context().refused_for(REFUSED_TIMEOUT) {
            Some(reason) => Err(refused(&reason)),
            None => Ok(()),
        }
    }

    /// The end of a partition of which only the number is known. When several topics have it, those
    /// not yet known to be at their end are read on from where they stand, so that their end is
    /// told again.
    fn end_of_some(&mut self, partition: i32) -> Result<(), End> {
        let readers = self.readers.iter().enumerate();
        let of_number = readers.filter(|(_, reader)| reader.id == partition);
        let of_number: Vec<usize> = of_number.map(|(index, _)| index).collect();
        if let [index] = of_number[..] {
            self.reached_end(index);
            return Ok(());
        }
        let readers = of_number.iter().map(|index| &self.readers[*index]);
        for reader in readers.filter(|reader| !reader.is_read()) {
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
    fn take(&mut self, index: usize, polled: KafkaResult<BorrowedMessage<'_>>) -> Result<(), End> {
        match polled {
            Ok(message) => self.take_record(index, &message),
            Err(KafkaError::PartitionEOF(_)) => {
                self.reached_end(index);
                Ok(())
            }
            Err(error) => {
                let place = self.readers[index].place();
                self.judge(&error, &place, Some(index))
            }
        }
    }

    fn reached_end(&mut self, index: usize) {
        self.readers[index].reached_end();
        if let Some(gathering) = &mut self.gathering {
            gathering.reached_end(index, &self.readers[index]);
        }
    }

    fn take_record(&mut self, index: usize, message: &BorrowedMessage<'_>) -> Result<(), End> {
        let print = RecordPrint::of(message);
        if let Some(gathering) = &mut self.gathering {
            gathering.polled(index, &self.readers[index]);
        }
        // A record again after a seek: it was taken.
        if !self.readers[index].advance(print) {
            return Ok(());
        }
        let mut retry = Retry::new(&self.parts.start.name);
        while let Err(why) = self
            .records
            .read(&self.readers[index], message, &mut self.record)
        {
            // Whatever was read before it does not have to wait.
            self.release()?;
            self.send()?;
            retry.wait(&why, &self.parts.start.stop)?;
        }
        retry.is_over();
        match &mut self.gathering {
            Some(gathering) => {
                let place = (index, print.offset);
                gathering.take(place, &mut self.record, &self.readers, self.parts.shared);
                for item in self.record.items.drain(..) {
                    self.outbox.push(item);
                }
                Ok(())
            }
            None => self.hand_on(index, print.offset),
        }
    }

    /// Hands on the record that was just read.
    fn hand_on(&mut self, index: usize, offset: u64) -> Result<(), End> {
        let mut items = std::mem::take(&mut self.record.items);
        for item in items.drain(..) {
            self.hand_on_item(index, offset, item)?;
        }
        self.record.items = items;
        self.outbox.hand(&mut self.readers[index], offset + 1);
        Ok(())
    }

    fn hand_on_item(&mut self, index: usize, offset: u64, item: Item) -> Result<(), End> {
        let Item::Truncate(at) = item else {
            self.outbox.push(item);
            return Ok(());
        };
        self.send()?;
        let it = Truncate { index, offset, at };
        truncate(it, &self.readers, self.parts.start, &mut self.outbox)
    }

    /// Hands on the transactions that are complete.
    fn release(&mut self) -> Result<(), End> {
        while let Some(cut) = self.gathering.as_mut().and_then(Gathering::release) {
            let unity = if cut.is_transaction {
                Unity::Transaction
            } else {
                Unity::Changes
            };
            let progress = &self.parts.shared.progress;
            if !cut.records.is_empty() {
                self.outbox.set_unity(unity, &mut self.readers, progress)?;
            }
            self.outbox.count_split(cut.split);
            for (index, record) in cut.records {
                for item in record.payload {
                    self.hand_on_item(index, record.offset, item)?;
                }
                self.outbox
                    .hand(&mut self.readers[index], record.offset + 1);
            }
            let markers = self.readers.iter_mut().find(|reader| reader.is_markers);
            if let (Some(next), Some(reader)) = (cut.markers_next, markers) {
                self.outbox.hand(reader, next);
            }
            if self.outbox.is_full() {
                self.send()?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, error: &KafkaError, place: &str, index: Option<usize>) -> Result<(), End> {
        match judge(error, place) {
            Verdict::Passing => Ok(()),
            Verdict::Final(end) => Err(end),
            Verdict::Unknown => {
                let Some(index) = index else {
                    return Ok(());
                };
                let PartitionReader { topic, id, .. } = &self.readers[index];
                let stop = &self.parts.start.stop;
                if stop.wait(DOUBT_WAIT) {
                    return Err(End::Stopped);
                }
                if self.parts.connection.has_partition(stop, topic, *id)? {
                    return Ok(());
                }
                Err(End::PositionLost(format!("{place}: the partition is gone")))
            }
        }
    }
}

/// Makes a client that reads partitions from where they stand.
fn assign(
    config: &KafkaConfig,
    source: &Arc<str>,
    readers: &[PartitionReader],
    wakeup: &Arc<Wakeup>,
) -> Result<(Arc<BaseConsumer<LogContext>>, Vec<Queue>), End> {
    let consumer: BaseConsumer<LogContext> = client_config(config, source, readers.len())
        .create_with_context(LogContext::new(source))
        .map_err(|error| creation_failed(&error))?;
    let consumer = Arc::new(consumer);
    let assigned = assignment(readers).and_then(|list| consumer.assign(&list));
    assigned.map_err(|error| {
        let detail = format!("the partitions can't be assigned: {error}");
        End::failed(detail, "check the client's properties")
    })?;
    let queues = readers
        .iter()
        .map(|reader| reader.split_queue(&consumer, wakeup));
    let queues = queues.collect::<Result<_, _>>()?;
    Ok((consumer, queues))
}
