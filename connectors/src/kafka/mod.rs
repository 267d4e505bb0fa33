//! Kafka topics: every partition, read by positions of our own.
//!
//! Positions: the partition is `topic/3`, the offset the record's; reading goes on at the last one
//! plus one. Offsets have holes where Kafka keeps transaction markers or compacted records away.
//! Nothing is stored in Kafka, and no consumer group is joined.
//!
//! Order holds within a partition. All topics of a source share one space of keys, so tables whose
//! keys may be equal belong into sources of their own.
//!
//! A recorded position that a partition no longer has is
//! [`vectide_model::SourceError::PositionLost`]: below its start (retention), above its end (the
//! topic was made anew), or of a partition that is gone. A lost connection is the client's own
//! matter: it connects again for as long as the process lives.
//!
//! Invariant: the next offset of a partition is sent with the records before it or after them,
//! never ahead of them.

mod config;
mod connection;
mod context;
mod errors;
mod properties;
mod reader;

pub use config::KafkaConfig;

/// Whether a configuration may set a property of the Kafka client.
pub(crate) fn is_client_property_allowed(name: &str) -> bool {
    properties::ALLOWED.contains(&name)
}

use connection::Connection;
use reader::Reader;
use std::sync::Arc;
use vectide_model::{Source, SourceError, SourceSink, SourceStart};

/// Topics that are ready to be read.
struct KafkaSource {
    config: KafkaConfig,
}

impl Source for KafkaSource {
    fn run(
        self: Box<Self>,
        start: SourceStart,
        sink: &mut dyn SourceSink,
    ) -> Result<(), SourceError> {
        let reading = Connection::open(&self.config, &start)
            .and_then(|connection| Reader::assign(connection, &self.config, &start))
            .and_then(|reader| reader.run(&start, sink));
        match reading {
            Ok(()) | Err(End::Stopped) => Ok(()),
            Err(End::Failed { detail, hint }) => Err(SourceError::Failed {
                source_name: start.name.to_string(),
                detail,
                hint,
            }),
            Err(End::PositionLost(detail)) => Err(SourceError::PositionLost {
                source_name: start.name.to_string(),
                detail,
                hint:
                    "remove the state folder and read the topics anew from what they still have; \
                       compacted topics keep the last value of every key"
                        .into(),
            }),
        }
    }
}

/// Why reading ends before its end.
#[derive(Debug)]
enum End {
    Stopped,
    PositionLost(String),
    Failed { detail: String, hint: String },
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
    fn name(topic: &str, partition: i32) -> vectide_model::Partition {
        vectide_model::Partition::from(format!("{topic}/{partition}"))
    }
}
