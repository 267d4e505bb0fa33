//! The read half of a shard: heads and segments as they were when an epoch closed.
//!
//! Invariant: nothing reachable from a [`ShardRead`] changes, so queries need neither locks nor
//! copies, and what they hold is freed when the last of them is done.

use crate::bitmap::Bitmap;
use crate::budget::Budget;
use crate::coded::{self, CodedSegment};
use crate::dot::Query;
use crate::generation::Generation;
use crate::head::{HeadView, embedding};
use crate::keyword::Matches;
use crate::news::News;
use crate::postings::KeyKind;
use crate::segment::Segment;
use crate::term_totals::TermTotals;
use crate::top::Top;
use half::f16;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vectide_model::{
    ChunkId, Effort, Embedding, Filter, Found, ScoredChunk, Search, Term, TermMatches,
    VectorIndexRead,
};

/// A segment with its live rows at an epoch.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// The rows.
    pub(crate) segment: Arc<Segment>,
    /// Which of them are live.
    pub(crate) live: Arc<Bitmap>,
    /// How many were live before a filter left these.
    pub(crate) narrowed_from: Option<usize>,
    /// Those of them that have terms.
    pub(crate) term_totals: TermTotals,
}

impl Held {
    /// A segment with these live rows.
    pub(crate) fn new(segment: Segment, live: Bitmap) -> Self {
        let mut term_totals = TermTotals::default();
        if segment.keys(KeyKind::Terms).is_some() {
            let lengths = live.iter().map(|row| segment.length(row));
            lengths.for_each(|length| term_totals.add(length));
        }
        Self {
            segment: Arc::new(segment),
            live: Arc::new(live),
            narrowed_from: None,
            term_totals,
        }
    }

    /// Marks a live row dead.
    pub(crate) fn clear(&mut self, row: usize) {
        if Arc::make_mut(&mut self.live).clear(row) {
            self.term_totals.remove(self.segment.length(row));
        }
    }

    /// Bytes that its live rows take up in files, about.
    pub(crate) fn live_bytes(&self) -> u64 {
        let files = self.segment.manifest().files.iter();
        let bytes: u64 = files.map(|(_, bytes, _)| bytes).sum();
        let share = self.live.live() as f64 / self.segment.rows().max(1) as f64;
        (bytes as f64 * share) as u64
    }

    /// The row of a chunk, if it is live.
    pub(crate) fn live_row_of(&self, chunk: &ChunkId) -> Option<usize> {
        self.segment
            .row_of(chunk)
            .filter(|row| self.live.contains(*row))
    }
}

/// A shard at an epoch.
#[derive(Debug)]
pub(crate) struct ShardRead {
    pub(crate) dimension: usize,
    /// The open head and the frozen ones.
    pub(crate) heads: Vec<HeadView>,
    pub(crate) segments: Vec<Held>,
    /// Shared with the writer.
    pub(crate) is_renewal_wanted: Arc<AtomicBool>,
    /// Shared with the writer and its builders.
    pub(crate) news: Arc<News>,
    /// Merges that could not be made since the shard was opened.
    pub(crate) merges_postponed: u64,
}

impl ShardRead {
    /// Live rows.
    pub(crate) fn row_count(&self) -> usize {
        let heads: usize = self.heads.iter().map(HeadView::rows).sum();
        heads
            + self
                .segments
                .iter()
                .map(|held| held.live.live())
                .sum::<usize>()
    }

    /// The stored vector of a live row.
    fn stored(&self, chunk: &ChunkId) -> Option<&[f16]> {
        let in_heads = self.heads.iter().find_map(|head| head.vector(chunk));
        in_heads.or_else(|| {
            self.segments
                .iter()
                .find_map(|held| Some(held.segment.vector(held.live_row_of(chunk)?)))
        })
    }

    /// The segments with the rows that may be hits.
    pub(crate) fn segments_for(
        &self,
        filter: Option<&Filter>,
        budget: &mut Budget,
    ) -> Cow<'_, [Held]> {
        let Some(filter) = filter else {
            return Cow::Borrowed(&self.segments);
        };
        let narrowed = self.segments.iter().map(|held| Held {
            segment: held.segment.clone(),
            live: Arc::new(held.segment.passing(filter, &held.live, budget)),
            narrowed_from: Some(held.live.live()),
            term_totals: held.term_totals,
        });
        narrowed.collect()
    }

    /// The hits of each query.
    fn best(
        &self,
        queries: &[Query<'_>],
        search: &Search,
        budget: &mut Budget,
    ) -> Vec<Vec<ScoredChunk>> {
        let k = search.k.min(self.row_count());
        if k == 0 {
            return vec![Vec::new(); queries.len()];
        }
        let mut tops: Vec<Top> = queries.iter().map(|_| Top::new(k)).collect();
        let filter = search.filter.as_deref();
        let segments = self.segments_for(filter, budget);
        match search.effort {
            Some(effort) => search_segments(&segments, queries, (k, effort), &mut tops, budget),
            None => {
                for held in &*segments {
                    held.segment.scan(queries, &held.live, &mut tops, budget);
                }
            }
        }
        // After the segments, so that few rows reach what has been found.
        for head in &self.heads {
            head.search(queries, filter, &mut tops, budget);
        }
        tops.into_iter().map(Top::finish).collect()
    }
}

/// Offers the best rows of the segments, as far as an effort finds them.
fn search_segments(
    segments: &[Held],
    queries: &[Query<'_>],
    (k, effort): (usize, Effort),
    tops: &mut [Top],
    budget: &mut Budget,
) {
    let others = |held: &&Held| held.live.live() > 0 && held.segment.generation().is_none();
    for held in segments.iter().filter(others) {
        let unfiltered = held.narrowed_from.unwrap_or(held.live.live());
        if coded::are_few(held.live.live(), unfiltered) {
            held.segment.scan(queries, &held.live, tops, budget);
            continue;
        }
        for (query, top) in queries.iter().zip(&mut *tops) {
            held.segment.search(query, k, &held.live, top, budget);
        }
    }
    for (generation, segments) in coded(segments) {
        for (query, top) in queries.iter().zip(&mut *tops) {
            coded::search(generation, &segments, query, (k, effort), top, budget);
        }
    }
}

/// The coded segments by their generations: one, or a few while a new one takes over.
fn coded(segments: &[Held]) -> Vec<(&Generation, Vec<CodedSegment<'_>>)> {
    let mut groups: Vec<(&Generation, Vec<CodedSegment<'_>>)> = Vec::new();
    for held in segments.iter().filter(|held| held.live.live() > 0) {
        let coded = held
            .segment
            .generation()
            .zip(held.segment.coded(&held.live, held.narrowed_from));
        let Some((generation, segment)) = coded else {
            continue;
        };
        let own = |group: &&mut (&Generation, _)| group.0.number() == generation.number();
        match groups.iter_mut().find(own) {
            Some(group) => group.1.push(segment),
            None => groups.push((generation, vec![segment])),
        }
    }
    groups
}

impl VectorIndexRead for ShardRead {
    fn rows(&self) -> usize {
        self.row_count()
    }

    fn segments(&self) -> usize {
        self.segments.len()
    }

    fn segment_bytes(&self) -> u64 {
        let manifests = self.segments.iter().map(|held| held.segment.manifest());
        let files = manifests.flat_map(|manifest| &manifest.files);
        files.map(|(_, bytes, _)| bytes).sum()
    }

    fn search_all(&self, queries: &[&[f32]], search: &Search) -> Vec<Found> {
        let is_usable = |query: &&[f32]| query.len() == self.dimension && Search::takes(query);
        let usable: Vec<Query<'_>> = queries
            .iter()
            .filter(|query| is_usable(query))
            .map(|query| Query::new(query))
            .collect();
        let mut budget = Budget::new(search.until);
        let mut found = self.best(&usable, search, &mut budget).into_iter();
        let is_partial = budget.was_over();
        let answer = |query: &&[f32]| match is_usable(query).then(|| found.next()) {
            Some(Some(hits)) => Found { hits, is_partial },
            _ => Found::default(),
        };
        queries.iter().map(answer).collect()
    }

    fn matches(&self, terms: &[Term]) -> Box<dyn TermMatches + '_> {
        Box::new(Matches::new(self, terms))
    }

    fn vector(&self, chunk: &ChunkId) -> Option<Embedding> {
        self.stored(chunk).map(embedding)
    }

    fn score(&self, query: &[f32], chunk: &ChunkId) -> Option<f32> {
        let vector = self.stored(chunk)?;
        // As in answers, which know no -0.0.
        let is_usable = query.len() == self.dimension && Search::takes(query);
        is_usable.then(|| Query::new(query).dot(vector) + 0.0)
    }

    fn renew(&self) {
        self.is_renewal_wanted.store(true, Ordering::Relaxed);
        self.news.tell();
    }

    fn has_news(&self) -> bool {
        self.news.are_there()
    }

    fn merges_postponed(&self) -> u64 {
        self.merges_postponed
    }
}
