//! The contract of what reads the tokenizers of models that are computed elsewhere.
//!
//! A service refuses or cuts texts of too many tokens. Who sends them has no model, and knows at most the file of
//! its tokenizer. What reads such files is a kernel and who needs it a connector: they meet here, and the registry
//! hands the one to the other.

use crate::TokenCounter;
use std::sync::Arc;

/// A tokenizer that counts.
#[derive(Clone)]
pub struct CountingTokenizer {
    /// Counts the tokens of a text, without special ones.
    pub counter: Arc<dyn TokenCounter>,
    /// Special tokens that every text gets.
    pub special_tokens: usize,
}

/// Why a tokenizer can't be had, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoTokenizer(pub String);

/// Reads tokenizers.
///
/// Obligations, checked by the tests of each implementation:
/// - nothing panics, whatever stands in a file or in a text;
/// - what is taken of memory is bounded by a file's length.
pub trait TokenizerReader: Send + Sync {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When it is none, or of a kind that is not known here.
    fn read(&self, json: &[u8]) -> Result<CountingTokenizer, NoTokenizer>;
}

/// The reader of a program that has none.
pub struct NoTokenizerReader;

impl TokenizerReader for NoTokenizerReader {
    fn read(&self, _: &[u8]) -> Result<CountingTokenizer, NoTokenizer> {
        Err(NoTokenizer("this build reads no tokenizers".into()))
    }
}
