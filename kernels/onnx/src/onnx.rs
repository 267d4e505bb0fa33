//! `onnx`: any sentence encoder in ONNX format, in a folder of its own files.
//!
//! The graph says what it is fed and what it gives; the small files beside it say the rest, as they do for
//! `bert`, and the configuration may say otherwise.
//!
//! Invariant: the fingerprint follows every byte of graph, weights and tokenizer, and everything else that a
//! passage's vector depends on; not the folder's name, nor which ONNX Runtime computes.

use crate::encoder::{Graph, OnnxEncoder, ProbeError, told};
use crate::library;
use crate::model_file::{ModelFile, damaged, look, read_tokenizer};
use crate::sessions::Sessions;
use crate::signature::{Gives, PoolingChoice, Signature};
use crate::texts::{Texts, pad_id};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vectide_encoder::dimension;
use vectide_encoder::model_files::{SentenceSettings, read_sentence_settings, short_digest};
use vectide_model::{ComponentError, Embedder, EmbedderConfig, Lane, ModelIdentity, OpenContext};

/// The name under `model:`.
pub const MODEL_NAME: &str = "onnx";
/// Changes with anything that could change a vector by more than rounding.
const ALGORITHM_VERSION: &str = "onnx-1";
/// What a text is cut to where nobody says: the positions of most models.
const TOKENS_DEFAULT: usize = 512;
/// Attention needs memory by the square of it: 3 GB for each twelve heads.
const TOKENS_MAX: usize = 8192;
/// One token beside two special ones.
const TOKENS_MIN: usize = 3;
/// More than any machine has cores.
const THREADS_MAX: usize = 1024;

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first of them.
    Cls,
}

/// A sentence encoder in ONNX format in a folder of its files, computed by ONNX Runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnnxConfig {
    /// Folder with the model's files: model.onnx or onnx/model.onnx, tokenizer.json, and where there are
    /// config.json, modules.json, 1_Pooling/config.json, sentence_bert_config.json and
    /// config_sentence_transformers.json.
    pub path: PathBuf,
    /// The graph's file, relative to `path`, where it is called otherwise: `onnx/model_quantized.onnx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Shared library of ONNX Runtime, 1.17 or newer, or its folder. Without it the one that the variable
    /// ORT_DYLIB_PATH names, and then the one that the system's loader finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<PathBuf>,
    /// How the vectors of a text's tokens become one. Without it what the model's files say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Dimensions of the vectors: the first so many of a Matryoshka model's, scaled to length 1 again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<usize>,
    /// Tokens of a text that the model looks at, special ones and the prefix included. Without it what the
    /// model's files say, or 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// What stands before a query when it is embedded. Without it what the model's files say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_prefix: Option<String>,
    /// What stands before a chunk of a document when it is embedded. Without it what the model's files say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passage_prefix: Option<String>,
    /// Threads that compute, for each lane. Without it as many as the machine has cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

impl EmbedderConfig for OnnxConfig {
    const MODEL: &'static str = MODEL_NAME;

    fn check(&self) -> Vec<ComponentError> {
        let mut faults = Vec::new();
        if self.path.as_os_str().is_empty() {
            faults.push(ComponentError::new(
                "path",
                "model `onnx` needs the folder with its files",
                "set `path` to a folder with model.onnx and tokenizer.json",
            ));
        }
        let mut bound = |field: &str, value: Option<usize>, least: usize, most: usize| {
            if value.is_some_and(|value| !(least..=most).contains(&value)) {
                let fact = format!("{field} is {}", value.unwrap_or_default());
                let hint = format!("use {least} to {most}");
                faults.push(ComponentError::new(field, fact, hint));
            }
        };
        bound("max_tokens", self.max_tokens, TOKENS_MIN, TOKENS_MAX);
        bound("dimensions", self.dimensions, 1, usize::MAX);
        bound("threads", self.threads, 1, THREADS_MAX);
        faults
    }

    fn open(&self, context: &OpenContext) -> Result<Arc<dyn Embedder>, ComponentError> {
        open(self, context)
    }

    fn locate(&self, context: &OpenContext) -> Result<String, ComponentError> {
        locate(self, context)
    }

    fn query_prefix(&self) -> Option<&str> {
        self.query_prefix.as_deref()
    }

    fn name_field(&self) -> &'static str {
        "path"
    }
}

impl OnnxConfig {
    fn folder(&self, context: &OpenContext) -> PathBuf {
        context.config_dir.join(&self.path)
    }

    fn library(&self, context: &OpenContext) -> Result<Option<PathBuf>, ComponentError> {
        let library = self.library.as_ref();
        let library = library.map(|path| std::path::absolute(context.config_dir.join(path)));
        let fault = |error: std::io::Error| ComponentError::new("library", error.to_string(), "");
        library.transpose().map_err(fault)
    }

    fn pooling(&self) -> Option<vectide_encoder::Pooling> {
        self.pooling.map(|pooling| match pooling {
            Pooling::Mean => vectide_encoder::Pooling::Mean,
            Pooling::Cls => vectide_encoder::Pooling::First,
        })
    }
}

/// Opens the embedder.
///
/// # Errors
/// When ONNX Runtime can't be loaded, the folder does not hold a model that it can compute, or the
/// configuration asks for what the model does not have.
pub fn open(
    config: &OnnxConfig,
    context: &OpenContext,
) -> Result<Arc<dyn Embedder>, ComponentError> {
    first(config.check())?;
    let folder = config.folder(context);
    // What does not fit is told before the large files are read.
    let (settings, tokens_max) = settings(config, &folder)?;
    let library = library::load(config.library(context)?.as_deref())?;
    let tokenizer = read_tokenizer(&folder)?;
    let texts = texts(&folder, &tokenizer, &settings, tokens_max)?;
    let tokens_beside = tokens_beside(&settings, &texts, tokens_max)?;
    let file = ModelFile::read(&folder, config.file.as_deref())?;
    let graph = graph(config, &file, &settings, pad_id(&tokenizer))?;
    file.check_unchanged()?;
    let graph = probed(graph, &file, &texts, tokens_max)?;
    let dimension = dimension(graph.width, config.dimensions)?;
    let rest = rest(&settings, &graph, tokens_max, dimension);
    let name = folder.file_name().map(|name| name.to_string_lossy());
    let model = OnnxEncoder {
        identity: ModelIdentity {
            name: name.map_or_else(|| MODEL_NAME.into(), String::from),
            fingerprint: format!(
                "{ALGORITHM_VERSION}-{}-{}-{}",
                file.digest,
                short_digest(&tokenizer),
                short_digest(rest.as_bytes()),
            ),
            dimension,
            tokens_max: tokens_beside,
            device: "cpu (onnxruntime)".into(),
        },
        graph,
        texts,
        query_prefix: settings.query_prefix,
        passage_prefix: settings.passage_prefix,
    };
    tell(&model, &library);
    Ok(Arc::new(model))
}

/// Looks at the folder without reading the large files, and for ONNX Runtime.
///
/// # Errors
/// As for [`open`], as far as they show.
pub fn locate(config: &OnnxConfig, context: &OpenContext) -> Result<String, ComponentError> {
    first(config.check())?;
    let folder = config.folder(context);
    settings(config, &folder)?;
    let file = look(&folder, config.file.as_deref())?;
    let library = library::load(config.library(context)?.as_deref())?;
    Ok(format!(
        "{}, computed by {}",
        file.display(),
        library.display()
    ))
}

fn first(faults: Vec<ComponentError>) -> Result<(), ComponentError> {
    faults.into_iter().next().map_or(Ok(()), Err)
}

/// What the small files say, as the configuration changes it, and what a text is cut to.
fn settings(
    config: &OnnxConfig,
    folder: &Path,
) -> Result<(SentenceSettings, usize), ComponentError> {
    let mut settings = read_sentence_settings(folder)?;
    let tokens = config.max_tokens.or(settings.tokens_max);
    let tokens = tokens.unwrap_or(TOKENS_DEFAULT);
    let set = |to: &mut String, prefix: &Option<String>| {
        if let Some(prefix) = prefix {
            to.clone_from(prefix);
        }
    };
    set(&mut settings.query_prefix, &config.query_prefix);
    set(&mut settings.passage_prefix, &config.passage_prefix);
    if (TOKENS_MIN..=TOKENS_MAX).contains(&tokens) {
        return Ok((settings, tokens));
    }
    Err(ComponentError::new(
        "max_tokens",
        format!("the model's files say that it looks at {tokens} tokens of a text"),
        format!("set `max_tokens` to {TOKENS_MIN} to {TOKENS_MAX}"),
    ))
}

fn texts(
    folder: &Path,
    tokenizer: &[u8],
    settings: &SentenceSettings,
    tokens_max: usize,
) -> Result<Texts, ComponentError> {
    let path = folder.join("tokenizer.json");
    let fault = |detail: String| damaged(&path, &detail);
    let texts = Texts::read(tokenizer, tokens_max).map_err(fault)?;
    let ids = |text: &str| texts.encode(text).map_err(fault);
    if settings.is_lower_case && ids("A")? != ids("a")? {
        return Err(fault(
            "sentence_bert_config.json lower-cases texts but tokenizer.json does not".into(),
        ));
    }
    Ok(texts)
}

/// Tokens that a passage may have beside its prefix, the special ones included; both prefixes must
/// leave room for text.
fn tokens_beside(
    settings: &SentenceSettings,
    texts: &Texts,
    tokens_max: usize,
) -> Result<usize, ComponentError> {
    let left = |field: &str, prefix: &str| {
        let tokens = texts.counter().count(prefix);
        if tokens + texts.special_tokens() < tokens_max {
            return Ok(tokens_max - tokens);
        }
        Err(ComponentError::new(
            field,
            format!("the prefix has {tokens} tokens and leaves no room for text in {tokens_max}"),
            "use a shorter prefix or more `max_tokens`",
        ))
    };
    left("query_prefix", &settings.query_prefix)?;
    left("passage_prefix", &settings.passage_prefix)
}

/// The graph with its sessions.
fn graph(
    config: &OnnxConfig,
    file: &ModelFile,
    settings: &SentenceSettings,
    pad_id: Option<u32>,
) -> Result<Graph, ComponentError> {
    let cores = std::thread::available_parallelism();
    let cores = cores.unwrap_or(NonZero::<usize>::MIN);
    let threads = config.threads.and_then(NonZero::new).unwrap_or(cores);
    let sessions = |lane| {
        let sessions = Sessions::open(file, lane, threads);
        sessions.map_err(|error| damaged(&file.path, &told(&error)))
    };
    let queries = sessions(Lane::Query)?;
    let pooling = PoolingChoice {
        configured: config.pooling(),
        of_files: settings.pooling.clone(),
    };
    let signature = queries.with(|session| Signature::read(session, pooling))?;
    if let Gives::Tokens(pooling) = signature.gives {
        settings.check_prefixes(pooling)?;
    }
    Ok(Graph {
        signature,
        queries,
        bulk: sessions(Lane::Bulk)?,
        pad_id: pad_id.or(settings.pad_token_id).unwrap_or(0),
        first_position: settings.first_position,
        width: 0,
        texts_max: usize::MAX,
    })
}

/// The graph once texts went through it.
fn probed(
    mut graph: Graph,
    file: &ModelFile,
    texts: &Texts,
    tokens_max: usize,
) -> Result<Graph, ComponentError> {
    match graph.probe(texts, tokens_max) {
        Ok(()) => Ok(graph),
        Err(ProbeError::Useless(detail)) => Err(damaged(
            &file.path,
            &format!("it can't compute a text: {detail}"),
        )),
        Err(ProbeError::TooLong(tokens, detail)) => Err(ComponentError::new(
            "max_tokens",
            format!("the model can't compute a text of {tokens} tokens: {detail}"),
            "set `max_tokens` to what the model's card says",
        )),
    }
}

/// What a passage's vector depends on beside the large files.
fn rest(settings: &SentenceSettings, graph: &Graph, tokens_max: usize, dimension: usize) -> String {
    let signature = &graph.signature;
    format!(
        "{:?} {} {} {} {tokens_max} {:?} {dimension}",
        signature.gives,
        signature.output,
        graph.pad_id,
        graph.first_position,
        settings.passage_prefix,
    )
}

/// Tells once what computes, and what stands before texts: many models need prefixes that their files do not
/// say, and vectors without them are worse in silence.
fn tell(model: &OnnxEncoder, library: &Path) {
    let name = &model.identity.name;
    tracing::info!(
        model = name,
        query_prefix = model.query_prefix,
        passage_prefix = model.passage_prefix,
        "prefixes of queries and of chunks"
    );
    tracing::info!(
        model = name,
        library = %library.display(),
        output = model.graph.signature.output,
        sessions = model.graph.bulk.count(),
        "embedding by ONNX Runtime on the CPU"
    );
    if model.graph.texts_max == 1 {
        tracing::info!(
            model = name,
            "texts are computed one by one: a vector of this model depends on its neighbours"
        );
    }
}
