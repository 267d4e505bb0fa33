//! Reads `config.json` of each architecture: its sizes, and what tells its arithmetic from others'.
//!
//! An architecture is added here by the struct of what its `config.json` says, which becomes
//! [`Sizes`] and an [`Architecture`]; the forward pass follows those.
//!
//! Invariant: an option that would change the arithmetic and that this build does not have is an
//! error, never ignored. Sizes are as the file says: who uses them bounds them first.

use super::description::fault;
use crate::cpu::{Architecture, Family, FeedForward, Norms, Positions, Window};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vectide_model::ComponentError;

/// What is supported, for hints.
pub(super) const SUPPORTED: &str = "supported are sentence encoders of `model_type: bert` and `xlm-roberta` or `roberta` \
     (absolute positions, GELU), `nomic_bert` and `modernbert`: all-MiniLM, BGE, E5 and GTE in their BERT sizes, \
     multilingual E5, bge-m3, nomic-embed-text, gte-modernbert and modernbert-embed";

/// Sizes as `config.json` has them, by BERT's names.
pub(super) struct Sizes {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) intermediate_size: usize,
    /// Those that a text's tokens can have.
    pub(super) positions: usize,
    pub(super) type_vocab_size: usize,
    pub(super) layer_norm_eps: f64,
}

/// Reads `config.json`.
///
/// # Errors
/// When it is of no architecture that this build computes, or asks for what that does not have here.
pub(super) fn read(config: Value) -> Result<(Sizes, Architecture), ComponentError> {
    let model_type = config["model_type"].as_str().unwrap_or_default().to_owned();
    match model_type.as_str() {
        "bert" => parsed::<BertConfig>(config)?.bert(),
        "xlm-roberta" | "roberta" => parsed::<BertConfig>(config)?.roberta(),
        "nomic_bert" => {
            check_older_nomic(&config)?;
            parsed::<NomicBertConfig>(config)?.read()
        }
        "modernbert" => parsed::<ModernBertConfig>(config)?.read(),
        _ => {
            let fact = format!("architecture `{model_type}` is not supported (config.json)");
            Err(fault(fact, SUPPORTED))
        }
    }
}

fn parsed<T: DeserializeOwned>(config: Value) -> Result<T, ComponentError> {
    serde_json::from_value(config)
        .map_err(|error| fault(format!("config.json: {error}"), SUPPORTED))
}

/// Every part must be supported.
fn check<const COUNT: usize>(parts: [(bool, String); COUNT]) -> Result<(), ComponentError> {
    for (is_supported, what) in parts {
        if !is_supported {
            let fact = format!("{what} is not supported (config.json)");
            return Err(fault(fact, SUPPORTED));
        }
    }
    Ok(())
}

/// BERT's and RoBERTa's.
#[derive(Deserialize)]
struct BertConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "bert_epsilon")]
    layer_norm_eps: f64,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    pad_token_id: Option<usize>,
}

// What the configurations of `transformers` have where a file says nothing.
fn two() -> usize {
    2
}
fn gelu() -> String {
    "gelu".into()
}
fn bert_epsilon() -> f64 {
    1e-12
}

/// What RoBERTa's configuration has where a file says nothing.
const ROBERTA_PADDING: usize = 1;

impl BertConfig {
    fn sizes(&self, positions: usize) -> Result<Sizes, ComponentError> {
        let kind = self.position_embedding_type.as_deref();
        let kind = kind.unwrap_or("absolute");
        check([
            (
                self.hidden_act == "gelu",
                format!("activation `{}`", self.hidden_act),
            ),
            (kind == "absolute", format!("position embedding `{kind}`")),
            (!self.is_decoder, "a decoder".into()),
        ])?;
        Ok(Sizes {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            positions,
            type_vocab_size: self.type_vocab_size,
            layer_norm_eps: self.layer_norm_eps,
        })
    }

    fn bert(&self) -> Result<(Sizes, Architecture), ComponentError> {
        let sizes = self.sizes(self.max_position_embeddings)?;
        Ok((sizes, Architecture::BERT))
    }

    fn roberta(&self) -> Result<(Sizes, Architecture), ComponentError> {
        let padding = self.pad_token_id.unwrap_or(ROBERTA_PADDING);
        // The rows up to the padding's are no token's.
        let positions = (self.max_position_embeddings)
            .checked_sub(padding.saturating_add(1))
            .ok_or_else(|| {
                let fact = format!(
                    "pad_token_id {padding} leaves none of max_position_embeddings {} (config.json)",
                    self.max_position_embeddings
                );
                fault(fact, SUPPORTED)
            })?;
        let architecture = Architecture {
            positions: Positions::LearnedBesidePadding { padding },
            ..Architecture::BERT
        };
        Ok((self.sizes(positions)?, architecture))
    }
}

/// nomic-bert's, by the names of its own code and by those of `transformers`.
#[derive(Deserialize)]
struct NomicBertConfig {
    vocab_size: usize,
    #[serde(alias = "n_embd")]
    hidden_size: usize,
    #[serde(alias = "n_layer")]
    num_hidden_layers: usize,
    #[serde(alias = "n_head")]
    num_attention_heads: usize,
    #[serde(alias = "n_inner")]
    intermediate_size: usize,
    #[serde(alias = "n_positions")]
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(
        alias = "activation_function",
        alias = "hidden_act",
        default = "swiglu"
    )]
    activation: String,
    #[serde(alias = "layer_norm_epsilon", default = "bert_epsilon")]
    layer_norm_eps: f64,
    #[serde(default)]
    rotary_emb_base: Option<f32>,
    #[serde(default = "one")]
    rotary_emb_fraction: f64,
    #[serde(default)]
    rotary_emb_interleaved: bool,
    #[serde(default)]
    rotary_emb_scale_base: Option<f64>,
    #[serde(default)]
    rotary_scaling_factor: Option<f64>,
    #[serde(default)]
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    prenorm: bool,
    #[serde(default)]
    use_rms_norm: bool,
    #[serde(default)]
    parallel_block: bool,
    #[serde(default)]
    causal: bool,
    #[serde(default)]
    qkv_proj_bias: bool,
    #[serde(default)]
    mlp_fc1_bias: bool,
    #[serde(default)]
    mlp_fc2_bias: bool,
    #[serde(default)]
    moe_every_n_layers: usize,
    #[serde(default)]
    head_dim: Option<usize>,
}

/// Sizes by the names of nomic-bert's own code.
const OLDER_NOMIC_SIZES: [&str; 5] = ["n_embd", "n_layer", "n_head", "n_inner", "n_positions"];
/// What that code takes otherwise than computed here where a file says nothing: it has biases, turns no
/// dimensions, and has another activation, base and epsilon.
const OLDER_NOMIC_KEYS: [&str; 7] = [
    "qkv_proj_bias",
    "mlp_fc1_bias",
    "mlp_fc2_bias",
    "rotary_emb_fraction",
    "rotary_emb_base",
    "activation_function",
    "layer_norm_epsilon",
];

/// A file for nomic-bert's own code must say what its code and `transformers` don't agree on.
fn check_older_nomic(config: &Value) -> Result<(), ComponentError> {
    let is_missing = |key: &&str| config[*key].is_null();
    let missing: Vec<&str> = OLDER_NOMIC_KEYS.into_iter().filter(is_missing).collect();
    if missing.is_empty() || OLDER_NOMIC_SIZES.iter().all(is_missing) {
        return Ok(());
    }
    let fact = format!("{} is missing (config.json)", missing.join(", "));
    Err(fault(
        fact,
        "say it, as nomic-embed-text does: false for each bias, and rotary_emb_fraction 1.0",
    ))
}

/// How `transformers` says rotary positions since its fifth version.
#[derive(Deserialize)]
struct RopeParameters {
    #[serde(default)]
    rope_theta: Option<f32>,
    #[serde(default = "default_rope")]
    rope_type: String,
    #[serde(default)]
    partial_rotary_factor: Option<f64>,
}

impl RopeParameters {
    /// Whether all dimensions are turned, and as far as the base says.
    fn is_plain(&self) -> bool {
        self.rope_type == "default" && self.partial_rotary_factor.is_none_or(|it| it == 1.0)
    }
}

fn default_rope() -> String {
    "default".into()
}
fn swiglu() -> String {
    "swiglu".into()
}
fn one() -> f64 {
    1.0
}

/// What nomic-bert's code has where a file says nothing.
const NOMIC_BERT_BASE: f32 = 1000.0;
/// Bases of rotary positions that make sense, so that no angle is damaged to a fault.
const ROTARY_BASES: std::ops::RangeInclusive<f32> = 1.0..=1e9;

fn base_is_fine(base: f32) -> (bool, String) {
    (
        ROTARY_BASES.contains(&base),
        format!("a base of rotary positions of {base}"),
    )
}

impl NomicBertConfig {
    fn read(&self) -> Result<(Sizes, Architecture), ComponentError> {
        let rope = self.rope_parameters.as_ref();
        let base = (self.rotary_emb_base)
            .or(rope.and_then(|rope| rope.rope_theta))
            .unwrap_or(NOMIC_BERT_BASE);
        let is_plain = self.rotary_emb_fraction == 1.0
            && !self.rotary_emb_interleaved
            && self.rotary_emb_scale_base.is_none()
            && self.rotary_scaling_factor.is_none()
            && rope.is_none_or(RopeParameters::is_plain);
        let heads = self.num_attention_heads;
        let has_bias = self.qkv_proj_bias || self.mlp_fc1_bias || self.mlp_fc2_bias;
        check([
            (
                matches!(self.activation.as_str(), "swiglu" | "silu"),
                format!("activation `{}`", self.activation),
            ),
            (
                is_plain,
                "a rotary position embedding that is partial, interleaved or scaled".into(),
            ),
            base_is_fine(base),
            (!self.prenorm, "prenorm".into()),
            (!self.use_rms_norm, "use_rms_norm".into()),
            (!self.parallel_block, "parallel_block".into()),
            (!self.causal, "a decoder".into()),
            (!has_bias, "a bias of products".into()),
            (
                (self.head_dim)
                    .is_none_or(|size| size.checked_mul(heads) == Some(self.hidden_size)),
                "head_dim other than hidden_size by num_attention_heads".into(),
            ),
            (self.moe_every_n_layers == 0, "a mixture of experts".into()),
        ])?;
        let sizes = Sizes {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            positions: self.max_position_embeddings,
            type_vocab_size: self.type_vocab_size,
            layer_norm_eps: self.layer_norm_eps,
        };
        let architecture = Architecture {
            family: Family::NomicBert,
            positions: Positions::Rotary {
                base,
                base_local: base,
            },
            norms: Norms::AfterSum,
            feed_forward: FeedForward::GatedSilu,
            window: None,
        };
        Ok((sizes, architecture))
    }
}

/// ModernBERT's.
#[derive(Deserialize)]
struct ModernBertConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    hidden_activation: String,
    #[serde(default = "modern_bert_epsilon")]
    norm_eps: f64,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "global_base")]
    global_rope_theta: f32,
    /// `null` for the same as the global one.
    #[serde(default = "local_base")]
    local_rope_theta: Option<f32>,
    #[serde(default = "three")]
    global_attn_every_n_layers: usize,
    #[serde(default = "local_attention")]
    local_attention: usize,
    #[serde(default)]
    rope_scaling: Option<Value>,
    #[serde(default)]
    rope_parameters: Option<LayerRopeParameters>,
    #[serde(default)]
    layer_types: Option<Vec<String>>,
}

/// How `transformers` says the bases since its fifth version.
#[derive(Deserialize)]
struct LayerRopeParameters {
    full_attention: RopeParameters,
    sliding_attention: RopeParameters,
}

fn modern_bert_epsilon() -> f64 {
    1e-5
}
fn global_base() -> f32 {
    160_000.0
}
fn local_base() -> Option<f32> {
    Some(10_000.0)
}
fn three() -> usize {
    3
}
fn local_attention() -> usize {
    128
}

/// How many layers lie between those of full attention, from the first on; `None` where they lie
/// otherwise.
fn global_every(layer_types: &[String]) -> Option<usize> {
    let is_global = |kind: &String| kind == "full_attention";
    let next = layer_types.iter().skip(1).position(is_global);
    let every = next.map_or(layer_types.len().max(1), |next| next + 1);
    let fits = layer_types.iter().enumerate().all(|(layer, kind)| {
        let expected = match layer.is_multiple_of(every) {
            true => "full_attention",
            false => "sliding_attention",
        };
        kind == expected
    });
    fits.then_some(every)
}

impl ModernBertConfig {
    /// Bases of layers that look at all tokens and of the others; `None` where they are scaled or partial.
    fn bases(&self) -> Option<(f32, f32)> {
        let base = self.global_rope_theta;
        let base_local = self.local_rope_theta.unwrap_or(base);
        let Some(ropes) = &self.rope_parameters else {
            return self.rope_scaling.is_none().then_some((base, base_local));
        };
        let [global, local] = [&ropes.full_attention, &ropes.sliding_attention];
        let is_plain = global.is_plain() && local.is_plain();
        (is_plain && self.rope_scaling.is_none()).then_some((
            global.rope_theta.unwrap_or(base),
            local.rope_theta.unwrap_or(base_local),
        ))
    }

    fn read(&self) -> Result<(Sizes, Architecture), ComponentError> {
        let bases = self.bases();
        let (base, base_local) = bases.unwrap_or((1.0, 1.0));
        let global_every = match &self.layer_types {
            Some(types) if types.len() == self.num_hidden_layers => global_every(types),
            Some(_) => None,
            None => Some(self.global_attn_every_n_layers).filter(|every| *every > 0),
        };
        let has_bias = self.norm_bias || self.attention_bias || self.mlp_bias;
        check([
            (
                self.hidden_activation == "gelu",
                format!("activation `{}`", self.hidden_activation),
            ),
            (
                bases.is_some(),
                "a rotary position embedding that is partial or scaled".into(),
            ),
            base_is_fine(base),
            base_is_fine(base_local),
            (!has_bias, "a bias".into()),
            (
                global_every.is_some(),
                "an order of layer_types other than one of full attention every so many".into(),
            ),
        ])?;
        let sizes = Sizes {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            positions: self.max_position_embeddings,
            type_vocab_size: 0,
            layer_norm_eps: self.norm_eps,
        };
        let architecture = Architecture {
            family: Family::ModernBert,
            positions: Positions::Rotary { base, base_local },
            norms: Norms::BeforeStep,
            feed_forward: FeedForward::GatedGelu,
            window: Some(Window {
                // Seen above.
                global_every: global_every.unwrap_or(1),
                reach: self.local_attention / 2,
            }),
        };
        Ok((sizes, architecture))
    }
}
