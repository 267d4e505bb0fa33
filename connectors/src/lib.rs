//! The outside world as positioned changes: line logs, directories, Kafka, PostgreSQL; the places where
//! dead letters are written; and services that embed.
//!
//! Every source implements the contract in `vectide-model` and keeps its configuration beside
//! itself. Transport (how bytes arrive and where they stand) and envelope (what the bytes say) are
//! separate: everything under [`envelope`] is a pure function of bytes.
//!
//! Invariant: what is read becomes a change, a dead letter or a kind of record that the
//! documentation names as ignored; never anything else, and never twice after a clean commit.

mod batch;
pub mod dead_letters;
mod embedding_service;
pub mod envelope;
pub mod files;
pub mod jsonl;
pub mod kafka;
pub mod postgres;
mod redecode;
pub mod registry;
#[cfg(feature = "testing")]
pub mod testing;

pub use dead_letters::{DirectoryConfig, TopicConfig};
pub use embedding_service::OpenAiConfig;
pub use files::FilesConfig;
pub use jsonl::JsonlConfig;
pub use kafka::KafkaConfig;
pub use postgres::PostgresConfig;
