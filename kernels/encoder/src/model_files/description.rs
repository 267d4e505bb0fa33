//! What a model's own files say about it: sizes, arithmetic, pooling, length and prefixes.
//!
//! A folder as sentence-transformers keeps it says everything: `config.json` the encoder
//! ([`super::architectures`]), `modules.json` and `1_Pooling/config.json` how token vectors become one,
//! `sentence_bert_config.json` and `tokenizer_config.json` the length,
//! `config_sentence_transformers.json` the prefixes.
//!
//! What such a folder says beside the encoder's own sizes is [`SentenceSettings`], for models that
//! another library computes.
//!
//! Invariant: a description is one that this build can compute; whatever else a file asks for is an
//! error that names what is supported, and no size in it is taken before it was bounded.

use super::architectures::{self, SUPPORTED, Sizes};
use crate::cpu::{Architecture, AttentionShape, EncoderShape, Family, Pooling, Positions};
use serde::Deserialize;
use std::collections::BTreeMap;
use vectide_model::ComponentError;

/// Bounds of the sizes: several times those of the largest BERT, so that no product of them
/// overflows and a damaged file never asks for more memory than its weights have.
const WIDTH_MAX: usize = 8192;
const LAYERS_MAX: usize = 256;
const POSITIONS_MAX: usize = 1 << 16;
const VOCABULARY_MAX: usize = 1 << 20;
const TOKEN_TYPES_MAX: usize = 1 << 10;
/// Numbers that a text of as many tokens as there are positions has between the steps of a layer, those
/// of one head's attention not among them: 537 MB. Of 8,192 tokens nomic-embed has 94 million and the
/// largest XLM-RoBERTa as many, the largest ModernBERT 102 million.
const ACTIVATIONS_MAX: usize = 1 << 27;
/// Numbers of a table of rotary positions, which is made without any weights: 8 MB, and ModernBERT has
/// two. 8,192 positions of heads of 64 have a quarter of it.
const TURNS_MAX: usize = 1 << 21;
/// A token before the text, one of it and one behind it.
const TOKENS_MIN: usize = 3;

/// A model that this build can compute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Description {
    /// Sizes and arithmetic.
    pub(crate) shape: EncoderShape,
    /// Tokens of a text that it looks at, special ones included.
    pub(crate) tokens_max: usize,
    /// What stands before a query.
    pub(crate) query_prefix: String,
    /// What stands before a passage.
    pub(crate) passage_prefix: String,
    /// Whether texts are lower-cased; the tokenizer must do it.
    pub(crate) is_lower_case: bool,
    /// Whether the prefix's tokens are part of what is pooled.
    pub(crate) pools_prefix: bool,
}

/// What a folder's small files say of a sentence encoder, whatever architecture it is. Each of them may
/// be missing.
#[derive(Clone, Debug)]
pub struct SentenceSettings {
    /// How token vectors become one; `None` where no file says, or what is not supported about it.
    /// Whether that matters depends on what the model gives.
    pub pooling: Result<Option<Pooling>, ComponentError>,
    /// Whether the prefix's tokens are part of what is pooled.
    pub pools_prefix: bool,
    /// Tokens of a text that the model looks at, special ones included; `None` where no file says.
    pub tokens_max: Option<usize>,
    /// Whether texts are lower-cased; the tokenizer must do it.
    pub is_lower_case: bool,
    /// What stands before a query.
    pub query_prefix: String,
    /// What stands before a passage.
    pub passage_prefix: String,
    /// The position of a text's first token.
    pub first_position: usize,
    /// The id that fills a row of a batch, as `config.json` has it.
    pub pad_token_id: Option<u32>,
}

/// `config.json`, what is asked of any architecture.
#[derive(Default, Deserialize)]
struct AnyConfig {
    #[serde(default)]
    model_type: String,
    #[serde(default)]
    max_position_embeddings: Option<usize>,
    #[serde(default)]
    pad_token_id: Option<u32>,
}

/// Contents of a model's small files; `None` for one that is not there.
#[derive(Default)]
pub(crate) struct SmallFiles {
    pub(crate) config: Option<Vec<u8>>,
    pub(crate) modules: Option<Vec<u8>>,
    pub(crate) pooling: Option<Vec<u8>>,
    pub(crate) sentence_bert: Option<Vec<u8>>,
    pub(crate) tokenizer_config: Option<Vec<u8>>,
    pub(crate) sentence_transformers: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

/// `1_Pooling/config.json`: one mode is true, or named.
#[derive(Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode: Option<String>,
    #[serde(default = "yes")]
    include_prompt: bool,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

fn yes() -> bool {
    true
}

#[derive(Default, Deserialize)]
struct SentenceBertConfig {
    #[serde(default)]
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    /// Some files write 10^30 for "no limit".
    #[serde(default)]
    model_max_length: Option<f64>,
}

#[derive(Default, Deserialize)]
struct SentenceTransformersConfig {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    #[serde(default)]
    default_prompt_name: Option<String>,
    #[serde(default)]
    similarity_fn_name: Option<String>,
}

impl Description {
    /// Reads the small files of a folder.
    ///
    /// # Errors
    /// When one is missing or damaged, or asks for what this build does not have.
    pub(crate) fn read(files: &SmallFiles) -> Result<Self, ComponentError> {
        let config = required::<serde_json::Value>("config.json", files.config.as_deref())?;
        let (sizes, architecture) = architectures::read(config)?;
        let prompts: SentenceTransformersConfig = optional(
            "config_sentence_transformers.json",
            files.sentence_transformers.as_deref(),
        )?;
        check_modules(files, &prompts)?;
        let (pooling, pools_prefix) = pooling(files)?;
        let lengths: SentenceBertConfig =
            optional("sentence_bert_config.json", files.sentence_bert.as_deref())?;
        let shape = shape(&sizes, architecture, pooling)?;
        let tokens_max = tokens_max(files, &lengths, shape.positions)?;
        Ok(Self {
            shape,
            tokens_max,
            query_prefix: prompts.prefix(query_prompts(shape.is_plain_bert())),
            passage_prefix: prompts.prefix(passage_prompts(shape.is_plain_bert())),
            is_lower_case: lengths.do_lower_case,
            pools_prefix,
        })
    }

    /// Whether the prefixes, the configuration's already among them, are what this build can pool.
    ///
    /// # Errors
    /// When a mean is to be made without a prefix's tokens. The first token is never one of them.
    pub(crate) fn check_prefixes(&self) -> Result<(), ComponentError> {
        if self.pools_prefix || self.shape.pooling == Pooling::First {
            return Ok(());
        }
        check_no_prefixes(&self.query_prefix, &self.passage_prefix)
    }

    /// Everything that a passage's vector depends on beside the weights and the vocabulary, for the
    /// fingerprint.
    pub(crate) fn canonical(&self) -> String {
        let shape = &self.shape;
        // Models that are plain BERT keep the fingerprints that they had before there were others.
        let architecture = match shape.is_plain_bert() {
            true => String::new(),
            false => format!(" {:?}", shape.architecture),
        };
        format!(
            "{} {} {} {} {} {} {} {:e} {:?} {} {:?}{architecture}",
            shape.vocabulary,
            shape.positions,
            shape.token_types,
            shape.layers,
            shape.attention.heads,
            shape.attention.head_size,
            shape.intermediate,
            shape.variance_floor,
            shape.pooling,
            self.tokens_max,
            self.passage_prefix,
        )
    }

    /// Sets what a text is cut to.
    ///
    /// # Errors
    /// When the model has fewer positions.
    pub(crate) fn set_tokens_max(&mut self, tokens: usize) -> Result<(), ComponentError> {
        let positions = self.shape.positions;
        if !(TOKENS_MIN..=positions).contains(&tokens) {
            return Err(ComponentError::new(
                "max_tokens",
                format!("the model can't look at {tokens} tokens of a text"),
                format!("use {TOKENS_MIN} to {positions}"),
            ));
        }
        self.tokens_max = tokens;
        Ok(())
    }
}

// BERT's are those that it always had: another prefix would be another model.
fn query_prompts(is_plain_bert: bool) -> &'static [&'static str] {
    match is_plain_bert {
        true => &["query"],
        false => &["query", "search_query"],
    }
}
fn passage_prompts(is_plain_bert: bool) -> &'static [&'static str] {
    match is_plain_bert {
        true => &["document", "passage", "corpus"],
        false => &["document", "passage", "corpus", "search_document"],
    }
}

impl AnyConfig {
    /// RoBERTa and what came of it count positions from behind the one that padding has.
    fn first_position(&self) -> usize {
        let of_roberta = ["roberta", "camembert", "mpnet", "longformer", "xmod"];
        match of_roberta.iter().any(|it| self.model_type.contains(it)) {
            true => self.pad_token_id.unwrap_or(1) as usize + 1,
            false => 0,
        }
    }
}

impl SentenceSettings {
    /// Reads the small files of a folder.
    ///
    /// # Errors
    /// When one is damaged.
    pub(crate) fn read(files: &SmallFiles) -> Result<Self, ComponentError> {
        let config: AnyConfig = optional("config.json", files.config.as_deref())?;
        let prompts: SentenceTransformersConfig = optional(
            "config_sentence_transformers.json",
            files.sentence_transformers.as_deref(),
        )?;
        let lengths: SentenceBertConfig =
            optional("sentence_bert_config.json", files.sentence_bert.as_deref())?;
        let tokenizer: TokenizerConfig =
            optional("tokenizer_config.json", files.tokenizer_config.as_deref())?;
        // Numbers beyond any model's length stand for "no limit".
        let of_tokenizer = tokenizer.model_max_length.map(|tokens| tokens as usize);
        let of_tokenizer = of_tokenizer.filter(|tokens| *tokens <= POSITIONS_MAX);
        let first_position = config.first_position();
        let is_plain_bert = config.model_type == "bert";
        let positions = config.max_position_embeddings;
        let positions = positions.map(|positions| positions.saturating_sub(first_position));
        let shorter = |a: Option<usize>, b: Option<usize>| a.into_iter().chain(b).min();
        let (pooling, pools_prefix) = match optional_pooling(files, &prompts) {
            Ok(Some((pooling, pools_prefix))) => (Ok(Some(pooling)), pools_prefix),
            Ok(None) => (Ok(None), true),
            Err(error) => (Err(error), true),
        };
        Ok(Self {
            pooling,
            pools_prefix,
            tokens_max: lengths.max_seq_length.or(shorter(of_tokenizer, positions)),
            is_lower_case: lengths.do_lower_case,
            query_prefix: prompts.prefix(query_prompts(is_plain_bert)),
            passage_prefix: prompts.prefix(passage_prompts(is_plain_bert)),
            first_position,
            pad_token_id: config.pad_token_id,
        })
    }

    /// Whether the prefixes are such as a pooling can have; the configuration's are among them.
    ///
    /// # Errors
    /// When a mean is to be made without a prefix's tokens.
    pub fn check_prefixes(&self, pooling: Pooling) -> Result<(), ComponentError> {
        if self.pools_prefix || pooling == Pooling::First {
            return Ok(());
        }
        check_no_prefixes(&self.query_prefix, &self.passage_prefix)
    }
}

/// Pooling as the files have it, where they say anything of it.
fn optional_pooling(
    files: &SmallFiles,
    prompts: &SentenceTransformersConfig,
) -> Result<Option<(Pooling, bool)>, ComponentError> {
    if files.modules.is_some() {
        check_modules(files, prompts)?;
    } else if files.pooling.is_none() {
        return Ok(None);
    }
    pooling(files).map(Some)
}

/// The error of a mean that leaves out the prefix's tokens, where there are prefixes.
fn check_no_prefixes(query_prefix: &str, passage_prefix: &str) -> Result<(), ComponentError> {
    for (field, prefix) in [
        ("query_prefix", query_prefix),
        ("passage_prefix", passage_prefix),
    ] {
        if !prefix.is_empty() {
            return Err(ComponentError::new(
                field,
                "a mean without the prefix's tokens is not supported (1_Pooling/config.json: include_prompt)",
                format!("use a model that pools all tokens, or `{field}: \"\"`"),
            ));
        }
    }
    Ok(())
}

impl SentenceTransformersConfig {
    /// The first prompt of these names, or the default one.
    fn prefix(&self, names: &[&str]) -> String {
        let default = self.default_prompt_name.as_deref();
        let mut names = names.iter().copied().chain(default);
        let found = names.find_map(|name| self.prompts.get(name));
        found.cloned().unwrap_or_default()
    }
}

pub(super) fn fault(fact: impl Into<String>, hint: impl Into<String>) -> ComponentError {
    ComponentError::new("path", fact, hint)
}

fn required<T: serde::de::DeserializeOwned>(
    name: &str,
    contents: Option<&[u8]>,
) -> Result<T, ComponentError> {
    let contents = contents.ok_or_else(|| {
        fault(
            format!("{name} is missing"),
            "copy it from the model's repository, as sentence-transformers keeps it",
        )
    })?;
    serde_json::from_slice(contents).map_err(|error| {
        fault(
            format!("{name} can't be read: {error}"),
            "copy it again from the model's repository",
        )
    })
}

fn optional<T: serde::de::DeserializeOwned + Default>(
    name: &str,
    contents: Option<&[u8]>,
) -> Result<T, ComponentError> {
    contents.map_or_else(
        || Ok(T::default()),
        |contents| required(name, Some(contents)),
    )
}

/// The modules must be a transformer and a pooling, and may end with a normalisation.
fn check_modules(
    files: &SmallFiles,
    prompts: &SentenceTransformersConfig,
) -> Result<(), ComponentError> {
    let modules: Vec<Module> = required("modules.json", files.modules.as_deref())?;
    let kinds: Vec<&str> = modules
        .iter()
        .map(|module| module.kind.rsplit('.').next().unwrap_or_default())
        .collect();
    let is_normalised = match kinds[..] {
        ["Transformer", "Pooling"] => false,
        ["Transformer", "Pooling", "Normalize"] => true,
        _ => {
            return Err(fault(
                format!(
                    "the modules {} are not supported (modules.json)",
                    kinds.join(", ")
                ),
                "supported are Transformer, Pooling and Normalize, in this order",
            ));
        }
    };
    if !modules[0].path.is_empty() || modules[1].path != "1_Pooling" {
        return Err(fault(
            "the modules lie in other folders than usual (modules.json)",
            "the transformer's files must lie in the folder itself and the pooling's in 1_Pooling",
        ));
    }
    // Vectors are always scaled to length 1, which is what a cosine compares anyway.
    let similarity = prompts.similarity_fn_name.as_deref().unwrap_or("cosine");
    if !is_normalised && similarity != "cosine" {
        return Err(fault(
            format!(
                "vectors that are compared by `{similarity}` without being normalised are not supported"
            ),
            "use a model whose vectors are compared by cosine",
        ));
    }
    Ok(())
}

/// How texts are pooled, and whether the prefix's tokens are part of it.
fn pooling(files: &SmallFiles) -> Result<(Pooling, bool), ComponentError> {
    let config: PoolingConfig = required("1_Pooling/config.json", files.pooling.as_deref())?;
    let mut modes: Vec<&str> = config.pooling_mode.iter().map(String::as_str).collect();
    for (key, value) in &config.rest {
        let mode = key.strip_prefix("pooling_mode_");
        modes.extend(mode.filter(|_| *value == serde_json::Value::Bool(true)));
    }
    let pooling = match modes[..] {
        ["cls" | "cls_token"] => Pooling::First,
        ["mean" | "mean_tokens"] => Pooling::Mean,
        _ => {
            let fact = format!(
                "pooling `{}` is not supported (1_Pooling/config.json)",
                modes.join("+")
            );
            return Err(fault(fact, "supported are cls and mean, one of them"));
        }
    };
    Ok((pooling, config.include_prompt))
}

fn shape(
    config: &Sizes,
    architecture: Architecture,
    pooling: Pooling,
) -> Result<EncoderShape, ComponentError> {
    let bound = |name: &str, value: usize, most: usize| match (1..=most).contains(&value) {
        true => Ok(()),
        false => Err(fault(
            format!("{name} is {value}, from 1 to {most} are supported (config.json)"),
            SUPPORTED,
        )),
    };
    bound("hidden_size", config.hidden_size, WIDTH_MAX)?;
    bound("num_hidden_layers", config.num_hidden_layers, LAYERS_MAX)?;
    bound("num_attention_heads", config.num_attention_heads, WIDTH_MAX)?;
    bound("intermediate_size", config.intermediate_size, 4 * WIDTH_MAX)?;
    bound("max_position_embeddings", config.positions, POSITIONS_MAX)?;
    let padding = architecture.positions.rows_before();
    bound("pad_token_id", padding.max(1), POSITIONS_MAX)?;
    // A token's vector as such, as it was, what is added to it, what attention made, and three projections.
    let activations =
        7 * config.hidden_size + architecture.feed_forward.parts() * config.intermediate_size;
    bound(
        "max_position_embeddings times the numbers of a token (7 times hidden_size, and intermediate_size for \
         each part of the feed-forward network)",
        config.positions * activations,
        ACTIVATIONS_MAX,
    )?;
    bound("vocab_size", config.vocab_size, VOCABULARY_MAX)?;
    if architecture.family != Family::ModernBert {
        bound("type_vocab_size", config.type_vocab_size, TOKEN_TYPES_MAX)?;
    }
    if !(0.0..1.0).contains(&config.layer_norm_eps) {
        let fact = format!("layer_norm_eps is {} (config.json)", config.layer_norm_eps);
        return Err(fault(fact, "it must be from 0 to 1"));
    }
    let (width, heads) = (config.hidden_size, config.num_attention_heads);
    let unit = EncoderShape::WIDTH_UNIT;
    let head_size = width / heads;
    let fits = width.is_multiple_of(heads)
        && head_size.is_multiple_of(unit)
        && config.intermediate_size.is_multiple_of(unit);
    if head_size == 0 || !fits {
        return Err(fault(
            format!(
                "sizes that are no multiples of {unit} are not supported: hidden_size {width} in {heads} heads, \
                 intermediate_size {} (config.json)",
                config.intermediate_size
            ),
            format!(
                "the size of a head and of the feed-forward network must be multiples of {unit}"
            ),
        ));
    }
    if matches!(architecture.positions, Positions::Rotary { .. }) {
        bound(
            "max_position_embeddings times the size of a head",
            config.positions * head_size,
            TURNS_MAX,
        )?;
    }
    Ok(EncoderShape {
        vocabulary: config.vocab_size,
        positions: config.positions,
        token_types: config.type_vocab_size,
        layers: config.num_hidden_layers,
        attention: AttentionShape { heads, head_size },
        intermediate: config.intermediate_size,
        variance_floor: config.layer_norm_eps as f32,
        pooling,
        architecture,
    })
}

fn tokens_max(
    files: &SmallFiles,
    lengths: &SentenceBertConfig,
    positions: usize,
) -> Result<usize, ComponentError> {
    let tokenizer: TokenizerConfig =
        optional("tokenizer_config.json", files.tokenizer_config.as_deref())?;
    let of_tokenizer = tokenizer.model_max_length.unwrap_or(f64::INFINITY);
    // A float beyond the largest integer becomes that one.
    let tokens = lengths
        .max_seq_length
        .unwrap_or_else(|| (of_tokenizer as usize).min(positions));
    if !(TOKENS_MIN..=positions).contains(&tokens) {
        return Err(fault(
            format!("the model looks at {tokens} tokens of a text but has {positions} positions"),
            "max_seq_length in sentence_bert_config.json must fit max_position_embeddings in config.json",
        ));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The prefixes of any model are those that `bert` finds in the same files.
    #[test]
    fn plain_bert_has_fewer_names_of_prompts_than_others() {
        let prefixes = |model_type: &str| {
            let files = SmallFiles {
                config: Some(format!("{{\"model_type\": \"{model_type}\"}}").into()),
                sentence_transformers: Some(
                    br#"{"prompts": {"search_query": "q: ", "search_document": "d: "}}"#.to_vec(),
                ),
                ..SmallFiles::default()
            };
            let settings = SentenceSettings::read(&files).unwrap();
            (settings.query_prefix, settings.passage_prefix)
        };
        assert_eq!(prefixes("bert"), (String::new(), String::new()));
        for model_type in ["nomic_bert", "modernbert", "mpnet"] {
            let found = prefixes(model_type);
            assert_eq!(found, ("q: ".into(), "d: ".into()), "{model_type}");
        }
    }
}
