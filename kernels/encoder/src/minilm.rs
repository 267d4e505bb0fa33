//! `all-MiniLM-L6-v2` on the processor: the real sentence encoder.
//!
//! BERT with 6 layers of width 384; the mean over all tokens, special ones included, scaled to
//! length 1. Both lanes compute on their callers' threads, on one shared copy of the weights. Bulk
//! work goes in micro-batches on threads of lower priority, so a query is never queued behind it.
//!
//! Invariant: a text's vector is the same to the bit in every batch, on every thread and lane of one
//! machine.

use crate::cpu::{Backend, Encoder, EncoderShape};
use crate::lane_priority::lower_for_bulk;
use crate::model_files::{self, ALL_MINILM_L6_V2};
use crate::tokenize::Tokenizer;
use rustc_hash::FxHashMap;
use std::num::NonZero;
use std::sync::Arc;
use vectide_model::{
    ComponentError, Device, EmbedConfig, EmbedError, Embedder, Lane, ModelIdentity, OpenContext,
    TokenCounter,
};

/// The name under `model:`.
pub const MODEL_NAME: &str = ALL_MINILM_L6_V2.name;
/// Changes with anything here that could change a vector by more than rounding.
const ALGORITHM_VERSION: &str = "bert-mean-1";
/// Tokens of a text that the model was trained to look at (`max_seq_length` in its
/// `sentence_bert_config.json`).
const TOKENS_MAX: usize = 256;
/// Tokens of a micro-batch: enough rows to keep the weights' traffic small beside the arithmetic,
/// few enough that one takes about a tenth of a second and its scratch memory 9 MB.
const MICRO_BATCH_TOKENS: usize = 512;

/// The embedder.
pub struct MiniLm {
    identity: ModelIdentity,
    encoder: Encoder,
    tokenizer: Arc<Tokenizer>,
    bulk_threads: usize,
}

/// Opens the embedder, fetching the model where it is not on this machine.
///
/// # Errors
/// When the configuration asks for what this model or build does not have, or the model's files
/// are not to be had.
pub fn open(
    config: &EmbedConfig,
    context: &OpenContext,
) -> Result<Arc<dyn Embedder>, ComponentError> {
    Ok(Arc::new(MiniLm::open_on(config, context, Backend::best())?))
}

/// Says where the model's files are, judging by their names and sizes; fetches nothing.
///
/// # Errors
/// When the configuration asks for what there is not, or its folder does not have the files.
pub fn locate(config: &EmbedConfig, context: &OpenContext) -> Result<String, ComponentError> {
    check(config)?;
    model_files::locate(&ALL_MINILM_L6_V2, config, context)
}

impl MiniLm {
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
    ) -> Result<Self, ComponentError> {
        check(config)?;
        if config.device == Device::Auto {
            tracing::info!(
                model = MODEL_NAME,
                instructions = backend.name(),
                "embedding on the CPU: this build has no CUDA backend yet"
            );
        }
        let files = model_files::find(&ALL_MINILM_L6_V2, config, context)?;
        let fault = |detail: String| {
            ComponentError::new("model", detail, "this build does not fit the model's files")
        };
        let tokenizer = Tokenizer::from_json(&files.tokenizer, TOKENS_MAX)
            .map_err(|error| fault(error.to_string()))?;
        let encoder = Encoder::read(&files.weights, EncoderShape::MINILM_L6, backend)
            .map_err(|error| fault(error.to_string()))?;
        Ok(Self {
            identity: ModelIdentity {
                name: MODEL_NAME.into(),
                fingerprint: fingerprint(),
                dimension: encoder.dimension(),
                tokens_max: TOKENS_MAX,
                device: format!("cpu ({})", backend.name()),
            },
            encoder,
            tokenizer: Arc::new(tokenizer),
            // One a core: they are of low priority and give way to whatever else runs.
            bulk_threads: std::thread::available_parallelism().map_or(1, NonZero::get),
        })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Encodes texts that differ from each other, in micro-batches.
    fn encode(&self, texts: &[&str]) -> Vec<Vec<f32>> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut batch: Vec<Vec<u32>> = Vec::new();
        let mut batch_tokens = 0;
        let mut run = |batch: &mut Vec<Vec<u32>>| {
            let ids: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
            vectors.append(&mut self.encoder.encode(&ids));
            batch.clear();
        };
        for text in texts {
            let ids = self.tokenizer.encode(text);
            if batch_tokens + ids.len() > MICRO_BATCH_TOKENS {
                run(&mut batch);
                batch_tokens = 0;
            }
            batch_tokens += ids.len();
            batch.push(ids);
        }
        run(&mut batch);
        vectors
    }
}

fn check(config: &EmbedConfig) -> Result<(), ComponentError> {
    if config.device == Device::Cuda {
        return Err(ComponentError::new(
            "device",
            "this build has no CUDA backend yet",
            "use `device: auto` or `device: cpu`",
        ));
    }
    if let Some(dimensions) = config.dimensions {
        return Err(ComponentError::new(
            "dimensions",
            format!("{MODEL_NAME} has 384 dimensions, which can't be set to {dimensions}"),
            "remove `dimensions`",
        ));
    }
    Ok(())
}

/// Names everything that a vector depends on but rounding: the instruction set is not in it, since
/// moving a state to another machine must not embed everything again.
fn fingerprint() -> String {
    let digest = |hex: &'static str| hex.get(..16).unwrap_or(hex);
    format!(
        "{MODEL_NAME}-{}-{}-{TOKENS_MAX}-{ALGORITHM_VERSION}",
        digest(ALL_MINILM_L6_V2.weights.sha256),
        digest(ALL_MINILM_L6_V2.tokenizer.sha256),
    )
}

impl Embedder for MiniLm {
    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }

    fn embed(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if lane == Lane::Bulk {
            lower_for_bulk();
        }
        // Equal texts are encoded once.
        let mut distinct: Vec<&str> = Vec::with_capacity(texts.len());
        let mut places: FxHashMap<&str, usize> = FxHashMap::default();
        let places: Vec<usize> = texts
            .iter()
            .map(|text| {
                *places.entry(text).or_insert_with(|| {
                    distinct.push(text);
                    distinct.len() - 1
                })
            })
            .collect();
        let vectors = self.encode(&distinct);
        if vectors.len() == texts.len() {
            return Ok(vectors);
        }
        Ok(places.iter().map(|place| vectors[*place].clone()).collect())
    }

    fn token_counter(&self) -> Arc<dyn TokenCounter> {
        self.tokenizer.clone()
    }

    fn bulk_threads(&self) -> usize {
        self.bulk_threads
    }

    fn worth_remembering(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_model_does_not_have_is_refused_before_anything_is_fetched() {
        let context = OpenContext {
            config_dir: "/nowhere".into(),
        };
        let refused = |change: fn(&mut EmbedConfig)| {
            let mut config = EmbedConfig {
                model: MODEL_NAME.into(),
                device: Device::Cpu,
                path: None,
                dimensions: None,
            };
            change(&mut config);
            open(&config, &context)
                .err()
                .map(|error| (error.field.clone(), error))
        };
        let (field, error) = refused(|config| config.device = Device::Cuda).unwrap();
        assert_eq!(field, "device");
        assert!(error.fact.contains("no CUDA backend"), "{error}");
        assert_eq!(
            refused(|config| config.dimensions = Some(384)).unwrap().0,
            "dimensions"
        );
        let (field, error) = refused(|config| config.path = Some("missing".into())).unwrap();
        assert_eq!(field, "path");
        assert!(
            error.fact.contains("/nowhere/missing/tokenizer.json"),
            "{error}"
        );
    }
}
