//! The best `k` of a stream of scored chunks.
//!
//! Invariant: hits are ordered by descending score, then by chunk id, and memory follows the hits
//! offered, never `k` alone.

use std::cmp::Ordering;
use vectide_model::{ChunkId, ScoredChunk};

/// Collects hits.
pub(crate) struct Top {
    k: usize,
    hits: Vec<ScoredChunk>,
    /// A hit that scores less can't be among the best any more.
    floor: f32,
}

/// The order of answers. Scores are never NaN: stored vectors are finite, and [`Search::takes`] lets no query
/// pass whose products with them could not be.
///
/// [`Search::takes`]: vectide_model::Search::takes
fn order(a: &ScoredChunk, b: &ScoredChunk) -> Ordering {
    b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk))
}

impl Top {
    /// For the best `k`.
    pub(crate) fn new(k: usize) -> Self {
        Self {
            k,
            hits: Vec::new(),
            floor: f32::NEG_INFINITY,
        }
    }

    /// Offers a hit.
    #[inline]
    pub(crate) fn offer(&mut self, chunk: ChunkId, score: f32) {
        self.offer_row(score, || chunk);
    }

    /// Offers a hit whose id is only looked up if the score is good enough.
    #[inline]
    pub(crate) fn offer_row(&mut self, score: f32, chunk: impl FnOnce() -> ChunkId) {
        self.offer_if(score, || Some(chunk()));
    }

    /// Offers what may be no hit, which is only looked at if the score is good enough.
    #[inline]
    pub(crate) fn offer_if(&mut self, score: f32, chunk: impl FnOnce() -> Option<ChunkId>) {
        // So that -0.0 and 0.0, equal scores, are ordered by chunk id.
        let score = score + 0.0;
        if score >= self.floor
            && let Some(chunk) = chunk()
        {
            self.hits.push(ScoredChunk { chunk, score });
            // At twice k, so that cutting costs a constant a hit.
            if self.hits.len() >= self.k.saturating_mul(2).max(32) {
                self.cut();
            }
        }
    }

    fn cut(&mut self) {
        if self.k > 0 && self.hits.len() > self.k {
            self.hits.select_nth_unstable_by(self.k - 1, order);
            self.hits.truncate(self.k);
            self.floor = self.hits[self.k - 1].score;
        } else {
            self.hits.truncate(self.k);
        }
    }

    /// The best, in order.
    pub(crate) fn finish(mut self) -> Vec<ScoredChunk> {
        self.cut();
        self.hits.sort_unstable_by(order);
        self.hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_sorting_all(scores in prop::collection::vec(-3_i8..3, 0..300), k in 0..80_usize) {
            let mut top = Top::new(k);
            let mut all = Vec::new();
            for (at, score) in scores.iter().enumerate() {
                let mut id = [0; 16];
                id[0] = (at * 37 % 256) as u8;
                id[1] = at as u8;
                id[2] = (at / 256) as u8;
                let hit = ScoredChunk { chunk: ChunkId(id), score: f32::from(*score) };
                top.offer(hit.chunk, hit.score);
                all.push(hit);
            }
            all.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
            all.truncate(k);
            prop_assert_eq!(top.finish(), all);
        }
    }

    #[test]
    fn a_huge_k_costs_nothing() {
        let mut top = Top::new(usize::MAX);
        top.offer(ChunkId([1; 16]), -0.0);
        top.offer(ChunkId([0; 16]), 0.0);
        let hits = top.finish();
        assert_eq!(
            hits.iter().map(|hit| hit.chunk.0[0]).collect::<Vec<_>>(),
            [0, 1]
        );
    }
}
