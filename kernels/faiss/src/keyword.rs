//! Keyword search over the rows of a shard: those that have terms of a query, and their scores.
//!
//! All rows with a term are looked at. Their counts are read once, for the statistics and the scores; scores
//! are added up term by term in a window of rows that stays in the processor's cache.
//!
//! Invariant: a row's score is the sum of its terms' parts in the order of the query, the same in a head and
//! in a segment.

use crate::budget::Budget;
use crate::head::HeadView;
use crate::read::{Held, ShardRead};
use crate::top::Top;
use vectide_model::{Bm25, ChunkId, Filter, Found, Search, Term, TermMatches, TermStatistics};

/// Rows whose scores are added up at a time: 64 KiB of them.
const WINDOW: usize = 16_384;

/// Rows with one term, and how often each has it.
#[derive(Debug, Default)]
struct TermRows {
    rows: Vec<u32>,
    counts: Vec<u32>,
}

impl TermRows {
    /// How often a row has the term.
    fn count_of(&self, row: u32) -> Option<u32> {
        let at = self.rows.binary_search(&row).ok()?;
        Some(self.counts[at])
    }
}

/// Rows of a head that have some of the terms.
#[derive(Debug, Default)]
struct HeadRows {
    slots: Vec<u32>,
    /// Of each row, how often it has each term.
    counts: Vec<u32>,
}

impl HeadRows {
    fn of(head: &HeadView, terms: &[Term]) -> Self {
        let mut found = Self::default();
        for slot in head.live().iter() {
            let of_row = &head.fields_at(slot).terms;
            let before = found.counts.len();
            found
                .counts
                .extend(terms.iter().map(|term| of_row.count_of(*term)));
            if found.counts[before..].iter().all(|count| *count == 0) {
                found.counts.truncate(before);
            } else {
                found.slots.push(slot as u32);
            }
        }
        found
    }
}

/// The rows of a shard that have terms of a query.
pub(crate) struct Matches<'a> {
    shard: &'a ShardRead,
    terms: usize,
    heads: Vec<HeadRows>,
    /// Of each segment, the rows of each term.
    segments: Vec<Vec<TermRows>>,
}

impl<'a> Matches<'a> {
    /// Reads the rows of each term.
    pub(crate) fn new(shard: &'a ShardRead, terms: &[Term]) -> Self {
        let rows_of = |held: &Held, term: &Term| {
            let mut found = TermRows::default();
            held.segment.rows_with(*term, &mut |rows, counts| {
                found.rows.extend_from_slice(rows);
                found.counts.extend_from_slice(counts);
            });
            found
        };
        let of_segment = |held: &Held| terms.iter().map(|term| rows_of(held, term)).collect();
        Self {
            shard,
            terms: terms.len(),
            heads: shard
                .heads
                .iter()
                .map(|head| HeadRows::of(head, terms))
                .collect(),
            segments: shard.segments.iter().map(of_segment).collect(),
        }
    }

    fn add_head(&self, at: usize, scale: &Bm25, filter: Option<&Filter>, top: &mut Top) {
        let (head, found) = (&self.shard.heads[at], &self.heads[at]);
        let counts = found.counts.chunks_exact(self.terms.max(1));
        for (slot, counts) in found.slots.iter().zip(counts) {
            let fields = head.fields_at(*slot as usize);
            let score = sum(scale, counts.iter().copied(), fields.terms.length());
            top.offer_if(score, || {
                let passes = filter.is_none_or(|it| it.passes(&fields.attributes));
                passes.then(|| head.chunk_at(*slot as usize))
            });
        }
    }

    /// Offers the live rows of a segment.
    fn add_segment(
        &self,
        (held, rows_of): (&Held, &[TermRows]),
        scale: &Bm25,
        (scores, top): (&mut [f32], &mut Top),
        budget: &mut Budget,
    ) {
        let mut done = vec![0; rows_of.len()];
        for start in (0..held.segment.rows()).step_by(WINDOW) {
            if budget.is_over() {
                return;
            }
            let end = start + WINDOW;
            let mut windows = Vec::with_capacity(rows_of.len());
            for ((term, of_term), done) in rows_of.iter().enumerate().zip(&mut done) {
                let left = &of_term.rows[*done..];
                let rows = &left[..left.partition_point(|row| (*row as usize) < end)];
                let counts = &of_term.counts[*done..][..rows.len()];
                for (row, count) in rows.iter().zip(counts) {
                    let length = held.segment.length(*row as usize);
                    scores[*row as usize - start] += scale.part(term, *count, length);
                }
                *done += rows.len();
                windows.push(rows);
            }
            for row in windows.into_iter().flatten() {
                let row = *row as usize;
                // Once, however many of the terms it has.
                let score = std::mem::take(&mut scores[row - start]);
                if score > 0.0 {
                    let is_live = || held.live.contains(row);
                    top.offer_if(score, || is_live().then(|| held.segment.chunk(row)));
                }
            }
        }
    }
}

/// The score of a row with these counts of the terms.
fn sum(scale: &Bm25, counts: impl Iterator<Item = u32>, length: u32) -> f32 {
    let parts = counts.enumerate().filter(|(_, count)| *count > 0);
    let parts = parts.map(|(term, count)| scale.part(term, count, length));
    parts.fold(0.0, |sum, part| sum + part)
}

impl TermMatches for Matches<'_> {
    fn statistics(&self) -> TermStatistics {
        let mut statistics = TermStatistics {
            rows_with: vec![0; self.terms],
            ..TermStatistics::default()
        };
        let totals = self.shard.heads.iter().map(HeadView::term_totals);
        let totals = totals.chain(self.shard.segments.iter().map(|held| held.term_totals));
        for of_part in totals {
            statistics.rows += of_part.rows;
            statistics.length += of_part.length;
        }
        for found in &self.heads {
            for counts in found.counts.chunks_exact(self.terms.max(1)) {
                for (rows, count) in statistics.rows_with.iter_mut().zip(counts) {
                    *rows += u64::from(*count > 0);
                }
            }
        }
        for (held, rows_of) in self.shard.segments.iter().zip(&self.segments) {
            for (total, of_term) in statistics.rows_with.iter_mut().zip(rows_of) {
                *total += if held.live.is_full() {
                    of_term.rows.len() as u64
                } else {
                    let is_live = |row: &&u32| held.live.contains(**row as usize);
                    of_term.rows.iter().filter(is_live).count() as u64
                };
            }
        }
        statistics
    }

    fn search(&self, scale: &Bm25, search: &Search) -> Found {
        let k = search.k.min(self.shard.row_count());
        let mut budget = Budget::new(search.until);
        let mut top = Top::new(k);
        let filter = search.filter.as_deref();
        let segments = self.shard.segments_for(filter, &mut budget);
        let mut scores = vec![0.0; WINDOW];
        for (held, rows_of) in segments.iter().zip(&self.segments) {
            self.add_segment((held, rows_of), scale, (&mut scores, &mut top), &mut budget);
        }
        for at in 0..self.heads.len() {
            self.add_head(at, scale, filter, &mut top);
        }
        Found {
            hits: top.finish(),
            is_partial: budget.was_over(),
        }
    }

    fn score(&self, scale: &Bm25, chunk: &ChunkId) -> Option<f32> {
        for (head, found) in self.shard.heads.iter().zip(&self.heads) {
            if let Some(slot) = head.slot_of(chunk) {
                let at = found.slots.binary_search(&(slot as u32)).ok()?;
                let counts = &found.counts[at * self.terms..][..self.terms];
                let length = head.fields_at(slot).terms.length();
                return Some(sum(scale, counts.iter().copied(), length));
            }
        }
        for (held, rows_of) in self.shard.segments.iter().zip(&self.segments) {
            if let Some(row) = held.live_row_of(chunk) {
                let count = |of_term: &TermRows| of_term.count_of(row as u32).unwrap_or(0);
                let score = sum(scale, rows_of.iter().map(count), held.segment.length(row));
                return (score > 0.0).then_some(score);
            }
        }
        None
    }
}
