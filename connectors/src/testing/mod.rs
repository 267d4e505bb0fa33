//! What tests of sources need: a sink that keeps what it was given, held rows from a map, and a
//! throw-away Kafka broker.

mod kafka_broker;
mod recording_sink;

pub use kafka_broker::{KafkaBroker, KafkaRecord};
pub use recording_sink::{HeldMap, RecordedRun, RecordingSink, Resume, run_source};
