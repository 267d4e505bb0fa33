//! A sentence encoder, whatever BERT it is: texts with their prefix, to token ids, to unit vectors.
//!
//! Token ids are made on the callers' threads, and so are vectors on the processor, on one shared copy
//! of the weights; an accelerator takes the ids of many texts at once ([`crate::compute`]). Bulk work
//! goes in calls of a bounded size on threads of lower priority, so a query is never queued behind it.
//! Queries and passages may have prefixes, which count as tokens.
//!
//! Invariant: a text's vector is the same to the bit in every batch of its lane and on every thread
//! of one machine, as long as one device computes it; only finite vectors are given out.

use crate::compute::{Compute, ComputeParts};
use crate::cpu::{Backend, Products};
use crate::distinct::encode_distinct;
use crate::lane_priority::lower_for_bulk;
use crate::measure::{Stage, timed};
use crate::model_files::Description;
use crate::tokenize::Tokenizer;
use std::sync::Arc;
use vectide_model::{
    Accelerator, BatchLimits, ByteSize, ComponentError, Device, EmbedError, Embedder, Lane,
    ModelIdentity, Precision, TokenCounter,
};

/// Tokens of a short chunk.
const SHORT_TEXT_TOKENS: usize = 8;

/// The embedder.
pub struct SentenceEncoder {
    identity: ModelIdentity,
    compute: Compute,
    tokenizer: Arc<Tokenizer>,
    query_prefix: String,
    passage_prefix: String,
}

/// The options that every sentence encoder has, whose configurations repeat them: a struct flattened
/// into several can't deny unknown fields.
#[derive(Clone, Debug, Default)]
pub(crate) struct EncoderOptions {
    pub(crate) device: Device,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) query_prefix: Option<String>,
    pub(crate) passage_prefix: Option<String>,
    pub(crate) precision: Precision,
    pub(crate) device_memory: Option<ByteSize>,
}

/// What a sentence encoder is made of.
pub(crate) struct EncoderParts<'a> {
    /// Its name for a person.
    pub(crate) name: String,
    /// What its files say, as the configuration changes it.
    pub(crate) description: Description,
    /// Contents of `model.safetensors`.
    pub(crate) weights: &'a [u8],
    /// Contents of `tokenizer.json`.
    pub(crate) tokenizer: &'a [u8],
    /// Dimensions kept, where not all are.
    pub(crate) dimensions: Option<usize>,
    /// The numbers that it computes with on the processor.
    pub(crate) products: Products,
    /// Which device is wanted, and how much of it.
    pub(crate) config: &'a EncoderOptions,
    /// What the program has besides the processor.
    pub(crate) accelerator: &'a dyn Accelerator,
    /// Names everything that a passage's vector depends on but rounding.
    pub(crate) fingerprint: String,
}

impl SentenceEncoder {
    /// Makes it ready on an instruction set.
    ///
    /// # Errors
    /// When the contents do not fit the description.
    pub(crate) fn new(parts: EncoderParts<'_>, backend: Backend) -> Result<Self, ComponentError> {
        let description = parts.description;
        let fault = |detail: String| {
            ComponentError::new(
                "path",
                format!("{}: {detail}", parts.name),
                "copy all files again from the same revision of the model's repository",
            )
        };
        let tokenizer = Tokenizer::from_json(parts.tokenizer, description.tokens_max)
            .map_err(|error| fault(error.to_string()))?;
        let pieces = tokenizer.largest_id() as usize + 1;
        if pieces > description.shape.vocabulary {
            return Err(fault(format!(
                "tokenizer.json has ids up to {} where config.json has vocab_size {}",
                pieces - 1,
                description.shape.vocabulary
            )));
        }
        if description.is_lower_case && tokenizer.encode("A") != tokenizer.encode("a") {
            return Err(fault(
                "sentence_bert_config.json lower-cases texts but tokenizer.json does not".into(),
            ));
        }
        let dimension = dimension(description.shape.attention.width(), parts.dimensions)?;
        let tokens_max = tokens_beside(&description, &tokenizer)?;
        let compute = Compute::open(&ComputeParts {
            name: &parts.name,
            config: parts.config,
            accelerator: parts.accelerator,
            weights: parts.weights,
            shape: description.shape,
            dimensions: dimension,
            processor: (backend, parts.products),
            tokenizer: &tokenizer,
        })?;
        Ok(Self {
            identity: ModelIdentity {
                name: parts.name,
                fingerprint: parts.fingerprint,
                dimension,
                tokens_max,
                device: compute.device().to_owned(),
            },
            compute,
            tokenizer: Arc::new(tokenizer),
            query_prefix: description.query_prefix,
            passage_prefix: description.passage_prefix,
        })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Encodes texts that differ from each other: their tokens are made before anything of a device is
    /// taken.
    fn encode(&self, lane: Lane, prefix: &str, texts: &[&str]) -> Vec<Vec<f32>> {
        let tokens = |text: &&str| {
            timed(Stage::Tokenization, 0, || match prefix {
                "" => self.tokenizer.encode(text),
                prefix => self.tokenizer.encode(&[prefix, text].concat()),
            })
        };
        let ids: Vec<Vec<u32>> = texts.iter().map(tokens).collect();
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        self.compute.encode(lane, &ids)
    }
}

/// Changes what a model's files say to what the configuration says.
///
/// # Errors
/// When the configuration asks for what this build or the model does not have.
pub(crate) fn configure(
    config: &EncoderOptions,
    description: &mut Description,
) -> Result<(), ComponentError> {
    if let Some(tokens) = config.max_tokens {
        description.set_tokens_max(tokens)?;
    }
    let set = |to: &mut String, prefix: &Option<String>| {
        if let Some(prefix) = prefix {
            to.clone_from(prefix);
        }
    };
    set(&mut description.query_prefix, &config.query_prefix);
    set(&mut description.passage_prefix, &config.passage_prefix);
    description.check_prefixes()
}

/// What the products are made of on a backend: `best` where the configuration leaves the choice.
///
/// # Errors
/// When the configuration asks for what the processor does not have.
pub(crate) fn products(
    config: &EncoderOptions,
    backend: Backend,
    best: Products,
) -> Result<Products, ComponentError> {
    match config.precision {
        Precision::Auto if best.are_available(backend) => Ok(best),
        Precision::Auto | Precision::F32 => Ok(Products::F32),
        Precision::Bf16 if Products::Bf16.are_available(backend) => Ok(Products::Bf16),
        Precision::Bf16 => Err(ComponentError::new(
            "precision",
            "this processor has no products of bfloat16 (AVX-512 with its BF16 extension)",
            "use `precision: auto` or `precision: f32`",
        )),
    }
}

/// Tells once what stands before texts: many models need prefixes that their files do not say, and
/// vectors without them are worse in silence.
pub(crate) fn tell(model: &SentenceEncoder) {
    let identity = model.identity();
    tracing::info!(
        model = identity.name,
        query_prefix = model.query_prefix,
        passage_prefix = model.passage_prefix,
        "prefixes of queries and of chunks"
    );
}

/// Dimensions of the vectors, of the model's `width`.
///
/// # Errors
/// When the configuration asks for none or for more.
pub fn dimension(width: usize, wanted: Option<usize>) -> Result<usize, ComponentError> {
    let dimension = wanted.unwrap_or(width);
    if (1..=width).contains(&dimension) {
        return Ok(dimension);
    }
    Err(ComponentError::new(
        "dimensions",
        format!("the model has {width} dimensions, which can't be cut to {dimension}"),
        format!("use 1 to {width}, as many as the model was trained to be cut to"),
    ))
}

/// Tokens that a passage may have beside its prefix, the special ones included; both prefixes must
/// leave room for text.
fn tokens_beside(
    description: &Description,
    tokenizer: &Tokenizer,
) -> Result<usize, ComponentError> {
    let left = |field: &str, prefix: &str| {
        let tokens = tokenizer.count(prefix);
        // Two special tokens and one of text.
        if tokens + 3 > description.tokens_max {
            return Err(ComponentError::new(
                field,
                format!(
                    "the prefix has {tokens} tokens and leaves no room for text in {}",
                    description.tokens_max
                ),
                "use a shorter prefix or more `max_tokens`",
            ));
        }
        Ok(description.tokens_max - tokens)
    };
    left("query_prefix", &description.query_prefix)?;
    left("passage_prefix", &description.passage_prefix)
}

impl Embedder for SentenceEncoder {
    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }

    fn embed(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let prefix = match lane {
            Lane::Bulk => {
                lower_for_bulk();
                &self.passage_prefix
            }
            Lane::Query => &self.query_prefix,
        };
        encode_distinct(texts, |distinct| {
            let vectors = self.encode(lane, prefix, distinct);
            if vectors.iter().flatten().any(|value| !value.is_finite()) {
                let fact = format!("{} gives a vector that is not finite", self.identity.name);
                return Err(EmbedError::Texts(fact));
            }
            Ok(vectors)
        })
    }

    fn token_counter(&self) -> Arc<dyn TokenCounter> {
        self.tokenizer.clone()
    }

    fn bulk_threads(&self) -> usize {
        self.compute.bulk_threads()
    }

    fn batch_limits(&self, lane: Lane) -> BatchLimits {
        if lane == Lane::Query {
            return BatchLimits::of_a_core(lane);
        }
        let tokens = self.compute.tokens_per_call();
        BatchLimits {
            tokens,
            // Texts shorter than that are rare, and each costs more than its tokens.
            texts: (tokens / SHORT_TEXT_TOKENS).max(1),
            is_padded: false,
        }
    }

    fn worth_remembering(&self) -> bool {
        true
    }
}
