//! What operators may ask of the committed state.
//!
//! Invariant: a snapshot taken after reading `epoch()` holds at least that epoch, so an operator
//! that remembers its own changes until their epoch is committed never misses one.

use crate::effect::{HeldRow, PlanIndex};
use std::sync::Arc;
use vectide_model::{ChunkSpan, ContentHash, Embedding, Epoch, StoreError};

/// A document as it was committed: which text it had and how it was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldDocument {
    /// SHA-256 of its text.
    pub sha256: [u8; 32],
    /// Its chunks.
    pub chunks: Arc<[ChunkSpan]>,
}

/// A snapshot of the committed state.
pub trait Committed {
    /// The row under a key.
    ///
    /// # Errors
    /// When the store can't be read.
    fn row(&self, source: PlanIndex, key: &str) -> Result<Option<HeldRow>, StoreError>;

    /// A document of an index.
    ///
    /// # Errors
    /// When the store can't be read.
    fn document(&self, index: PlanIndex, id: &str) -> Result<Option<HeldDocument>, StoreError>;

    /// The remembered vector of a text, made by the model of an index.
    ///
    /// # Errors
    /// When the store can't be read.
    fn embedding(
        &self,
        index: PlanIndex,
        content: ContentHash,
    ) -> Result<Option<Embedding>, StoreError>;
}

/// The committed state as it goes on.
pub trait CommittedState: Send + Sync {
    /// The last committed epoch.
    fn epoch(&self) -> Epoch;

    /// The state now.
    fn read(&self) -> Box<dyn Committed + '_>;
}

/// Ends the process because the state can't be read: recovery is the one way back. The panic hook
/// of the engine turns it into an abort, since timely would hang on with a dead worker.
pub(crate) fn unreadable(error: &StoreError) -> ! {
    panic!("the committed state can't be read: {error}")
}
