//! Keyword search over the shards of one snapshot, and its hits together with those of the vectors.
//!
//! Invariant: a keyword score is computed with the counts of all shards, so it does not depend on how rows are
//! spread over them; a fused score depends on both rankings alone.

use crate::snapshot::PublishedIndex;
use std::collections::HashMap;
use vectide_model::{
    Bm25, ChunkId, Found, Fusion, ScoredChunk, Scores, Search, Term, TermMatches, TermStatistics,
};

/// Hits of each kind that are fused at least: as many as fusing usually takes, and enough that a hit at the
/// tenth place of one is not missed where the other has it in its first hundred.
pub(crate) const CANDIDATES_MIN: usize = 100;

/// Different words of a query that are looked for: the first so many, more than questions have. Rows of all of
/// them are held while it is answered, 8 bytes each: some 100 MB if each stands in a fifth of a million rows.
const TERMS_MAX: usize = 64;

/// A chunk in the order of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ranked {
    pub(crate) chunk: ChunkId,
    pub(crate) score: f32,
    /// What that is made of, where it is of both.
    pub(crate) scores: Option<Scores>,
}

/// Chunks, best first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ranking {
    pub(crate) hits: Vec<Ranked>,
    pub(crate) is_partial: bool,
}

impl From<Found> for Ranking {
    fn from(found: Found) -> Self {
        let ranked = |hit: ScoredChunk| Ranked {
            chunk: hit.chunk,
            score: hit.score,
            scores: None,
        };
        Self {
            hits: found.hits.into_iter().map(ranked).collect(),
            is_partial: found.is_partial,
        }
    }
}

/// A keyword query put to all shards of an index.
pub(crate) struct Keywords<'a> {
    shards: Vec<Box<dyn TermMatches + 'a>>,
    scale: Bm25,
}

impl<'a> Keywords<'a> {
    /// Reads the rows that have some of the terms; repeated ones count once.
    pub(crate) fn new(index: &'a PublishedIndex, terms: Vec<Term>) -> Self {
        let mut once: Vec<Term> = Vec::new();
        for term in terms {
            if once.len() < TERMS_MAX && !once.contains(&term) {
                once.push(term);
            }
        }
        let shards: Vec<_> = index.shards.iter().map(|it| it.matches(&once)).collect();
        let mut statistics = TermStatistics::default();
        for shard in &shards {
            statistics.add(&shard.statistics());
        }
        Self {
            scale: Bm25::new(&statistics),
            shards,
        }
    }

    /// The best rows of all shards.
    pub(crate) fn search(&self, search: &Search) -> Found {
        let found = self.shards.iter().map(|it| it.search(&self.scale, search));
        Found::merge(found, search.k)
    }

    fn score(&self, chunk: &ChunkId) -> Option<f32> {
        let mut scores = self.shards.iter().map(|it| it.score(&self.scale, chunk));
        scores.find_map(|score| score)
    }

    /// Both rankings as one. The score that a chunk has in the other one is looked up, too.
    pub(crate) fn fuse(
        &self,
        index: &PublishedIndex,
        vector: &[f32],
        (by_vector, by_keyword): (&Found, &Found),
        fusion: Fusion,
    ) -> Ranking {
        let mut scores: HashMap<ChunkId, Scores> = HashMap::new();
        for hit in &by_vector.hits {
            scores.entry(hit.chunk).or_default().vector = Some(hit.score);
        }
        for hit in &by_keyword.hits {
            scores.entry(hit.chunk).or_default().keyword = Some(hit.score);
        }
        for (chunk, scores) in &mut scores {
            let mut shards = index.shards.iter();
            let by_vector = || shards.find_map(|shard| shard.score(vector, chunk));
            scores.vector = scores.vector.or_else(by_vector);
            scores.keyword = scores.keyword.or_else(|| self.score(chunk));
        }
        let fused = match fusion {
            Fusion::ReciprocalRank { k } => reciprocal_ranks([by_vector, by_keyword], k),
            Fusion::Weighted { vector } => weighted(&scores, vector),
        };
        let mut hits: Vec<Ranked> = fused
            .into_iter()
            .map(|(chunk, score)| Ranked {
                chunk,
                score,
                scores: scores.get(&chunk).copied(),
            })
            .collect();
        hits.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
        Ranking {
            hits,
            is_partial: by_vector.is_partial || by_keyword.is_partial,
        }
    }
}

/// Adds up 1 / (k + rank), ranks counted from 1 (G. Cormack, C. Clarke and S. Büttcher, "Reciprocal Rank
/// Fusion outperforms Condorcet and individual Rank Learning Methods", 2009).
fn reciprocal_ranks(rankings: [&Found; 2], k: f32) -> HashMap<ChunkId, f32> {
    let mut fused = HashMap::new();
    for ranking in rankings {
        for (hit, rank) in ranking.hits.iter().zip(1_u32..) {
            *fused.entry(hit.chunk).or_default() += 1.0 / (k + rank as f32);
        }
    }
    fused
}

/// Adds up the scores, those of keywords as shares of the greatest.
fn weighted(scores: &HashMap<ChunkId, Scores>, weight: f32) -> HashMap<ChunkId, f32> {
    let by_keyword = scores.values().filter_map(|it| it.keyword);
    let greatest = by_keyword.fold(0.0, f32::max);
    let scale = if greatest > 0.0 { 1.0 / greatest } else { 0.0 };
    let score = |it: &Scores| {
        let keyword = it.keyword.unwrap_or(0.0) * scale;
        weight * it.vector.unwrap_or(0.0) + (1.0 - weight) * keyword
    };
    let fused = scores.iter().map(|(chunk, it)| (*chunk, score(it)));
    fused.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(hits: &[(u8, f32)]) -> Found {
        let hit = |(id, score): &(u8, f32)| ScoredChunk {
            chunk: ChunkId([*id; 16]),
            score: *score,
        };
        Found {
            hits: hits.iter().map(hit).collect(),
            is_partial: false,
        }
    }

    #[test]
    fn what_both_rank_high_comes_first() {
        let (a, b) = (found(&[(1, 0.9), (2, 0.8)]), found(&[(3, 7.0), (2, 6.0)]));
        let fused = reciprocal_ranks([&a, &b], 60.0);
        let of = |id: u8| fused[&ChunkId([id; 16])];
        assert!(of(2) > of(1) && of(1) == of(3));
        assert!((of(2) - 2.0 / 62.0).abs() < 1e-7);
    }

    #[test]
    fn rankings_may_be_long() {
        let chunk = |at: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&at.to_le_bytes());
            ChunkId(id)
        };
        let hits = (0..70_000).map(|at| ScoredChunk {
            chunk: chunk(at),
            score: 0.0,
        });
        let long = Found {
            hits: hits.collect(),
            is_partial: false,
        };
        let fused = reciprocal_ranks([&long, &Found::default()], 60.0);
        assert!(fused[&chunk(69_999)] < fused[&chunk(0)]);
    }

    #[test]
    fn weights_are_shares() {
        let scores = |vector, keyword| Scores { vector, keyword };
        let scores = HashMap::from([
            (ChunkId([1; 16]), scores(Some(0.5), Some(4.0))),
            (ChunkId([2; 16]), scores(Some(0.8), None)),
        ]);
        let fused = weighted(&scores, 0.25);
        assert_eq!(fused[&ChunkId([1; 16])], 0.25 * 0.5 + 0.75);
        assert_eq!(fused[&ChunkId([2; 16])], 0.25 * 0.8);
        let only_vectors = HashMap::from([(ChunkId([2; 16]), scores[&ChunkId([2; 16])])]);
        assert_eq!(weighted(&only_vectors, 0.5)[&ChunkId([2; 16])], 0.4);
    }
}
