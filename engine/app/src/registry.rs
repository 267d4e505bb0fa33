//! Every component there is, by name: the only file that knows them all. A new connector, chunker or
//! model is one file in its crate and one line here.

use std::sync::Arc;
use vectide_connectors::{
    DirectoryConfig, FilesConfig, JsonlConfig, KafkaConfig, PostgresConfig, TopicConfig,
};
use vectide_encoder::{bert, hashing, minilm};
use vectide_engine::{
    ChunkerType, DeadLetterSinkType, EmbedderType, IndexType, Registry, SourceType,
};
use vectide_faiss::{FaissFactory, FaissOptions, Quantization};
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
                locate: minilm::locate,
            },
            EmbedderType {
                name: bert::MODEL_NAME,
                open: bert::open,
                locate: bert::locate,
            },
            EmbedderType {
                name: hashing::MODEL_NAME,
                open: hashing::open,
                // It has no files, so that opening it shows all faults.
                locate: |config, context| {
                    hashing::open(config, context).map(|_| "built in".to_owned())
                },
            },
        ],
        dead_letter_sinks: vec![
            DeadLetterSinkType::of::<DirectoryConfig>(),
            DeadLetterSinkType::of::<TopicConfig>(),
        ],
        indexes: vec![
            faiss("pq", Quantization::Pq),
            faiss("sq8", Quantization::Sq8),
            faiss("fp16", Quantization::Fp16),
            faiss("flat", Quantization::Flat),
        ],
    }
}

fn faiss(name: &'static str, quantization: Quantization) -> IndexType {
    let options = FaissOptions {
        quantization,
        ..FaissOptions::default()
    };
    IndexType {
        name,
        factory: Arc::new(FaissFactory::new(options)),
    }
}
