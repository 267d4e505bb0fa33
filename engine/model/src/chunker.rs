//! The contract of a chunker: the same text always gives the same spans.

use std::ops::Range;

/// Why a text can't be cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChunkError(pub String);

/// Counts a text's tokens as the embedding model will see them, without special tokens.
pub trait TokenCounter: Send + Sync {
    /// Number of tokens of a text.
    fn count(&self, text: &str) -> usize;
}

/// Cuts a text into chunks.
///
/// Obligations, checked by [`chunker_contract`]:
/// - a pure function of the text and the configuration named by [`Chunker::version`];
/// - spans are byte ranges in order, not empty, not overlapping, at `char` boundaries;
/// - what no span covers is white space only;
/// - a text of white space only has no chunks.
pub trait Chunker: Send + Sync {
    /// Names the algorithm, its version and everything in the configuration that changes cuts.
    fn version(&self) -> &str;

    /// The spans of a text.
    ///
    /// # Errors
    /// When the text can't be cut at all; the document becomes a dead letter.
    fn chunk(&self, text: &str) -> Result<Vec<Range<usize>>, ChunkError>;
}

/// Checks the obligations of a [`Chunker`] on one text.
///
/// # Panics
/// When one of them does not hold.
pub fn chunker_contract(chunker: &dyn Chunker, text: &str) {
    let spans = chunker.chunk(text).expect("the text can be cut");
    assert_eq!(
        spans,
        chunker.chunk(text).expect("again"),
        "not deterministic"
    );
    let mut end = 0;
    for span in &spans {
        assert!(span.start < span.end, "empty span {span:?}");
        assert!(
            span.start >= end,
            "span {span:?} overlaps the one before it"
        );
        let between = text.get(end..span.start).expect("at char boundaries");
        assert!(between.trim().is_empty(), "lost text {between:?}");
        assert!(
            text.get(span.clone())
                .is_some_and(|chunk| !chunk.trim().is_empty())
        );
        end = span.end;
    }
    assert!(text[end..].trim().is_empty(), "lost text at the end");
}
