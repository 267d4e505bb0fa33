//! `bert`: any sentence encoder of a BERT-like architecture in a folder of its own files.
//!
//! all-MiniLM-L12, BGE, E5 and GTE in their BERT sizes differ in numbers only; XLM-RoBERTa, nomic-bert
//! and ModernBERT in their arithmetic too. Their files say all of it; the configuration may set
//! prefixes, length and dimensions.
//!
//! Invariant: the fingerprint follows every byte of weights and tokenizer, and everything else that
//! a passage's vector depends on, bfloat16 too; not the folder's name.

use crate::compute::look as look_for_accelerator;
use crate::cpu::{Backend, Products};
use crate::model_files::{Description, ModelFolder, look, read_description, short_digest};
use crate::sentence_encoder::{
    EncoderOptions, EncoderParts, SentenceEncoder, configure, dimension, products, tell,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vectide_model::{
    ByteSize, ComponentError, Device, Embedder, EmbedderConfig, OpenContext, Precision,
};

/// The name under `model:`.
pub const MODEL_NAME: &str = "bert";
/// Changes with anything that could change a vector by more than rounding.
const ALGORITHM_VERSION: &str = "bert-1";
/// What `precision: auto` computes with: how much a model loses in bfloat16 is not known before it
/// was measured.
const PRODUCTS_BEST: Products = Products::F32;

/// A BERT-type sentence encoder in a folder of its files.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BertConfig {
    /// Folder with the model's files: config.json, modules.json, 1_Pooling/config.json,
    /// tokenizer.json and model.safetensors.
    pub path: PathBuf,
    /// Dimensions of the vectors: the first so many of a Matryoshka model's, scaled to length 1 again.
    #[serde(default)]
    pub dimensions: Option<usize>,
    /// Where it runs.
    #[serde(default)]
    pub device: Device,
    /// The most memory of each GPU that the model may take: weights, and room for the texts that are
    /// computed at once. Without it as much as makes it faster.
    #[serde(default)]
    pub device_memory: Option<ByteSize>,
    /// Tokens of a text that the model looks at, special ones and the prefix included. Without it
    /// what the model's files say.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// What stands before a query when it is embedded. Without it what the model's files say.
    #[serde(default)]
    pub query_prefix: Option<String>,
    /// What stands before a chunk of a document when it is embedded. Without it what the model's
    /// files say.
    #[serde(default)]
    pub passage_prefix: Option<String>,
    /// The numbers that the model computes with.
    #[serde(default)]
    pub precision: Precision,
}

impl BertConfig {
    /// The model of a folder with nothing else set.
    pub fn in_folder(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            dimensions: None,
            device: Device::Auto,
            max_tokens: None,
            query_prefix: None,
            passage_prefix: None,
            precision: Precision::Auto,
            device_memory: None,
        }
    }

    fn options(&self) -> EncoderOptions {
        EncoderOptions {
            device: self.device,
            max_tokens: self.max_tokens,
            query_prefix: self.query_prefix.clone(),
            passage_prefix: self.passage_prefix.clone(),
            precision: self.precision,
            device_memory: self.device_memory,
        }
    }
}

impl EmbedderConfig for BertConfig {
    const MODEL: &'static str = MODEL_NAME;

    /// What is only known with the processor or the files is found by opening it.
    fn check(&self) -> Vec<ComponentError> {
        Vec::new()
    }

    fn open(&self, context: &OpenContext) -> Result<Arc<dyn Embedder>, ComponentError> {
        Ok(Arc::new(open_on(self, context, Backend::best())?))
    }

    fn locate(&self, context: &OpenContext) -> Result<String, ComponentError> {
        locate_on(self, context, Backend::best())
    }

    fn query_prefix(&self) -> Option<&str> {
        self.query_prefix.as_deref()
    }

    fn name_field(&self) -> &'static str {
        "path"
    }
}

/// Looks at the folder as a named instruction set would need it.
///
/// # Errors
/// As for [`open_on`], as far as the small files show.
pub fn locate_on(
    config: &BertConfig,
    context: &OpenContext,
    backend: Backend,
) -> Result<String, ComponentError> {
    let folder = context.config_dir.join(&config.path);
    check(config, &folder, backend, context)?;
    look(&folder)?;
    Ok(format!("in {}", folder.display()))
}

/// Opens the embedder on a named instruction set.
///
/// # Errors
/// When the folder does not hold a model that this build can compute, or the configuration asks for
/// what the model does not have.
///
/// # Panics
/// When embedding on a backend that the processor does not have; see [`Backend::available`].
pub fn open_on(
    config: &BertConfig,
    context: &OpenContext,
    backend: Backend,
) -> Result<SentenceEncoder, ComponentError> {
    let folder = context.config_dir.join(&config.path);
    // What does not fit is told before the large files are read.
    let products = check(config, &folder, backend, context)?;
    let files = ModelFolder::read(&folder)?;
    let mut description = files.description.clone();
    configure(&config.options(), &mut description)?;
    let name = folder.file_name().map(|name| name.to_string_lossy());
    let name = name.map_or_else(|| MODEL_NAME.into(), String::from);
    let parts = EncoderParts {
        fingerprint: fingerprint(&files, &description, config.dimensions, products),
        name,
        description,
        weights: &files.weights,
        tokenizer: &files.tokenizer,
        dimensions: config.dimensions,
        products,
        config: &config.options(),
        accelerator: &*context.accelerator,
    };
    let model = SentenceEncoder::new(parts, backend)?;
    tell(&model);
    Ok(model)
}

/// Checks the configuration against the small files and the devices; what is left to choose is the
/// numbers to compute with.
fn check(
    config: &BertConfig,
    folder: &Path,
    backend: Backend,
    context: &OpenContext,
) -> Result<Products, ComponentError> {
    let options = config.options();
    let products = products(&options, backend, PRODUCTS_BEST)?;
    let mut description = read_description(folder)?;
    configure(&options, &mut description)?;
    let shape = description.shape;
    let dimensions = dimension(shape.attention.width(), config.dimensions)?;
    look_for_accelerator(&options, shape, dimensions, &*context.accelerator)?;
    Ok(products)
}

fn fingerprint(
    files: &ModelFolder,
    description: &Description,
    dimensions: Option<usize>,
    products: Products,
) -> String {
    let width = description.shape.attention.width();
    // What such a model loses in bfloat16 was never measured: no state mixes the two. What it loses on
    // an accelerator is measured of the model itself at each start, and is not in here.
    let products = match products {
        Products::F32 => "",
        Products::Bf16 => "-bf16",
    };
    let rest = format!(
        "{} {}",
        description.canonical(),
        dimensions.unwrap_or(width)
    );
    format!(
        "{ALGORITHM_VERSION}-{}-{}-{}{products}",
        short_digest(&files.weights),
        short_digest(&files.tokenizer),
        short_digest(rest.as_bytes()),
    )
}
