//! How configured components come to life: parse (serde), check (pure), open (touches the world).
//!
//! Each component keeps its configuration struct in its own file, with unknown fields denied, and
//! the registry of the binary names the struct. Nothing else has to know it.

use crate::{
    Accelerator, Change, Chunker, DeadLetter, Embedder, NoBackend, NoTokenizerReader, Partition,
    Source, TokenCounter, TokenizerReader,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A fault in a configuration or in opening a component: short fact, detail, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fact}")]
pub struct ComponentError {
    /// Path of the field inside the component's configuration, `format.key`; empty for the whole.
    pub field: String,
    /// What is wrong.
    pub fact: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl ComponentError {
    /// A fault of one field.
    pub fn new(field: impl Into<String>, fact: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            fact: fact.into(),
            hint: hint.into(),
        }
    }
}

/// What components may know of where they run.
#[derive(Clone)]
pub struct OpenContext {
    /// Relative paths of a configuration are relative to the folder of its file.
    pub config_dir: PathBuf,
    /// What may compute in the processor's place.
    pub accelerator: Arc<dyn Accelerator>,
    /// What counts the tokens of models that are computed elsewhere.
    pub tokenizers: Arc<dyn TokenizerReader>,
}

impl OpenContext {
    /// Components of a configuration in that folder, in a program without an accelerator and tokenizers.
    pub fn in_folder(config_dir: impl Into<PathBuf>) -> Self {
        Self {
            config_dir: config_dir.into(),
            accelerator: Arc::new(NoBackend),
            tokenizers: Arc::new(NoTokenizerReader),
        }
    }

    /// The same in a program that has one.
    pub fn with_accelerator(self, accelerator: Arc<dyn Accelerator>) -> Self {
        Self {
            accelerator,
            ..self
        }
    }

    /// The same in a program that reads tokenizers.
    pub fn with_tokenizers(self, tokenizers: Arc<dyn TokenizerReader>) -> Self {
        Self { tokenizers, ..self }
    }
}

/// One thing that was looked at in the outside world, and what was found: a line for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionCheck {
    /// What was looked at: `topic orders`, `slot vectide_docs`.
    pub what: String,
    /// What was found, or what is wrong and what to do.
    pub result: Result<String, ComponentError>,
}

/// Decodes records again that became dead letters, once what kept them out was put right.
pub trait Redecoder: Send {
    /// The changes that the letter's record means, at its old position: a row that was written by a
    /// later one meanwhile stays as it is.
    ///
    /// # Errors
    /// The letter with the reason why it still is one; also when its record decodes and means what a
    /// replay can't do, so that it is not taken for done.
    fn decode_again(&mut self, letter: &DeadLetter) -> Result<Vec<Change>, Box<RefusedLetter>>;
}

/// A letter that still is one.
#[derive(Clone, Debug, PartialEq)]
pub struct RefusedLetter {
    /// The letter with its reason now.
    pub letter: DeadLetter,
    /// The way out; may be empty.
    pub hint: String,
}

/// The configuration of a source type. Implement it beside the source.
pub trait SourceConfig: DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name under `type:`.
    const TYPE: &'static str;

    /// Faults that can be seen without touching the outside world; all of them, not the first.
    fn check(&self) -> Vec<ComponentError>;

    /// Makes the source ready to run; connecting may wait until it runs.
    ///
    /// # Errors
    /// When it can't run as configured.
    fn open(self, context: &OpenContext) -> Result<Box<dyn Source>, ComponentError>;

    /// Looks at everything in the outside world that the source needs (servers, topics, tables,
    /// privileges), changes nothing, and tells each in one line. Takes seconds at most. `source` is
    /// its name, after which things may be named in the outside world.
    fn check_connection(&self, source: &str, context: &OpenContext) -> Vec<ConnectionCheck>;

    /// What decodes this source's dead letters again.
    ///
    /// # Errors
    /// When it can't be had, or this source has no use for it (a file is read again when it
    /// changes).
    fn redecoder(&self, context: &OpenContext) -> Result<Box<dyn Redecoder>, ComponentError>;

    /// What tells where the source ends now.
    fn position_probe(&self, context: &OpenContext) -> Box<dyn PositionProbe>;
}

/// Tells where a source ends now, so that an answer can be asked for which holds everything before.
///
/// Any function of that shape is one.
pub trait PositionProbe: Send + Sync {
    /// Partition -> offset: a state at these positions holds every write that the source had
    /// acknowledged before the call. Partitions are those that positions of the source have. Takes
    /// seconds at most.
    ///
    /// # Errors
    /// When the source does not answer, or has no such positions.
    fn end(&self) -> Result<BTreeMap<Partition, u64>, ComponentError>;
}

impl<F> PositionProbe for F
where
    F: Fn() -> Result<BTreeMap<Partition, u64>, ComponentError> + Send + Sync,
{
    fn end(&self) -> Result<BTreeMap<Partition, u64>, ComponentError> {
        self()
    }
}

/// The configuration of a chunker type. Implement it beside the chunker.
pub trait ChunkerConfig: DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name under `type:`.
    const TYPE: &'static str;

    /// All faults that can be seen in the configuration alone.
    fn check(&self) -> Vec<ComponentError>;

    /// Builds the chunker; sizes are in tokens of `tokens`.
    ///
    /// # Errors
    /// When it can't work as configured.
    fn open(self, tokens: Arc<dyn TokenCounter>) -> Result<Arc<dyn Chunker>, ComponentError>;
}

/// Where to run a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// CUDA where its vectors equal the CPU's; else the CPU, with one log line that says why.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA, or an error.
    Cuda,
}

/// The numbers that a model computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16 where the processor has it and the model is known to keep a cosine of 0.9999 to its
    /// vectors in f32; else f32. On CUDA fp16, and nothing else is computed there.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// Products of bfloat16 with sums in 32 bits, or an error.
    Bf16,
}

/// The configuration of an embedding model. Implement it beside the model.
pub trait EmbedderConfig:
    PartialEq + DeserializeOwned + JsonSchema + Send + Sync + 'static
{
    /// The name under `model:`.
    const MODEL: &'static str;

    /// All faults that can be seen in the configuration alone.
    fn check(&self) -> Vec<ComponentError>;

    /// Makes the model ready: its files are found, or fetched. Indexes whose configurations are equal
    /// share what this gives.
    ///
    /// # Errors
    /// When it can't work as configured.
    fn open(&self, context: &OpenContext) -> Result<Arc<dyn Embedder>, ComponentError>;

    /// Says where the model is, in a line for a person: without reading all of it, fetching any of it or
    /// changing anything. Takes seconds at most.
    ///
    /// # Errors
    /// As for [`EmbedderConfig::open`], as far as that shows.
    fn locate(&self, context: &OpenContext) -> Result<String, ComponentError>;

    /// What stands before a query, where the configuration says it: the only thing that answers may
    /// depend on and the fingerprint of the model does not name.
    fn query_prefix(&self) -> Option<&str>;

    /// The field that the model's name in [`crate::ModelIdentity`] follows.
    fn name_field(&self) -> &'static str;
}
