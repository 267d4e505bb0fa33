//! Incremental operators over timely and differential dataflow, in the order in which data runs:
//! ingest, upsert, document, chunk, embed, index, collect.
//!
//! Invariant: operators compute; they do no I/O. What they need of the state they read through
//! [`CommittedState`], what they change leaves as [`Effect`]s.

mod batcher;
mod chunks;
mod collect;
mod committed;
mod document;
mod effect;
mod embed;
mod fields;
mod index;
mod ingest;
mod pending;
mod unchanged;
mod upsert;

pub mod chunk;

pub use batcher::{BatchObserver, BatchReport, Batcher, BatcherHandle, Outage};
pub use chunks::{ChunkItem, ChunkResult, TextSlice, changed_chunks, chunk_documents};
pub use collect::{WorkerProgress, collect};
pub use committed::{Committed, CommittedState, HeldDocument};
pub use document::{DocumentView, SharedView};
pub use effect::{Effect, HeldRow, PlanIndex};
pub use embed::{ChunkVector, EmbedStage, Embedded, embed, shard_of};
pub use fields::{Analyzer, FieldPlan, Language, WordCache};
pub use index::{OwnedShards, index};
pub use ingest::{ClosedEpoch, Feed, ingest};
pub use upsert::{RowUpdate, SourcedChange, UpsertResult, upsert};
