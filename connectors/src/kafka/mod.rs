//! Kafka topics: every partition, read by positions of our own.
//!
//! Positions: the partition is `topic/3`, the offset the record's; reading goes on at the last one
//! plus one. Offsets have holes where Kafka keeps transaction markers or compacted records away.
//! No consumer group is joined. What is durable here is committed to Kafka afterwards, for tools that
//! watch lag, and is never read from there.
//!
//! Order holds within a partition. All topics of a source share one space of keys, so tables whose
//! keys may be equal belong into sources of their own. With Debezium's transaction topic all changes
//! of a transaction become visible together ([`transactions`]); without it only the order within
//! each partition is kept.
//!
//! A recorded position that a partition no longer has is
//! [`vectide_model::SourceError::PositionLost`]: below its start (retention), above its end or with
//! another record before it (the topic was made anew), or of a partition that is gone. A lost
//! connection is the client's own matter: it connects again for as long as the process lives.
//!
//! | file | what |
//! | --- | --- |
//! | `config`, `topics`, `properties` | what can be configured |
//! | `connection`, `check`, `verify`, `fingerprint` | asking the cluster, before reading |
//! | `reader`, `partition`, `records`, `retry`, `truncate`, `outbox` | reading, on the source's thread |
//! | `gathering`, `collections`, `transactions`, `reading_clock` | putting transactions together |
//! | `housekeeping`, `progress`, `telemetry` | what goes on beside it, on a second thread |
//!
//! Invariant: the next offset of a partition is sent with the records before it or after them,
//! never ahead of them.

mod check;
mod collections;
mod config;
mod connection;
mod context;
mod ends;
mod errors;
mod fingerprint;
mod gathering;
mod housekeeping;
mod outbox;
mod partition;
mod progress;
mod properties;
mod reader;
mod reading_clock;
mod records;
mod retry;
mod telemetry;
mod topics;
mod transactions;
mod truncate;
mod verify;

pub use config::{KafkaConfig, TransactionsConfig};

/// Whether a configuration may set a property of the Kafka client.
pub(crate) fn is_client_property_allowed(name: &str) -> bool {
    properties::ALLOWED.contains(&name)
}

use connection::Connection;
use fingerprint::RecordPrint;
use housekeeping::{Housekeeping, Shared};
use reader::{Reader, ReaderParts};
use records::Decode;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use vectide_model::{Partition, Source, SourceError, SourceSink, SourceStart, StopSignal};
use verify::{Sameness, Verifier, made_anew};

/// Records of a topic that are read again at most, when those before are gone: compaction may have
/// removed any one of them.
const PRINTS_OF_TOPIC_MAX: usize = 8;

/// Topics that are ready to be read.
struct KafkaSource {
    config: KafkaConfig,
    decode: Decode,
}

impl Source for KafkaSource {
    fn run(
        self: Box<Self>,
        start: SourceStart,
        sink: &mut dyn SourceSink,
    ) -> Result<(), SourceError> {
        telemetry::describe();
        match self.read(&start, sink) {
            Ok(()) | Err(End::Stopped) => Ok(()),
            Err(End::Source(error)) => Err(error),
            Err(End::Failed { detail, hint }) => Err(SourceError::Failed {
                source_name: start.name.to_string(),
                detail,
                hint,
            }),
            Err(End::PositionLost(detail)) => Err(SourceError::PositionLost {
                source_name: start.name.to_string(),
                detail,
                hint: format!(
                    "read it anew from what the topics still have: `vectide run CONFIG \
                     --resnapshot {}`; compacted topics keep the last value of every key, others \
                     need a new snapshot of their connector first",
                    start.name
                ),
            }),
        }
    }
}

impl KafkaSource {
    fn read(self, start: &SourceStart, sink: &mut dyn SourceSink) -> Result<(), End> {
        let config = &self.config;
        let connection = Connection::open(config, &start.name)?;
        let partitions = connection.partitions(start)?;
        let cluster = connection
            .cluster_id()
            .map(|id| fingerprint::of_cluster(&id));
        check_sameness(config, start, &partitions, cluster.as_ref())?;
        let shared = Shared::default();
        let (sender, news) = channel();
        std::thread::scope(|scope| {
            let housekeeping = Housekeeping {
                config,
                source: start.name.clone(),
                connection: &connection,
                held: start.held.clone(),
                is_trial: start.is_trial,
                shared: &shared,
                news: sender,
            };
            // However reading ends, the other thread ends too.
            let _done = SetAtEnd(&shared.done);
            let parts = ReaderParts {
                config,
                start,
                connection: &connection,
                shared: &shared,
                news,
            };
            let reader = Reader::new(parts, partitions, self.decode, cluster, sink)?;
            scope.spawn(|| housekeeping.run());
            reader.run()
        })
    }
}

/// Sets a signal when it goes.
struct SetAtEnd<'a>(&'a StopSignal);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Whether each topic is the one that was read: a record before its position, in any partition.
fn check_sameness(
    config: &KafkaConfig,
    start: &SourceStart,
    partitions: &[PartitionStart],
    cluster: Option<&(Partition, u64)>,
) -> Result<(), End> {
    let is_other_cluster = cluster.is_some_and(|(key, id)| {
        let before = start.fingerprints.get(key);
        before.is_some_and(|before| before != id)
    });
    let mut verifier = None;
    let mut topics: BTreeMap<&str, Vec<&PartitionStart>> = BTreeMap::new();
    for partition in partitions
        .iter()
        .filter(|partition| partition.next.is_some())
    {
        topics.entry(&partition.topic).or_default().push(partition);
    }
    for (topic, partitions) in topics {
        let prints = partitions.into_iter().filter_map(|of| {
            let name = PartitionStart::name(&of.topic, of.partition);
            let print = RecordPrint::committed(&name, &start.fingerprints)?;
            Some((name, print, of.end))
        });
        let mut sameness = Sameness::Unknown;
        for (name, print, end) in prints.take(PRINTS_OF_TOPIC_MAX) {
            if print.offset >= end {
                return Err(made_anew(&name, print));
            }
            if verifier.is_none() {
                verifier = Some(Verifier::open(config, &start.name)?);
            }
            if let Some(verifier) = &verifier {
                sameness = verifier.verify(&start.stop, &name, print)?;
            }
            match sameness {
                Sameness::Same => break,
                Sameness::Different => return Err(made_anew(&name, print)),
                Sameness::Unknown => {}
            }
        }
        if is_other_cluster && sameness != Sameness::Same {
            return Err(End::PositionLost(format!(
                "`brokers` belong to another cluster than the one where topic `{topic}` was read, \
                 and no record proves that the topic is the same"
            )));
        }
    }
    Ok(())
}

/// Why reading ends before its end.
#[derive(Debug)]
enum End {
    Stopped,
    PositionLost(String),
    Failed {
        detail: String,
        hint: String,
    },
    /// The rows held can't be read.
    Source(SourceError),
}

impl std::fmt::Display for End {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stopped => out.write_str("stopped"),
            Self::PositionLost(detail) | Self::Failed { detail, .. } => out.write_str(detail),
            Self::Source(error) => error.fmt(out),
        }
    }
}

impl End {
    fn failed(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed {
            detail: detail.into(),
            hint: hint.into(),
        }
    }
}

impl From<vectide_model::Stopped> for End {
    fn from(_: vectide_model::Stopped) -> Self {
        Self::Stopped
    }
}

/// One partition at the start of reading.
#[derive(Clone, Debug, PartialEq)]
struct PartitionStart {
    topic: Arc<str>,
    partition: i32,
    /// The committed position; without one reading begins at the first record there is.
    next: Option<u64>,
    /// Where the partition begins and ends now: its first offset, and one past its last.
    first: u64,
    end: u64,
}

impl PartitionStart {
    /// The partition's name in positions.
    fn name(topic: &str, partition: i32) -> Partition {
        Partition::from(format!("{topic}/{partition}"))
    }

    /// Topic and number of a partition's name.
    fn parse(name: &str) -> Option<(&str, i32)> {
        let (topic, number) = name.rsplit_once('/')?;
        Some((topic, number.parse().ok()?))
    }
}
