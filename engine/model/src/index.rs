//! The contract of a vector index shard: a write half owned by one worker, and immutable read
//! halves that queries hold.
//!
//! Invariant: a [`VectorIndexRead`] taken when an epoch closed answers from exactly the rows that
//! were live then, whatever is applied to the write half afterwards.

use crate::{ChunkId, Embedding};
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

/// What has to be committed together with an epoch for the shard to be found again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardCommit {
    /// Rows new in the head.
    pub head_added: Vec<(ChunkId, Embedding)>,
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
    pub head: Vec<(ChunkId, Embedding)>,
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
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// How many hits.
    pub k: usize,
    /// How much is looked at; `None`: everything, so that the hits are the true ones.
    pub effort: Option<Effort>,
    /// When to answer with what has been found so far.
    pub until: Option<Instant>,
}

impl Search {
    /// The `k` best, as far as [`Effort::NOMINAL`] finds them.
    pub fn best(k: usize) -> Self {
        Self {
            k,
            effort: Some(Effort::NOMINAL),
            until: None,
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
/// - only rows live at its epoch are found;
/// - hits are sorted by descending score, equal scores by chunk id, none twice;
/// - `k` beyond the live rows gives them all (an approximate search may miss some);
/// - without an effort the hits are the true ones;
/// - the same search of the same read half gives the same hits, however many are asked together.
pub trait VectorIndexRead: Send + Sync {
    /// Live rows.
    fn rows(&self) -> usize;
    /// Sealed segments.
    fn segments(&self) -> usize;
    /// Bytes of their files.
    fn segment_bytes(&self) -> u64;
    /// The live rows with the greatest inner product with each of the queries. A query of another
    /// dimension or with a component that is not finite finds nothing.
    fn search_all(&self, queries: &[&[f32]], search: &Search) -> Vec<Found>;
    /// The same for one query.
    fn search(&self, query: &[f32], search: &Search) -> Found {
        let found = self.search_all(&[query], search);
        found.into_iter().next().unwrap_or_default()
    }
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
    fn insert(&mut self, chunk: ChunkId, vector: Embedding);
    /// Closes an epoch.
    ///
    /// # Errors
    /// When a segment could not be written; the process ends with it.
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
            .retain(|(chunk, _)| !commit.head_removed.contains(chunk));
        for (chunk, vector) in &commit.head_added {
            self.head.retain(|(held, _)| held != chunk);
            self.head.push((*chunk, vector.clone()));
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

mod contract {
    //! The contract's body: a seeded churn compared with brute force.

    use super::*;
    use crate::quantize;
    use std::collections::{BTreeMap, HashSet};
    use std::path::PathBuf;

    const DIMENSION: usize = 32;
    type Live = BTreeMap<ChunkId, Embedding>;

    pub(super) struct Check<'a> {
        factory: &'a dyn VectorIndexFactory,
        directory: PathBuf,
        index: Box<dyn VectorIndex>,
        state: ShardState,
        live: Live,
        old: Vec<(Arc<dyn VectorIndexRead>, Live)>,
        seed: u64,
    }

    impl<'a> Check<'a> {
        pub(super) fn new(factory: &'a dyn VectorIndexFactory, directory: &Path) -> Self {
            let state = ShardState::default();
            let index = factory
                .open(directory, DIMENSION, state.clone())
                .expect("an empty shard");
            let (live, old) = (Live::new(), Vec::new());
            Self {
                factory,
                directory: directory.into(),
                index,
                state,
                live,
                old,
                seed: 7,
            }
        }

        /// xorshift64: enough for test data, the same everywhere.
        fn random(&mut self) -> u64 {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            self.seed
        }

        fn random_unit_vector(&mut self) -> Vec<f32> {
            let raw: Vec<f32> = (0..DIMENSION)
                .map(|_| (self.random() % 2001) as f32 / 1000.0 - 1.0)
                .collect();
            let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
            raw.iter().map(|x| x / norm).collect()
        }

        pub(super) fn churn(&mut self, inserts: usize, round: u64) {
            let gone: Vec<ChunkId> = self
                .live
                .keys()
                .copied()
                .filter(|id| (u64::from(id.0[0]) + round).is_multiple_of(5))
                .collect();
            for chunk in gone {
                self.index.remove(&chunk);
                self.live.remove(&chunk);
            }
            self.index.remove(&ChunkId([0; 16]));
            for _ in 0..inserts {
                let (a, b) = (self.random(), self.random());
                let mut id = [0; 16];
                id[..8].copy_from_slice(&a.to_le_bytes());
                id[8..].copy_from_slice(&b.to_le_bytes());
                let vector = quantize(&self.random_unit_vector());
                self.index.insert(ChunkId(id), vector.clone());
                self.live.insert(ChunkId(id), vector);
            }
        }

        pub(super) fn close_and_compare(&mut self, recall_min: f64) {
            let closed = self.index.close_epoch().expect("an epoch");
            self.state.apply(&closed.commit);
            let live = self.live.clone();
            self.compare(&*closed.read, &live, recall_min);
            self.old.push((closed.read, live));
        }

        fn compare(&mut self, read: &dyn VectorIndexRead, live: &Live, recall_min: f64) {
            assert_eq!(read.rows(), live.len(), "live rows");
            let (mut found, mut wanted) = (0, 0);
            let queries: Vec<Vec<f32>> = (0..20).map(|_| self.random_unit_vector()).collect();
            let together: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
            let together = read.search_all(&together, &Search::best(10));
            for (query, together) in queries.into_iter().zip(together) {
                let answer = read.search(&query, &Search::best(10));
                assert_eq!(answer, together, "alone and together");
                assert!(!answer.is_partial, "there was time");
                let hits = answer.hits;
                let ordered = |pair: &[ScoredChunk]| {
                    pair[0].score > pair[1].score
                        || (pair[0].score == pair[1].score && pair[0].chunk < pair[1].chunk)
                };
                assert!(
                    hits.windows(2).all(ordered),
                    "order or duplicates: {hits:?}"
                );
                for hit in &hits {
                    let vector = live.get(&hit.chunk).expect("only live rows are found");
                    assert!(
                        (dot(&query, vector) - hit.score).abs() < 2e-3,
                        "score of {hit:?}"
                    );
                    assert_eq!(read.vector(&hit.chunk).as_ref(), Some(vector));
                    assert_eq!(read.score(&query, &hit.chunk), Some(hit.score));
                }
                let mut exact: Vec<(f32, ChunkId)> = live
                    .iter()
                    .map(|(id, vector)| (dot(&query, vector), *id))
                    .collect();
                exact.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                exact.truncate(10);
                let true_hits = read.search(&query, &Search::exact(10)).hits;
                let scores = true_hits.iter().map(|hit| hit.score);
                let is_close =
                    |(score, exact): (f32, &(f32, ChunkId))| (score - exact.0).abs() < 2e-3;
                assert_eq!(true_hits.len(), exact.len(), "true hits");
                assert!(scores.zip(&exact).all(is_close), "true hits: {true_hits:?}");
                let got: HashSet<ChunkId> = hits.iter().map(|hit| hit.chunk).collect();
                wanted += exact.len();
                found += exact.iter().filter(|(_, id)| got.contains(id)).count();
            }
            let recall = if wanted == 0 {
                1.0
            } else {
                found as f64 / wanted as f64
            };
            assert!(
                recall >= recall_min,
                "recall {recall} of {} rows",
                live.len()
            );
            let all = read.search(&[0.5; DIMENSION], &Search::best(10_000_000));
            assert!(all.hits.len() <= live.len());
            let bad: [&[f32]; 2] = [&[0.5; DIMENSION + 1], &[f32::NAN; DIMENSION]];
            for found in read.search_all(&bad, &Search::best(10)) {
                assert_eq!(found, Found::default(), "a query that is none");
            }
            let late = Search {
                until: Some(Instant::now()),
                ..Search::best(10)
            };
            let found = read.search(&[0.5; DIMENSION], &late);
            assert!(found.is_partial || live.is_empty(), "no time at all");
        }

        pub(super) fn reopen(&mut self) {
            let read = self
                .factory
                .read(&self.directory, DIMENSION, self.state.clone())
                .expect("the committed state can be looked at");
            assert_eq!(read.rows(), self.live.len(), "rows of a shard looked at");
            self.index = self
                .factory
                .open(&self.directory, DIMENSION, self.state.clone())
                .expect("the committed state opens again");
        }

        pub(super) fn old_readers_did_not_move(&mut self, recall_min: f64) {
            for (read, live) in std::mem::take(&mut self.old) {
                self.compare(&*read, &live, recall_min);
            }
        }
    }

    fn dot(query: &[f32], vector: &Embedding) -> f32 {
        query
            .iter()
            .zip(vector.0.iter())
            .map(|(x, y)| x * y.to_f32())
            .sum()
    }
}
