//! Queries, answered from the published snapshot.
//!
//! Invariant: a query takes one snapshot and reads everything from it; it never waits for a worker,
//! a commit or another query. The snapshot is taken after the text is embedded, so that it is as
//! fresh as it can be.

use crate::embedded::embedded;
use crate::hits::Held;
use crate::plan::{PlannedIndex, PlannedSource};
use crate::recall::Steering;
use crate::room::Room;
use crate::search::Asked;
use crate::snapshot::{Published, Publisher};
use crate::telemetry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use vectide_model::{
    Answer, Caller, ChunkSpan, DocumentChunk, DocumentView, EmbedError, EmbeddingsAnswer, Fusion,
    IndexStatus, Mode, ModelIdentity, PositionProbe, Positions, Query, QueryError, QueryInput,
    QueryService, Readiness, Search, StoreError, Timings,
};
use vectide_operators::BatcherHandle;

/// Answers queries.
pub(crate) struct Service {
    publisher: Arc<Publisher>,
    sources: Vec<(Arc<str>, Arc<dyn PositionProbe>)>,
    indexes: Vec<PlannedIndex>,
    /// Of each index.
    batchers: Vec<BatcherHandle>,
    caught_up_at: Arc<AtomicU64>,
    room: Arc<Room>,
    steering: Arc<Steering>,
}

pub(crate) fn unreadable(error: StoreError) -> QueryError {
    QueryError::Internal(error.to_string())
}

fn still_opening() -> QueryError {
    QueryError::Unavailable("the state is still being opened".into())
}

pub(crate) fn invalid(
    field: &'static str,
    fact: impl Into<String>,
    hint: impl Into<String>,
) -> QueryError {
    QueryError::Invalid {
        field,
        fact: fact.into(),
        hint: hint.into(),
    }
}

impl Service {
    pub(crate) fn new(
        publisher: Arc<Publisher>,
        sources: &[PlannedSource],
        (indexes, batchers): (Vec<PlannedIndex>, Vec<BatcherHandle>),
        caught_up_at: Arc<AtomicU64>,
        room: Arc<Room>,
        steering: Arc<Steering>,
    ) -> Self {
        Self {
            publisher,
            sources: sources
                .iter()
                .map(|source| (source.name.clone(), source.probe.clone()))
                .collect(),
            indexes,
            batchers,
            caught_up_at,
            room,
            steering,
        }
    }

    fn find(&self, name: &str) -> Result<(usize, &PlannedIndex), QueryError> {
        let found = self
            .indexes
            .iter()
            .enumerate()
            .find(|(_, index)| &*index.name == name);
        found.ok_or_else(|| QueryError::NotFound {
            kind: "index",
            name: name.to_owned(),
            known: self
                .indexes
                .iter()
                .map(|index| index.name.to_string())
                .collect(),
        })
    }

    fn published(&self) -> Result<Arc<Published>, QueryError> {
        self.publisher.current().ok_or_else(still_opening)
    }

    /// The snapshot that queries are answered from: the newest, or that of the epoch which they name.
    fn published_for(&self, queries: &[Query]) -> Result<Arc<Published>, QueryError> {
        let as_of = queries.first().and_then(|query| query.as_of);
        if queries.iter().any(|query| query.as_of != as_of) {
            let hint = "queries that are sent together are answered from one epoch";
            return Err(invalid("as_of", "the queries name different epochs", hint));
        }
        let Some(epoch) = as_of else {
            return self.publisher.shown().ok_or_else(still_opening);
        };
        let newest = self.published()?.epoch;
        let held = self.publisher.at(epoch);
        held.ok_or(QueryError::NotHeld {
            asked: epoch,
            newest,
        })
    }

    /// The number of each query's index and the vector to search with; texts for the same index are
    /// embedded together.
    fn vectors(
        &self,
        queries: &[Query],
        caller: &Caller<'_>,
    ) -> Result<Vec<(usize, Vec<f32>)>, QueryError> {
        let mut vectors = Vec::with_capacity(queries.len());
        for of_index in queries.chunk_by(|a, b| a.index == b.index) {
            let (number, index) = self.find(&of_index[0].index)?;
            of_index.iter().try_for_each(|it| check_fields(index, it))?;
            let embed = |texts: &[&str]| self.batchers[number].embed_query(texts, caller);
            let made = query_vectors(index, of_index, embed)?;
            vectors.extend(made.into_iter().map(|vector| (number, vector)));
        }
        Ok(vectors)
    }

    fn status(&self, number: usize) -> Result<IndexStatus, QueryError> {
        let published = self.published()?;
        let (index, held) = (&self.indexes[number], &published.indexes[number]);
        Ok(IndexStatus {
            name: index.name.to_string(),
            model: index.embedder.identity().clone(),
            documents: held.counts.documents,
            chunks: held.counts.chunks,
            vectors: held.shards.iter().map(|shard| shard.rows() as u64).sum(),
            segments: held
                .shards
                .iter()
                .map(|shard| shard.segments() as u64)
                .sum(),
            shards: held.shards.len(),
            as_of: published.as_of(),
            freshness: published.freshness,
        })
    }
}

/// The vectors to search with, and nothing that a caller could get wrong left in them; empty ones for queries
/// that are about words alone.
fn query_vectors(
    index: &PlannedIndex,
    queries: &[Query],
    embed: impl Fn(&[&str]) -> Result<Vec<Vec<f32>>, EmbedError>,
) -> Result<Vec<Vec<f32>>, QueryError> {
    let mut texts = Vec::new();
    for query in queries {
        check_input(index, &query.input)?;
        if let (QueryInput::Text(text), Mode::Vector | Mode::Hybrid(_)) = (&query.input, query.mode)
        {
            texts.push(text.as_str());
        }
    }
    let embedded = if texts.is_empty() {
        Vec::new()
    } else {
        embedded(&texts, "text", embed)?
    };
    let mut embedded = embedded.into_iter();
    let missing = || QueryError::Internal("the embedder returned no vector".into());
    let vector = |query: &Query| match (&query.input, query.mode) {
        (QueryInput::Vector(vector), _) => Ok(vector.clone()),
        (QueryInput::Text(_), Mode::Keyword) => Ok(Vec::new()),
        (QueryInput::Text(_), _) => embedded.next().ok_or_else(missing),
    };
    queries.iter().map(vector).collect()
}

/// Refuses what the index does not keep of its rows.
fn check_fields(index: &PlannedIndex, query: &Query) -> Result<(), QueryError> {
    let filterable = &index.fields.filterable;
    let fields = query.filter.iter().flat_map(|filter| filter.fields());
    for field in fields {
        if filterable.iter().all(|known| **known != *field) {
            let fact = format!("index `{}` can't be filtered by `{field}`", index.name);
            let hint = if filterable.is_empty() {
                "name fields of the documents' metadata in the index's `filterable`".into()
            } else {
                format!("it can be by: {}", filterable.join(", "))
            };
            return Err(invalid("filter", fact, hint));
        }
    }
    if query.mode == Mode::Vector {
        return Ok(());
    }
    if index.fields.analyzer.is_none() {
        let fact = format!("index `{}` keeps no words of its chunks", index.name);
        let hint = "configure `keywords: {language: english}` for it";
        return Err(invalid("mode", fact, hint));
    }
    if matches!(query.input, QueryInput::Vector(_)) {
        let hint = "send a `text`, or leave `mode` out";
        return Err(invalid("mode", "a vector has no words", hint));
    }
    Ok(())
}

fn check_input(index: &PlannedIndex, input: &QueryInput) -> Result<(), QueryError> {
    let dimension = index.embedder.identity().dimension;
    match input {
        QueryInput::Text(text) if text.trim().is_empty() => Err(invalid(
            "text",
            "the text is empty",
            "give at least one word",
        )),
        QueryInput::Text(text) if text.len() > Query::TEXT_BYTES_MAX => Err(invalid(
            "text",
            format!("the text has {} bytes", text.len()),
            format!("at most {} bytes", Query::TEXT_BYTES_MAX),
        )),
        QueryInput::Vector(vector) if vector.len() != dimension => Err(invalid(
            "vector",
            format!("the vector has {} dimensions", vector.len()),
            format!("index `{}` has {dimension}", index.name),
        )),
        QueryInput::Vector(vector) if !vector.iter().all(|x| x.is_finite()) => Err(invalid(
            "vector",
            "a component is not a finite number",
            "remove NaN and infinity",
        )),
        QueryInput::Vector(vector) if !Search::takes(vector) => Err(invalid(
            "vector",
            format!("the vector has length {:e}", Search::query_length(vector)),
            format!(
                "at most {:e}, so that scores are finite: the index's vectors have length 1, as a query's may",
                Search::QUERY_LENGTH_MAX
            ),
        )),
        QueryInput::Text(_) | QueryInput::Vector(_) => Ok(()),
    }
}

/// Refuses what is beyond the limits of a query.
fn check(query: &Query) -> Result<(), QueryError> {
    if !(1..=Query::K_MAX).contains(&query.k) {
        let hint = format!("1 to {}", Query::K_MAX);
        return Err(invalid("k", format!("k is {}", query.k), hint));
    }
    check_fusion(query.mode)?;
    match query.group_by_document {
        Some(size) if !(1..=Query::GROUP_MAX).contains(&size) => Err(invalid(
            "group_size",
            format!("the group size is {size}"),
            format!("1 to {}", Query::GROUP_MAX),
        )),
        _ => Ok(()),
    }
}

fn check_fusion(mode: Mode) -> Result<(), QueryError> {
    match mode {
        Mode::Hybrid(Fusion::ReciprocalRank { k }) if !(0.0..=10_000.0).contains(&k) => {
            let fact = format!("the k of ranks is {k}");
            Err(invalid("rrf_k", fact, "0 to 10,000"))
        }
        Mode::Hybrid(Fusion::Weighted { vector }) if !(0.0..=1.0).contains(&vector) => {
            let fact = format!("the weight of vectors is {vector}");
            Err(invalid("vector_weight", fact, "0 to 1"))
        }
        _ => Ok(()),
    }
}

impl QueryService for Service {
    fn indexes(&self) -> Vec<IndexStatus> {
        (0..self.indexes.len())
            .filter_map(|number| self.status(number).ok())
            .collect()
    }

    fn index(&self, index: &str) -> Result<IndexStatus, QueryError> {
        self.status(self.find(index)?.0)
    }

    fn document(&self, index: &str, id: &str) -> Result<DocumentView, QueryError> {
        self.find(index)?;
        let published = self.published()?;
        let held = Held::read(&*published.store, index, id).map_err(unreadable)?;
        let held = held.ok_or_else(|| QueryError::NotFound {
            kind: "document",
            name: id.to_owned(),
            known: Vec::new(),
        })?;
        let chunk = |chunk: &ChunkSpan| -> Result<DocumentChunk, StoreError> {
            Ok(DocumentChunk {
                id: chunk.id,
                span: held.span_of(chunk)?,
            })
        };
        Ok(DocumentView {
            id: held.id.clone(),
            chunks: held
                .record
                .chunks
                .iter()
                .map(chunk)
                .collect::<Result<_, _>>()
                .map_err(unreadable)?,
            metadata: held.metadata().map_err(unreadable)?,
            position: held.record.position.clone(),
            text: held.text,
            as_of: published.as_of(),
        })
    }

    fn query_all(&self, queries: &[Query], caller: &Caller<'_>) -> Result<Vec<Answer>, QueryError> {
        let start = Instant::now();
        queries.iter().try_for_each(check)?;
        let vectors = self.vectors(queries, caller)?;
        let embedded = start.elapsed();
        let published = self.published_for(queries)?;
        let asked = Asked {
            published: &published,
            indexes: &self.indexes,
            began_at: Instant::now(),
        };
        let found = asked.answer(queries, &vectors)?;
        for (query, (number, vector)) in queries.iter().zip(&vectors) {
            if !query.exact && query.as_of.is_none() && query.mode != Mode::Keyword {
                let filter = query.filter.as_ref();
                self.steering.offer(&published, *number, (vector, filter));
            }
        }
        let total = start.elapsed();
        let took = Timings {
            embed: embedded,
            search: total - embedded,
            total,
        };
        let answer = |(hits, is_partial)| Answer {
            hits,
            is_partial,
            as_of: published.as_of(),
            took,
        };
        Ok(found.into_iter().map(answer).collect())
    }

    fn models(&self) -> Vec<ModelIdentity> {
        let mut models: Vec<ModelIdentity> = Vec::new();
        for index in &self.indexes {
            let identity = index.embedder.identity();
            if !models.iter().any(|known| known.name == identity.name) {
                models.push(identity.clone());
            }
        }
        models
    }

    fn embed(
        &self,
        model: &str,
        texts: &[String],
        caller: &Caller<'_>,
    ) -> Result<EmbeddingsAnswer, QueryError> {
        let mut batchers = self.batchers.iter();
        let batcher = batchers
            .find(|it| it.embedder().identity().name == model)
            .ok_or_else(|| {
                let known = self.models().into_iter().map(|model| model.name).collect();
                QueryError::NotFound {
                    kind: "model",
                    name: model.to_owned(),
                    known,
                }
            })?;
        if let Some(empty) = texts.iter().position(|text| text.trim().is_empty()) {
            let fact = format!("text {empty} is empty");
            return Err(invalid("input", fact, "give each text at least one word"));
        }
        let all: Vec<&str> = texts.iter().map(String::as_str).collect();
        let embed = |texts: &[&str]| batcher.embed_query(texts, caller);
        let vectors = embedded(&all, "input", embed)?;
        let counter = batcher.embedder().token_counter();
        Ok(EmbeddingsAnswer {
            vectors,
            tokens: all.iter().map(|text| counter.count(text)).sum(),
        })
    }

    fn sources(&self) -> Vec<String> {
        let names = self.sources.iter().map(|(name, _)| name.to_string());
        names.collect()
    }

    fn end_of(&self, source: &str) -> Result<Positions, QueryError> {
        let Some((name, probe)) = self.sources.iter().find(|(name, _)| **name == *source) else {
            return Err(QueryError::NotFound {
                kind: "source",
                name: source.to_owned(),
                known: self.sources(),
            });
        };
        match probe.end() {
            Ok(end) => Ok(Positions::from([(name.clone(), end)])),
            Err(error) => Err(QueryError::Unavailable(format!(
                "source `{source}` does not tell where it ends: {}",
                error.fact
            ))),
        }
    }

    fn positions(&self) -> Option<Arc<Positions>> {
        self.publisher.current().map(|it| it.positions.clone())
    }

    fn readiness(&self) -> Readiness {
        let current = self.publisher.current();
        let caught_up_at = self.caught_up_at.load(Ordering::Acquire);
        Readiness {
            serving: current.is_some(),
            caught_up: current.is_some_and(|it| it.epoch >= caught_up_at),
            shortage: self.room.known_shortage(),
        }
    }

    fn metrics(&self) -> String {
        telemetry::install()
            .map(|handle| handle.render())
            .unwrap_or_default()
    }
}
