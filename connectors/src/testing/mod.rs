//! What tests of sources need: a sink that keeps what it was given, held rows from a map, and a
//! throw-away Kafka broker, a throw-away PostgreSQL server, a service that embeds and fails as it is told
//! to, and a small state that keeps upsert's rule.

mod embedding_service;
mod kafka_broker;
mod model_state;
mod ports;
mod postgres_server;
mod recording_sink;
mod services;
mod tls_proxy;

pub use embedding_service::{Asked, EmbeddingService, Reply};
pub use kafka_broker::{KafkaBroker, KafkaRecord};
pub use model_state::{ModelRun, ModelState};
pub use ports::free_ports;
pub use postgres_server::{PostgresClient, PostgresServer};
pub use recording_sink::{HeldMap, RecordedRun, RecordingSink, Resume, run_source};
pub use services::{is_torture, started_or_skip};
pub use tls_proxy::{TlsProxy, make_certificate, make_signed_certificate};
