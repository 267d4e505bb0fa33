//! The whole text as one chunk: for records that are short by nature, such as abstracts, where any
//! cut would part a question from its answer.
//!
//! Invariant: one span, which is the text without the white space around it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use vectide_model::{ChunkError, Chunker, ChunkerConfig, ComponentError, TokenCounter};

/// `{type: whole}`: the whole text is one chunk. What goes beyond the embedding model's longest
/// input is stored and returned, but not embedded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WholeConfig {}

impl ChunkerConfig for WholeConfig {
    const TYPE: &'static str = "whole";

    fn check(&self) -> Vec<ComponentError> {
        Vec::new()
    }

    fn open(self, _tokens: Arc<dyn TokenCounter>) -> Result<Arc<dyn Chunker>, ComponentError> {
        Ok(Arc::new(WholeChunker))
    }
}

/// The chunker of [`WholeConfig`].
#[derive(Clone, Copy, Debug, Default)]
pub struct WholeChunker;

impl Chunker for WholeChunker {
    fn version(&self) -> &str {
        "whole-1"
    }

    fn chunk(&self, text: &str) -> Result<Vec<Range<usize>>, ChunkError> {
        let start = text.len() - text.trim_start().len();
        let end = text.trim_end().len();
        let span = (start < end).then_some(start..end);
        Ok(span.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectide_model::chunker_contract;

    #[test]
    fn the_whole_text_is_one_chunk_and_blank_text_is_none() {
        for text in ["", " \n\t", "one", "\n two\n\nlines \u{3000}\n"] {
            chunker_contract(&WholeChunker, text);
        }
        assert_eq!(
            WholeChunker.chunk("\n two\n").unwrap().first(),
            Some(&(2..5))
        );
        assert!(WholeChunker.chunk(" \n").unwrap().is_empty());
    }

    #[test]
    fn it_has_no_settings() {
        assert!(serde_json::from_str::<WholeConfig>("{}").is_ok());
        assert!(serde_json::from_str::<WholeConfig>(r#"{"max_tokens": 3}"#).is_err());
    }
}
