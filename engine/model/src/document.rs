//! Documents, and the identity of their chunks.
//!
//! Invariant: a chunk's id depends on the document, the chunker, the chunk's text and how often that
//! text occurred before it in the document, and on nothing else. Text that merely moved keeps its id,
//! so that two versions of a document differ exactly in the chunks whose text changed.

use crate::{Chunker, Position};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// What a pipeline makes of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Document {
    /// Unique within its `documents` entry.
    pub id: Arc<str>,
    /// The text that is chunked and embedded.
    pub text: Arc<str>,
    /// A JSON object, as text.
    pub metadata: Arc<str>,
    /// The last change of the row behind it.
    pub position: Position,
}

/// Hash of a text that is embedded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentHash(pub [u8; 16]);

impl ContentHash {
    /// The first 128 bits of the text's BLAKE3 hash.
    pub fn of(text: &str) -> Self {
        Self(truncate(blake3::hash(text.as_bytes())))
    }
}

/// Identity of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkId(pub [u8; 16]);

impl ChunkId {
    /// The id of the `occurrence`-th chunk (from 0) with this content in a document.
    pub fn new(document: &str, chunker: &str, content: ContentHash, occurrence: u32) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [document.as_bytes(), chunker.as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(&content.0);
        hasher.update(&occurrence.to_le_bytes());
        Self(truncate(hasher.finalize()))
    }

    /// Reads the 32 hex digits that `Display` writes.
    pub fn parse(hex: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        if hex.len() != 32 || !hex.is_ascii() {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

fn truncate(hash: blake3::Hash) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&hash.as_bytes()[..16]);
    out
}

/// A hash that never changes between versions or machines: for routing keys to workers and
/// documents to shards on disk.
pub fn stable_hash(bytes: &[u8]) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    u64::from_le_bytes(out)
}

fn write_hex(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// One chunk of a document: its identity and where its text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkSpan {
    /// Identity.
    pub id: ChunkId,
    /// Hash of the chunk's text.
    pub content: ContentHash,
    /// First byte in the document's text.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// A document with its chunks in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkedDocument {
    /// The document.
    pub document: Document,
    /// Its chunks; none for an empty text.
    pub chunks: Arc<[ChunkSpan]>,
}

impl ChunkedDocument {
    /// The text of one chunk.
    pub fn chunk_text(&self, chunk: &ChunkSpan) -> &str {
        &self.document.text[chunk.start as usize..chunk.end as usize]
    }
}

/// Cuts a document into chunks and gives each its identity.
///
/// # Errors
/// When the chunker refuses the text, or it is longer than 4 GiB.
pub fn chunk_document(
    chunker: &dyn Chunker,
    document: Document,
) -> Result<ChunkedDocument, (Document, crate::ChunkError)> {
    let spans = match chunker.chunk(&document.text) {
        Ok(spans) if document.text.len() <= u32::MAX as usize => spans,
        Ok(_) => {
            return Err((
                document,
                crate::ChunkError("text is longer than 4 GiB".into()),
            ));
        }
        Err(error) => return Err((document, error)),
    };
    let mut occurrences: HashMap<ContentHash, u32> = HashMap::with_capacity(spans.len());
    let chunks = spans
        .into_iter()
        .map(|span| {
            let content = ContentHash::of(&document.text[span.clone()]);
            let occurrence = occurrences.entry(content).or_insert(0);
            let id = ChunkId::new(&document.id, chunker.version(), content, *occurrence);
            *occurrence += 1;
            ChunkSpan {
                id,
                content,
                start: span.start as u32,
                end: span.end as u32,
            }
        })
        .collect();
    Ok(ChunkedDocument { document, chunks })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lines;

    impl Chunker for Lines {
        fn version(&self) -> &str {
            "lines-1"
        }
        fn chunk(&self, text: &str) -> Result<Vec<std::ops::Range<usize>>, crate::ChunkError> {
            let mut at = 0;
            Ok(text
                .split_inclusive('\n')
                .map(|line| {
                    at += line.len();
                    at - line.len()..at
                })
                .collect())
        }
    }

    fn ids(text: &str) -> Vec<ChunkId> {
        let position = Position {
            source: "s".into(),
            partition: "p".into(),
            offset: 0,
        };
        let document = Document {
            id: "d".into(),
            text: text.into(),
            metadata: "{}".into(),
            position,
        };
        let chunked = chunk_document(&Lines, document).unwrap();
        chunked.chunks.iter().map(|chunk| chunk.id).collect()
    }

    #[test]
    fn moved_text_keeps_its_id_and_repeated_text_gets_its_own() {
        let before = ids("a\nb\na\n");
        let after = ids("new\nb\na\na\n");
        assert_ne!(before[0], before[2]);
        assert_eq!(after[1], before[1]);
        assert_eq!(&after[2..], &[before[0], before[2]]);
    }

    #[test]
    fn an_id_survives_printing() {
        let id = ids("x")[0];
        assert_eq!(ChunkId::parse(&id.to_string()), Some(id));
        assert_eq!(ChunkId::parse("zz"), None);
    }
}
