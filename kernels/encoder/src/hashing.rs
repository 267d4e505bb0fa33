//! Feature hashing of words: vectors without a model, **for tests and engine benchmarks only**.
//!
//! Each word adds +1 or -1 to one dimension chosen by its hash, and the sum is scaled to length 1.
//! Texts that share words are near each other, nothing more: it knows no meaning. It needs no
//! download and costs less than storing its result.
//!
//! Invariant: a vector is a function of the text and the dimension alone, on every machine and in
//! every version that keeps [`ALGORITHM_VERSION`].

use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use vectide_model::{
    ComponentError, Device, EmbedError, Embedder, EmbedderConfig, Lane, ModelIdentity, OpenContext,
    Precision, TokenCounter,
};

/// The name under `model:`.
pub const MODEL_NAME: &str = "hashing";
/// Changes with anything that could change a vector.
const ALGORITHM_VERSION: &str = "hashing-1";
/// Without `dimensions:`; those of `all-MiniLM-L6-v2`, so that the engine does the same work.
pub const DIMENSIONS_DEFAULT: usize = 384;
/// Fewer dimensions would make most texts equal.
pub const DIMENSIONS_MIN: usize = 8;
/// More than any encoder in use has; bounds a vector's memory.
pub const DIMENSIONS_MAX: usize = 8192;
/// Tokens of a text that are looked at: a bound on the work for one text, far above any chunk.
const TOKENS_MAX: usize = 8192;
/// Letters of a token: a longer word counts as several, so that a text of one long word can be cut
/// into chunks. English words have four to five letters.
const TOKEN_LETTERS_MAX: usize = 8;

/// The embedder.
pub struct Hashing {
    identity: ModelIdentity,
}

/// Feature hashing of words, for tests and benchmarks of the engine: it knows nothing of meaning.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HashingConfig {
    /// Dimensions of the vectors, 384 without it.
    #[serde(default)]
    #[schemars(range(min = 8, max = 8192))]
    pub dimensions: Option<usize>,
    /// Where it runs: the CPU.
    #[serde(default)]
    pub device: Device,
    /// The numbers that it computes with: only `auto`, which says nothing.
    #[serde(default)]
    pub precision: Option<Precision>,
}

impl HashingConfig {
    fn model(&self) -> Result<Hashing, ComponentError> {
        if !matches!(self.precision, None | Some(Precision::Auto)) {
            return Err(ComponentError::new(
                "precision",
                "model `hashing` counts words and has no precision to choose",
                "leave `precision` out, or use `auto`",
            ));
        }
        if self.device == Device::Cuda {
            return Err(ComponentError::new(
                "device",
                "model `hashing` does not run on CUDA",
                "leave `device` out, or use `auto` or `cpu`",
            ));
        }
        Hashing::new(self.dimensions.unwrap_or(DIMENSIONS_DEFAULT))
    }
}

impl EmbedderConfig for HashingConfig {
    const MODEL: &'static str = MODEL_NAME;

    fn check(&self) -> Vec<ComponentError> {
        self.model().err().into_iter().collect()
    }

    fn open(&self, _: &OpenContext) -> Result<Arc<dyn Embedder>, ComponentError> {
        Ok(Arc::new(self.model()?))
    }

    fn locate(&self, _: &OpenContext) -> Result<String, ComponentError> {
        self.model().map(|_| "built in".to_owned())
    }

    fn query_prefix(&self) -> Option<&str> {
        None
    }

    fn name_field(&self) -> &'static str {
        "model"
    }
}

impl Hashing {
    /// An embedder of that many dimensions.
    ///
    /// # Errors
    /// When they are fewer than [`DIMENSIONS_MIN`] or more than [`DIMENSIONS_MAX`].
    pub fn new(dimensions: usize) -> Result<Self, ComponentError> {
        if !(DIMENSIONS_MIN..=DIMENSIONS_MAX).contains(&dimensions) {
            return Err(ComponentError::new(
                "dimensions",
                format!("model `hashing` can't have {dimensions} dimensions"),
                format!(
                    "use {DIMENSIONS_MIN} to {DIMENSIONS_MAX}; the default is {DIMENSIONS_DEFAULT}"
                ),
            ));
        }
        Ok(Self {
            identity: ModelIdentity {
                name: MODEL_NAME.into(),
                fingerprint: format!("{ALGORITHM_VERSION}-{dimensions}"),
                dimension: dimensions,
                tokens_max: TOKENS_MAX,
                device: "cpu".into(),
            },
        })
    }

    fn embed_one(&self, text: &str) -> Vec<f32> {
        let dimensions = self.identity.dimension as u64;
        let mut vector = vec![0.0_f32; self.identity.dimension];
        let mut first = None;
        for_each_token(text, TOKENS_MAX, |hash| {
            // The high half of a product maps the hash's high bits evenly to a dimension.
            let dimension = ((hash >> 32) * dimensions) >> 32;
            vector[dimension as usize] += if hash & 1 == 0 { 1.0 } else { -1.0 };
            first.get_or_insert(dimension);
        });
        let mut squares: f32 = vector.iter().map(|x| x * x).sum();
        if let (true, Some(first)) = (squares == 0.0, first) {
            // All words cancelled each other: the text still has a direction.
            vector[first as usize] = 1.0;
            squares = 1.0;
        }
        if squares > 0.0 {
            let scale = 1.0 / squares.sqrt();
            vector.iter_mut().for_each(|x| *x *= scale);
        }
        vector
    }
}

/// Calls `each` with the hash of every token, up to `limit`; returns how many there were.
///
/// A token is a run of letters and digits (ASCII ones in lower case, at most [`TOKEN_LETTERS_MAX`]
/// bytes), or one other character that is not white space: an ideograph, a kana, a sign.
fn for_each_token(text: &str, limit: usize, mut each: impl FnMut(u64)) -> usize {
    let bytes = text.as_bytes();
    let mut tokens = 0;
    let mut at = 0;
    while at < bytes.len() && tokens < limit {
        let start = at;
        if bytes[at].is_ascii_alphanumeric() {
            let longest = bytes.len().min(start + TOKEN_LETTERS_MAX);
            let mut word = 0_u64;
            while at < longest && bytes[at].is_ascii_alphanumeric() {
                word = (word << 8) | u64::from(bytes[at].to_ascii_lowercase());
                at += 1;
            }
            each(mix(word));
        } else if bytes[at] < 0x80 {
            at += 1;
            if bytes[start].is_ascii_whitespace() || bytes[start] == 0x0B {
                continue;
            }
            each(mix(u64::from(bytes[start])));
        } else {
            let Some(character) = text[at..].chars().next() else {
                break;
            };
            at += character.len_utf8();
            if character.is_whitespace() {
                continue;
            }
            each(mix(u64::from(character as u32) | 1 << 63));
        }
        tokens += 1;
    }
    tokens
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit of the word.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

impl Embedder for Hashing {
    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }

    fn embed(&self, _lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        Ok(texts.iter().map(|text| self.embed_one(text)).collect())
    }

    fn token_counter(&self) -> Arc<dyn TokenCounter> {
        Arc::new(HashingTokens)
    }

    fn bulk_threads(&self) -> usize {
        1
    }

    fn worth_remembering(&self) -> bool {
        false
    }
}

/// Counts the tokens of [`Hashing`].
struct HashingTokens;

impl TokenCounter for HashingTokens {
    fn count(&self, text: &str) -> usize {
        for_each_token(text, usize::MAX, |_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectide_model::embedder_contract;

    fn config(dimensions: Option<usize>) -> HashingConfig {
        HashingConfig {
            dimensions,
            ..HashingConfig::default()
        }
    }

    fn context() -> OpenContext {
        OpenContext::in_folder(".")
    }

    #[test]
    fn it_keeps_the_contract() {
        for dimensions in [None, Some(8), Some(1000)] {
            let embedder = config(dimensions).open(&context()).unwrap();
            assert_eq!(embedder.identity().dimension, dimensions.unwrap_or(384));
            embedder_contract(&*embedder);
        }
    }

    #[test]
    fn bad_configurations_name_the_field() {
        let field = |config: HashingConfig| config.check().pop().map(|error| error.field);
        assert_eq!(field(config(Some(7))).as_deref(), Some("dimensions"));
        assert_eq!(
            field(config(Some(10_000_000))).as_deref(),
            Some("dimensions")
        );
        let mut on_cuda = config(None);
        on_cuda.device = Device::Cuda;
        assert_eq!(field(on_cuda).as_deref(), Some("device"));
        let precise = |precision: &str| -> HashingConfig {
            serde_json::from_value(serde_json::json!({"precision": precision})).unwrap()
        };
        for precision in ["f32", "bf16"] {
            assert_eq!(field(precise(precision)).as_deref(), Some("precision"));
        }
        assert_eq!(field(precise("auto")), None);
        assert_eq!(field(config(None)), None);
    }

    #[test]
    fn shared_words_bring_texts_together() {
        let embedder = Hashing::new(384).unwrap();
        let dot = |a: &str, b: &str| -> f32 {
            let (a, b) = (embedder.embed_one(a), embedder.embed_one(b));
            a.iter().zip(&b).map(|(x, y)| x * y).sum()
        };
        let near = dot(
            "the engine keeps the index fresh",
            "an engine keeps an index fresh",
        );
        let far = dot(
            "the engine keeps the index fresh",
            "completely other words stand here",
        );
        assert!(near > 0.4 && far < 0.3, "{near} {far}");
        assert!((dot("Same WORDS", "same words") - 1.0).abs() < 1e-6);
    }

    #[test]
    fn every_text_with_a_token_has_a_direction() {
        let embedder = Hashing::new(8).unwrap();
        let mut cancelled = 0;
        for i in 0..2000 {
            let text = format!("a{i} b{i}");
            let vector = embedder.embed_one(&text);
            let norm: f32 = vector.iter().map(|x| x * x).sum();
            assert!((norm - 1.0).abs() < 1e-5, "{text}: {norm}");
            cancelled += usize::from(vector.iter().filter(|x| **x != 0.0).count() == 1);
        }
        assert!(
            cancelled > 0,
            "no pair shared a dimension: the test shows nothing"
        );
        assert!(
            embedder
                .embed_one(" \n\t\u{3000}")
                .iter()
                .all(|x| *x == 0.0)
        );
    }

    #[test]
    fn tokens_are_counted_as_documented() {
        let count = |text: &str| HashingTokens.count(text);
        assert_eq!(count(""), 0);
        assert_eq!(count("  \u{b}\n "), 0);
        assert_eq!(count("one two"), 2);
        assert_eq!(count("incomprehensible"), 2);
        assert_eq!(count("日本語。"), 4);
        assert_eq!(count(&"x".repeat(1_000_000)), 125_000);
    }

    #[test]
    fn it_is_not_changed_by_accident() {
        // Vectors in stores and in benchmarks' records come from version 1.
        let vector = Hashing::new(8)
            .unwrap()
            .embed_one("vectide keeps indexes true 日本");
        let signs: Vec<i32> = vector.iter().map(|x| (x * 10.0).round() as i32).collect();
        assert_eq!(signs, GOLDEN_TENTHS);
    }
    const GOLDEN_TENTHS: [i32; 8] = [6, 3, 6, 0, 0, 3, 0, 0];
}
