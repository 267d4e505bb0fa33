//! Every component there is, by name: the only file that knows them all. A new connector, chunker or
//! model is one file in its crate and one line here.

use std::sync::Arc;
use vectide_connectors::{FilesConfig, JsonlConfig, KafkaConfig, PostgresConfig};
use vectide_encoder::{hashing, minilm};
use vectide_engine::{ChunkerType, EmbedderType, Registry, SourceType};
use vectide_faiss::FaissFactory;
use vectide_operators::chunk::{StructuredConfig, WholeConfig};

/// The components of this program.
pub fn registry() -> Registry {
    Registry {
        sources: vec![
            SourceType::of::<FilesConfig>(),
            SourceType::of::<JsonlConfig>(),
            SourceType::of::<KafkaConfig>(),
            SourceType::of::<PostgresConfig>(),
        ],
        chunkers: vec![
            ChunkerType::of::<StructuredConfig>(),
            ChunkerType::of::<WholeConfig>(),
        ],
        embedders: vec![
            EmbedderType {
                name: minilm::MODEL_NAME,
                open: minilm::open,
            },
            EmbedderType {
                name: hashing::MODEL_NAME,
                open: hashing::open,
            },
        ],
        index: Arc::new(FaissFactory::default()),
    }
}
