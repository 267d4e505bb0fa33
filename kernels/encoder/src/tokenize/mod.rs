//! Texts to the token ids of a model.
//!
//! WordPiece, BERT's, and Unigram, SentencePiece's, have walks of their own that are some twenty times
//! as fast as the `tokenizers` library ([`word_piece`], [`unigram`]), so that chunk sizes can be counted in
//! tokens. BPE of bytes goes to the library, stretch by stretch ([`stretches`]), as do the parts of a text
//! and the files that the walks don't cover.
//!
//! Invariant: ids and counts equal the library's for every text, but for stretches of more than 64 KiB
//! without a place where a text can be cut.

mod bert_characters;
mod characters;
mod charsmap;
mod file;
mod library_file;
mod piece_tree;
mod stretches;
mod stretches_file;
mod token_sink;
mod unigram;
mod unigram_characters;
mod unigram_file;
mod unigram_graphemes;
mod unigram_pieces;
mod word_cache;
mod word_piece;
mod words;

pub use library_file::check_library_file;

use serde_json::Value;
use stretches::Stretches;
use vectide_model::TokenCounter;
use word_piece::WordPiece;

/// Why a tokenizer can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tokenizer.json: {0}")]
pub struct TokenizerError(String);

/// A tokenizer that any number of threads use at once.
pub struct Tokenizer(Kind);

enum Kind {
    WordPiece(Box<WordPiece>),
    Stretches(Box<Stretches>),
}

impl Tokenizer {
    /// Reads a `tokenizer.json`: WordPiece with BERT's normaliser and pre-tokenizer, Unigram as
    /// SentencePiece makes it, or BPE of bytes. Its padding and truncation are ignored: `tokens_max`
    /// (special tokens included) is what a text is cut to.
    ///
    /// # Errors
    /// When the file is not such a tokenizer.
    pub fn from_json(json: &[u8], tokens_max: usize) -> Result<Self, TokenizerError> {
        let value: Value = serde_json::from_slice(json)
            .map_err(|error| TokenizerError(format!("it is no JSON: {error}")))?;
        Ok(Self(match value["model"]["type"].as_str() {
            Some("Unigram" | "BPE") => {
                Kind::Stretches(Box::new(Stretches::read(value, tokens_max)?))
            }
            _ => Kind::WordPiece(Box::new(WordPiece::read(value, tokens_max)?)),
        }))
    }

    /// The largest id that a text can have.
    pub(crate) fn largest_id(&self) -> u32 {
        match &self.0 {
            Kind::WordPiece(tokenizer) => tokenizer.largest_id(),
            Kind::Stretches(tokenizer) => tokenizer.largest_id(),
        }
    }

    /// The ids of a text, the special ones around it included, at most `tokens_max`.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match &self.0 {
            Kind::WordPiece(tokenizer) => tokenizer.encode(text),
            Kind::Stretches(tokenizer) => tokenizer.encode(text),
        }
    }

    /// The ids of a text as the library alone finds them: the reference of the tests.
    ///
    /// # Errors
    /// What the library says.
    pub fn encode_by_library(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.0 {
            Kind::WordPiece(tokenizer) => tokenizer.encode_by_library(text),
            Kind::Stretches(tokenizer) => tokenizer.encode_by_library(text),
        }
    }
}

impl TokenCounter for Tokenizer {
    fn count(&self, text: &str) -> usize {
        match &self.0 {
            Kind::WordPiece(tokenizer) => tokenizer.count(text),
            Kind::Stretches(tokenizer) => tokenizer.count(text),
        }
    }
}

/// Cuts ids to so many, the last of which stays the one that ends a text.
fn cut(mut ids: Vec<u32>, tokens_max: usize, end: u32) -> Vec<u32> {
    if ids.len() > tokens_max {
        ids.truncate(tokens_max.saturating_sub(1));
        ids.push(end);
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tokenizer_is_an_error() {
        for json in [&b""[..], b"{", b"[]", b"{}", b"null", b"{\"model\": 1}"] {
            assert!(Tokenizer::from_json(json, 8).is_err());
        }
    }
}
