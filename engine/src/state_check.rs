//! Whether a state is what its rows say: `vectide check`.
//!
//! Everything behind the rows of the sources is derived. So it is derived once more, row by row, and
//! compared with what is stored: the document, its text, its chunks and, for each chunk, one vector in
//! the shard where queries look for it. What is stored and not derived is an orphan. Segment files are
//! read whole and compared with the checksums that the commit names.
//!
//! Invariant: nothing is changed, and a fault in one place keeps no other from being looked at.

use crate::head_fields::shard_state_with_fields;
use crate::plan::{Derivation, Plan, PlannedIndex};
use crate::state::{
    CommitRecord, DocumentRecord, IndexCounts, StateError, chunk_key, decode, embedding_key,
    entity_key, kept_letter, name_prefix, open_at_rest, read_commit, refuse_other_pipeline,
    shard_directory,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vectide_model::{
    ChunkSpan, ChunkedDocument, Embedding, Epoch, Key, Positions, Store, StoreError, StoreRead,
    Table, VectorIndexRead, chunk_document,
};
use vectide_operators::{HeldRow, shard_of};

/// Faults that are told one by one; the others are counted.
const FAULTS_TOLD_MAX: usize = 100;

/// What was looked at, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StateReport {
    /// The last committed epoch.
    pub epoch: Epoch,
    /// Where its sources stood: source, partition, next offset.
    pub positions: Positions,
    /// Rows of all sources.
    pub rows: u64,
    /// Documents that the rows give, in all indexes.
    pub documents: u64,
    /// Chunks that those give.
    pub chunks: u64,
    /// Live vectors in all shards.
    pub vectors: u64,
    /// Sealed segments.
    pub segments: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// How much is wrong.
    pub faults: u64,
    /// The first faults, each with its place.
    pub told: Vec<String>,
}

/// Looks at the whole state of a pipeline that no process runs.
///
/// # Errors
/// When there is no state, a process uses it, or it is another pipeline's.
pub fn check_state(plan: &Plan) -> Result<StateReport, StateError> {
    let (_lock, store) = open_at_rest(&plan.state_directory)?;
    check_snapshot(&plan.derivation(), &*store.snapshot())
}

/// Looks at the state of one epoch, whose segment files stay meanwhile.
pub(crate) fn check_snapshot(
    plan: &Derivation,
    read: &dyn StoreRead,
) -> Result<StateReport, StateError> {
    let Some(record) = read_commit(read)? else {
        return Err(StateError::Unusable {
            directory: plan.state_directory.display().to_string(),
            fact: "it has no commit".into(),
            hint: "restore it from a copy, or remove it to build it again from the sources".into(),
        });
    };
    refuse_other_pipeline(&plan.state_directory, &record.pipeline, &plan.fingerprint)?;
    let mut check = Check {
        plan,
        read,
        record: &record,
        report: StateReport {
            epoch: record.epoch,
            positions: record.positions.clone(),
            ..StateReport::default()
        },
    };
    for source in &plan.sources {
        check.section(&format!("sources.{source}"), |check| {
            check.report.rows += check.count(Table::Rows, &name_prefix(source))?;
            Ok(())
        });
    }
    for index in &plan.indexes {
        check.section(&format!("indexes.{}", index.name), |check| {
            check.index(index)
        });
    }
    check.section("dead letters", Check::dead_letters);
    Ok(check.report)
}

struct Check<'a> {
    plan: &'a Derivation,
    read: &'a dyn StoreRead,
    record: &'a CommitRecord,
    report: StateReport,
}

/// The shards of an index that could be opened.
type Shards = Vec<Option<Arc<dyn VectorIndexRead>>>;

impl Check<'_> {
    fn fault(&mut self, place: &str, fact: impl std::fmt::Display) {
        self.report.faults += 1;
        if self.report.told.len() < FAULTS_TOLD_MAX {
            // What to do about it is told once, for all of them.
            let fact = fact.to_string();
            let fact = fact.lines().next().unwrap_or_default();
            self.report.told.push(format!("{place}: {fact}"));
        }
    }

    /// Looks at a section; one that can't be read any further is a fault.
    fn section(&mut self, place: &str, look: impl FnOnce(&mut Self) -> Result<(), StoreError>) {
        if let Err(error) = look(self) {
            self.fault(place, error);
        }
    }

    fn count(&self, table: Table, prefix: &[u8]) -> Result<u64, StoreError> {
        let mut count = 0;
        for entry in self.read.scan(table, prefix) {
            entry?;
            count += 1;
        }
        Ok(count)
    }

    fn index(&mut self, index: &PlannedIndex) -> Result<(), StoreError> {
        let place = format!("indexes.{}", index.name);
        let shards = self.shards(index);
        let model = index.model();
        let documents = &self.plan.documents[usize::from(index.documents)];
        let source = self.plan.sources[usize::from(documents.source)].clone();
        let prefix = name_prefix(&source);
        let mut derived = IndexCounts::default();
        for entry in self.read.scan(Table::Rows, &prefix) {
            let (key, value) = entry?;
            let id: Key = String::from_utf8_lossy(&key[prefix.len()..]).into();
            let held: HeldRow = decode("a row", &value)?;
            // What gives no document, or can't be cut, is a dead letter and not here.
            let Ok(document) = documents.view.render(&id, &held) else {
                continue;
            };
            let Ok(chunked) = chunk_document(&*index.chunker, document) else {
                continue;
            };
            derived.documents += 1;
            derived.chunks += chunked.chunks.len() as u64;
            self.document(&place, (index, model), &chunked, &shards)?;
        }
        self.report.documents += derived.documents;
        self.report.chunks += derived.chunks;
        self.counts(&place, index, derived, &shards);
        self.orphans(&place, index, &source)
    }

    /// Opens what can be opened.
    fn shards(&mut self, index: &PlannedIndex) -> Shards {
        let dimension = index.embedder.identity().dimension;
        let open = |shard: u32| {
            let place = format!("indexes.{} shard {shard}", index.name);
            let held = shard_state_with_fields(self.read, &index.name, shard, &index.fields);
            let held = match held {
                Ok(held) => held,
                Err(error) => {
                    self.fault(&place, error);
                    return None;
                }
            };
            self.report.segments += held.segments.len() as u64;
            let directory = shard_directory(&self.plan.state_directory, &index.name, shard);
            match index.factory.read(&directory, dimension, held) {
                Ok(read) => {
                    self.report.vectors += read.rows() as u64;
                    Some(read)
                }
                Err(error) => {
                    self.fault(&place, error.fact);
                    None
                }
            }
        };
        (0..index.shards).map(open).collect()
    }

    /// Compares what a row gives with what is stored of it.
    fn document(
        &mut self,
        place: &str,
        (index, model): (&PlannedIndex, u64),
        derived: &ChunkedDocument,
        shards: &Shards,
    ) -> Result<(), StoreError> {
        let document = &derived.document;
        let place = format!("{place} document `{}`", document.id);
        let key = entity_key(&index.name, &document.id);
        match self.read.get(Table::Texts, &key)? {
            None => self.fault(&place, "its text is missing"),
            Some(text) if text != document.text.as_bytes() => {
                self.fault(&place, "its text is not that of its row");
            }
            Some(_) => {}
        }
        match self.read.get(Table::Documents, &key)? {
            None => self.fault(&place, "it is missing"),
            Some(bytes) => {
                let stored: DocumentRecord = decode("a document", &bytes)?;
                if stored != DocumentRecord::of(derived) {
                    self.fault(&place, "it is not what its row gives");
                }
            }
        }
        let shard = shard_of(&document.id, index.shards);
        let read = shards.get(shard as usize).and_then(Option::as_deref);
        for chunk in derived.chunks.iter() {
            self.chunk(&place, (index, model), (&document.id, chunk), read)?;
        }
        Ok(())
    }

    fn chunk(
        &mut self,
        place: &str,
        (index, model): (&PlannedIndex, u64),
        (document, chunk): (&str, &ChunkSpan),
        shard: Option<&dyn VectorIndexRead>,
    ) -> Result<(), StoreError> {
        let key = chunk_key(&index.name, &chunk.id);
        let owner = self.read.get(Table::Chunks, &key)?;
        if owner.as_deref() != Some(document.as_bytes()) {
            self.fault(place, format!("chunk {} does not lead to it", chunk.id));
        }
        // A shard that can't be opened has been told.
        let Some(shard) = shard else {
            return Ok(());
        };
        let Some(vector) = shard.vector(&chunk.id) else {
            self.fault(place, format!("chunk {} has no vector", chunk.id));
            return Ok(());
        };
        let generation = self.record.cache.generation;
        let key = embedding_key(generation, model, chunk.content);
        let remembered = self.read.get(Table::Embeddings, &key)?;
        if remembered.is_some_and(|remembered| !are_of_one_text(&vector, &remembered)) {
            let fact = format!("chunk {} has another vector than its text", chunk.id);
            self.fault(place, fact);
        }
        Ok(())
    }

    /// What the commit says that an index holds.
    fn stated(&self, index: &PlannedIndex) -> IndexCounts {
        let counts = self.record.indexes.get(&*index.name).copied();
        counts.unwrap_or_default()
    }

    /// Compares what the rows give with what the commit and the shards count.
    fn counts(&mut self, place: &str, index: &PlannedIndex, derived: IndexCounts, shards: &Shards) {
        let stated = self.stated(index);
        if stated != derived {
            let fact = format!("the commit counts {stated:?}, the rows give {derived:?}");
            self.fault(place, fact);
        }
        if shards.iter().all(Option::is_some) {
            let rows = |read: &Arc<dyn VectorIndexRead>| read.rows() as u64;
            let vectors: u64 = shards.iter().flatten().map(rows).sum();
            if vectors != derived.chunks {
                let fact = format!("{vectors} vectors for {} chunks", derived.chunks);
                self.fault(place, fact);
            }
        }
    }

    /// Names what is stored of rows that are not there, and chunks that their document does not have.
    fn orphans(
        &mut self,
        place: &str,
        index: &PlannedIndex,
        source: &str,
    ) -> Result<(), StoreError> {
        let prefix = name_prefix(&index.name);
        for (table, what) in [(Table::Documents, "document"), (Table::Texts, "text")] {
            for entry in self.read.scan(table, &prefix) {
                let (key, _) = entry?;
                let id = String::from_utf8_lossy(&key[prefix.len()..]);
                if self
                    .read
                    .get(Table::Rows, &entity_key(source, &id))?
                    .is_none()
                {
                    self.fault(place, format!("the {what} of `{id}` has no row"));
                }
            }
        }
        let mut chunks = 0;
        for entry in self.read.scan(Table::Chunks, &prefix) {
            let (_, document) = entry?;
            chunks += 1;
            let document = String::from_utf8_lossy(&document);
            let key = entity_key(&index.name, &document);
            if self.read.get(Table::Documents, &key)?.is_none() {
                self.fault(
                    place,
                    format!("a chunk leads to `{document}`, which is missing"),
                );
            }
        }
        let stated = self.stated(index).chunks;
        if chunks != stated {
            let fact = format!("{chunks} chunks are stored, the commit counts {stated}");
            self.fault(place, fact);
        }
        Ok(())
    }

    fn dead_letters(&mut self) -> Result<(), StoreError> {
        let mut held = 0;
        for entry in self.read.scan(Table::DeadLetters, &[]) {
            let (key, value) = entry?;
            held += 1;
            if kept_letter(&key, &value)?.id >= self.record.letters.written {
                self.fault("dead letters", "one has a number that was never given");
            }
        }
        self.report.dead_letters = held;
        let stated = self.record.letters.held;
        if held != stated {
            let fact = format!("{held} are stored, the commit counts {stated}");
            self.fault("dead letters", fact);
        }
        Ok(())
    }
}

/// What a model may change between two computations of a text by its contract, and what two roundings to
/// 16 bits add.
const COSINE_MIN: f64 = 0.999;

/// Whether a stored vector can be the text's whose vector is remembered. A text that was refused keeps zeros,
/// though another chunk with it may have been embedded later; and where models compute elsewhere, two
/// computations need not have the same bits.
fn are_of_one_text(stored: &Embedding, remembered: &[u8]) -> bool {
    let Some(remembered) = Embedding::from_bytes(remembered) else {
        return false;
    };
    if stored.0.len() != remembered.0.len() {
        return false;
    }
    let sum = |left: &Embedding, right: &Embedding| -> f64 {
        let pairs = left.0.iter().zip(right.0.iter());
        pairs.map(|(x, y)| x.to_f64() * y.to_f64()).sum()
    };
    let norms = (sum(stored, stored) * sum(&remembered, &remembered)).sqrt();
    let is_refused = stored.0.iter().all(|x| x.to_f32() == 0.0);
    is_refused || sum(stored, &remembered) >= COSINE_MIN * norms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_one_text_may_differ_by_rounding_alone() {
        let embedding = |vector: &[f32]| vectide_model::quantize(vector);
        let remembered = embedding(&[0.6, 0.8, 0.0]).to_bytes();
        for (vector, is_one) in [
            ([0.6, 0.8, 0.0], true),
            ([0.601, 0.799, 0.001], true),
            ([0.0, 0.0, 0.0], true),
            ([0.8, 0.6, 0.0], false),
            ([-0.6, -0.8, 0.0], false),
            ([f32::NAN, 0.8, 0.0], false),
        ] {
            let found = are_of_one_text(&embedding(&vector), &remembered);
            assert_eq!(found, is_one, "{vector:?}");
        }
        assert!(!are_of_one_text(&embedding(&[0.6, 0.8]), &remembered));
        assert!(!are_of_one_text(&embedding(&[0.6, 0.8, 0.0]), b"odd"));
    }
}
