//! How the state looks as keys and values.
//!
//! Invariant: names, not numbers of the plan, stand in keys, so that a configuration may list its
//! parts in another order; and every value begins with the version of its layout, so that another
//! version is refused by name instead of misread.
//!
//! Names match `[a-z][a-z0-9_-]*`, so the byte 0 ends them and no name is a prefix of another key.

use super::failure::DAMAGED_HINT;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;
use vectide_model::{
    ChunkId, ChunkSpan, ChunkedDocument, ContentHash, DeadLetter, Epoch, KeptLetter, Position,
    Positions, SegmentId, StoreError,
};

/// Version of everything this file describes.
pub(crate) const FORMAT_VERSION: u8 = 3;

/// Keys of the `meta` table.
pub(crate) const META_COMMIT: &[u8] = b"commit";
/// Index -> step of its searches' effort, for those that were steered.
pub(crate) const META_EFFORTS: &[u8] = b"efforts";

/// The commit record: what binds an epoch to the positions it came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CommitRecord {
    /// The last epoch in the state.
    pub(crate) epoch: Epoch,
    /// How many processes have opened the state for writing.
    pub(crate) incarnation: u64,
    /// Source -> partition -> next offset.
    pub(crate) positions: Positions,
    /// Source -> partition -> what tells it from another one of its name.
    pub(crate) fingerprints: Positions,
    /// Index -> what it holds.
    pub(crate) indexes: BTreeMap<String, IndexCounts>,
    /// Part of the pipeline -> what it was made with.
    pub(crate) pipeline: BTreeMap<String, String>,
    /// Sources that began anew and have not stated all their rows again yet.
    pub(crate) resnapshots: BTreeSet<Arc<str>>,
    /// Dead letters.
    pub(crate) letters: LetterCounts,
    /// Generation of the embedding cache that is written to, and its entries.
    pub(crate) cache: CacheState,
}

/// How many dead letters there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LetterCounts {
    /// Ever written: the number of the next one.
    pub(crate) written: u64,
    /// In the state.
    pub(crate) held: u64,
    /// Removed because there were too many.
    pub(crate) dropped: u64,
    /// All before this number are durable in the place that letters are written to besides.
    pub(crate) exported: u64,
}

/// A dead letter; its number is its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredLetter {
    /// When it was committed first.
    pub(crate) written_at: SystemTime,
    /// The letter.
    pub(crate) letter: DeadLetter,
}

/// What an index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexCounts {
    /// Documents.
    pub(crate) documents: u64,
    /// Chunks.
    pub(crate) chunks: u64,
}

/// Where the embedding cache stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CacheState {
    /// The generation written to.
    pub(crate) generation: u32,
    /// Its entries.
    pub(crate) entries: u64,
}

/// A document's record; its text stands in a table of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DocumentRecord {
    /// The change behind it.
    pub(crate) position: Position,
    /// A JSON object, as text.
    pub(crate) metadata: Arc<str>,
    /// SHA-256 of the text.
    pub(crate) sha256: [u8; 32],
    /// Length of the text in bytes.
    pub(crate) bytes: u64,
    /// The chunks in the order of the text.
    pub(crate) chunks: Arc<[ChunkSpan]>,
}

impl DocumentRecord {
    /// How a document is stored.
    pub(crate) fn of(chunked: &ChunkedDocument) -> Self {
        let document = &chunked.document;
        Self {
            position: document.position.clone(),
            metadata: document.metadata.clone(),
            sha256: sha2::Sha256::digest(document.text.as_bytes()).into(),
            bytes: document.text.len() as u64,
            chunks: chunked.chunks.clone(),
        }
    }
}

fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len() + 1 + rest.len());
    key.extend_from_slice(name.as_bytes());
    key.push(0);
    key.extend_from_slice(rest);
    key
}

/// Key of a row, a document or a text: the name of the source or index, then the id.
pub(crate) fn entity_key(name: &str, id: &str) -> Vec<u8> {
    named(name, id.as_bytes())
}

/// Prefix of all keys of a name.
pub(crate) fn name_prefix(name: &str) -> Vec<u8> {
    named(name, &[])
}

/// Key of a chunk.
pub(crate) fn chunk_key(index: &str, chunk: &ChunkId) -> Vec<u8> {
    named(index, &chunk.0)
}

/// Prefix of all keys of a shard.
pub(crate) fn shard_prefix(index: &str, shard: u32) -> Vec<u8> {
    named(index, &shard.to_be_bytes())
}

/// Key of a row in a shard's head.
pub(crate) fn head_key(index: &str, shard: u32, chunk: &ChunkId) -> Vec<u8> {
    let mut key = shard_prefix(index, shard);
    key.extend_from_slice(&chunk.0);
    key
}

/// Key of a segment's manifest, and prefix of its tombstones.
pub(crate) fn segment_key(index: &str, shard: u32, segment: SegmentId) -> Vec<u8> {
    let mut key = shard_prefix(index, shard);
    key.extend_from_slice(&segment.0.to_be_bytes());
    key
}

/// The index and the shard that a segment's key names.
pub(crate) fn segment_place(key: &[u8]) -> Result<(&str, u32), StoreError> {
    let damaged = || StoreError::Refused("a segment's key is damaged".into());
    let end = key.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
    let index = std::str::from_utf8(&key[..end]).map_err(|_| damaged())?;
    let shard = key.get(end + 1..end + 5).ok_or_else(damaged)?;
    let shard = shard.try_into().map_err(|_| damaged())?;
    Ok((index, u32::from_be_bytes(shard)))
}

/// Key of a dead row of a segment.
pub(crate) fn tombstone_key(index: &str, shard: u32, segment: SegmentId, row: u32) -> Vec<u8> {
    let mut key = segment_key(index, shard, segment);
    key.extend_from_slice(&row.to_be_bytes());
    key
}

/// The generations of the embedding cache that are read, the newest first.
pub(crate) fn kept_generations(newest: u32) -> impl Iterator<Item = u32> {
    (newest.saturating_sub(1)..=newest).rev()
}

/// Key of a remembered vector.
pub(crate) fn embedding_key(generation: u32, model: u64, content: ContentHash) -> Vec<u8> {
    let mut key = Vec::with_capacity(28);
    key.extend_from_slice(&generation.to_be_bytes());
    key.extend_from_slice(&model.to_be_bytes());
    key.extend_from_slice(&content.0);
    key
}

/// Key of a dead letter: they sort in the order in which they were written.
pub(crate) fn dead_letter_key(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// Reads a dead letter from its entry.
pub(crate) fn kept_letter(key: &[u8], value: &[u8]) -> Result<KeptLetter, StoreError> {
    let id = key.try_into().map(u64::from_be_bytes);
    let id = id.map_err(|_| StoreError::Refused("a dead letter's number is damaged".into()))?;
    let StoredLetter { written_at, letter } = decode("a dead letter", value)?;
    Ok(KeptLetter {
        id,
        written_at,
        letter,
    })
}

/// A value with its version in front.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Counting first costs less than growing: values are mostly long texts.
    let size = postcard::serialize_with_flavor(value, postcard::ser_flavors::Size::default());
    let mut out = Vec::with_capacity(1 + size.unwrap_or_default());
    out.push(FORMAT_VERSION);
    // Writing to memory fails only for types that do not know their length, and none here does.
    postcard::to_extend(value, out).unwrap_or_else(|error| panic!("unencodable value: {error}"))
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    let refuse = |detail: String| StoreError::Refused(format!("{what} in the state {detail}"));
    match bytes.split_first() {
        Some((&FORMAT_VERSION, rest)) => postcard::from_bytes(rest)
            .map_err(|error| refuse(format!("can't be read: {error}\nhint: {DAMAGED_HINT}"))),
        Some((version, _)) => Err(refuse(format!(
            "has layout version {version}, this program reads version {FORMAT_VERSION}\nhint: use \
             the vectide that wrote it, or give this one a state folder of its own"
        ))),
        None => Err(refuse(format!("is empty\nhint: {DAMAGED_HINT}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_refused_by_name() {
        let mut bytes = encode(&CommitRecord::default());
        assert_eq!(
            decode::<CommitRecord>("record", &bytes).unwrap(),
            CommitRecord::default()
        );
        bytes[0] = 9;
        let error = decode::<CommitRecord>("the commit record", &bytes)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the commit record") && error.contains("version 9"),
            "{error}"
        );
        assert!(decode::<CommitRecord>("record", &bytes[..0]).is_err());
    }

    #[test]
    fn keys_of_one_name_never_fall_under_another() {
        assert!(!entity_key("pages-2", "a").starts_with(&name_prefix("pages")));
        let segment = segment_key("pages", 3, SegmentId(9));
        assert_eq!(segment_place(&segment).unwrap(), ("pages", 3));
        assert!(segment_place(&segment[..8]).is_err());
        assert!(head_key("a", 1, &ChunkId([7; 16])).starts_with(&shard_prefix("a", 1)));
    }
}
