//! The terms that rows are found by with keyword search, and how rows are ranked by them.
//!
//! The score is BM25 (S. Robertson and H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond",
//! 2009), with the inverse document frequency that stays positive, ln(1 + (N - n + 0.5) / (n + 0.5)).
//!
//! Invariant: all counts are of live rows alone, so that a score depends on the rows of an epoch, not on how
//! they lie in segments or on what was deleted.

use crate::{ChunkId, Found, Search};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How fast more of a term counts for less, and how much long rows are held against their length: the values
/// of the paper's experiments and of most engines.
const SATURATION: f32 = 1.2;
const LENGTH_SHARE: f32 = 0.75;

/// A term: 64 bits of hash of a word. Two words of a vocabulary of a million share one with a probability of
/// 1 in 37 million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term(pub [u8; 8]);

/// The terms of a row, ascending, each with how often it stands there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms(Option<Arc<[(Term, u32)]>>);

impl Terms {
    /// Longest row that is told apart from longer ones.
    pub const LENGTH_MAX: u32 = u16::MAX as u32;

    /// Counts terms.
    pub fn count(mut terms: Vec<Term>) -> Self {
        terms.sort_unstable();
        let counted = terms.chunk_by(|a, b| a == b);
        let counted: Arc<[(Term, u32)]> =
            counted.map(|same| (same[0], same.len() as u32)).collect();
        Self((!counted.is_empty()).then_some(counted))
    }

    /// The terms, ascending, with their counts.
    pub fn counts(&self) -> &[(Term, u32)] {
        self.0.as_deref().unwrap_or_default()
    }

    /// How often a term stands in the row.
    pub fn count_of(&self, term: Term) -> u32 {
        let counts = self.counts();
        let found = counts.binary_search_by_key(&term, |(term, _)| *term);
        found.map_or(0, |at| counts[at].1)
    }

    /// Terms of the row, repeated ones counted again, at most [`Terms::LENGTH_MAX`].
    pub fn length(&self) -> u32 {
        let length = self.counts().iter().map(|(_, count)| u64::from(*count));
        length.sum::<u64>().min(u64::from(Self::LENGTH_MAX)) as u32
    }
}

/// Counts of live rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TermStatistics {
    /// Rows that have terms.
    pub rows: u64,
    /// Their lengths, added up.
    pub length: u64,
    /// Of each term of the query, how many rows have it.
    pub rows_with: Vec<u64>,
}

impl TermStatistics {
    /// Adds the counts of another shard for the same query.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.length += other.length;
        self.rows_with.resize(other.rows_with.len(), 0);
        for (rows, other) in self.rows_with.iter_mut().zip(&other.rows_with) {
            *rows += other;
        }
    }
}

/// How much each term of a query counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Bm25 {
    /// A term.
    weights: Vec<f32>,
    average_length: f32,
}

impl Bm25 {
    /// By the counts of all shards.
    pub fn new(statistics: &TermStatistics) -> Self {
        let rows = statistics.rows as f64;
        let weight = |with: &u64| {
            let with = *with as f64;
            (1.0 + (rows - with + 0.5).max(0.0) / (with + 0.5)).ln() as f32
        };
        Self {
            weights: statistics.rows_with.iter().map(weight).collect(),
            average_length: (statistics.length as f64 / rows.max(1.0)).max(1.0) as f32,
        }
    }

    /// What the term of a number, which a row of this length has so often, adds to the row's score. A row's
    /// score is the sum in the order of the query's terms.
    #[inline]
    pub fn part(&self, term: usize, count: u32, length: u32) -> f32 {
        let share = length as f32 / self.average_length;
        let norm = SATURATION * (1.0 - LENGTH_SHARE + LENGTH_SHARE * share);
        let count = count as f32;
        self.weights[term] * (count * (SATURATION + 1.0) / (count + norm))
    }
}

/// The rows of a shard at an epoch that have terms of a query.
pub trait TermMatches {
    /// Counts for the score.
    fn statistics(&self) -> TermStatistics;
    /// The rows with the greatest scores of those that have a term and pass the filter, best first, equal
    /// scores by chunk id. `effort` says nothing: all are looked at.
    fn search(&self, scale: &Bm25, search: &Search) -> Found;
    /// The score of a live row; `None` where it has none of the terms.
    fn score(&self, scale: &Bm25, chunk: &ChunkId) -> Option<f32>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(number: u8) -> Term {
        Term([number; 8])
    }

    #[test]
    fn terms_are_counted() {
        let terms = Terms::count([3, 1, 3, 2, 3].map(term).to_vec());
        assert_eq!(terms.counts(), [(term(1), 1), (term(2), 1), (term(3), 3)]);
        assert_eq!((terms.count_of(term(3)), terms.count_of(term(9))), (3, 0));
        assert_eq!((terms.length(), Terms::default().length()), (5, 0));
        assert_eq!(Terms::count(Vec::new()), Terms::default());
    }

    /// By hand: three rows of 2, 4 and 6 terms, one of which has the term once.
    #[test]
    fn scores_are_those_of_the_formula() {
        let mut statistics = TermStatistics::default();
        for (rows, length, rows_with) in [(1, 2, 1), (2, 10, 0)] {
            statistics.add(&TermStatistics {
                rows,
                length,
                rows_with: vec![rows_with],
            });
        }
        let scale = Bm25::new(&statistics);
        let expected = (1.0_f32 + 2.5 / 1.5).ln() * 2.2 / (1.0 + 1.2 * (0.25 + 0.75 * 2.0 / 4.0));
        assert!((scale.part(0, 1, 2) - expected).abs() < 1e-6);
        assert!(scale.part(0, 2, 2) > expected && scale.part(0, 1, 6) < expected);
        let none = Bm25::new(&TermStatistics::default());
        assert_eq!(none.average_length, 1.0);
    }
}
