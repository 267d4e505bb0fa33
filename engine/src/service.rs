//! Queries, answered from the published snapshot.
//!
//! Invariant: a query takes one snapshot and reads everything from it; it never waits for a worker,
//! a commit or another query. The snapshot is taken after the text is embedded, so that it is as
//! fresh as it can be.

use crate::plan::{PlannedIndex, PlannedSource};
use crate::room::Room;
use crate::snapshot::{Published, Publisher};
use crate::state::{DocumentRecord, chunk_key, decode, entity_key};
use crate::telemetry;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use vectide_model::{
    Answer, ChunkId, ChunkSpan, DocumentChunk, DocumentView, Embedder, EmbeddingsAnswer, Found,
    Hit, IndexStatus, Lane, ModelIdentity, PositionProbe, Positions, Query, QueryError, QueryInput,
    QueryService, Readiness, ScoredChunk, Search, Span, StoreError, StoreRead, Table, Timings,
};

/// Answers queries.
pub(crate) struct Service {
    publisher: Arc<Publisher>,
    sources: Vec<(Arc<str>, Arc<dyn PositionProbe>)>,
    indexes: Vec<PlannedIndex>,
    caught_up_at: Arc<AtomicU64>,
    room: Arc<Room>,
}

fn unreadable(error: StoreError) -> QueryError {
    QueryError::Internal(error.to_string())
}

fn invalid(field: &'static str, fact: impl Into<String>, hint: impl Into<String>) -> QueryError {
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
        indexes: Vec<PlannedIndex>,
        caught_up_at: Arc<AtomicU64>,
        room: Arc<Room>,
    ) -> Self {
        Self {
            publisher,
            sources: sources
                .iter()
                .map(|source| (source.name.clone(), source.probe.clone()))
                .collect(),
            indexes,
            caught_up_at,
            room,
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
        let current = self.publisher.current();
        current.ok_or_else(|| QueryError::Unavailable("the state is still being opened".into()))
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

/// The vector to search with, and nothing that a caller could get wrong left in it.
fn query_vector(index: &PlannedIndex, input: &QueryInput) -> Result<Vec<f32>, QueryError> {
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
        QueryInput::Text(text) => embed_one(&*index.embedder, text),
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
        QueryInput::Vector(vector) => Ok(vector.clone()),
    }
}

fn embed_one(embedder: &dyn Embedder, text: &str) -> Result<Vec<f32>, QueryError> {
    let vectors = embedder
        .embed(Lane::Query, &[text])
        .map_err(|error| QueryError::Internal(error.to_string()))?;
    let missing = || QueryError::Internal("the embedder returned no vector".into());
    vectors.into_iter().next().ok_or_else(missing)
}

fn search(published: &Published, index: usize, vector: &[f32], k: usize) -> Vec<ScoredChunk> {
    let shards = published.indexes[index].shards.iter();
    let search = Search::best(k);
    Found::merge(shards.map(|shard| shard.search(vector, &search)), k).hits
}

/// A document's record and text, read once a query however many of its chunks are hit.
struct Held {
    id: Arc<str>,
    record: DocumentRecord,
    text: String,
}

impl Held {
    fn read(read: &dyn StoreRead, index: &str, id: &str) -> Result<Option<Self>, StoreError> {
        let key = entity_key(index, id);
        let Some(record) = read.get(Table::Documents, &key)? else {
            return Ok(None);
        };
        let record = decode("a document", &record)?;
        let text = read.get(Table::Texts, &key)?.unwrap_or_default();
        let text = String::from_utf8(text)
            .map_err(|_| StoreError::Refused("a text in the state is damaged".into()))?;
        Ok(Some(Self {
            id: id.into(),
            record,
            text,
        }))
    }

    fn text_of(&self, chunk: &ChunkSpan) -> Result<&str, StoreError> {
        let text = self.text.get(chunk.start as usize..chunk.end as usize);
        text.ok_or_else(|| StoreError::Refused("a chunk's span in the state is damaged".into()))
    }

    /// Counts in Unicode scalar values, as the interface promises.
    fn span_of(&self, chunk: &ChunkSpan) -> Result<Span, StoreError> {
        let text = self.text_of(chunk)?;
        let start = self.text[..chunk.start as usize].chars().count();
        Ok(Span {
            start,
            end: start + text.chars().count(),
        })
    }

    fn metadata(&self) -> Result<Box<RawValue>, StoreError> {
        RawValue::from_string(self.record.metadata.to_string())
            .map_err(|_| StoreError::Refused("metadata in the state is damaged".into()))
    }
}

/// Fetches what hits are made of, from one snapshot.
struct Fetch<'a> {
    published: &'a Published,
    number: usize,
    index: &'a str,
    query: &'a Query,
    documents: HashMap<Vec<u8>, Held>,
}

impl Fetch<'_> {
    fn hit(&mut self, scored: &ScoredChunk) -> Result<Hit, StoreError> {
        let store = &*self.published.store;
        let lost = || StoreError::Refused(format!("chunk {} has no document", scored.chunk));
        let id = store.get(Table::Chunks, &chunk_key(self.index, &scored.chunk))?;
        let id = id.ok_or_else(lost)?;
        if !self.documents.contains_key(&id) {
            let name = String::from_utf8_lossy(&id);
            let held = Held::read(store, self.index, &name)?.ok_or_else(lost)?;
            self.documents.insert(id.clone(), held);
        }
        let held = &self.documents[&id];
        let mut chunks = held.record.chunks.iter();
        let chunk = chunks
            .find(|chunk| chunk.id == scored.chunk)
            .ok_or_else(lost)?;
        let include = self.query.include;
        let text = include
            .text
            .then(|| held.text_of(chunk).map(str::to_owned))
            .transpose()?;
        Ok(Hit {
            document: held.id.clone(),
            chunk: scored.chunk,
            score: scored.score,
            span: held.span_of(chunk)?,
            position: held.record.position.clone(),
            text,
            metadata: include.metadata.then(|| held.metadata()).transpose()?,
            vector: if include.vector {
                self.vector(&scored.chunk)
            } else {
                None
            },
        })
    }

    fn vector(&self, chunk: &ChunkId) -> Option<Vec<f32>> {
        let mut shards = self.published.indexes[self.number].shards.iter();
        shards
            .find_map(|shard| shard.vector(chunk))
            .map(|vector| vector.to_f32())
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

    fn query(&self, query: &Query) -> Result<Answer, QueryError> {
        let start = Instant::now();
        let (number, index) = self.find(&query.index)?;
        if !(1..=Query::K_MAX).contains(&query.k) {
            let hint = format!("1 to {}", Query::K_MAX);
            return Err(invalid("k", format!("k is {}", query.k), hint));
        }
        let vector = query_vector(index, &query.input)?;
        let embedded = start.elapsed();
        let published = self.published()?;
        let scored = search(&published, number, &vector, query.k);
        let documents = HashMap::new();
        let mut fetch = Fetch {
            published: &published,
            number,
            index: &index.name,
            query,
            documents,
        };
        let hits = scored
            .iter()
            .map(|hit| fetch.hit(hit))
            .collect::<Result<_, _>>();
        let total = start.elapsed();
        let took = Timings {
            embed: embedded,
            search: total - embedded,
            total,
        };
        Ok(Answer {
            hits: hits.map_err(unreadable)?,
            as_of: published.as_of(),
            took,
        })
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

    fn embed(&self, model: &str, texts: &[String]) -> Result<EmbeddingsAnswer, QueryError> {
        let mut embedders = self.indexes.iter().map(|index| &index.embedder);
        let embedder = embedders
            .find(|it| it.identity().name == model)
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
        let vectors = embedder
            .embed(Lane::Query, &all)
            .map_err(|error| QueryError::Internal(error.to_string()))?;
        let counter = embedder.token_counter();
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
