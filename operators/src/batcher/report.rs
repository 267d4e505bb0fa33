//! What the batcher decides, for whoever counts it: this crate names no metric.

use std::time::Duration;
use vectide_model::Lane;

/// A call of the embedder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchReport {
    /// Whose texts they were.
    pub lane: Lane,
    /// Texts in it.
    pub texts: usize,
    /// Their tokens, as many as the model takes of each.
    pub tokens: usize,
    /// Tokens computed beyond those, by an embedder that makes the texts of a call equally long.
    pub padding_tokens: usize,
    /// How long its oldest text had waited.
    pub waited: Duration,
    /// How long the call took.
    pub took: Duration,
    /// Whether it gave no vectors.
    pub has_failed: bool,
}

/// Hears of what the batcher does. Called on its threads and its callers', so it must not block.
pub trait BatchObserver: Send + Sync {
    /// A call was made.
    fn batch(&self, batch: &BatchReport);
    /// So many tokens of the bulk lane wait or are being computed.
    fn waiting(&self, tokens: usize);
    /// A text was asked for that is being computed for another already.
    fn shared(&self);
    /// A query left before its turn.
    fn abandoned(&self);
}
