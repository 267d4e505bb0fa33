//! The running system: configuration -> plan -> dataflow -> epochs and commit -> published snapshot.
//!
//! Invariant: what a query sees at an epoch is exactly what a full rebuild from the sources'
//! positions at that epoch would give.

mod backup;
mod budget;
mod checks;
mod commit;
mod compact;
mod config;
mod control;
mod dataflow;
mod dead_letters;
mod dead_letters_section;
mod embedded;
mod export;
mod head_fields;
mod hits;
mod hybrid;
mod index_config;
mod ingest;
mod letter_export;
mod long_keys;
mod model_names;
mod panics;
mod pipeline;
mod plan;
mod rebuild;
mod recall;
mod registry;
mod replay;
mod resnapshot;
mod room;
mod search;
mod service;
mod snapshot;
mod sources;
mod start;
mod state;
mod state_check;
mod telemetry;

pub use backup::{BackupReport, back_up, restore};
pub use budget::CommitConfig;
pub use checks::{ConnectionChecks, SectionCheck};
pub use compact::{CompactReport, compact_state};
pub use config::{
    ApiVersion, DocumentsConfig, LoadedConfig, NamedProbes, PipelineConfig, StateConfig,
    editor_schema,
};
pub use control::{AskError, ask_backup, ask_check, ask_compact};
pub use dataflow::ShardError;
pub use dead_letters::{DeadLetterCounts, DeadLetters, LetterSelection};
pub use dead_letters_section::DeadLettersConfig;
pub use export::{ExportError, ExportKind, export};
pub use index_config::{IndexConfig, KeywordsConfig};
pub use pipeline::{Pipeline, PipelineError, Progress, RunReport};
pub use plan::{Plan, PlannedDeadLetters, PlannedDocuments, PlannedIndex, PlannedSource};
pub use rebuild::{IndexEstimate, RebuildEstimate, estimate_rebuild, rebuild};
pub use registry::{
    AnyChunkerConfig, AnyDeadLetterSinkConfig, AnyEmbedderConfig, AnySourceConfig, ChunkerType,
    DeadLetterSinkType, EmbedderType, IndexType, Registry, SourceType,
};
pub use replay::{Redecoders, Refusal, ReplayReport, replay};
pub use room::RoomLimits;
pub use start::StartOptions;
pub use state::StateError;
pub use state_check::{StateReport, check_state};
