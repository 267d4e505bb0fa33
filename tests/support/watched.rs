//! An embedder that lets a test do something before each call.

use std::sync::Arc;
use vectide_model::{EmbedError, Embedder, Lane, ModelIdentity, TokenCounter};

/// What is done before a call: it may panic, or never return.
pub type BeforeEmbedding = Box<dyn Fn(Lane, &[&str]) + Send + Sync>;

/// An embedder like the one within, but for what is done before each call.
pub struct WatchedEmbedder {
    /// Embeds.
    pub inner: Arc<dyn Embedder>,
    /// Is called with the lane and the texts first.
    pub before: BeforeEmbedding,
}

impl Embedder for WatchedEmbedder {
    fn identity(&self) -> &ModelIdentity {
        self.inner.identity()
    }

    fn embed(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        (self.before)(lane, texts);
        self.inner.embed(lane, texts)
    }

    fn token_counter(&self) -> Arc<dyn TokenCounter> {
        self.inner.token_counter()
    }

    fn bulk_threads(&self) -> usize {
        self.inner.bulk_threads()
    }

    fn worth_remembering(&self) -> bool {
        self.inner.worth_remembering()
    }
}
