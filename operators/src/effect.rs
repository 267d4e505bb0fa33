//! What an epoch does to the state, as the operators hand it to the commit.
//!
//! Invariant: the effects of an epoch, from all workers together, are everything that has to be
//! committed for it; an operator changes nothing outside its own memory.

use std::sync::Arc;
use std::time::Duration;
use vectide_model::{
    ChunkId, ChunkedDocument, ContentHash, DeadLetter, Embedding, IndexError, Key, Position, Row,
    ShardCommit, VectorIndexRead,
};

/// Number of a source, document view or index in the pipeline's plan.
pub type PlanIndex = u16;

/// A row as the state holds it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HeldRow {
    /// The value.
    pub row: Row,
    /// The change that wrote it.
    pub position: Position,
}

/// One piece of an epoch's result.
#[derive(Clone)]
pub enum Effect {
    /// A row was written or removed.
    Row {
        /// The source.
        source: PlanIndex,
        /// The row's key.
        key: Key,
        /// Its new value.
        row: Option<HeldRow>,
    },
    /// A document came (again) into an index.
    DocumentPut {
        /// The index.
        index: PlanIndex,
        /// The document with its chunks.
        document: ChunkedDocument,
    },
    /// This version of a document left an index; another may come in the same epoch.
    DocumentRemove {
        /// The index.
        index: PlanIndex,
        /// The document's id.
        id: Arc<str>,
    },
    /// A chunk came into an index.
    ChunkPut {
        /// The index.
        index: PlanIndex,
        /// The chunk.
        chunk: ChunkId,
        /// Its document.
        document: Arc<str>,
    },
    /// A chunk left an index.
    ChunkRemove {
        /// The index.
        index: PlanIndex,
        /// The chunk.
        chunk: ChunkId,
    },
    /// Texts were embedded for an index.
    Embedded {
        /// The index.
        index: PlanIndex,
        /// How many.
        texts: u64,
        /// Time of the embedder's threads, added up.
        busy: Duration,
    },
    /// A vector to remember by its content.
    Remember {
        /// The index whose model made it.
        index: PlanIndex,
        /// Hash of the text.
        content: ContentHash,
        /// The vector.
        vector: Embedding,
    },
    /// A shard closed the epoch.
    Shard {
        /// The index.
        index: PlanIndex,
        /// The shard's number.
        shard: u32,
        /// What queries may read once the epoch is committed.
        read: Arc<dyn VectorIndexRead>,
        /// What has to be committed.
        commit: Arc<ShardCommit>,
        /// How long closing it kept the worker.
        pause: Duration,
    },
    /// A shard could not close the epoch, which can't be committed then.
    ShardFailed(IndexError),
    /// Something could not be used.
    DeadLetter(DeadLetter),
}
