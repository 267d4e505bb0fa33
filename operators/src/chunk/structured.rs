//! The chunker for documents that people edit: cuts follow the document's structure and stay where
//! they are when it changes elsewhere.
//!
//! A text becomes pieces (see `pieces`), and the cheapest set of cuts between them makes the chunks
//! (see `cuts`). What is left to do here is to hold the promise about sizes. Sums of pieces are not
//! exact for every tokenizer, so a chunk whose sum comes near the limit is counted as a whole, and
//! cut once more if it has to be.
//!
//! Invariant: a chunk has at most `max_tokens` less 2 tokens (every BERT-like encoder adds two of its own),
//! unless it is one single grapheme, which is never cut.

use super::cuts::{Sizes, choose};
use super::pieces::{Piece, Seam, is_grapheme_boundary, pieces};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use unicode_segmentation::GraphemeCursor;
use vectide_model::{ChunkError, Chunker, ChunkerConfig, ComponentError, TokenCounter};

/// Changes whenever the same text and settings may give other cuts.
const ALGORITHM: &str = "structured-2";

/// Tokens that encoders add to every text (`[CLS]` and `[SEP]` in BERT's words).
const SPECIAL_TOKENS: u32 = 2;

/// Less than this is no chunk that a question could find.
const MIN_TOKENS_MIN: u32 = 8;

/// The longest input of the encoders in use; it also bounds the table of size prices.
const MAX_TOKENS_MAX: u32 = 8192;

fn default_target_tokens() -> u32 {
    200
}

fn default_max_tokens() -> u32 {
    256
}

/// `{type: structured}`: cuts at headings, paragraphs, list items, code blocks and sentences, chosen
/// so that an edit changes only the chunks near it. All sizes are in tokens of the index's embedding
/// model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StructuredConfig {
    /// The size that chunks have on average. Larger than `min_tokens`, at most `max_tokens`.
    #[serde(default = "default_target_tokens")]
    pub target_tokens: u32,
    /// The most tokens the model reads of one text, at most 8192. Two are the model's own, so a
    /// chunk has at most `max_tokens` less 2.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
    /// Smaller chunks are avoided; a text that has fewer tokens as a whole is one chunk. At least 8;
    /// a fifth of `target_tokens` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_tokens: Option<u32>,
}

impl Default for StructuredConfig {
    fn default() -> Self {
        Self {
            target_tokens: default_target_tokens(),
            max_tokens: default_max_tokens(),
            min_tokens: None,
        }
    }
}

impl StructuredConfig {
    fn min_tokens(&self) -> u32 {
        self.min_tokens
            .unwrap_or(MIN_TOKENS_MIN.max(self.target_tokens / 5))
    }

    fn sizes(&self) -> Sizes {
        let limit = self.max_tokens - SPECIAL_TOKENS;
        // Chunks come out 6 % smaller than ideal on average where the limit is far, and up to a fifth
        // smaller near it, where they can't make up by larger ones (see the benchmark `chunking`).
        let room = 1000 * u64::from(limit) / u64::from(self.target_tokens);
        let ideal = u64::from(self.target_tokens) * (1060 + 1700_u64.saturating_sub(room) * 6 / 10);
        let ideal = u32::try_from(ideal / 1000).unwrap_or(limit);
        Sizes {
            min: self.min_tokens(),
            ideal: ideal.clamp(1, limit),
            limit,
        }
    }
}

impl ChunkerConfig for StructuredConfig {
    const TYPE: &'static str = "structured";

    fn check(&self) -> Vec<ComponentError> {
        let mut faults = Vec::new();
        let (min, target, max) = (self.min_tokens(), self.target_tokens, self.max_tokens);
        if min < MIN_TOKENS_MIN {
            faults.push(ComponentError::new(
                "min_tokens",
                format!("min_tokens is {min}, but a chunk needs at least {MIN_TOKENS_MIN} tokens"),
                format!("set it to {MIN_TOKENS_MIN} or more, or leave it out"),
            ));
        }
        if target <= min {
            faults.push(ComponentError::new(
                "target_tokens",
                format!("target_tokens ({target}) is not larger than min_tokens ({min})"),
                "chunks vary around the target: leave room below it",
            ));
        }
        if max < target {
            faults.push(ComponentError::new(
                "max_tokens",
                format!("max_tokens ({max}) is less than target_tokens ({target})"),
                "raise max_tokens to what the embedding model reads, or lower target_tokens",
            ));
        }
        if max > MAX_TOKENS_MAX {
            faults.push(ComponentError::new(
                "max_tokens",
                format!("max_tokens is {max}, but no more than {MAX_TOKENS_MAX} are supported"),
                "set it to the longest input of the embedding model, such as 256",
            ));
        }
        faults
    }

    fn open(self, tokens: Arc<dyn TokenCounter>) -> Result<Arc<dyn Chunker>, ComponentError> {
        Ok(Arc::new(StructuredChunker::new(&self, tokens)?))
    }
}

/// The chunker of [`StructuredConfig`].
pub struct StructuredChunker {
    version: String,
    sizes: Sizes,
    tokens: Arc<dyn TokenCounter>,
}

impl StructuredChunker {
    /// Makes a chunker that counts in `tokens`. The counter should be nearly additive: a text that is
    /// cut between words has at most one token more than its parts have together.
    ///
    /// # Errors
    /// The first fault of the configuration.
    pub fn new(
        config: &StructuredConfig,
        tokens: Arc<dyn TokenCounter>,
    ) -> Result<Self, ComponentError> {
        if let Some(fault) = config.check().into_iter().next() {
            return Err(fault);
        }
        let version = format!(
            "{ALGORITHM}(target={},max={},min={})",
            config.target_tokens,
            config.max_tokens,
            config.min_tokens()
        );
        Ok(Self {
            version,
            sizes: config.sizes(),
            tokens,
        })
    }

    /// Adds the chunk's span, or those of its parts where it has too many tokens.
    fn add_verified(&self, text: &str, pieces: &[Piece], spans: &mut Vec<Range<usize>>) {
        let Some(span) = span(text, pieces) else {
            return;
        };
        if pieces.len() == 1 || self.fits(text, &span, pieces) {
            spans.push(span);
            return;
        }
        let (first, second) = pieces.split_at(emergency_cut(pieces));
        self.add_verified(text, first, spans);
        self.add_verified(text, second, spans);
    }

    /// Whether a chunk of several pieces has no more tokens than allowed. Where the sum of its pieces
    /// leaves room for what may come on top (a token for each seam, and for each byte of white space
    /// that stands in no piece), it need not be counted again.
    fn fits(&self, text: &str, span: &Range<usize>, pieces: &[Piece]) -> bool {
        let limit = self.sizes.limit as usize;
        let sum: usize = pieces.iter().map(|piece| piece.weight as usize).sum();
        let covered: usize = pieces.iter().map(|piece| piece.range.len()).sum();
        let seams = pieces.len() - 1 + span.len().saturating_sub(covered);
        let within_word = |piece: &Piece| piece.seam == Seam::WithinWord;
        let rough = pieces.iter().skip(1).any(within_word);
        (!rough && sum + seams <= limit) || self.tokens.count(&text[span.clone()]) <= limit
    }
}

impl Chunker for StructuredChunker {
    fn version(&self) -> &str {
        &self.version
    }

    fn chunk(&self, text: &str) -> Result<Vec<Range<usize>>, ChunkError> {
        let pieces = pieces(text, self.tokens.as_ref(), self.sizes.limit);
        let chunks = choose(&pieces, self.sizes);
        let mut spans = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            self.add_verified(text, &pieces[chunk], &mut spans);
        }
        Ok(spans)
    }
}

/// Where to cut a chunk that turned out too large: the cheapest place in its middle half.
fn emergency_cut(pieces: &[Piece]) -> usize {
    let middle = pieces.len() / 4..pieces.len() - pieces.len() / 4;
    middle
        .filter(|at| *at > 0)
        .min_by_key(|at| pieces[*at].cost)
        .unwrap_or(1)
}

/// Where the pieces' text stands, without the white space around it.
fn span(text: &str, pieces: &[Piece]) -> Option<Range<usize>> {
    let range = pieces.first()?.range.start..pieces.last()?.range.end;
    let chunk = &text[range.clone()];
    let end = range.start + chunk.trim_end().len();
    let start = range.end - chunk.trim_start().len();
    // Pieces stand at boundaries, and to ask again would take a look at a whole run of flags before this one.
    if start == range.start || is_grapheme_boundary(text, start) {
        return (start < end).then_some(start..end);
    }
    // The last white space carries a combining mark: it belongs to the text.
    let start = GraphemeCursor::new(start, text.len(), true)
        .prev_boundary(text, 0)
        .ok()
        .flatten()
        .map_or(range.start, |boundary| boundary.max(range.start));
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Words;

    impl TokenCounter for Words {
        fn count(&self, text: &str) -> usize {
            text.split_whitespace().count()
        }
    }

    fn faults(json: &str) -> Vec<String> {
        let config: StructuredConfig = serde_json::from_str(json).unwrap();
        config
            .check()
            .into_iter()
            .map(|fault| fault.field)
            .collect()
    }

    #[test]
    fn defaults_and_faults() {
        assert_eq!(
            serde_json::from_str::<StructuredConfig>("{}").unwrap(),
            StructuredConfig::default()
        );
        assert!(faults("{}").is_empty());
        assert!(faults(r#"{"target_tokens": 256, "min_tokens": 8}"#).is_empty());
        assert_eq!(faults(r#"{"min_tokens": 7}"#), ["min_tokens"]);
        assert_eq!(faults(r#"{"min_tokens": 200}"#), ["target_tokens"]);
        assert_eq!(faults(r#"{"target_tokens": 300}"#), ["max_tokens"]);
        assert_eq!(faults(r#"{"max_tokens": 9000}"#), ["max_tokens"]);
        assert_eq!(
            faults(r#"{"target_tokens": 0, "max_tokens": 0}"#),
            ["target_tokens"]
        );
        assert!(serde_json::from_str::<StructuredConfig>(r#"{"size": 3}"#).is_err());
    }

    #[test]
    fn a_bad_configuration_can_not_be_opened() {
        let config: StructuredConfig = serde_json::from_str(r#"{"max_tokens": 1}"#).unwrap();
        let fault = config.open(Arc::new(Words)).err().expect("refused");
        assert_eq!(fault.field, "max_tokens");
    }

    #[test]
    fn the_version_names_every_setting() {
        let config = StructuredConfig::default();
        let chunker = config.open(Arc::new(Words)).unwrap();
        assert_eq!(chunker.version(), "structured-2(target=200,max=256,min=40)");
    }

    #[test]
    fn white_space_that_carries_a_mark_is_text() {
        let text = "\n \u{301}accent";
        let pieces = pieces(text, &Words, 50);
        assert_eq!(span(text, &pieces), Some(1..text.len()));
    }
}
