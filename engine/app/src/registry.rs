//! Every component there is, by name: the only file that knows them all. A new connector, chunker or
//! model is one file in its crate and one line here.

use std::sync::Arc;
use vectide_connectors::{
    DirectoryConfig, FilesConfig, JsonlConfig, KafkaConfig, OpenAiConfig, PostgresConfig,
    TopicConfig,
};
use vectide_cuda::cuda::Gpus;
use vectide_encoder::bert::BertConfig;
use vectide_encoder::hashing::HashingConfig;
use vectide_encoder::minilm::MiniLmConfig;
use vectide_engine::{
    ChunkerType, DeadLetterSinkType, EmbedderType, IndexType, Registry, SourceType,
};
use vectide_faiss::{FaissFactory, FaissOptions, Quantization};
use vectide_onnx::{OnnxConfig, Tokenizers};
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
            EmbedderType::of::<MiniLmConfig>(),
            EmbedderType::of::<BertConfig>(),
            EmbedderType::of::<OnnxConfig>(),
            EmbedderType::of::<HashingConfig>(),
            EmbedderType::of::<OpenAiConfig>(),
        ],
        accelerator: Arc::new(Gpus),
        tokenizers: Arc::new(Tokenizers),
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
