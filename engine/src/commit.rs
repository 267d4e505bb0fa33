//! The one place where state changes: complete epochs into atomic, synced transactions.
//!
//! Invariant: a commit holds whole epochs only, in order, together with the positions they came from;
//! nothing of an epoch is visible to queries before its commit has been synced; segment files are
//! removed only after the commit that no longer names them.

use crate::budget::EpochBudget;
use crate::dataflow::{IndexParts, ShardError};
use crate::ingest::{EpochMeta, SettledLetters};
use crate::recall::Steering;
use crate::snapshot::{Published, Publisher};
use crate::state::{
    CommitRecord, DocumentRecord, Efforts, IndexCounts, META_EFFORTS, State, StoredLetter,
    chunk_key, dead_letter_key, embedding_key, encode, entity_key, head_key, segment_key,
    tombstone_key,
};
use crate::telemetry;
use crossbeam_channel::{Receiver, Sender, select};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};
use vectide_model::{
    Batch, ChunkedDocument, DeadLetter, Effort, Epoch, IndexError, ShardCommit, StoreError, Table,
    VectorIndexRead,
};
use vectide_operators::{Effect, PlanIndex, WorkerProgress};

/// Entries of one generation of the embedding cache: with the generation before it, 1.6 GB at 384
/// dimensions. The older generation is forgotten when the newer one is full.
const CACHE_GENERATION_ENTRIES: u64 = 1_000_000;

/// Forgotten cache entries removed with each commit: a few, so that no commit is slow.
const CACHE_REMOVALS_PER_COMMIT: u64 = 1_000;
/// And for each entry that a commit adds: a generation is gone before the next but one is full, however
/// much a commit remembers.
const CACHE_REMOVALS_PER_ENTRY: u64 = 2;

/// Dead letters that a commit writes to the log; the others are counted there. All of them are in the
/// state.
const LETTERS_TOLD_PER_COMMIT: usize = 10;

/// Figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) embedded_chunks: AtomicU64,
    pub(crate) reused_chunks: AtomicU64,
    pub(crate) dead_letters: AtomicU64,
    pub(crate) epochs: AtomicU64,
    pub(crate) changes: AtomicU64,
}

/// The commit thread's ends of all channels.
pub(crate) struct CommitPorts {
    pub(crate) metas: Receiver<EpochMeta>,
    pub(crate) progress: Receiver<WorkerProgress>,
    pub(crate) committed: Sender<()>,
    pub(crate) workers: usize,
    pub(crate) budget: Arc<EpochBudget>,
    pub(crate) totals: Arc<Totals>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) embed_threads: usize,
    pub(crate) letters: LetterPolicy,
    pub(crate) steering: Arc<Steering>,
}

/// How many dead letters the state keeps.
#[derive(Clone)]
pub(crate) struct LetterPolicy {
    /// The oldest above so many go, in strokes of a sixteenth, so that not every commit removes.
    pub(crate) keep: u64,
    /// Where letters are written to another place: all before this number are durable there, and
    /// no other goes.
    pub(crate) exported: Option<Arc<AtomicU64>>,
}

/// Runs until all workers have finished.
pub(crate) fn run(state: &State, ports: CommitPorts) -> Result<(), ShardError> {
    let frontiers = vec![0; ports.workers];
    Committer {
        state,
        ports,
        frontiers,
        metas: BTreeMap::new(),
        effects: BTreeMap::new(),
    }
    .run()
}

/// Publishes the state as it was opened, and commits what opening the shards settled.
pub(crate) fn publish_opened(
    state: &State,
    indexes: &[IndexParts],
    publisher: &Publisher,
) -> Result<(), ShardError> {
    let mut transaction = Transaction::new(state);
    let mut readers = Vec::new();
    for (index, parts) in indexes.iter().enumerate() {
        let mut shards = parts.shards.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reads = Vec::new();
        for (number, shard) in shards.iter_mut().flatten().enumerate() {
            let closed = shard.close_epoch()?;
            transaction.apply_shard(index as PlanIndex, number as u32, &closed.commit);
            reads.push(closed.read);
        }
        readers.push(reads);
    }
    transaction.finish()?;
    publisher.publish(Published::first(state, readers));
    Ok(())
}

struct Committer<'a> {
    state: &'a State,
    ports: CommitPorts,
    frontiers: Vec<Epoch>,
    metas: BTreeMap<Epoch, EpochMeta>,
    effects: BTreeMap<Epoch, Vec<Effect>>,
}

impl Committer<'_> {
    fn run(mut self) -> Result<(), ShardError> {
        let mut metas_open = true;
        while self.frontiers.iter().any(|frontier| *frontier < Epoch::MAX) {
            let never = crossbeam_channel::never();
            select! {
                recv(if metas_open { &self.ports.metas } else { &never }) -> meta => match meta {
                    Ok(meta) => drop(self.metas.insert(meta.epoch, meta)),
                    Err(_) => metas_open = false,
                },
                recv(self.ports.progress) -> progress => match progress {
                    Ok(progress) => self.note(progress),
                    Err(_) => break,
                },
            }
            while let Ok(progress) = self.ports.progress.try_recv() {
                self.note(progress);
            }
            while let Ok(meta) = self.ports.metas.try_recv() {
                self.metas.insert(meta.epoch, meta);
            }
            self.commit_complete()?;
        }
        Ok(())
    }

    fn note(&mut self, progress: WorkerProgress) {
        self.frontiers[progress.worker] = progress.frontier;
        for (epoch, effects) in progress.effects {
            self.effects.entry(epoch).or_default().extend(effects);
        }
    }

    /// Commits every epoch that all workers have finished, in one transaction.
    fn commit_complete(&mut self) -> Result<(), ShardError> {
        let frontier = self.frontiers.iter().copied().min().unwrap_or_default();
        let rest = self.metas.split_off(&frontier);
        let complete = std::mem::replace(&mut self.metas, rest);
        if complete.is_empty() {
            return Ok(());
        }
        let mut transaction = Transaction::new(self.state);
        let mut costs = Vec::new();
        for (epoch, meta) in &complete {
            let before = transaction.embedding;
            let letters = meta.dead_letters.iter().cloned().map(Effect::DeadLetter);
            let effects = self.effects.remove(epoch).unwrap_or_default();
            transaction.apply(letters.chain(effects));
            transaction.settle_letters(&meta.settled)?;
            transaction.record.epoch = *epoch;
            transaction.record.positions = meta.positions.clone();
            transaction.record.fingerprints = meta.fingerprints.clone();
            transaction.record.resnapshots = meta.resnapshots.clone();
            costs.push((meta.input_bytes, transaction.embedding - before));
        }
        self.refuse_effects_of_the_past(&complete)?;
        transaction.trim_letters(&self.ports.letters)?;
        transaction.steer(self.ports.steering.news(&self.state.efforts()));
        let done = transaction.finish()?;
        self.publish(done, &complete);
        let threads = self.ports.embed_threads.max(1) as u32;
        for (bytes, busy) in costs {
            self.ports.budget.observe(bytes, busy / threads);
        }
        // One token is enough to wake the ingest; it reads the epoch itself.
        let _ = self.ports.committed.try_send(());
        Ok(())
    }

    /// Effects of an epoch that is committed already would be lost, and with them the state's truth.
    fn refuse_effects_of_the_past(
        &self,
        complete: &BTreeMap<Epoch, EpochMeta>,
    ) -> Result<(), ShardError> {
        let newest = complete.keys().next_back().copied().unwrap_or_default();
        match self.effects.range(..=newest).next() {
            None => Ok(()),
            Some((epoch, _)) => Err(ShardError::Index(IndexError {
                fact: format!("something was done for epoch {epoch} after it was closed"),
                hint: "this is a defect: report it with the log; the committed state is intact"
                    .into(),
            })),
        }
    }

    fn tell_indexes(&self, built: &BTreeMap<PlanIndex, Vec<u32>>) {
        let Some(published) = self.ports.publisher.current() else {
            return;
        };
        for (number, name) in self.state.names().indexes.iter().enumerate() {
            let built = built
                .get(&(number as PlanIndex))
                .map_or(&[][..], Vec::as_slice);
            telemetry::index(name, &published.indexes[number].shards, built);
        }
    }

    fn publish(&self, done: Done, complete: &BTreeMap<Epoch, EpochMeta>) {
        self.ports.publisher.publish(Published::next(
            self.ports.publisher.current().as_deref(),
            self.state,
            done.shards,
            complete
                .values()
                .flat_map(|meta| &meta.changed_at)
                .max()
                .copied(),
        ));
        self.state.remove_files(done.removed_files);
        let totals = &self.ports.totals;
        totals
            .epochs
            .fetch_add(complete.len() as u64, Ordering::Relaxed);
        totals
            .embedded_chunks
            .fetch_add(done.embedded_by_index.values().sum(), Ordering::Relaxed);
        totals
            .reused_chunks
            .fetch_add(done.reused_by_index.values().sum(), Ordering::Relaxed);
        totals
            .dead_letters
            .fetch_add(done.dead_letters.len() as u64, Ordering::Relaxed);
        let changes: usize = complete.values().map(|meta| meta.changed_at.len()).sum();
        totals.changes.fetch_add(changes as u64, Ordering::Relaxed);
        telemetry::committed(self.state, &done.embedded_by_index, &done.reused_by_index);
        telemetry::shard_pauses(self.state, &done.pauses);
        self.tell_indexes(&done.segments_built);
        telemetry::dead_letters(&done.dead_letters, done.dropped_letters);
        let untold = done
            .dead_letters
            .len()
            .saturating_sub(LETTERS_TOLD_PER_COMMIT);
        if untold > 0 {
            tracing::warn!("and {untold} more dead letters: `vectide dlq list` shows them");
        }
        for meta in complete.values() {
            telemetry::sourced(self.state, &meta.source_records, &meta.changed_at);
        }
    }
}

/// What became of a transaction.
struct Done {
    shards: Vec<(PlanIndex, u32, Arc<dyn VectorIndexRead>)>,
    removed_files: Vec<PathBuf>,
    pauses: Vec<(PlanIndex, Duration)>,
    segments_built: BTreeMap<PlanIndex, Vec<u32>>,
    embedded_by_index: BTreeMap<PlanIndex, u64>,
    reused_by_index: BTreeMap<PlanIndex, u64>,
    dead_letters: Vec<vectide_model::DeadLetterReason>,
    dropped_letters: u64,
}

/// A transaction being put together.
struct Transaction<'a> {
    state: &'a State,
    batch: Batch,
    record: CommitRecord,
    shards: BTreeMap<(PlanIndex, u32), Arc<dyn VectorIndexRead>>,
    /// Keys of the segments.
    removed_segments: Vec<Vec<u8>>,
    removed_files: Vec<PathBuf>,
    /// How long closing shards kept the workers.
    pauses: Vec<(PlanIndex, Duration)>,
    /// Rows of each new segment.
    segments_built: BTreeMap<PlanIndex, Vec<u32>>,
    tombstones: BTreeSet<Vec<u8>>,
    embedding: Duration,
    embedded: BTreeMap<PlanIndex, u64>,
    chunks_put: BTreeMap<PlanIndex, u64>,
    dead_letters: Vec<vectide_model::DeadLetterReason>,
    settled_letters: BTreeSet<u64>,
    dropped_letters: u64,
    /// How much searches look at from now on, if that changes.
    efforts: Option<Efforts>,
    /// Why none of it can be committed.
    failure: Option<IndexError>,
}

impl<'a> Transaction<'a> {
    fn new(state: &'a State) -> Self {
        Self {
            state,
            batch: Batch::default(),
            record: CommitRecord::clone(&state.record()),
            shards: BTreeMap::new(),
            removed_segments: Vec::new(),
            removed_files: Vec::new(),
            pauses: Vec::new(),
            segments_built: BTreeMap::new(),
            tombstones: BTreeSet::new(),
            embedding: Duration::ZERO,
            embedded: BTreeMap::new(),
            chunks_put: BTreeMap::new(),
            dead_letters: Vec::new(),
            settled_letters: BTreeSet::new(),
            dropped_letters: 0,
            efforts: None,
            failure: None,
        }
    }

    fn index_name(&self, index: PlanIndex) -> &'a str {
        &self.state.names().indexes[usize::from(index)]
    }

    /// What an index holds.
    fn counts(&mut self, index: PlanIndex) -> &mut IndexCounts {
        let name = self.index_name(index);
        self.record.indexes.entry(name.to_owned()).or_default()
    }

    /// Applies an epoch: what goes first, then what comes, since an update is both.
    fn apply(&mut self, effects: impl Iterator<Item = Effect>) {
        let is_removal = |effect: &Effect| {
            matches!(
                effect,
                Effect::DocumentRemove { .. } | Effect::ChunkRemove { .. }
            )
        };
        let (removals, rest): (Vec<_>, Vec<_>) = effects.partition(is_removal);
        removals
            .into_iter()
            .chain(rest)
            .for_each(|effect| self.apply_effect(effect));
    }

    fn apply_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Row { source, key, row } => {
                let key = entity_key(&self.state.names().sources[usize::from(source)], &key);
                match row {
                    Some(row) => self.batch.put(Table::Rows, key, encode(&row)),
                    None => self.batch.delete(Table::Rows, key),
                }
            }
            Effect::DocumentPut { index, document } => self.put_document(index, &document),
            Effect::DocumentRemove { index, id } => {
                let name = self.index_name(index);
                self.batch.delete(Table::Documents, entity_key(name, &id));
                self.batch.delete(Table::Texts, entity_key(name, &id));
                self.counts(index).documents -= 1;
            }
            Effect::ChunkPut {
                index,
                chunk,
                document,
            } => {
                let name = self.index_name(index);
                let id = document.as_bytes().to_vec();
                self.batch.put(Table::Chunks, chunk_key(name, &chunk), id);
                self.counts(index).chunks += 1;
            }
            Effect::ChunkRemove { index, chunk } => {
                let name = self.index_name(index);
                self.batch.delete(Table::Chunks, chunk_key(name, &chunk));
                self.counts(index).chunks -= 1;
            }
            Effect::Embedded { index, texts, busy } => {
                *self.embedded.entry(index).or_default() += texts;
                self.embedding += busy;
            }
            Effect::Remember {
                index,
                content,
                vector,
            } => {
                let model = self.state.names().models[usize::from(index)];
                let key = embedding_key(self.record.cache.generation, model, content);
                self.batch.put(Table::Embeddings, key, vector.to_bytes());
                self.record.cache.entries += 1;
            }
            Effect::Shard {
                index,
                shard,
                read,
                commit,
                pause,
            } => {
                self.pauses.push((index, pause));
                self.apply_shard(index, shard, &commit);
                self.shards.insert((index, shard), read);
            }
            Effect::ShardFailed(error) => {
                self.failure.get_or_insert(error);
            }
            Effect::DeadLetter(letter) => self.put_dead_letter(&letter),
        }
    }

    fn put_document(&mut self, index: PlanIndex, chunked: &ChunkedDocument) {
        let name = self.index_name(index);
        let document = &chunked.document;
        let record = DocumentRecord::of(chunked);
        let key = entity_key(name, &document.id);
        self.batch
            .put(Table::Documents, key.clone(), encode(&record));
        self.batch
            .put(Table::Texts, key, document.text.as_bytes().to_vec());
        self.counts(index).documents += 1;
        *self.chunks_put.entry(index).or_default() += chunked.chunks.len() as u64;
    }

    fn put_dead_letter(&mut self, letter: &DeadLetter) {
        let stored = StoredLetter {
            written_at: SystemTime::now(),
            letter: letter.clone(),
        };
        let key = dead_letter_key(self.record.letters.written);
        self.batch.put(Table::DeadLetters, key, encode(&stored));
        self.record.letters.written += 1;
        self.record.letters.held += 1;
        self.dead_letters.push(letter.reason);
        if self.dead_letters.len() <= LETTERS_TOLD_PER_COMMIT {
            tracing::warn!(
                reason = letter.reason.as_str(), source = %letter.position.source,
                partition = %letter.position.partition, offset = letter.position.offset,
                key = letter.key.as_deref(), "dead letter: {}", letter.detail
            );
        }
    }

    /// Removes the letters whose records became changes of this transaction, and writes down what
    /// keeps the others out today. A letter that was trimmed since it was read is gone already.
    fn settle_letters(&mut self, settled: &SettledLetters) -> Result<(), StoreError> {
        if settled.gone.is_empty() && settled.rewritten.is_empty() {
            return Ok(());
        }
        let read = self.state.snapshot();
        let is_held = |id: u64| read.get(Table::DeadLetters, &dead_letter_key(id));
        for id in &settled.gone {
            if is_held(*id)?.is_some() && self.settled_letters.insert(*id) {
                self.batch.delete(Table::DeadLetters, dead_letter_key(*id));
                self.record.letters.held -= 1;
            }
        }
        for kept in &settled.rewritten {
            if is_held(kept.id)?.is_none() || self.settled_letters.contains(&kept.id) {
                continue;
            }
            let stored = StoredLetter {
                written_at: kept.written_at,
                letter: kept.letter.clone(),
            };
            let key = dead_letter_key(kept.id);
            self.batch.put(Table::DeadLetters, key, encode(&stored));
        }
        Ok(())
    }

    /// Removes the oldest letters when there are too many, and tells it.
    fn trim_letters(&mut self, policy: &LetterPolicy) -> Result<(), StoreError> {
        let exported = policy.exported.as_ref();
        let exported = exported.map(|exported| exported.load(Ordering::Acquire));
        if let Some(exported) = exported {
            self.record.letters.exported = exported;
        }
        let held = self.record.letters.held;
        if held <= policy.keep + policy.keep / 16 {
            return Ok(());
        }
        let may_go = |id: u64| exported.is_none_or(|exported| id < exported);
        let read = self.state.snapshot();
        for entry in read.scan(Table::DeadLetters, &[]) {
            let (key, _) = entry?;
            let id = key
                .as_slice()
                .try_into()
                .map_or(u64::MAX, u64::from_be_bytes);
            if self.record.letters.held <= policy.keep || !may_go(id) {
                break;
            }
            if self.settled_letters.insert(id) {
                self.batch.delete(Table::DeadLetters, key);
                self.record.letters.held -= 1;
                self.dropped_letters += 1;
            }
        }
        self.record.letters.dropped += self.dropped_letters;
        if self.dropped_letters > 0 {
            tracing::warn!(
                removed = self.dropped_letters,
                keep = policy.keep,
                exported = exported.is_some(),
                "there are too many dead letters: the oldest left the state (dead_letters.keep)"
            );
        }
        Ok(())
    }

    /// Writes down how much searches look at.
    fn steer(&mut self, efforts: Option<Efforts>) {
        let Some(efforts) = efforts else {
            return;
        };
        let kept = |(name, effort): (&String, &Option<Effort>)| Some((name.clone(), (*effort)?));
        let kept: BTreeMap<String, Effort> = efforts.iter().filter_map(kept).collect();
        let key = META_EFFORTS.to_vec();
        self.batch.put(Table::Meta, key, encode(&kept));
        self.efforts = Some(efforts);
    }

    fn apply_shard(&mut self, index: PlanIndex, shard: u32, commit: &ShardCommit) {
        let name = self.index_name(index);
        for chunk in &commit.head_removed {
            self.batch.delete(Table::Head, head_key(name, shard, chunk));
        }
        for row in &commit.head_added {
            // Its fields are made again of the document when the shard is opened.
            let key = head_key(name, shard, &row.chunk);
            self.batch.put(Table::Head, key, row.vector.to_bytes());
        }
        for manifest in &commit.segments_added {
            let key = segment_key(name, shard, manifest.id);
            self.batch.put(Table::Segments, key, encode(manifest));
            let built = self.segments_built.entry(index).or_default();
            built.push(manifest.rows);
        }
        for (segment, row) in &commit.tombstones {
            self.tombstones
                .insert(tombstone_key(name, shard, *segment, *row));
        }
        for manifest in &commit.segments_removed {
            let key = segment_key(name, shard, manifest.id);
            let directory = self.state.shard_directory(name, shard);
            let files = manifest.files.iter().map(|(file, ..)| directory.join(file));
            self.removed_files.extend(files);
            self.removed_segments.push(key);
        }
    }

    /// Commits.
    fn finish(mut self) -> Result<Done, ShardError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure.into());
        }
        self.settle_segments()?;
        self.turn_cache()?;
        let difference = |index: &PlanIndex, put: &u64| {
            (
                *index,
                put.saturating_sub(self.embedded.get(index).copied().unwrap_or_default()),
            )
        };
        let reused_by_index: BTreeMap<_, _> = self
            .chunks_put
            .iter()
            .map(|(index, put)| difference(index, put))
            .collect();
        self.state.commit(self.batch, self.record)?;
        if let Some(efforts) = self.efforts {
            self.state.set_efforts(efforts);
        }
        Ok(Done {
            shards: self
                .shards
                .into_iter()
                .map(|((at, no), read)| (at, no, read))
                .collect(),
            removed_files: self.removed_files,
            pauses: self.pauses,
            segments_built: self.segments_built,
            embedded_by_index: self.embedded,
            reused_by_index,
            dead_letters: self.dead_letters,
            dropped_letters: self.dropped_letters,
        })
    }

    /// Tombstones of live segments are kept; those of removed ones go with them.
    fn settle_segments(&mut self) -> Result<(), StoreError> {
        let read = self.state.snapshot();
        for key in &self.removed_segments {
            self.tombstones
                .retain(|tombstone| !tombstone.starts_with(key));
            for held in read.scan(Table::Tombstones, key) {
                self.batch.delete(Table::Tombstones, held?.0);
            }
            self.batch.delete(Table::Segments, key.clone());
        }
        for tombstone in std::mem::take(&mut self.tombstones) {
            self.batch.put(Table::Tombstones, tombstone, Vec::new());
        }
        Ok(())
    }

    /// Starts a new generation of the embedding cache when this one is full, and removes some of
    /// what was forgotten.
    fn turn_cache(&mut self) -> Result<(), StoreError> {
        let cache = &mut self.record.cache;
        let added = cache.entries - self.state.record().cache.entries;
        if cache.entries >= CACHE_GENERATION_ENTRIES {
            cache.generation += 1;
            cache.entries = 0;
        }
        let Some(forgotten) = cache.generation.checked_sub(2) else {
            return Ok(());
        };
        let read = self.state.snapshot();
        let entries = read.scan(Table::Embeddings, &forgotten.to_be_bytes());
        for entry in entries.take(cache_removals(added)) {
            self.batch.delete(Table::Embeddings, entry?.0);
        }
        Ok(())
    }
}

/// How many forgotten entries of the cache a commit removes that adds so many.
fn cache_removals(added: u64) -> usize {
    CACHE_REMOVALS_PER_COMMIT.max(added * CACHE_REMOVALS_PER_ENTRY) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_gone_before_the_next_but_one_is_full() {
        for added in [1, 999, 1_001, 15_000, 600_000, 3_000_000] {
            let commits = CACHE_GENERATION_ENTRIES.div_ceil(added);
            let of_a_generation = commits * added;
            let removed = commits * cache_removals(added) as u64;
            assert!(removed >= of_a_generation, "{added} a commit");
        }
    }
}
