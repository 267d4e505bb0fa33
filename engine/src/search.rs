//! Queries over the shards of one snapshot: merged, grouped by document, and made into hits.
//!
//! Invariant: what is found of a query depends on the query and the snapshot alone, not on the queries that
//! came with it; only where its time is up does it depend on the clock, and says so.

use crate::hits::Fetch;
use crate::plan::PlannedIndex;
use crate::service::unreadable;
use crate::snapshot::Published;
use std::collections::HashSet;
use std::time::Instant;
use vectide_model::{ChunkId, Found, Hit, Query, QueryError, ScoredChunk, Search, StoreError};

/// Chunks asked for at first for each document of a grouped answer.
const CHUNKS_PER_DOCUMENT: usize = 2;
/// How many times as many the next time, when they were of too few documents.
const CHUNKS_GROWTH: usize = 4;

/// Queries that are answered together.
pub(crate) struct Asked<'a> {
    /// The snapshot.
    pub(crate) published: &'a Published,
    /// The plan's indexes.
    pub(crate) indexes: &'a [PlannedIndex],
    /// When the search began.
    pub(crate) began_at: Instant,
}

impl Asked<'_> {
    /// The hits of each query, and whether its time was up. Beside each query stand the number of its index
    /// and its vector.
    pub(crate) fn answer(
        &self,
        queries: &[Query],
        vectors: &[(usize, Vec<f32>)],
    ) -> Result<Vec<(Vec<Hit>, bool)>, QueryError> {
        let mut answers = Vec::with_capacity(queries.len());
        let mut at = 0;
        for together in queries.chunk_by(is_alike) {
            let vectors = &vectors[at..at + together.len()];
            at += together.len();
            let index = vectors[0].0;
            let (query, mut fetch) = (&together[0], self.fetch(index));
            let vectors: Vec<&[f32]> = vectors.iter().map(|(_, it)| it.as_slice()).collect();
            let found = match query.group_by_document {
                None => self.search(index, &vectors, self.search_of(index, query, query.k)),
                Some(size) => {
                    let grouped = |vector| self.grouped(&mut fetch, index, vector, query, size);
                    let found: Result<_, StoreError> = vectors.into_iter().map(grouped).collect();
                    found.map_err(unreadable)?
                }
            };
            for (found, query) in found.into_iter().zip(together) {
                let hits = found.hits.iter().map(|hit| fetch.hit(hit, query.include));
                let hits = hits.collect::<Result<_, _>>().map_err(unreadable)?;
                answers.push((hits, found.is_partial));
            }
        }
        Ok(answers)
    }

    fn fetch(&self, index: usize) -> Fetch<'_> {
        Fetch::new(self.published, index, &self.indexes[index].name)
    }

    /// What the shards are asked for.
    fn search_of(&self, index: usize, query: &Query, k: usize) -> Search {
        let effort = self.published.indexes[index].effort;
        Search {
            k,
            effort: effort.filter(|_| !query.exact),
            until: query.budget.map(|budget| self.began_at + budget),
        }
    }

    fn search(&self, index: usize, vectors: &[&[f32]], search: Search) -> Vec<Found> {
        let shards = self.published.indexes[index].shards.iter();
        let mut parts: Vec<_> = shards
            .map(|shard| shard.search_all(vectors, &search).into_iter())
            .collect();
        let merge = |_| Found::merge(parts.iter_mut().filter_map(Iterator::next), search.k);
        vectors.iter().map(merge).collect()
    }

    /// The best `size` chunks of each of the `k` documents with the best chunks: as many chunks are looked at
    /// as it takes to find the documents.
    fn grouped(
        &self,
        fetch: &mut Fetch<'_>,
        index: usize,
        vector: &[f32],
        query: &Query,
        size: usize,
    ) -> Result<Found, StoreError> {
        let shards = &self.published.indexes[index].shards;
        let chunks: usize = shards.iter().map(|shard| shard.rows()).sum();
        let mut wanted = query.k.saturating_mul(CHUNKS_PER_DOCUMENT);
        let (best, is_partial) = loop {
            let search = self.search_of(index, query, wanted);
            let found = self
                .search(index, &[vector], search)
                .pop()
                .unwrap_or_default();
            let is_all = found.hits.len() < wanted || wanted >= chunks || found.is_partial;
            let best = best_of_documents(fetch, &found.hits, query.k)?;
            if is_all || best.len() >= query.k {
                break (best, found.is_partial);
            }
            wanted = wanted.saturating_mul(CHUNKS_GROWTH);
        };
        let mut hits = Vec::with_capacity(best.len() * size);
        for (document, best) in best {
            if size == 1 {
                hits.push(best);
                continue;
            }
            let score = |chunk: &ChunkId| {
                let mut scores = shards.iter().filter_map(|it| it.score(vector, chunk));
                let (chunk, score) = (*chunk, scores.next()?);
                Some(ScoredChunk { chunk, score })
            };
            let chunks = fetch.chunks_of(&document)?;
            let hits_of = chunks.iter().filter_map(score).collect();
            let hits_of = Found {
                hits: hits_of,
                is_partial,
            };
            hits.extend(Found::merge([hits_of], size).hits);
        }
        Ok(Found { hits, is_partial })
    }
}

/// Whether queries can be put to the shards together.
fn is_alike(a: &Query, b: &Query) -> bool {
    let shape = |it: &Query| (it.k, it.exact, it.budget, it.group_by_document);
    a.index == b.index && shape(a) == shape(b)
}

/// The first `k` documents of hits, each with its best one.
fn best_of_documents(
    fetch: &Fetch<'_>,
    hits: &[ScoredChunk],
    k: usize,
) -> Result<Vec<(Vec<u8>, ScoredChunk)>, StoreError> {
    let (mut seen, mut best) = (HashSet::new(), Vec::new());
    for hit in hits {
        let document = fetch.document_of(&hit.chunk)?;
        if best.len() < k && seen.insert(document.clone()) {
            best.push((document, *hit));
        }
    }
    Ok(best)
}
