//! `bert`: any sentence encoder of a BERT-like architecture in a folder of its own files.
//!
//! all-MiniLM-L12, BGE, E5 and GTE in their BERT sizes differ in numbers only; XLM-RoBERTa, nomic-bert
//! and ModernBERT in their arithmetic too. Their files say all of it; the configuration may set
//! prefixes, length and dimensions.
//!
//! Invariant: the fingerprint follows every byte of weights and tokenizer, and everything else that
//! a passage's vector depends on, bfloat16 too; not the folder's name.

use crate::cpu::{Backend, Products};
use crate::model_files::{Description, ModelFolder, look, read_description, short_digest};
use crate::sentence_encoder::{
    EncoderParts, SentenceEncoder, configure, dimension, products, tell,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vectide_model::{ComponentError, EmbedConfig, Embedder, OpenContext};

/// The name under `model:`.
pub const MODEL_NAME: &str = "bert";
/// Changes with anything that could change a vector by more than rounding.
const ALGORITHM_VERSION: &str = "bert-1";
/// What `precision: auto` computes with: how much a model loses in bfloat16 is not known before it
/// was measured.
const PRODUCTS_BEST: Products = Products::F32;

/// Opens the embedder.
///
/// # Errors
/// When the folder does not hold a model that this build can compute, or the configuration asks for
/// what the model does not have.
pub fn open(
    config: &EmbedConfig,
    context: &OpenContext,
) -> Result<Arc<dyn Embedder>, ComponentError> {
    Ok(Arc::new(open_on(config, context, Backend::best())?))
}

/// Looks at the folder without reading the large files.
///
/// # Errors
/// As for [`open`], as far as the small files show.
pub fn locate(config: &EmbedConfig, context: &OpenContext) -> Result<String, ComponentError> {
    locate_on(config, context, Backend::best())
}

/// Looks at the folder as a named instruction set would need it.
///
/// # Errors
/// As for [`locate`].
pub fn locate_on(
    config: &EmbedConfig,
    context: &OpenContext,
    backend: Backend,
) -> Result<String, ComponentError> {
    let folder = folder(config, context)?;
    check(config, &folder, backend)?;
    look(&folder)?;
    Ok(format!("in {}", folder.display()))
}

/// Opens the embedder on a named instruction set.
///
/// # Errors
/// As for [`open`].
///
/// # Panics
/// When embedding on a backend that the processor does not have; see [`Backend::available`].
pub fn open_on(
    config: &EmbedConfig,
    context: &OpenContext,
    backend: Backend,
) -> Result<SentenceEncoder, ComponentError> {
    let folder = folder(config, context)?;
    // What does not fit is told before the large files are read.
    let products = check(config, &folder, backend)?;
    let files = ModelFolder::read(&folder)?;
    let mut description = files.description.clone();
    configure(config, &mut description)?;
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
    };
    let model = SentenceEncoder::new(parts, backend)?;
    tell(config, &model);
    Ok(model)
}

/// Checks the configuration against the small files and the processor; what is left to choose is the
/// numbers to compute with.
fn check(
    config: &EmbedConfig,
    folder: &Path,
    backend: Backend,
) -> Result<Products, ComponentError> {
    let products = products(config, backend, PRODUCTS_BEST)?;
    let mut description = read_description(folder)?;
    configure(config, &mut description)?;
    dimension(description.shape.attention.width(), config.dimensions)?;
    Ok(products)
}

fn folder(config: &EmbedConfig, context: &OpenContext) -> Result<PathBuf, ComponentError> {
    let path = config.path.as_ref().ok_or_else(|| {
        ComponentError::new(
            "path",
            "model `bert` needs the folder with its files",
            "set `path` to a folder with config.json, modules.json, 1_Pooling/config.json, tokenizer.json and \
             model.safetensors",
        )
    })?;
    Ok(context.config_dir.join(path))
}

fn fingerprint(
    files: &ModelFolder,
    description: &Description,
    dimensions: Option<usize>,
    products: Products,
) -> String {
    let width = description.shape.attention.width();
    // What such a model loses in bfloat16 was never measured: no state mixes the two.
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
