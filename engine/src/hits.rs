//! What hits are made of: documents and chunks of one snapshot.
//!
//! Invariant: everything of a hit comes from the snapshot that it was found in.

use crate::hybrid::Ranked;
use crate::snapshot::Published;
use crate::state::{DocumentRecord, chunk_key, decode, entity_key};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;
use vectide_model::{ChunkId, ChunkSpan, Hit, Include, Span, StoreError, StoreRead, Table};

/// A document's record and text, read once a query however many of its chunks are hit.
pub(crate) struct Held {
    pub(crate) id: Arc<str>,
    pub(crate) record: DocumentRecord,
    pub(crate) text: String,
}

impl Held {
    pub(crate) fn read(
        read: &dyn StoreRead,
        index: &str,
        id: &str,
    ) -> Result<Option<Self>, StoreError> {
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

    pub(crate) fn text_of(&self, chunk: &ChunkSpan) -> Result<&str, StoreError> {
        let text = self.text.get(chunk.start as usize..chunk.end as usize);
        text.ok_or_else(|| StoreError::Refused("a chunk's span in the state is damaged".into()))
    }

    /// Counts in Unicode scalar values, as the interface promises.
    pub(crate) fn span_of(&self, chunk: &ChunkSpan) -> Result<Span, StoreError> {
        let text = self.text_of(chunk)?;
        let start = self.text[..chunk.start as usize].chars().count();
        Ok(Span {
            start,
            end: start + text.chars().count(),
        })
    }

    pub(crate) fn metadata(&self) -> Result<Box<RawValue>, StoreError> {
        RawValue::from_string(self.record.metadata.to_string())
            .map_err(|_| StoreError::Refused("metadata in the state is damaged".into()))
    }
}

/// Fetches what the hits of an index are made of, from one snapshot.
pub(crate) struct Fetch<'a> {
    published: &'a Published,
    number: usize,
    index: &'a str,
    documents: HashMap<Vec<u8>, Held>,
}

fn lost(chunk: &ChunkId) -> StoreError {
    StoreError::Refused(format!("chunk {chunk} has no document"))
}

impl<'a> Fetch<'a> {
    pub(crate) fn new(published: &'a Published, number: usize, index: &'a str) -> Self {
        Self {
            published,
            number,
            index,
            documents: HashMap::new(),
        }
    }

    /// The id of a chunk's document.
    pub(crate) fn document_of(&self, chunk: &ChunkId) -> Result<Vec<u8>, StoreError> {
        let store = &*self.published.store;
        let id = store.get(Table::Chunks, &chunk_key(self.index, chunk))?;
        id.ok_or_else(|| lost(chunk))
    }

    /// The document of this id, read once however many of its chunks are hit.
    fn document(&mut self, id: &[u8]) -> Result<&Held, StoreError> {
        if !self.documents.contains_key(id) {
            let name = String::from_utf8_lossy(id);
            let lost = || StoreError::Refused(format!("document `{name}` is not there"));
            let held = Held::read(&*self.published.store, self.index, &name)?;
            self.documents.insert(id.to_vec(), held.ok_or_else(lost)?);
        }
        Ok(&self.documents[id])
    }

    /// The chunks of the document of this id.
    pub(crate) fn chunks_of(&mut self, id: &[u8]) -> Result<Vec<ChunkId>, StoreError> {
        let chunks = self.document(id)?.record.chunks.iter();
        Ok(chunks.map(|chunk| chunk.id).collect())
    }

    /// A hit with what is asked for.
    pub(crate) fn hit(&mut self, scored: &Ranked, include: Include) -> Result<Hit, StoreError> {
        let id = self.document_of(&scored.chunk)?;
        let vector = include.vector.then(|| self.vector(&scored.chunk)).flatten();
        let held = self.document(&id)?;
        let mut chunks = held.record.chunks.iter();
        let chunk = chunks
            .find(|chunk| chunk.id == scored.chunk)
            .ok_or_else(|| lost(&scored.chunk))?;
        let text = include
            .text
            .then(|| held.text_of(chunk).map(str::to_owned))
            .transpose()?;
        Ok(Hit {
            document: held.id.clone(),
            chunk: scored.chunk,
            score: scored.score,
            scores: scored.scores,
            span: held.span_of(chunk)?,
            position: held.record.position.clone(),
            text,
            metadata: include.metadata.then(|| held.metadata()).transpose()?,
            vector,
        })
    }

    fn vector(&self, chunk: &ChunkId) -> Option<Vec<f32>> {
        let mut shards = self.published.indexes[self.number].shards.iter();
        shards
            .find_map(|shard| shard.vector(chunk))
            .map(|vector| vector.to_f32())
    }
}
