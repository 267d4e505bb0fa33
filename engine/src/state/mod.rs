//! The committed state: the store, who may write it, and typed access to what is in it.
//!
//! Invariant: the state belongs to one process at a time (a lock on the folder) and to one pipeline
//! (what it was made with is part of the commit); everything else is refused with the way out.

mod failure;
mod fjall_store;
mod journals;
mod layout;
mod lock;
mod manifests;
mod pins;
pub(crate) mod unfinished;
mod witness;

pub(crate) use fjall_store::FjallStore;
pub(crate) use layout::{
    CommitRecord, DocumentRecord, IndexCounts, META_COMMIT, META_EFFORTS, StoredLetter, chunk_key,
    dead_letter_key, decode, embedding_key, encode, entity_key, head_key, kept_generations,
    kept_letter, name_prefix, segment_key, segment_place, shard_prefix, tombstone_key,
};
pub(crate) use lock::DirectoryLock;
pub(crate) use pins::{FilePin, FileRemovals};
pub(crate) use witness::forget as forget_witness;
use witness::{Witness, refuse_lost_commits};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use vectide_model::{
    Batch, ContentHash, Effort, Embedding, Epoch, HeldRows, IndexRow, Key, Partition, Row,
    SegmentManifest, ShardState, SourceError, Store, StoreError, StoreRead, Table,
};
use vectide_operators::{Committed, CommittedState, HeldDocument, HeldRow, PlanIndex};

/// Why a state can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder, its lock or its files.
    #[error("the state in {directory} can't be used: {fact}\nhint: {hint}")]
    Unusable {
        /// The folder.
        directory: String,
        /// What is wrong.
        fact: String,
        /// The way out.
        hint: String,
    },
    /// A process that runs has it.
    #[error(
        "the state in {directory} can't be used: another process uses it\nhint: end that process, or \
         give this one a state folder of its own"
    )]
    InUse {
        /// The folder.
        directory: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Names by plan number, and the model behind each index: how operators' numbers become keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) sources: Vec<Arc<str>>,
    pub(crate) indexes: Vec<Arc<str>>,
    /// Hash of each index's model fingerprint.
    pub(crate) models: Vec<u64>,
}

/// How much searches of each index look at; `None`: everything.
pub(crate) type Efforts = BTreeMap<String, Option<Effort>>;

/// The state, open for writing.
pub(crate) struct State {
    store: Arc<dyn Store>,
    directory: PathBuf,
    names: Names,
    committed: AtomicU64,
    generation: AtomicU64,
    record: RwLock<Arc<CommitRecord>>,
    efforts: RwLock<Efforts>,
    witness: Witness,
    removals: FileRemovals,
    _lock: DirectoryLock,
}

impl State {
    /// Opens the state of a pipeline, which `pipeline` describes part by part.
    pub(crate) fn open(
        directory: &Path,
        names: Names,
        pipeline: &BTreeMap<String, String>,
    ) -> Result<Self, StateError> {
        let lock = DirectoryLock::take(directory)?;
        let store: Arc<dyn Store> = Arc::new(FjallStore::open(&directory.join("store"))?);
        let mut record = read_commit(&*store.snapshot())?.unwrap_or_default();
        refuse_lost_commits(directory, &record)?;
        if record.epoch > 0 {
            refuse_other_pipeline(directory, &record.pipeline, pipeline)?;
        }
        record.pipeline = pipeline.clone();
        record.incarnation += 1;
        let mut batch = Batch::default();
        batch.put(Table::Meta, META_COMMIT.to_vec(), encode(&record));
        store.commit(batch)?;
        let witness = Witness::open(directory)?;
        witness.note(&record);
        Ok(Self {
            store,
            directory: directory.to_owned(),
            names,
            committed: AtomicU64::new(record.epoch),
            generation: AtomicU64::new(record.cache.generation.into()),
            record: RwLock::new(Arc::new(record)),
            efforts: RwLock::default(),
            witness,
            removals: FileRemovals::default(),
            _lock: lock,
        })
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// The last commit.
    pub(crate) fn record(&self) -> Arc<CommitRecord> {
        self.record
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn snapshot(&self) -> Arc<dyn StoreRead> {
        self.store.snapshot()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Keeps the segment files of every snapshot that is taken from now on.
    pub(crate) fn pin_files(&self) -> FilePin {
        self.removals.pin()
    }

    /// Removes segment files that the newest commit does not name.
    pub(crate) fn remove_files(&self, files: Vec<PathBuf>) {
        self.removals.remove(files);
    }

    /// Gives back the room of what is gone.
    pub(crate) fn compact(&self) -> Result<(), StoreError> {
        self.store.compact()
    }

    /// Commits a batch together with its record: one synced transaction.
    pub(crate) fn commit(&self, mut batch: Batch, record: CommitRecord) -> Result<(), StoreError> {
        batch.put(Table::Meta, META_COMMIT.to_vec(), encode(&record));
        self.store.commit(batch)?;
        self.witness.note(&record);
        let (epoch, generation) = (record.epoch, record.cache.generation);
        *self
            .record
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(record);
        self.generation.store(generation.into(), Ordering::Release);
        self.committed.store(epoch, Ordering::Release);
        Ok(())
    }

    /// How much searches of an index look at since the last commit.
    pub(crate) fn effort(&self, index: &str) -> Option<Effort> {
        self.efforts().get(index).copied().flatten()
    }

    /// The same of all indexes.
    pub(crate) fn efforts(&self) -> Efforts {
        let efforts = self.efforts.read();
        efforts
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Says how much searches look at from the next snapshot on.
    pub(crate) fn set_efforts(&self, efforts: Efforts) {
        let mut held = self.efforts.write();
        let held = held
            .as_deref_mut()
            .unwrap_or_else(|poisoned| poisoned.get_mut());
        *held = efforts;
    }

    /// The efforts that an earlier process has come to.
    pub(crate) fn kept_efforts(&self) -> Result<BTreeMap<String, Effort>, StoreError> {
        let bytes = self.snapshot().get(Table::Meta, META_EFFORTS)?;
        let kept = bytes.map(|bytes| decode("the searches' efforts", &bytes));
        kept.transpose().map(Option::unwrap_or_default)
    }

    /// Lets sources begin anew, besides those whose new beginning was not finished: they have no
    /// positions until they state some.
    pub(crate) fn begin_resnapshots(&self, sources: &[Arc<str>]) -> Result<(), StoreError> {
        let mut record = CommitRecord::clone(&self.record());
        record.resnapshots.extend(sources.iter().cloned());
        if record.resnapshots.is_empty() {
            return Ok(());
        }
        for source in &record.resnapshots {
            record.positions.remove(source);
            record.fingerprints.remove(source);
        }
        self.commit(Batch::default(), record)
    }

    /// Notes how far the letters are durable outside the state.
    pub(crate) fn commit_exported(&self, exported: u64) -> Result<(), StoreError> {
        let mut record = CommitRecord::clone(&self.record());
        record.letters.exported = exported;
        self.commit(Batch::default(), record)
    }

    /// Where a shard keeps its segment files.
    pub(crate) fn shard_directory(&self, index: &str, shard: u32) -> PathBuf {
        shard_directory(&self.directory, index, shard)
    }

    /// The rows of a source, for sources that compare.
    pub(crate) fn held_rows(self: &Arc<Self>, source: Arc<str>) -> Arc<dyn HeldRows> {
        Arc::new(SourceRows {
            state: self.clone(),
            source,
        })
    }
}

/// Where a shard keeps its segment files in a state's folder.
pub(crate) fn shard_directory(directory: &Path, index: &str, shard: u32) -> PathBuf {
    let segments = directory.join("segments");
    segments.join(index).join(shard.to_string())
}

/// The committed state of a shard, without the fields of its head's rows.
pub(crate) fn shard_state(
    read: &dyn StoreRead,
    index: &str,
    shard: u32,
) -> Result<ShardState, StoreError> {
    let prefix = shard_prefix(index, shard);
    let mut state = ShardState::default();
    for entry in read.scan(Table::Head, &prefix) {
        let (key, value) = entry?;
        let vector = Embedding::from_bytes(&value);
        let chunk = key[prefix.len()..].try_into().map(vectide_model::ChunkId);
        match (chunk, vector) {
            (Ok(chunk), Some(vector)) => state.head.push(IndexRow::new(chunk, vector)),
            _ => return Err(StoreError::Refused("a head row is damaged".into())),
        }
    }
    for entry in read.scan(Table::Segments, &prefix) {
        let manifest: SegmentManifest = decode("a segment's manifest", &entry?.1)?;
        let under = segment_key(index, shard, manifest.id);
        for tombstone in read.scan(Table::Tombstones, &under) {
            let (key, _) = tombstone?;
            let row = key[under.len()..].try_into().map(u32::from_be_bytes);
            let row = row.map_err(|_| StoreError::Refused("a tombstone is damaged".into()))?;
            state.tombstones.push((manifest.id, row));
        }
        state.segments.push(manifest);
    }
    Ok(state)
}

/// Opens a state that no process writes, to look at it or to repair it.
pub(crate) fn open_at_rest(directory: &Path) -> Result<(DirectoryLock, FjallStore), StateError> {
    let store = directory.join("store");
    if !store.exists() {
        return Err(StateError::Unusable {
            directory: directory.display().to_string(),
            fact: "there is no state".into(),
            hint: "run the pipeline first: vectide run CONFIG --until-caught-up".into(),
        });
    }
    let lock = DirectoryLock::take(directory)?;
    let store = FjallStore::open(&store)?;
    let record = read_commit(&*store.snapshot())?.unwrap_or_default();
    refuse_lost_commits(directory, &record)?;
    Ok((lock, store))
}

/// The commit record of a store, if there is one.
pub(crate) fn read_commit(read: &dyn StoreRead) -> Result<Option<CommitRecord>, StoreError> {
    let bytes = read.get(Table::Meta, META_COMMIT)?;
    bytes
        .map(|bytes| decode("the commit record", &bytes))
        .transpose()
}

/// Refuses a state that another pipeline made, naming the differences.
pub(crate) fn refuse_other_pipeline(
    directory: &Path,
    held: &BTreeMap<String, String>,
    configured: &BTreeMap<String, String>,
) -> Result<(), StateError> {
    let mut differences = Vec::new();
    for (part, was) in held {
        match configured.get(part) {
            Some(is) if is == was => {}
            Some(is) => differences.push(format!("{part} was `{was}` and is now `{is}`")),
            None => differences.push(format!("{part} is no longer configured")),
        }
    }
    let added = configured.keys().filter(|part| !held.contains_key(*part));
    differences.extend(added.map(|part| format!("{part} is new")));
    if differences.is_empty() {
        return Ok(());
    }
    Err(StateError::Unusable {
        directory: directory.display().to_string(),
        fact: format!(
            "it was made by another pipeline: {}",
            differences.join("; ")
        ),
        hint: "give the changed pipeline a state folder of its own (state.dir), and make it of this \
               one's rows: `vectide plan CONFIG --from FOLDER` says what that takes, `vectide rebuild` \
               does it; without that the sources are read again"
            .into(),
    })
}

impl CommittedState for State {
    fn epoch(&self) -> Epoch {
        self.committed.load(Ordering::Acquire)
    }

    fn read(&self) -> Box<dyn Committed + '_> {
        Box::new(StateRead {
            read: self.snapshot(),
            state: self,
        })
    }
}

struct StateRead<'a> {
    read: Arc<dyn StoreRead>,
    state: &'a State,
}

impl Committed for StateRead<'_> {
    fn row(&self, source: PlanIndex, key: &str) -> Result<Option<HeldRow>, StoreError> {
        let key = entity_key(&self.state.names.sources[usize::from(source)], key);
        let bytes = self.read.get(Table::Rows, &key)?;
        bytes.map(|bytes| decode("a row", &bytes)).transpose()
    }

    fn document(&self, index: PlanIndex, id: &str) -> Result<Option<HeldDocument>, StoreError> {
        let key = entity_key(&self.state.names.indexes[usize::from(index)], id);
        let Some(bytes) = self.read.get(Table::Documents, &key)? else {
            return Ok(None);
        };
        let DocumentRecord { sha256, chunks, .. } = decode("a document", &bytes)?;
        Ok(Some(HeldDocument { sha256, chunks }))
    }

    fn embedding(
        &self,
        index: PlanIndex,
        content: ContentHash,
    ) -> Result<Option<Embedding>, StoreError> {
        let model = self.state.names.models[usize::from(index)];
        let generation = self.state.generation.load(Ordering::Acquire) as u32;
        for generation in kept_generations(generation) {
            let key = embedding_key(generation, model, content);
            if let Some(bytes) = self.read.get(Table::Embeddings, &key)? {
                return Ok(Embedding::from_bytes(&bytes));
            }
        }
        Ok(None)
    }
}

struct SourceRows {
    state: Arc<State>,
    source: Arc<str>,
}

impl SourceRows {
    fn failed(&self, error: &StoreError) -> SourceError {
        SourceError::Failed {
            source_name: self.source.to_string(),
            detail: format!("its rows can't be read from the state: {error}"),
            hint: "check the disk that holds the state".into(),
        }
    }
}

impl HeldRows for SourceRows {
    fn row(&self, key: &str) -> Result<Option<Row>, SourceError> {
        let bytes = self
            .state
            .snapshot()
            .get(Table::Rows, &entity_key(&self.source, key))
            .map_err(|error| self.failed(&error))?;
        let held: Option<HeldRow> = bytes
            .map(|bytes| decode("a row", &bytes))
            .transpose()
            .map_err(|error| self.failed(&error))?;
        Ok(held.map(|held| held.row))
    }

    fn keys(&self) -> Result<Vec<Key>, SourceError> {
        let prefix = name_prefix(&self.source);
        let read = self.state.snapshot();
        read.scan(Table::Rows, &prefix)
            .map(|entry| {
                let (key, _) = entry.map_err(|error| self.failed(&error))?;
                Ok(String::from_utf8_lossy(&key[prefix.len()..]).into())
            })
            .collect()
    }

    fn keys_from(&self, of: &dyn Fn(&str) -> bool) -> Result<Vec<Key>, SourceError> {
        let prefix = name_prefix(&self.source);
        let read = self.state.snapshot();
        let mut keys = Vec::new();
        for entry in read.scan(Table::Rows, &prefix) {
            let (key, row) = entry.map_err(|error| self.failed(&error))?;
            let held: HeldRow = decode("a row", &row).map_err(|error| self.failed(&error))?;
            if of(&held.position.partition) {
                keys.push(String::from_utf8_lossy(&key[prefix.len()..]).into());
            }
        }
        Ok(keys)
    }

    fn durable_positions(&self) -> BTreeMap<Partition, u64> {
        let record = self.state.record();
        record
            .positions
            .get(&self.source)
            .cloned()
            .unwrap_or_default()
    }
}
