//! A pipeline with everything opened: what the dataflow is built from.
//!
//! Invariant: parts are numbered in the order of their names, and refer to each other by number.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use vectide_model::{
    Chunker, DeadLetterSink, Embedder, PositionProbe, Source, VectorIndexFactory, stable_hash,
};
use vectide_operators::{DocumentView, FieldPlan, PlanIndex};

use crate::budget::CommitConfig;
use crate::room::RoomLimits;
use crate::state::Names;

/// A pipeline, ready to start.
pub struct Plan {
    /// Folder of the state.
    pub state_directory: PathBuf,
    /// Timely workers.
    pub workers: usize,
    /// Sources by number.
    pub sources: Vec<PlannedSource>,
    /// Document views by number.
    pub documents: Vec<PlannedDocuments>,
    /// Indexes by number.
    pub indexes: Vec<PlannedIndex>,
    /// Where dead letters go.
    pub dead_letters: PlannedDeadLetters,
    /// When changes become durable and visible.
    pub commit: CommitConfig,
    /// How much of the disk the state may take.
    pub room: RoomLimits,
    /// How long epochs that answers came from are kept for `as_of`.
    pub history: Duration,
}

/// Where dead letters go.
pub struct PlannedDeadLetters {
    /// How many the state keeps.
    pub keep: NonZeroU64,
    /// Where they are written besides.
    pub sink: Option<Box<dyn DeadLetterSink>>,
}

/// Letters the state keeps without being told: weeks of a few hundred an hour; with records of
/// 1 KiB 100 MB.
const LETTERS_KEPT: NonZeroU64 = NonZeroU64::new(100_000).expect("not zero");

impl Default for PlannedDeadLetters {
    fn default() -> Self {
        Self {
            keep: LETTERS_KEPT,
            sink: None,
        }
    }
}

/// A source.
pub struct PlannedSource {
    /// Its name.
    pub name: Arc<str>,
    /// What it was configured with, for noticing changes: its type.
    pub description: String,
    /// The reader.
    pub source: Box<dyn Source>,
    /// What tells where it ends now.
    pub probe: Arc<dyn PositionProbe>,
}

/// A document view.
#[derive(Clone)]
pub struct PlannedDocuments {
    /// Its name.
    pub name: Arc<str>,
    /// The source it reads.
    pub source: PlanIndex,
    /// Its templates as configured.
    pub description: String,
    /// Its templates, compiled.
    pub view: Arc<DocumentView>,
}

/// An index.
#[derive(Clone)]
pub struct PlannedIndex {
    /// Its name.
    pub name: Arc<str>,
    /// The document view it reads.
    pub documents: PlanIndex,
    /// The chunker.
    pub chunker: Arc<dyn Chunker>,
    /// The embedder.
    pub embedder: Arc<dyn Embedder>,
    /// Number of shards.
    pub shards: u32,
    /// Opens its shards. Another one may go on with a state: segments are found as they were made.
    pub factory: Arc<dyn VectorIndexFactory>,
    /// What is kept of rows besides vectors.
    pub fields: Arc<FieldPlan>,
    /// The share of the true hits that its searches promise to find; 1: all are looked at.
    pub recall: f64,
}

impl PlannedIndex {
    /// Hash of its model's fingerprint, which is part of the keys of remembered vectors.
    pub(crate) fn model(&self) -> u64 {
        stable_hash(self.embedder.identity().fingerprint.as_bytes())
    }
}

/// What a state is made of, and how: a plan without what reads and writes.
pub(crate) struct Derivation {
    pub(crate) state_directory: PathBuf,
    pub(crate) sources: Vec<Arc<str>>,
    pub(crate) documents: Vec<PlannedDocuments>,
    pub(crate) indexes: Vec<PlannedIndex>,
    pub(crate) fingerprint: BTreeMap<String, String>,
}

impl Plan {
    pub(crate) fn derivation(&self) -> Derivation {
        let sources = self.sources.iter().map(|source| source.name.clone());
        Derivation {
            state_directory: self.state_directory.clone(),
            sources: sources.collect(),
            documents: self.documents.clone(),
            indexes: self.indexes.clone(),
            fingerprint: self.fingerprint(),
        }
    }

    pub(crate) fn names(&self) -> Names {
        Names {
            sources: self
                .sources
                .iter()
                .map(|source| source.name.clone())
                .collect(),
            indexes: self
                .indexes
                .iter()
                .map(|index| index.name.clone())
                .collect(),
            models: self.indexes.iter().map(PlannedIndex::model).collect(),
        }
    }

    /// Everything that decides what the state looks like, part by part.
    pub(crate) fn fingerprint(&self) -> BTreeMap<String, String> {
        let mut parts = BTreeMap::new();
        for source in &self.sources {
            parts.insert(
                format!("sources.{}", source.name),
                source.description.clone(),
            );
        }
        for view in &self.documents {
            let source = &self.sources[usize::from(view.source)].name;
            let what = format!("from {source}: {}", view.description);
            parts.insert(format!("documents.{}", view.name), what);
        }
        for index in &self.indexes {
            let documents = &self.documents[usize::from(index.documents)].name;
            let what = format!(
                "from {documents}, chunker {}, model {}, {} shards{}",
                index.chunker.version(),
                index.embedder.identity().fingerprint,
                index.shards,
                index.fields.fingerprint()
            );
            parts.insert(format!("indexes.{}", index.name), what);
        }
        parts
    }
}
