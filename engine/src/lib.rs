//! The running system: configuration -> plan -> dataflow -> epochs and commit -> published snapshot.
//!
//! Invariant: what a query sees at an epoch is exactly what a full rebuild from the sources'
//! positions at that epoch would give.

mod budget;
mod commit;
mod config;
mod dataflow;
mod export;
mod ingest;
mod pipeline;
mod plan;
mod registry;
mod service;
mod snapshot;
mod state;
mod telemetry;

pub use config::{
    ApiVersion, DocumentsConfig, IndexConfig, LoadedConfig, PipelineConfig, StateConfig,
    editor_schema,
};
pub use dataflow::ShardError;
pub use export::{ExportError, ExportKind, export};
pub use pipeline::{Pipeline, PipelineError, Progress, RunReport};
pub use plan::{Plan, PlannedDocuments, PlannedIndex, PlannedSource};
pub use registry::{
    AnyChunkerConfig, AnySourceConfig, ChunkerType, EmbedderType, Registry, SourceType,
};
pub use state::StateError;
