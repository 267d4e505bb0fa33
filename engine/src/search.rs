//! Queries over the shards of one snapshot: merged, grouped by document, and made into hits.
//!
//! Invariant: what is found of a query depends on the query and the snapshot alone, not on the queries that
//! came with it; only where its time is up does it depend on the clock, and says so.

use crate::hits::Fetch;
use crate::hybrid::{CANDIDATES_MIN, Keywords, Ranked, Ranking};
use crate::plan::PlannedIndex;
use crate::service::unreadable;
use crate::snapshot::Published;
use std::collections::HashMap;
use std::time::Instant;
use vectide_model::{
    ChunkId, Found, Hit, Mode, Query, QueryError, QueryInput, ScoredChunk, Search, StoreError,
};
use vectide_operators::WordCache;

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
    /// and its vector, which is empty where none is searched for.
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
            let mut fetch = Fetch::new(self.published, index, &self.indexes[index].name);
            let rankings = self.rankings(&mut fetch, index, together, vectors);
            for (ranking, query) in rankings.map_err(unreadable)?.iter().zip(together) {
                let hits = ranking.hits.iter().map(|hit| fetch.hit(hit, query.include));
                let hits = hits.collect::<Result<_, _>>().map_err(unreadable)?;
                answers.push((hits, ranking.is_partial));
            }
        }
        Ok(answers)
    }

    /// Of queries that can be put together to an index.
    fn rankings(
        &self,
        fetch: &mut Fetch<'_>,
        index: usize,
        queries: &[Query],
        vectors: &[(usize, Vec<f32>)],
    ) -> Result<Vec<Ranking>, StoreError> {
        let first = &queries[0];
        if first.mode == Mode::Vector && first.group_by_document.is_none() {
            let vectors: Vec<&[f32]> = vectors.iter().map(|(_, it)| it.as_slice()).collect();
            let found = self.search(index, &vectors, &self.search_of(index, first, first.k));
            return Ok(found.into_iter().map(Ranking::from).collect());
        }
        let ranking = |(query, (_, vector)): (&Query, &(usize, Vec<f32>))| {
            let keywords = self.keywords(index, query);
            let rank = |k| self.rank(index, (query, vector), keywords.as_ref(), k);
            match query.group_by_document {
                None => Ok(rank(query.k)),
                Some(size) => self.grouped(fetch, index, (query, vector), size, &rank),
            }
        };
        queries.iter().zip(vectors).map(ranking).collect()
    }

    /// The rows that have words of a query, where it is about them.
    fn keywords(&self, index: usize, query: &Query) -> Option<Keywords<'_>> {
        let (Mode::Keyword | Mode::Hybrid(_), QueryInput::Text(text)) = (query.mode, &query.input)
        else {
            return None;
        };
        let analyzer = self.indexes[index].fields.analyzer.as_ref()?;
        let terms = analyzer.terms(text, &mut WordCache::default());
        Some(Keywords::new(&self.published.indexes[index], terms))
    }

    /// The best `k` chunks of a query.
    fn rank(
        &self,
        index: usize,
        (query, vector): (&Query, &[f32]),
        keywords: Option<&Keywords<'_>>,
        k: usize,
    ) -> Ranking {
        let by_vector = |k| {
            let search = self.search_of(index, query, k);
            let found = self.search(index, &[vector], &search).pop();
            found.unwrap_or_default()
        };
        match (query.mode, keywords) {
            (Mode::Keyword, Some(keywords)) => {
                keywords.search(&self.search_of(index, query, k)).into()
            }
            (Mode::Hybrid(fusion), Some(keywords)) => {
                let depth = k.max(CANDIDATES_MIN);
                let by_keyword = keywords.search(&self.search_of(index, query, depth));
                let both = (&by_vector(depth), &by_keyword);
                let held = &self.published.indexes[index];
                let mut ranking = keywords.fuse(held, vector, both, fusion);
                ranking.hits.truncate(k);
                ranking
            }
            _ => by_vector(k).into(),
        }
    }

    /// What the shards are asked for.
    fn search_of(&self, index: usize, query: &Query, k: usize) -> Search {
        let effort = self.published.indexes[index].effort;
        Search {
            k,
            effort: effort.filter(|_| !query.exact),
            until: query.budget.map(|budget| self.began_at + budget),
            filter: query.filter.clone(),
        }
    }

    fn search(&self, index: usize, vectors: &[&[f32]], search: &Search) -> Vec<Found> {
        let shards = self.published.indexes[index].shards.iter();
        let mut parts: Vec<_> = shards
            .map(|shard| shard.search_all(vectors, search).into_iter())
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
        (query, vector): (&Query, &[f32]),
        size: usize,
        rank: &dyn Fn(usize) -> Ranking,
    ) -> Result<Ranking, StoreError> {
        let shards = &self.published.indexes[index].shards;
        let chunks: usize = shards.iter().map(|shard| shard.rows()).sum();
        let mut wanted = query.k.saturating_mul(CHUNKS_PER_DOCUMENT);
        // By vectors all chunks of a document can be scored; what is ranked otherwise has to be found.
        let found_of_each = if query.mode == Mode::Vector { 1 } else { size };
        let (ranking, groups) = loop {
            let ranking = rank(wanted);
            let is_all = ranking.hits.len() < wanted || wanted >= chunks || ranking.is_partial;
            let groups = groups(fetch, &ranking.hits, query.k, found_of_each)?;
            let is_full = groups.iter().all(|(_, hits)| hits.len() >= found_of_each);
            if is_all || (groups.len() >= query.k && (is_full || wanted >= Query::K_MAX)) {
                break (ranking, groups);
            }
            wanted = wanted.saturating_mul(CHUNKS_GROWTH);
        };
        let mut hits = Vec::with_capacity(groups.len() * size);
        for (document, found) in groups {
            if found_of_each < size {
                hits.extend(self.best_chunks(fetch, index, vector, &document, size)?);
            } else {
                hits.extend(found);
            }
        }
        Ok(Ranking {
            hits,
            is_partial: ranking.is_partial,
        })
    }

    /// The best chunks of a document, all of which are looked at.
    fn best_chunks(
        &self,
        fetch: &mut Fetch<'_>,
        index: usize,
        vector: &[f32],
        document: &[u8],
        size: usize,
    ) -> Result<Vec<Ranked>, StoreError> {
        let shards = &self.published.indexes[index].shards;
        let score = |chunk: &ChunkId| {
            let mut scores = shards.iter().filter_map(|it| it.score(vector, chunk));
            let (chunk, score) = (*chunk, scores.next()?);
            Some(ScoredChunk { chunk, score })
        };
        let chunks = fetch.chunks_of(document)?;
        let hits = chunks.iter().filter_map(score).collect();
        let is_partial = false;
        let found = Found::merge([Found { hits, is_partial }], size);
        Ok(Ranking::from(found).hits)
    }
}

/// Whether queries can be put to the shards together.
fn is_alike(a: &Query, b: &Query) -> bool {
    let shape = |it: &Query| (it.k, it.exact, it.budget, it.group_by_document, it.mode);
    a.index == b.index && shape(a) == shape(b) && a.filter == b.filter
}

/// A document's id and hits.
type Group = (Vec<u8>, Vec<Ranked>);

/// The first `k` documents of hits, each with its first `size` of them.
fn groups(
    fetch: &Fetch<'_>,
    hits: &[Ranked],
    k: usize,
    size: usize,
) -> Result<Vec<Group>, StoreError> {
    let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for hit in hits {
        let document = fetch.document_of(&hit.chunk)?;
        let place = places.get(&document).copied();
        match place {
            Some(at) if groups[at].1.len() < size => groups[at].1.push(*hit),
            None if groups.len() < k => {
                places.insert(document.clone(), groups.len());
                groups.push((document, vec![*hit]));
            }
            _ => {}
        }
    }
    Ok(groups)
}
