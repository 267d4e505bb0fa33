//! Turns a Kafka record into what the pipeline gets.
//!
//! Invariant: every record becomes something, if only a position: changes, a dead letter, a truncate,
//! a marker; and when the decoder can't say what it is now, the record is asked for again.

use super::partition::PartitionReader;
use crate::envelope::format::DecodeError;
use crate::envelope::{
    Decoded, Header, RawRecord, Rejected, TransactionMarker, TransactionPlace, time_of_milliseconds,
};
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers};
use std::sync::Arc;
use std::time::SystemTime;
use vectide_model::{Change, DeadLetter, DeadLetterReason, Position};

/// Adds what a record means to a list.
pub(crate) type Decode =
    Box<dyn FnMut(&RawRecord<'_>, &mut Vec<Decoded>) -> Result<(), DecodeError> + Send>;

/// A part of what a record means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    Change(Change),
    DeadLetter(DeadLetter),
    /// All rows of the topic went, at that time.
    Truncate(SystemTime),
}

/// What a record means.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) items: Vec<Item>,
    pub(crate) place: Option<TransactionPlace>,
    pub(crate) marker: Option<TransactionMarker>,
}

impl Record {
    fn clear(&mut self) {
        self.items.clear();
        self.place = None;
        self.marker = None;
    }

    /// What the items weigh in memory, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let bytes_of = |item: &Item| match item {
            Item::Change(change) => {
                change.key.len() + change.row.as_ref().map_or(0, |row| row.len())
            }
            Item::DeadLetter(letter) => letter.raw.len(),
            Item::Truncate(_) => 0,
        };
        let items = self.items.iter();
        items.map(|item| size_of::<Item>() + bytes_of(item)).sum()
    }
}

/// Decodes the records of a source.
pub(crate) struct RecordReader {
    source: Arc<str>,
    decode: Decode,
    decoded: Vec<Decoded>,
    record_bytes_max: usize,
}

impl RecordReader {
    pub(crate) fn new(source: Arc<str>, decode: Decode, record_bytes_max: usize) -> Self {
        Self {
            source,
            decode,
            decoded: Vec::new(),
            record_bytes_max,
        }
    }

    /// Says what a record means; the error is why that can't be said now.
    pub(crate) fn read(
        &mut self,
        partition: &PartitionReader,
        message: &BorrowedMessage<'_>,
        record: &mut Record,
    ) -> Result<(), String> {
        record.clear();
        let headers = headers_of(message);
        let raw = RawRecord {
            topic: &partition.topic,
            key: message.key(),
            value: message.payload(),
            headers: &headers,
        };
        let position = Position {
            source: self.source.clone(),
            partition: partition.name.clone(),
            offset: u64::try_from(message.offset()).unwrap_or(0),
        };
        self.decoded.clear();
        let decoded = check_size(&raw, self.record_bytes_max)
            .map_err(DecodeError::Rejected)
            .and_then(|()| (self.decode)(&raw, &mut self.decoded));
        match decoded {
            Ok(()) => {}
            Err(DecodeError::Unavailable(why)) => return Err(why),
            Err(DecodeError::Rejected(rejected)) => {
                record.items.push(Item::DeadLetter(DeadLetter::of_record(
                    rejected.reason,
                    position,
                    rejected.key,
                    rejected.detail,
                    (raw.key, raw.value),
                )));
                return Ok(());
            }
        }
        for decoded in self.decoded.drain(..) {
            match decoded {
                Decoded::Change(change) => {
                    if record.place.is_none() {
                        record.place = change.transaction;
                    }
                    record.items.push(Item::Change(Change {
                        key: change.key,
                        row: change.row,
                        unchanged_fields: change.unchanged_fields,
                        position: position.clone(),
                        changed_at: change.changed_at.unwrap_or_else(|| written_at(message)),
                    }));
                }
                Decoded::Truncate { changed_at } => {
                    let at = changed_at.unwrap_or_else(|| written_at(message));
                    record.items.push(Item::Truncate(at));
                }
                Decoded::Transaction(marker) => record.marker = Some(marker),
                Decoded::Heartbeat { .. } | Decoded::Ignored(_) => {}
            }
        }
        Ok(())
    }
}

/// Without headers, as most records are, nothing is allocated.
fn headers_of<'a>(message: &'a BorrowedMessage<'_>) -> Vec<Header<'a>> {
    let Some(headers) = message.headers() else {
        return Vec::new();
    };
    (0..headers.count())
        .filter_map(|index| {
            let header = headers.try_get(index)?;
            Some((header.key, header.value))
        })
        .collect()
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
