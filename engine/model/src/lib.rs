//! The nouns of Vectide and the contracts between its parts.
//!
//! Every other crate imports this one, and this one imports none of them: connectors, operators,
//! kernels and the query endpoint meet only through the types and traits defined here. There is no
//! I/O, no dataflow and no async runtime in this crate.

mod accelerator;
mod attribute;
mod change;
mod chunker;
mod component;
mod contained;
mod dead_letter;
mod document;
mod embedder;
mod filter;
mod index;
mod query;
mod recall;
mod source;
mod stop;
mod store;
mod terms;
mod tokenizer;
mod units;

pub use accelerator::{
    AcceleratedEncoder, Accelerator, AcceleratorFault, BertSizes, DeviceAnswer, NoAccelerator,
    NoBackend, TokenPooling,
};
pub use attribute::{AttributeKey, Attributes};
pub use change::{Change, DeadLetter, DeadLetterReason, Key, Partition, Position, Row};
pub use chunker::{ChunkError, Chunker, TokenCounter, chunker_contract};
pub use component::{
    ChunkerConfig, ComponentError, ConnectionCheck, Device, EmbedderConfig, OpenContext,
    PositionProbe, Precision, Redecoder, RefusedLetter, SourceConfig,
};
pub use contained::{contained, is_contained};
pub use dead_letter::{DeadLetterSink, DeadLetterSinkConfig, DeadLetterSinkError, KeptLetter};
pub use document::{
    ChunkId, ChunkSpan, ChunkedDocument, ContentHash, Document, chunk_document, stable_hash,
};
pub use embedder::{
    BatchLimits, EmbedError, Embedder, Embedding, Lane, ModelIdentity, embedder_contract, quantize,
};
pub use filter::{Filter, FilterError, KeyRange};
pub use index::{
    ClosedShard, Effort, Found, IndexError, IndexRow, RowFields, ScoredChunk, Search, SegmentId,
    SegmentManifest, ShardCommit, ShardState, VectorIndex, VectorIndexFactory, VectorIndexRead,
    vector_index_contract,
};
pub use query::{
    Answer, AsOf, Caller, DocumentChunk, DocumentView, EmbeddingsAnswer, Fusion, Hit, Include,
    IndexStatus, Mode, Positions, Query, QueryError, QueryInput, QueryService, Readiness, Scores,
    Span, Timings,
};
pub use recall::{Recalls, recall};
pub use source::{
    HeldRows, ReadMode, Source, SourceBatch, SourceError, SourceSink, SourceStart, Stopped,
};
pub use stop::StopSignal;
pub use store::{
    Batch, Entry, MemoryStore, Operation, Store, StoreError, StoreRead, Table, store_contract,
};

pub use terms::{Bm25, Term, TermMatches, TermStatistics, Terms};
pub use tokenizer::{CountingTokenizer, NoTokenizer, NoTokenizerReader, TokenizerReader};
pub use units::{ByteSize, HumanDuration, UnitError};

/// The timestamp of the dataflow: a closed batch of changes, visible or invisible as a whole.
/// Epochs begin at 1; 0 means "nothing committed yet".
pub type Epoch = u64;
