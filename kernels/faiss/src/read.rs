//! The read half of a shard: heads and segments as they were when an epoch closed.
//!
//! Invariant: nothing reachable from a [`ShardRead`] changes, so queries need neither locks nor
//! copies, and what they hold is freed when the last of them is done.

use crate::bitmap::Bitmap;
use crate::coded::{self, CodedSegment, Effort};
use crate::dot::Query;
use crate::generation::Generation;
use crate::head::{HeadView, embedding};
use crate::segment::Segment;
use crate::top::Top;
use std::sync::Arc;
use vectide_model::{ChunkId, Embedding, ScoredChunk, VectorIndexRead};

/// A segment with its live rows at an epoch.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// The rows.
    pub(crate) segment: Arc<Segment>,
    /// Which of them are live.
    pub(crate) live: Arc<Bitmap>,
}

impl Held {
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
}

impl ShardRead {
    /// The coded segments by their generations: one, or a few while a new one takes over.
    fn coded(&self) -> Vec<(&Generation, Vec<CodedSegment<'_>>)> {
        let mut groups: Vec<(&Generation, Vec<CodedSegment<'_>>)> = Vec::new();
        for held in self.segments.iter().filter(|held| held.live.live() > 0) {
            let coded = held
                .segment
                .generation()
                .zip(held.segment.coded(&held.live));
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
}

impl VectorIndexRead for ShardRead {
    fn rows(&self) -> usize {
        let heads: usize = self.heads.iter().map(HeadView::rows).sum();
        heads
            + self
                .segments
                .iter()
                .map(|held| held.live.live())
                .sum::<usize>()
    }

    fn segments(&self) -> usize {
        self.segments.len()
    }

    fn search(&self, query: &[f32], k: usize) -> Vec<ScoredChunk> {
        let k = k.min(self.rows());
        if k == 0 || query.len() != self.dimension || !query.iter().all(|x| x.is_finite()) {
            return Vec::new();
        }
        let query = Query::new(query);
        let mut top = Top::new(k);
        for head in &self.heads {
            head.search(&query, &mut top);
        }
        for held in &self.segments {
            if held.live.live() > 0 && held.segment.generation().is_none() {
                held.segment.search(&query, k, &held.live, &mut top);
            }
        }
        for (generation, segments) in self.coded() {
            let effort = Effort::for_lists(generation.lists());
            coded::search(generation, &segments, &query, k, effort, &mut top);
        }
        top.finish()
    }

    fn vector(&self, chunk: &ChunkId) -> Option<Embedding> {
        let in_heads = self.heads.iter().find_map(|head| head.vector(chunk));
        in_heads.map(embedding).or_else(|| {
            self.segments.iter().find_map(|held| {
                let row = held.live_row_of(chunk)?;
                Some(embedding(held.segment.vector(row)))
            })
        })
    }
}
