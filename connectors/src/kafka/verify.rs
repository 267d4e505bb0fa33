//! Reads remembered records again, to see whether a topic is still the one that was read.
//!
//! Invariant: a client of its own does it, so that it takes no record away from those who read.

use super::connection::creation_failed;
use super::context::LogContext;
use super::errors::{Verdict, judge, refused};
use super::fingerprint::RecordPrint;
use super::properties::asking_config;
use super::{End, KafkaConfig, PartitionStart};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};
use vectide_model::{Partition, StopSignal};

/// One wait for the record; stopping waits for it.
const POLL_WAIT: Duration = Duration::from_millis(100);

/// How long a record may take: its broker may be starting.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// How long brokers may refuse this client: others of this process were let in before.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(5);

/// What reading a record again told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sameness {
    /// It is there as it was.
    Same,
    /// Another one is there.
    Different,
    /// It is gone: retention or compaction removed it.
    Unknown,
}

/// Reads single records.
pub(crate) struct Verifier {
    client: BaseConsumer<LogContext>,
}

impl Verifier {
    pub(crate) fn open(config: &KafkaConfig, source: &str) -> Result<Self, End> {
        let client = asking_config(config, source)
            .create_with_context(LogContext::new(source))
            .map_err(|error| creation_failed(&error))?;
        Ok(Self { client })
    }

    /// Looks whether a partition still has a record.
    pub(crate) fn verify(
        &self,
        stop: &StopSignal,
        partition: &Partition,
        print: RecordPrint,
    ) -> Result<Sameness, End> {
        let Some((topic, id)) = PartitionStart::parse(partition) else {
            return Ok(Sameness::Unknown);
        };
        let mut list = TopicPartitionList::new();
        let offset = i64::try_from(print.offset).unwrap_or(i64::MAX);
        let assigned = list
            .add_partition_offset(topic, id, Offset::Offset(offset))
            .and_then(|()| self.client.assign(&list));
        assigned.map_err(|error| {
            End::failed(format!("{partition} can't be read: {error}"), "start again")
        })?;
        let found = self.read(stop, partition, print.offset);
        // What is still under way of this partition belongs to nobody.
        drop(self.client.unassign());
        Ok(match found? {
            Some(found) if found == print => Sameness::Same,
            Some(found) if found.offset == print.offset => Sameness::Different,
            _ => Sameness::Unknown,
        })
    }

    /// The first record from an offset on, if there is one.
    fn read(
        &self,
        stop: &StopSignal,
        partition: &Partition,
        offset: u64,
    ) -> Result<Option<RecordPrint>, End> {
        let place = format!("{partition} at offset {offset}");
        let began_at = Instant::now();
        while !stop.is_stopped() {
            match self.client.poll(POLL_WAIT) {
                None => {}
                Some(Ok(message)) => return Ok(Some(RecordPrint::of(&message))),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(None),
                Some(Err(error)) if is_out_of_range(&error) => return Ok(None),
                Some(Err(error)) => {
                    if let Verdict::Final(end) = judge(&error, &place) {
                        return Err(end);
                    }
                }
            }
            if let Some(reason) = self.client.context().refused_for(REFUSED_TIMEOUT) {
                return Err(refused(&reason));
            }
            if began_at.elapsed() >= READ_TIMEOUT {
                return Err(End::failed(
                    format!("{place}: not read within {} s", READ_TIMEOUT.as_secs()),
                    "check the brokers: the partition may have no leader",
                ));
            }
        }
        Err(End::Stopped)
    }
}

fn is_out_of_range(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
    )
}

/// The error of a topic that is another one.
pub(crate) fn made_anew(partition: &Partition, print: RecordPrint) -> End {
    let offset = print.offset;
    End::PositionLost(format!(
        "the record at offset {offset} of {partition} is not the one that was read there: the topic \
         was made anew"
    ))
}
