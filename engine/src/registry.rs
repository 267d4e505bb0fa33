//! What the engine may be built from. The binary fills it; the engine names no component.

use serde_json::Value;
use std::sync::Arc;
use vectide_model::{
    Chunker, ChunkerConfig, ComponentError, ConnectionCheck, OpenContext, OpenEmbedder, Redecoder,
    Source, SourceConfig, TokenCounter, VectorIndexFactory,
};

/// All components, by the names that configurations use.
pub struct Registry {
    /// Source types.
    pub sources: Vec<SourceType>,
    /// Chunker types.
    pub chunkers: Vec<ChunkerType>,
    /// Embedding models.
    pub embedders: Vec<EmbedderType>,
    /// The vector index.
    pub index: Arc<dyn VectorIndexFactory>,
}

/// A source's configuration, its type forgotten.
pub trait AnySourceConfig: Send + Sync {
    /// All faults that can be seen in the configuration alone.
    fn check(&self) -> Vec<ComponentError>;
    /// Makes the source ready to run.
    ///
    /// # Errors
    /// When it can't run as configured.
    fn open(self: Box<Self>, context: &OpenContext) -> Result<Box<dyn Source>, ComponentError>;
    /// Looks at what the source needs in the outside world.
    fn check_connection(&self, context: &OpenContext) -> Vec<ConnectionCheck>;
    /// What decodes its dead letters again.
    ///
    /// # Errors
    /// When it can't be had.
    fn redecoder(&self, context: &OpenContext) -> Result<Box<dyn Redecoder>, ComponentError>;
}

impl<C: SourceConfig> AnySourceConfig for C {
    fn check(&self) -> Vec<ComponentError> {
        SourceConfig::check(self)
    }
    fn open(self: Box<Self>, context: &OpenContext) -> Result<Box<dyn Source>, ComponentError> {
        SourceConfig::open(*self, context)
    }
    fn check_connection(&self, context: &OpenContext) -> Vec<ConnectionCheck> {
        SourceConfig::check_connection(self, context)
    }
    fn redecoder(&self, context: &OpenContext) -> Result<Box<dyn Redecoder>, ComponentError> {
        SourceConfig::redecoder(self, context)
    }
}

/// A chunker's configuration, its type forgotten.
pub trait AnyChunkerConfig: Send + Sync {
    /// All faults that can be seen in the configuration alone.
    fn check(&self) -> Vec<ComponentError>;
    /// Builds the chunker.
    ///
    /// # Errors
    /// When it can't work as configured.
    fn open(
        self: Box<Self>,
        tokens: Arc<dyn TokenCounter>,
    ) -> Result<Arc<dyn Chunker>, ComponentError>;
}

impl<C: ChunkerConfig> AnyChunkerConfig for C {
    fn check(&self) -> Vec<ComponentError> {
        ChunkerConfig::check(self)
    }
    fn open(
        self: Box<Self>,
        tokens: Arc<dyn TokenCounter>,
    ) -> Result<Arc<dyn Chunker>, ComponentError> {
        ChunkerConfig::open(*self, tokens)
    }
}

/// A source type.
pub struct SourceType {
    /// The name under `type:`.
    pub name: &'static str,
    /// JSON Schema of its configuration, without `type`.
    pub schema: fn() -> Value,
    /// Reads its configuration.
    pub parse: fn(Value) -> Result<Box<dyn AnySourceConfig>, String>,
}

/// A chunker type.
pub struct ChunkerType {
    /// The name under `type:`.
    pub name: &'static str,
    /// JSON Schema of its configuration, without `type`.
    pub schema: fn() -> Value,
    /// Reads its configuration.
    pub parse: fn(Value) -> Result<Box<dyn AnyChunkerConfig>, String>,
}

/// An embedding model.
pub struct EmbedderType {
    /// The name under `model:`.
    pub name: &'static str,
    /// Opens it.
    pub open: OpenEmbedder,
}

fn schema_of<C: schemars::JsonSchema>() -> Value {
    schemars::schema_for!(C).to_value()
}

impl SourceType {
    /// The source type with this configuration.
    pub fn of<C: SourceConfig>() -> Self {
        Self {
            name: C::TYPE,
            schema: schema_of::<C>,
            parse: |value| match serde_json::from_value::<C>(value) {
                Ok(config) => Ok(Box::new(config)),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

impl ChunkerType {
    /// The chunker type with this configuration.
    pub fn of<C: ChunkerConfig>() -> Self {
        Self {
            name: C::TYPE,
            schema: schema_of::<C>,
            parse: |value| match serde_json::from_value::<C>(value) {
                Ok(config) => Ok(Box::new(config)),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}
