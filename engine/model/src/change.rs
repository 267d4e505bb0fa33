//! What a source says happened: keyed upserts and deletes, each with the place it was read from.
//!
//! Invariant: every change carries its position, so that the last one of a key can be told from the
//! positions alone, whatever batch or epoch it arrived in.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::SystemTime;

/// The key of a row in its source.
pub type Key = Arc<str>;

/// The current value under a source key: the text of one JSON object.
///
/// It stays text because it is stored and compared far more often than it is looked into.
pub type Row = Arc<str>;

/// A part of a source whose positions are ordered: `topic/3` of Kafka, a file's name of a log.
pub type Partition = Arc<str>;

/// Where in a source a change stands.
///
/// Offsets of one partition are ordered but may have holes; offsets of two partitions are not
/// comparable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Name of the source in the configuration.
    pub source: Arc<str>,
    /// The ordered part of the source.
    pub partition: Partition,
    /// Record offset, log sequence number or byte offset, whichever the source counts in.
    pub offset: u64,
}

/// One keyed upsert or delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The row it is about.
    pub key: Key,
    /// The row's new value; `None` deletes it.
    pub row: Option<Row>,
    /// Top-level fields that `row` leaves out because the source says that they kept their value
    /// without telling it (Postgres does so with large columns): the row held provides them. Empty
    /// for almost every change.
    pub unchanged_fields: Vec<Arc<str>>,
    /// Where it was read.
    pub position: Position,
    /// When the source made it, or else when it was read: the start of the freshness clock.
    pub changed_at: SystemTime,
}

/// Why something could not become part of the state. The names are labels of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterReason {
    /// The bytes are not what the format says (not JSON, invalid UTF-8, a broken envelope).
    Undecodable,
    /// The record has no key, or one that is not a string, number or boolean.
    MissingKey,
    /// A field has a type that the format does not allow there.
    WrongType,
    /// The operation is none of those that the format knows.
    UnknownOperation,
    /// The record is longer than the source's limit.
    TooLarge,
    /// The schema which the record names can't be had, or the record does not fit it.
    Schema,
    /// The record leaves out values that did not change, and no row is held which has them.
    Incomplete,
    /// The document's template could not be rendered from the row.
    Render,
    /// The document's text could not be cut into chunks or embedded.
    Embed,
}

impl DeadLetterReason {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::Undecodable,
        Self::MissingKey,
        Self::WrongType,
        Self::UnknownOperation,
        Self::TooLarge,
        Self::Schema,
        Self::Incomplete,
        Self::Render,
        Self::Embed,
    ];

    /// Whether it was the record that could not be used, so that decoding it again may help. The
    /// others are about a row or a document made of it.
    pub fn is_of_record(self) -> bool {
        !matches!(self, Self::Incomplete | Self::Render | Self::Embed)
    }

    /// The reason as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::MissingKey => "missing_key",
            Self::WrongType => "wrong_type",
            Self::UnknownOperation => "unknown_operation",
            Self::TooLarge => "too_large",
            Self::Schema => "schema",
            Self::Incomplete => "incomplete",
            Self::Render => "render",
            Self::Embed => "embed",
        }
    }
}

/// Something that was read and could not be used, kept so that nothing is dropped silently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The kind of failure.
    pub reason: DeadLetterReason,
    /// Where it was read.
    pub position: Position,
    /// The key, where one could be read.
    pub key: Option<Key>,
    /// What exactly was wrong, for a person.
    pub detail: String,
    /// The record's bytes, cut to [`DeadLetter::RAW_BYTES_MAX`].
    pub raw: Vec<u8>,
    /// The bytes of the record's key where the source keeps them apart from its value, cut alike.
    pub raw_key: Option<Vec<u8>>,
    /// Whether the record had no value at all, which is not the same as an empty one.
    pub is_tombstone: bool,
    /// Whether `raw` or `raw_key` was cut: such a letter can be read but not replayed.
    pub is_cut: bool,
}

impl DeadLetter {
    /// Longest piece of a record that is kept: enough to recognise and usually to repair it, while
    /// a flood of oversized records cannot fill the disk.
    pub const RAW_BYTES_MAX: usize = 64 * 1024;

    /// A dead letter of a keyed record, cutting key and value to the limit.
    pub fn of_record(
        reason: DeadLetterReason,
        position: Position,
        key: Option<Key>,
        detail: impl Into<String>,
        (raw_key, raw): (Option<&[u8]>, Option<&[u8]>),
    ) -> Self {
        let mut letter = Self::new(reason, position, key, detail, raw.unwrap_or_default());
        letter.is_tombstone = raw.is_none();
        letter.is_cut |= raw_key.is_some_and(|bytes| bytes.len() > Self::RAW_BYTES_MAX);
        letter.raw_key =
            raw_key.map(|bytes| bytes[..bytes.len().min(Self::RAW_BYTES_MAX)].to_vec());
        letter
    }

    /// Builds a dead letter, cutting `raw` to the limit.
    pub fn new(
        reason: DeadLetterReason,
        position: Position,
        key: Option<Key>,
        detail: impl Into<String>,
        raw: &[u8],
    ) -> Self {
        let is_cut = raw.len() > Self::RAW_BYTES_MAX;
        let raw = raw[..raw.len().min(Self::RAW_BYTES_MAX)].to_vec();
        Self {
            reason,
            position,
            key,
            detail: detail.into(),
            raw,
            raw_key: None,
            is_tombstone: false,
            is_cut,
        }
    }
}
