//! What the engine may be built from. The binary fills it; the engine names no component.

use serde_json::Value;
use std::sync::Arc;
use vectide_model::{
    Chunker, ChunkerConfig, ComponentError, ConnectionCheck, DeadLetterSink, DeadLetterSinkConfig,
    EmbedConfig, OpenContext, OpenEmbedder, PositionProbe, Redecoder, Source, SourceConfig,
    TokenCounter, VectorIndexFactory,
};

/// All components, by the names that configurations use.
pub struct Registry {
    /// Source types.
    pub sources: Vec<SourceType>,
    /// Chunker types.
    pub chunkers: Vec<ChunkerType>,
    /// Embedding models.
    pub embedders: Vec<EmbedderType>,
    /// Places for dead letters, by the field that chooses each.
    pub dead_letter_sinks: Vec<DeadLetterSinkType>,
    /// Ways of keeping vectors; the first is that of an index that says nothing.
    pub indexes: Vec<IndexType>,
}

/// A way of keeping vectors.
pub struct IndexType {
    /// Its name.
    pub name: &'static str,
    /// Opens shards.
    pub factory: Arc<dyn VectorIndexFactory>,
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
    fn check_connection(&self, source: &str, context: &OpenContext) -> Vec<ConnectionCheck>;
    /// What decodes its dead letters again.
    ///
    /// # Errors
    /// When it can't be had.
    fn redecoder(&self, context: &OpenContext) -> Result<Box<dyn Redecoder>, ComponentError>;
    /// What tells where the source ends now.
    fn position_probe(&self, context: &OpenContext) -> Box<dyn PositionProbe>;
}

impl<C: SourceConfig> AnySourceConfig for C {
    fn check(&self) -> Vec<ComponentError> {
        SourceConfig::check(self)
    }
    fn open(self: Box<Self>, context: &OpenContext) -> Result<Box<dyn Source>, ComponentError> {
        SourceConfig::open(*self, context)
    }
    fn check_connection(&self, source: &str, context: &OpenContext) -> Vec<ConnectionCheck> {
        SourceConfig::check_connection(self, source, context)
    }
    fn redecoder(&self, context: &OpenContext) -> Result<Box<dyn Redecoder>, ComponentError> {
        SourceConfig::redecoder(self, context)
    }
    fn position_probe(&self, context: &OpenContext) -> Box<dyn PositionProbe> {
        SourceConfig::position_probe(self, context)
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
    /// Says where its files are, without reading all of them and without fetching any.
    pub locate: fn(&EmbedConfig, &OpenContext) -> Result<String, ComponentError>,
}

/// The configuration of a place for dead letters, its type forgotten.
pub trait AnyDeadLetterSinkConfig: Send + Sync {
    /// All faults that can be seen in the configuration alone.
    fn check(&self) -> Vec<ComponentError>;
    /// Makes it ready.
    ///
    /// # Errors
    /// When it can't work as configured.
    fn open(
        self: Box<Self>,
        context: &OpenContext,
    ) -> Result<Box<dyn DeadLetterSink>, ComponentError>;
    /// Looks whether letters could be written.
    fn check_connection(&self, context: &OpenContext) -> Vec<ConnectionCheck>;
}

impl<C: DeadLetterSinkConfig> AnyDeadLetterSinkConfig for C {
    fn check(&self) -> Vec<ComponentError> {
        DeadLetterSinkConfig::check(self)
    }
    fn open(
        self: Box<Self>,
        context: &OpenContext,
    ) -> Result<Box<dyn DeadLetterSink>, ComponentError> {
        DeadLetterSinkConfig::open(*self, context)
    }
    fn check_connection(&self, context: &OpenContext) -> Vec<ConnectionCheck> {
        DeadLetterSinkConfig::check_connection(self, context)
    }
}

/// A kind of place for dead letters.
pub struct DeadLetterSinkType {
    /// The field that chooses it.
    pub field: &'static str,
    /// JSON Schema of its configuration.
    pub schema: fn() -> Value,
    /// Reads its configuration.
    pub parse: fn(Value) -> Result<Box<dyn AnyDeadLetterSinkConfig>, String>,
}

impl DeadLetterSinkType {
    /// The kind with this configuration.
    pub fn of<C: DeadLetterSinkConfig>() -> Self {
        Self {
            field: C::FIELD,
            schema: schema_of::<C>,
            parse: |value| match serde_json::from_value::<C>(value) {
                Ok(config) => Ok(Box::new(config)),
                Err(error) => Err(error.to_string()),
            },
        }
    }
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
