//! A changed pipeline from the rows of an earlier state: `vectide plan` says what it would do,
//! `vectide rebuild` does it.
//!
//! Another chunker, model or template makes other documents, chunks and vectors of the same rows. So the
//! sources need not be read again: the rows go through the changed pipeline into a state of its own, at
//! their positions, and the embedding cache comes along, so that only texts are embedded that the model has
//! not seen. The earlier state is only read; its pipeline may go on meanwhile where a backup of it is
//! rebuilt.
//!
//! Invariant: a state under its own name is whole: it is that of the changed pipeline at the positions of
//! the earlier one. Until then its folder's name ends in `.unfinished`.

use crate::ingest::{Delivery, SourceEvent};
use crate::pipeline::{Pipeline, PipelineError, RunReport, spawn};
use crate::plan::{Plan, PlannedIndex};
use crate::sources::{ChannelSink, FeedEnd};
use crate::start::StartOptions;
use crate::state::{
    CommitRecord, FjallStore, META_COMMIT, StateError, decode, embedding_key, encode,
    kept_generations, kept_letter, name_prefix, open_at_rest, read_commit, unfinished,
};
use crossbeam_channel::Receiver;
use serde::Serialize;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;
use vectide_model::{
    Batch, Change, Epoch, Key, StopSignal, Store, StoreError, StoreRead, Table, chunk_document,
};
use vectide_operators::HeldRow;

/// Rows handed on together: enough to spread the cost, and the pipeline may cut anywhere.
const ROWS_PER_BATCH: usize = 500;

/// Entries of the embedding cache written with one sync: some 10 MB at 384 dimensions.
const ENTRIES_PER_BATCH: usize = 10_000;

/// What a changed pipeline would make of the rows of a state.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RebuildEstimate {
    /// The last epoch of the state.
    pub epoch: Epoch,
    /// Parts of the pipeline that the state was not made with.
    pub changed: Vec<String>,
    /// By index.
    pub indexes: Vec<IndexEstimate>,
}

/// What a rebuild makes of one index.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct IndexEstimate {
    /// The index.
    pub name: String,
    /// Documents.
    pub documents: u64,
    /// Rows of which there is no document, or whose text can't be cut.
    pub unusable_rows: u64,
    /// Chunks of the documents.
    pub chunks: u64,
    /// Different texts among them that have to be embedded: those that are not remembered.
    pub embedded_texts: u64,
    /// Their tokens.
    pub embedded_tokens: u64,
    /// Their bytes.
    pub embedded_bytes: u64,
}

/// The state that is rebuilt.
struct Earlier {
    read: Arc<dyn StoreRead>,
    record: CommitRecord,
    /// Keeps other processes out, and the store open.
    _held: (crate::state::DirectoryLock, FjallStore),
}

impl Earlier {
    fn open(directory: &Path, plan: &Plan) -> Result<Self, StateError> {
        let (lock, store) = open_at_rest(directory)?;
        let read = store.snapshot();
        let unusable = |fact: String, hint: &str| StateError::Unusable {
            directory: directory.display().to_string(),
            fact,
            hint: hint.into(),
        };
        let Some(record) = read_commit(&*read)? else {
            return Err(unusable(
                "it has no commit".into(),
                "run its pipeline first",
            ));
        };
        for source in &plan.sources {
            let held = record.pipeline.get(&format!("sources.{}", source.name));
            if held != Some(&source.description) {
                let fact = format!("it has no rows of a source `{}` of this type", source.name);
                let hint = "only documents and indexes may have changed; with other sources, give the \
                            pipeline a state folder of its own and let it read them";
                return Err(unusable(fact, hint));
            }
            if record.resnapshots.contains(&source.name) {
                let fact = format!("its source `{}` is being read anew", source.name);
                return Err(unusable(fact, "let its pipeline catch up first"));
            }
        }
        Ok(Self {
            read,
            record,
            _held: (lock, store),
        })
    }

    /// The rows of a source.
    fn rows<'a>(
        &'a self,
        source: &str,
    ) -> impl Iterator<Item = Result<(Key, HeldRow), StoreError>> + 'a {
        let prefix = name_prefix(source);
        let length = prefix.len();
        self.read.scan(Table::Rows, &prefix).map(move |entry| {
            let (key, value) = entry?;
            let held = decode("a row", &value)?;
            Ok((String::from_utf8_lossy(&key[length..]).into(), held))
        })
    }
}

/// Says what `plan` would make of the rows of the state in `from`. Nothing is changed.
///
/// # Errors
/// When there is no state, it is in use or damaged, or the sources are others.
pub fn estimate_rebuild(plan: &Plan, from: &Path) -> Result<RebuildEstimate, StateError> {
    let earlier = Earlier::open(from, plan)?;
    let configured = plan.fingerprint();
    let held = &earlier.record.pipeline;
    let differs = |part: &&String| held.get(*part) != configured.get(*part);
    let parts: BTreeSet<&String> = held.keys().chain(configured.keys()).collect();
    let indexes = plan.indexes.iter();
    Ok(RebuildEstimate {
        epoch: earlier.record.epoch,
        changed: parts.into_iter().filter(differs).cloned().collect(),
        indexes: indexes
            .map(|index| estimate_index(plan, index, &earlier))
            .collect::<Result<_, _>>()?,
    })
}

fn estimate_index(
    plan: &Plan,
    index: &PlannedIndex,
    earlier: &Earlier,
) -> Result<IndexEstimate, StateError> {
    let documents = &plan.documents[usize::from(index.documents)];
    let source = &plan.sources[usize::from(documents.source)].name;
    let (counter, model) = (index.embedder.token_counter(), index.model());
    let mut estimate = IndexEstimate {
        name: index.name.to_string(),
        ..IndexEstimate::default()
    };
    let mut seen = HashSet::new();
    for row in earlier.rows(source) {
        let (key, held) = row?;
        let rendered = documents.view.render(&key, &held);
        let chunked = rendered
            .ok()
            .and_then(|document| chunk_document(&*index.chunker, document).ok());
        let Some(chunked) = chunked else {
            estimate.unusable_rows += 1;
            continue;
        };
        estimate.documents += 1;
        estimate.chunks += chunked.chunks.len() as u64;
        for chunk in chunked.chunks.iter() {
            if !seen.insert(chunk.content) || is_remembered(earlier, model, chunk.content)? {
                continue;
            }
            let text = &chunked.document.text[chunk.start as usize..chunk.end as usize];
            estimate.embedded_texts += 1;
            estimate.embedded_tokens += counter.count(text) as u64;
            estimate.embedded_bytes += text.len() as u64;
        }
    }
    Ok(estimate)
}

fn is_remembered(
    earlier: &Earlier,
    model: u64,
    content: vectide_model::ContentHash,
) -> Result<bool, StoreError> {
    for generation in kept_generations(earlier.record.cache.generation) {
        let key = embedding_key(generation, model, content);
        if earlier.read.get(Table::Embeddings, &key)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes the state of `plan`, whose folder may have none, from the rows of the state in `from`.
///
/// # Errors
/// When there is no state in `from`, it is in use or damaged, or the sources are others; when there is a
/// state in the plan's folder; when the pipeline fails.
pub fn rebuild(mut plan: Plan, from: &Path) -> Result<RunReport, PipelineError> {
    let target = plan.state_directory.clone();
    let unusable = |fact: String, hint: &str| StateError::Unusable {
        directory: target.display().to_string(),
        fact,
        hint: hint.into(),
    };
    if target.exists() {
        let hint = "name a folder that does not exist yet (state.dir)";
        return Err(unusable("it is there already".into(), hint).into());
    }
    let failed =
        |error: io::Error| unusable(error.to_string(), "check the disk and its permissions");
    let earlier = Earlier::open(from, &plan)?;
    let unfinished = unfinished::begin(&target).map_err(failed)?;
    fs::create_dir_all(&unfinished).map_err(failed)?;
    plan.state_directory = unfinished.clone();
    begin(&earlier, &plan, &unfinished.join("store"))?;
    let rows = EarlierRows {
        earlier: Arc::new(earlier),
    };
    let report = Pipeline::start_with(plan, StartOptions::rows(rows))?.join()?;
    unfinished::publish(&unfinished, &target).map_err(failed)?;
    Ok(report)
}

/// Writes what comes along unchanged: remembered vectors, and the dead letters that are about records.
fn begin(earlier: &Earlier, plan: &Plan, store: &Path) -> Result<(), StateError> {
    let store = FjallStore::open(store)?;
    let models: HashSet<u64> = plan.indexes.iter().map(PlannedIndex::model).collect();
    let mut batch = Batch::default();
    for generation in kept_generations(earlier.record.cache.generation) {
        for model in &models {
            let prefix = [&generation.to_be_bytes()[..], &model.to_be_bytes()].concat();
            for entry in earlier.read.scan(Table::Embeddings, &prefix) {
                let (key, value) = entry?;
                batch.put(Table::Embeddings, key, value);
                if batch.operations.len() == ENTRIES_PER_BATCH {
                    store.commit(std::mem::take(&mut batch))?;
                }
            }
        }
    }
    let mut record = CommitRecord {
        cache: earlier.record.cache,
        letters: earlier.record.letters,
        ..CommitRecord::default()
    };
    record.letters.held = 0;
    for entry in earlier.read.scan(Table::DeadLetters, &[]) {
        let (key, value) = entry?;
        // One about a document comes again, if it does.
        let reason = kept_letter(&key, &value)?.letter.reason;
        if reason.is_of_record() || reason == vectide_model::DeadLetterReason::Incomplete {
            batch.put(Table::DeadLetters, key, value);
            record.letters.held += 1;
        }
    }
    batch.put(Table::Meta, META_COMMIT.to_vec(), encode(&record));
    Ok(store.commit(batch)?)
}

/// Stands in for the sources.
pub(crate) struct EarlierRows {
    earlier: Arc<Earlier>,
}

type Lane = (Arc<str>, Receiver<SourceEvent>);

impl EarlierRows {
    /// Starts a thread for each source.
    pub(crate) fn start(
        self,
        names: &[Arc<str>],
        stop: &StopSignal,
    ) -> io::Result<(Vec<Lane>, Vec<JoinHandle<()>>)> {
        let (mut lanes, mut threads) = (Vec::new(), Vec::new());
        for name in names {
            let (sink, events) = ChannelSink::new(stop);
            let (earlier, source) = (self.earlier.clone(), name.clone());
            threads.push(spawn(&format!("rows-{name}"), move || {
                let result = state_rows(&earlier, &source, &sink);
                sink.end(result.or_else(|end| end.of_source(&source, "its rows")));
            })?);
            lanes.push((name.clone(), events));
        }
        Ok((lanes, threads))
    }
}

/// States the rows of a source, then where reading goes on.
fn state_rows(earlier: &Earlier, source: &Arc<str>, sink: &ChannelSink) -> Result<(), FeedEnd> {
    let mut changes = Vec::new();
    for row in earlier.rows(source) {
        let (key, held) = row?;
        changes.push(Change {
            key,
            row: Some(held.row),
            unchanged_fields: Vec::new(),
            position: held.position,
            changed_at: SystemTime::now(),
        });
        if changes.len() == ROWS_PER_BATCH {
            sink.deliver(rows_of(std::mem::take(&mut changes)))?;
        }
    }
    sink.deliver(rows_of(changes))?;
    let record = &earlier.record;
    let mut end = Delivery::default();
    end.batch.positions = record.positions.get(source).cloned().unwrap_or_default();
    end.batch.fingerprints = record.fingerprints.get(source).cloned().unwrap_or_default();
    Ok(sink.deliver(end)?)
}

fn rows_of(changes: Vec<Change>) -> Delivery {
    let mut delivery = Delivery::default();
    delivery.batch.changes = changes;
    delivery.batch.divisible = true;
    delivery.keeps_positions = true;
    delivery
}
