//! `all-MiniLM-L6-v2`, the encoder that is fetched by its name.
//!
//! BERT with 6 layers of width 384; the mean over all tokens, special ones included, scaled to
//! length 1. Its files have known digests, so what others say in `config.json` is written here.
//!
//! Invariant: its fingerprint without options stays what it was, so that no state embeds again.

use crate::compute::look;
use crate::cpu::{Architecture, AttentionShape, Backend, EncoderShape, Pooling, Products};
use crate::model_files::{self, ALL_MINILM_L6_V2, Description, short_digest};
use crate::sentence_encoder::{
    EncoderOptions, EncoderParts, SentenceEncoder, configure, products, tell,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use vectide_model::{
    ByteSize, ComponentError, Device, Embedder, EmbedderConfig, OpenContext, Precision,
};

/// The name under `model:`.
pub const MODEL_NAME: &str = ALL_MINILM_L6_V2.name;
/// Changes with anything here that could change a vector by more than rounding.
const ALGORITHM_VERSION: &str = "bert-mean-1";
/// What `precision: auto` computes with: its vectors in bfloat16 keep a cosine of 0.9999 to those in
/// f32 (`tests/precision.rs`).
const PRODUCTS_BEST: Products = Products::Bf16;

/// The sentence encoder that is fetched by its name: 384 dimensions, which it was not trained to be cut to
/// fewer of.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MiniLmConfig {
    /// Folder with the model's files, model.safetensors and tokenizer.json. Without it the local cache
    /// and then the download places are asked.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Where it runs.
    #[serde(default)]
    pub device: Device,
    /// The most memory of each GPU that the model may take: weights, and room for the texts that are
    /// computed at once. Without it as much as makes it faster, which is less than 256MiB.
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

impl MiniLmConfig {
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

/// Opening it fetches the model where it is not on this machine.
impl EmbedderConfig for MiniLmConfig {
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
        match self.path {
            Some(_) => "path",
            None => "model",
        }
    }
}

/// Says where the model's files are, as a named instruction set would need them.
///
/// # Errors
/// When the configuration asks for what there is not, or its folder does not have the files.
pub fn locate_on(
    config: &MiniLmConfig,
    context: &OpenContext,
    backend: Backend,
) -> Result<String, ComponentError> {
    let shape = describe(config)?.shape;
    let options = config.options();
    products(&options, backend, PRODUCTS_BEST)?;
    look(
        &options,
        shape,
        shape.attention.width(),
        &*context.accelerator,
    )?;
    model_files::locate(&ALL_MINILM_L6_V2, config.path.as_deref(), context)
}

/// Opens the embedder on a named instruction set.
///
/// # Errors
/// When the configuration asks for what this model or build does not have, or the model's files
/// are not to be had.
///
/// # Panics
/// When embedding on a backend that the processor does not have; see [`Backend::available`].
pub fn open_on(
    config: &MiniLmConfig,
    context: &OpenContext,
    backend: Backend,
) -> Result<SentenceEncoder, ComponentError> {
    let description = describe(config)?;
    let options = config.options();
    let products = products(&options, backend, PRODUCTS_BEST)?;
    let shape = description.shape;
    look(
        &options,
        shape,
        shape.attention.width(),
        &*context.accelerator,
    )?;
    let files = model_files::find(&ALL_MINILM_L6_V2, config.path.as_deref(), context)?;
    let parts = EncoderParts {
        name: MODEL_NAME.into(),
        fingerprint: fingerprint(&description),
        description,
        weights: &files.weights,
        tokenizer: &files.tokenizer,
        dimensions: None,
        products,
        config: &options,
        accelerator: &*context.accelerator,
    };
    let model = SentenceEncoder::new(parts, backend)?;
    tell(&model);
    Ok(model)
}

/// The model as its authors describe it, with what the configuration changes.
fn describe(config: &MiniLmConfig) -> Result<Description, ComponentError> {
    let mut description = Description {
        shape: EncoderShape {
            vocabulary: 30_522,
            positions: 512,
            token_types: 2,
            layers: 6,
            attention: AttentionShape {
                heads: 12,
                head_size: 32,
            },
            intermediate: 1536,
            variance_floor: 1e-12,
            pooling: Pooling::Mean,
            architecture: Architecture::BERT,
        },
        // What it was trained to look at (`max_seq_length`).
        tokens_max: 256,
        query_prefix: String::new(),
        passage_prefix: String::new(),
        is_lower_case: false,
        pools_prefix: true,
    };
    configure(&config.options(), &mut description)?;
    Ok(description)
}

/// Names everything that a vector depends on but rounding: the instruction set is not in it, nor
/// bfloat16, which was measured for this model to change no vector by more than a cosine of 0.9999, nor
/// an accelerator, which is held to the same at each start; for moving a state to another machine must
/// not embed everything again.
fn fingerprint(description: &Description) -> String {
    let digest = |hex: &'static str| hex.get(..16).unwrap_or(hex);
    let prefix = match description.passage_prefix.as_str() {
        "" => String::new(),
        prefix => format!("-{}", short_digest(prefix.as_bytes())),
    };
    format!(
        "{MODEL_NAME}-{}-{}-{}-{ALGORITHM_VERSION}{prefix}",
        digest(ALL_MINILM_L6_V2.weights.sha256),
        digest(ALL_MINILM_L6_V2.tokenizer.sha256),
        description.tokens_max,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_model_does_not_have_is_refused_before_anything_is_fetched() {
        let context = OpenContext::in_folder("/nowhere");
        let refused = |config: MiniLmConfig| {
            let error = config.open(&context).err().expect("an error");
            (error.field.clone(), error.fact)
        };
        let (field, fact) = refused(MiniLmConfig {
            device: Device::Cuda,
            ..MiniLmConfig::default()
        });
        assert_eq!(field, "device");
        assert!(fact.contains("no CUDA backend"), "{fact}");
        for tokens in [0, 2, 513] {
            let (field, fact) = refused(MiniLmConfig {
                max_tokens: Some(tokens),
                ..MiniLmConfig::default()
            });
            assert_eq!(field, "max_tokens", "{fact}");
        }
        let (field, fact) = refused(MiniLmConfig {
            path: Some("missing".into()),
            ..MiniLmConfig::default()
        });
        assert_eq!(field, "path");
        assert!(fact.contains("/nowhere/missing/tokenizer.json"), "{fact}");
    }

    #[test]
    fn a_precision_that_the_processor_lacks_is_told_without_files() {
        let context = OpenContext::in_folder("/nowhere");
        let config = MiniLmConfig {
            precision: Precision::Bf16,
            ..MiniLmConfig::default()
        };
        let error = locate_on(&config, &context, Backend::Portable).unwrap_err();
        assert_eq!(error.field, "precision");
    }

    #[test]
    fn the_fingerprint_stays_and_follows_what_passages_depend_on() {
        let of = |change: fn(&mut MiniLmConfig)| {
            let mut config = MiniLmConfig::default();
            change(&mut config);
            fingerprint(&describe(&config).unwrap())
        };
        let plain = of(|_| ());
        assert_eq!(
            plain,
            "all-MiniLM-L6-v2-53aa51172d142c89-be50c3628f2bf5bb-256-bert-mean-1"
        );
        assert_eq!(of(|it| it.query_prefix = Some("query: ".into())), plain);
        assert_ne!(of(|it| it.passage_prefix = Some("passage: ".into())), plain);
        assert_ne!(of(|it| it.max_tokens = Some(512)), plain);
    }
}
