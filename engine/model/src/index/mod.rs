//! The contract of a vector index shard: a write half owned by one worker, and immutable read
//! halves that queries hold.
//!
//! Invariant: a [`VectorIndexRead`] taken when an epoch closed answers from exactly the rows that
//! were live then, whatever is applied to the write half afterwards.

mod contract;

use crate::{Attributes, ChunkId, Embedding, Filter, Term, TermMatches, Terms};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Identity of a sealed segment within its shard; never used again after removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentId(pub u64);

/// What the commit records of a sealed segment: enough to find and verify its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentManifest {
    /// Identity.
    pub id: SegmentId,
    /// Rows when it was sealed, dead ones included.
    pub rows: u32,
    /// File names within the shard's folder, each with its length and BLAKE3 checksum.
    pub files: Vec<(String, u64, [u8; 32])>,
}

/// What a row is found by besides its vector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowFields {
    /// What filters look at.
    pub attributes: Attributes,
    /// What keyword search looks at.
    pub terms: Terms,
}

/// A row as it comes into a shard.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexRow {
    /// Identity.
    pub chunk: ChunkId,
    /// Its vector.
    pub vector: Embedding,
    /// What else it is found by.
    pub fields: RowFields,
}

impl IndexRow {
    /// A row that is found by its vector alone.
    pub fn new(chunk: ChunkId, vector: Embedding) -> Self {
        let fields = RowFields::default();
        Self {
            chunk,
            vector,
            fields,
        }
    }
}

/// What has to be committed together with an epoch for the shard to be found again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardCommit {
    /// Rows new in the head.
    pub head_added: Vec<IndexRow>,
    /// Rows that left the head: deleted or sealed.
    pub head_removed: Vec<ChunkId>,
    /// Rows (segment, row) that died in segments.
    pub tombstones: Vec<(SegmentId, u32)>,
    /// Segments written since the last epoch; their files are synced already.
    pub segments_added: Vec<SegmentManifest>,
    /// Segments no longer used; their files may go once this is committed.
    pub segments_removed: Vec<SegmentManifest>,
}

/// The committed state of a shard, as it is opened again.
#[derive(Clone, Debug, Default)]
pub struct ShardState {
    /// Rows of the head.
    pub head: Vec<IndexRow>,
    /// Sealed segments.
    pub segments: Vec<SegmentManifest>,
    /// Dead rows of segments.
    pub tombstones: Vec<(SegmentId, u32)>,
}

/// A hit: inner product of unit vectors, 1 at best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredChunk {
    /// Which chunk.
    pub chunk: ChunkId,
    /// Inner product with the query.
    pub score: f32,
}

/// How much of an index a search looks at before it answers. Four steps double it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Effort(u8);

impl Effort {
    /// What finds 98 of 100 true hits among a million real embeddings.
    pub const NOMINAL: Self = Self(8);
    /// Sixteen times as much: nearly everything.
    pub const MAX: Self = Self(24);

    /// By its step, at most [`Effort::MAX`].
    pub fn of_step(step: u8) -> Self {
        Self(step).min(Self::MAX)
    }

    /// Its step.
    pub fn step(self) -> u8 {
        self.0
    }

    /// How many times [`Effort::NOMINAL`] it is.
    pub fn factor(self) -> f32 {
        ((f32::from(self.0) - f32::from(Self::NOMINAL.0)) / 4.0).exp2()
    }
}

/// What a search asks for.
#[derive(Clone, Debug)]
pub struct Search {
    /// How many hits.
    pub k: usize,
    /// How much is looked at; `None`: everything, so that the hits are the true ones.
    pub effort: Option<Effort>,
    /// When to answer with what has been found so far.
    pub until: Option<Instant>,
    /// Which rows may be hits; `None`: all.
    pub filter: Option<Arc<Filter>>,
}

impl Search {
    /// The greatest length of a query's vector. Neither its square nor its product with any vector of half floats,
    /// nor a sum on the way there, leaves the range of an `f32`: scores are finite numbers.
    pub const QUERY_LENGTH_MAX: f64 = 1e18;

    /// The length of a query's vector, which no component makes overflow; NaN or infinite where one is.
    pub fn query_length(query: &[f32]) -> f64 {
        let squares = query.iter().map(|x| f64::from(*x) * f64::from(*x));
        squares.sum::<f64>().sqrt()
    }

    /// Whether a vector can be searched with: its components are finite, and scores will be.
    pub fn takes(query: &[f32]) -> bool {
        Self::query_length(query) <= Self::QUERY_LENGTH_MAX
    }

    /// The `k` best, as far as [`Effort::NOMINAL`] finds them.
    pub fn best(k: usize) -> Self {
        Self {
            k,
            effort: Some(Effort::NOMINAL),
            until: None,
            filter: None,
        }
    }

    /// The `k` best without exception.
    pub fn exact(k: usize) -> Self {
        Self {
            effort: None,
            ..Self::best(k)
        }
    }
}

/// What a search found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Best first, equal scores by chunk id.
    pub hits: Vec<ScoredChunk>,
    /// Whether time was up before all was looked at that should have been.
    pub is_partial: bool,
}

impl Found {
    /// Brings what several shards found into one: the best `k`.
    pub fn merge(parts: impl IntoIterator<Item = Self>, k: usize) -> Self {
        let mut whole = Self::default();
        for part in parts {
            whole.hits.extend(part.hits);
            whole.is_partial |= part.is_partial;
        }
        whole
            .hits
            .sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
        whole.hits.truncate(k);
        whole
    }
}

/// A failure of an index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fact}\nhint: {hint}")]
pub struct IndexError {
    /// What happened.
    pub fact: String,
    /// The way out.
    pub hint: String,
}

/// The read half: immutable, shared by queries, no locks.
///
/// Obligations, checked by [`vector_index_contract`]:
/// - only rows live at its epoch that pass the filter are found;
/// - hits are sorted by descending score, equal scores by chunk id, none twice;
/// - `k` beyond those rows gives them all (an approximate search may miss some);
/// - without an effort the hits are the true ones;
/// - the same search of the same read half gives the same hits, however many are asked together.
pub trait VectorIndexRead: Send + Sync {
    /// Live rows.
    fn rows(&self) -> usize;
    /// Sealed segments.
    fn segments(&self) -> usize;
    /// Bytes of their files.
    fn segment_bytes(&self) -> u64;
    /// How many times, since the shard was opened, work in the background that would only have made it faster could
    /// not be done and was put off.
    fn merges_postponed(&self) -> u64 {
        0
    }
    /// The live rows with the greatest inner product with each of the queries. A query of another
    /// dimension or one that [`Search::takes`] refuses finds nothing.
    fn search_all(&self, queries: &[&[f32]], search: &Search) -> Vec<Found>;
    /// The same for one query.
    fn search(&self, query: &[f32], search: &Search) -> Found {
        let found = self.search_all(&[query], search);
        found.into_iter().next().unwrap_or_default()
    }
    /// The live rows that have some of these terms, each of which stands there once.
    fn matches(&self, terms: &[Term]) -> Box<dyn TermMatches + '_>;
    /// The stored vector of a live row.
    fn vector(&self, chunk: &ChunkId) -> Option<Embedding>;
    /// The inner product of a query with a live row, as a search would give it.
    fn score(&self, query: &[f32], chunk: &ChunkId) -> Option<f32>;
    /// Says that searches miss too much: what leads to the rows is to be made anew, in the background. An
    /// exact index ignores it.
    fn renew(&self) {}
    /// Whether closing an epoch would make the shard better though no row has changed; see
    /// [`VectorIndex::has_news`], whose answer it gives at once, also of a shard that has moved on.
    fn has_news(&self) -> bool {
        false
    }
}

/// An epoch of a shard, closed.
pub struct ClosedShard {
    /// What queries may read once the epoch is committed.
    pub read: Arc<dyn VectorIndexRead>,
    /// What has to be committed for it.
    pub commit: ShardCommit,
}

/// The write half: owned by one worker.
///
/// Obligations, checked by [`vector_index_contract`]:
/// - `remove` of an unknown chunk and `insert` of a present one are errors of the caller: `insert`
///   replaces, `remove` ignores;
/// - removals of an epoch come before its insertions;
/// - heavy work (training, building segments) happens on threads of its own; `close_epoch` takes
///   what is finished and never waits for it;
/// - the state given by all commits so far, applied in order, opens to the same rows.
pub trait VectorIndex: Send {
    /// Removes a row.
    fn remove(&mut self, chunk: &ChunkId);
    /// Adds a row.
    fn insert(&mut self, row: IndexRow);
    /// Closes an epoch.
    ///
    /// # Errors
    /// When rows could not be written to a segment; the process ends with it. That segments can't be merged is
    /// no error.
    fn close_epoch(&mut self) -> Result<ClosedShard, IndexError>;
    /// Whether work of other threads waits to be taken in by the next close. It is false after it until
    /// there is more.
    fn has_news(&self) -> bool {
        false
    }
}

/// Opens shards of one index type.
pub trait VectorIndexFactory: Send + Sync {
    /// Opens a shard whose segment files live in `directory` (made when missing), removing files
    /// that `state` does not name.
    ///
    /// # Errors
    /// When a file is missing, fails its checksum or has another dimension.
    fn open(
        &self,
        directory: &Path,
        dimension: usize,
        state: ShardState,
    ) -> Result<Box<dyn VectorIndex>, IndexError>;

    /// Opens the rows of a shard to look at them: every file that `state` names is verified, and
    /// nothing in `directory` is changed.
    ///
    /// # Errors
    /// As [`VectorIndexFactory::open`].
    fn read(
        &self,
        directory: &Path,
        dimension: usize,
        state: ShardState,
    ) -> Result<Arc<dyn VectorIndexRead>, IndexError>;
}

impl ShardState {
    /// Applies a commit, as the store does: for tests and for the contract.
    pub fn apply(&mut self, commit: &ShardCommit) {
        self.head
            .retain(|row| !commit.head_removed.contains(&row.chunk));
        for row in &commit.head_added {
            self.head.retain(|held| held.chunk != row.chunk);
            self.head.push(row.clone());
        }
        self.segments.extend(commit.segments_added.iter().cloned());
        self.tombstones.extend(&commit.tombstones);
        for gone in &commit.segments_removed {
            self.segments.retain(|segment| segment.id != gone.id);
            self.tombstones.retain(|(segment, _)| *segment != gone.id);
        }
    }
}

/// Checks the obligations of an index type over `rows` rows with churn and reopening, in an empty
/// folder; `recall_min` is the share of true neighbours that must be found (1.0 for exact types).
///
/// # Panics
/// When one of them does not hold.
pub fn vector_index_contract(
    factory: &dyn VectorIndexFactory,
    directory: &Path,
    rows: usize,
    recall_min: f64,
) {
    let mut check = contract::Check::new(factory, directory);
    for round in 0..10 {
        check.churn(rows / 10, round);
        check.close_and_compare(recall_min);
    }
    check.reopen();
    check.close_and_compare(recall_min);
    check.churn(rows / 10, 99);
    check.close_and_compare(recall_min);
    check.old_readers_did_not_move(recall_min);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_taken_if_its_scores_are_finite() {
        let takes = |components: [f32; 2]| Search::takes(&components);
        assert!(takes([0.6, -0.8]) && takes([0.0, 0.0]) && takes([7e17, -7e17]));
        assert!(!takes([8e17, -8e17]) && !takes([3e38, -3e38]) && !takes([1e18, 1.1e18]));
        assert!(!takes([f32::NAN, 0.0]) && !takes([0.0, f32::NEG_INFINITY]));
        let length = Search::query_length(&[3e30, 4e30]);
        assert!((length / 5e30 - 1.0).abs() < 1e-6, "{length:e}");
    }
}
