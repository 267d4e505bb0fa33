//! What the engine may be built from. The binary fills it; the engine names no component.

use serde_json::Value;
use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use vectide_model::{
    Accelerator, Chunker, ChunkerConfig, ComponentError, ConnectionCheck, DeadLetterSink,
    DeadLetterSinkConfig, Embedder, EmbedderConfig, OpenContext, PositionProbe, Redecoder, Source,
    SourceConfig, TokenCounter, TokenizerReader, VectorIndexFactory,
};

/// All components, by the names that configurations use.
pub struct Registry {
    /// Source types.
    pub sources: Vec<SourceType>,
    /// Chunker types.
    pub chunkers: Vec<ChunkerType>,
    /// Embedding models.
    pub embedders: Vec<EmbedderType>,
    /// What may compute them in the processor's place.
    pub accelerator: Arc<dyn Accelerator>,
    /// What counts the tokens of models that are computed elsewhere.
    pub tokenizers: Arc<dyn TokenizerReader>,
    /// Places for dead letters, by the field that chooses each.
    pub dead_letter_sinks: Vec<DeadLetterSinkType>,
    /// Ways of keeping vectors; the first is that of an index that says nothing.
    pub indexes: Vec<IndexType>,
}

impl Registry {
    /// What components of a configuration in that folder are opened with.
    pub fn context(&self, config_dir: impl Into<PathBuf>) -> OpenContext {
        OpenContext::in_folder(config_dir)
            .with_accelerator(self.accelerator.clone())
            .with_tokenizers(self.tokenizers.clone())
    }

    /// Reads the options of a model, for callers that have no configuration with sections.
    ///
    /// # Errors
    /// When there is no such model, or it has no such options.
    pub fn embedder(
        &self,
        model: &str,
        options: Value,
    ) -> Result<Box<dyn AnyEmbedderConfig>, ComponentError> {
        let Some(kind) = self.embedders.iter().find(|it| it.name == model) else {
            let known: Vec<&str> = self.embedders.iter().map(|it| it.name).collect();
            return Err(ComponentError::new(
                "model",
                format!("there is no model `{model}`"),
                format!("known: {}", known.join(", ")),
            ));
        };
        let config = (kind.parse)(options);
        let config = config
            .map_err(|fact| ComponentError::new("", format!("model `{model}`: {fact}"), ""))?;
        match config.check().into_iter().next() {
            Some(fault) => Err(fault),
            None => Ok(config),
        }
    }
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
    /// JSON Schema of its configuration, without `model`.
    pub schema: fn() -> Value,
    /// Reads its configuration.
    pub parse: fn(Value) -> Result<Box<dyn AnyEmbedderConfig>, String>,
}

/// An embedding model's configuration, its type forgotten.
pub trait AnyEmbedderConfig: Any + Send + Sync {
    /// The name under `model:`.
    fn model(&self) -> &'static str;
    /// All faults that can be seen in the configuration alone.
    fn check(&self) -> Vec<ComponentError>;
    /// Makes the model ready.
    ///
    /// # Errors
    /// When it can't work as configured.
    fn open(&self, context: &OpenContext) -> Result<Arc<dyn Embedder>, ComponentError>;
    /// Says where the model is, fetching nothing.
    ///
    /// # Errors
    /// When it can't be opened, as far as that shows.
    fn locate(&self, context: &OpenContext) -> Result<String, ComponentError>;
    /// What stands before a query, where the configuration says it.
    fn query_prefix(&self) -> Option<&str>;
    /// The field that the model's name follows.
    fn name_field(&self) -> &'static str;
    /// Whether both are one model with the same options.
    fn is_same(&self, other: &dyn AnyEmbedderConfig) -> bool;
}

impl<C: EmbedderConfig> AnyEmbedderConfig for C {
    fn model(&self) -> &'static str {
        C::MODEL
    }
    fn check(&self) -> Vec<ComponentError> {
        EmbedderConfig::check(self)
    }
    fn open(&self, context: &OpenContext) -> Result<Arc<dyn Embedder>, ComponentError> {
        EmbedderConfig::open(self, context)
    }
    fn locate(&self, context: &OpenContext) -> Result<String, ComponentError> {
        EmbedderConfig::locate(self, context)
    }
    fn query_prefix(&self) -> Option<&str> {
        EmbedderConfig::query_prefix(self)
    }
    fn name_field(&self) -> &'static str {
        EmbedderConfig::name_field(self)
    }
    fn is_same(&self, other: &dyn AnyEmbedderConfig) -> bool {
        let other: &dyn Any = other;
        other.downcast_ref::<C>() == Some(self)
    }
}

impl EmbedderType {
    /// The model with this configuration.
    pub fn of<C: EmbedderConfig>() -> Self {
        Self {
            name: C::MODEL,
            schema: schema_of::<C>,
            parse: |value| match serde_json::from_value::<C>(value) {
                Ok(config) => Ok(Box::new(config)),
                Err(error) => Err(error.to_string()),
            },
        }
    }
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
