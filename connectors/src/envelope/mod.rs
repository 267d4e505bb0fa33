//! What the bytes of a record say: pure functions from bytes to a change.
//!
//! No file here knows a transport, a clock or a position. A decoder gives a change, the name of a
//! kind of record that is no row and is left out by design, or the reason why the record is a dead
//! letter. Schemas come from a registry where the encoding needs one; the envelopes themselves only
//! ever see JSON.
//!
//! Invariant: decoding the same bytes by the same schema always gives the same answer, and no input
//! panics.

mod canal;
pub mod change;
mod content;
mod debezium;
mod encoding;
mod flattened;
pub mod format;
mod identity;
pub(crate) mod json;
mod maxwell;
mod object;
mod old_columns;
mod placeholder;
mod transaction;
mod upsert;

use std::sync::Arc;
use std::time::{Duration, SystemTime};
use vectide_model::{DeadLetterReason, Key, Row};

/// A keyed record as a log such as Kafka stores it.
#[derive(Clone, Copy, Debug)]
pub struct RawRecord<'a> {
    /// The topic or table it was read from; decides over tables that share a log.
    pub topic: &'a str,
    /// The record's key, if it has one.
    pub key: Option<&'a [u8]>,
    /// The record's value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// The record's headers, in its order.
    pub headers: &'a [Header<'a>],
}

/// A header of a record: its name, and its value if it has one.
pub type Header<'a> = (&'a str, Option<&'a [u8]>);

/// What a record means.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// A row came, changed or went.
    Change(DecodedChange),
    /// All rows of the record's topic went.
    Truncate {
        /// When, where the envelope says so.
        changed_at: Option<SystemTime>,
    },
    /// A sign of life without a row, and when it was given.
    Heartbeat {
        /// The source's clock.
        at: Option<SystemTime>,
    },
    /// A transaction of the source began or ended.
    Transaction(TransactionMarker),
    /// A kind of record that is no row, by name: `logical_message`, `schema_change`.
    Ignored(&'static str),
}

/// A change without its position.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedChange {
    /// The row it is about.
    pub key: Key,
    /// The new value, `None` for a delete.
    pub row: Option<Row>,
    /// Fields that `row` leaves out because they kept a value which the record does not tell.
    pub unchanged_fields: Vec<Arc<str>>,
    /// The transaction it is part of, where the envelope says so.
    pub transaction: Option<TransactionPlace>,
    /// When the source made the change, where the envelope says so.
    pub changed_at: Option<SystemTime>,
}

/// Where in a transaction of the source a change stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionPlace {
    /// The transaction; the same in all its changes and in its markers.
    pub id: Arc<str>,
    /// Its place among all changes of the transaction, from 1.
    pub total_order: u64,
}

/// The begin or end of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionMarker {
    /// It began.
    Begin {
        /// The transaction.
        id: Arc<str>,
    },
    /// It ended.
    End {
        /// The transaction.
        id: Arc<str>,
        /// Changes of the whole transaction.
        event_count: u64,
        /// Changes by collection (`schema.table`, as the envelope names it).
        collections: Vec<(Arc<str>, u64)>,
    },
}

/// Why a record is a dead letter.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    /// The kind of failure.
    pub reason: DeadLetterReason,
    /// The key, where one could be read.
    pub key: Option<Key>,
    /// What exactly was wrong, for a person.
    pub detail: String,
}

impl Rejected {
    pub(crate) fn new(reason: DeadLetterReason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            key: None,
            detail: detail.into(),
        }
    }

    pub(crate) fn undecodable(detail: impl Into<String>) -> Self {
        Self::new(DeadLetterReason::Undecodable, detail)
    }

    pub(crate) fn missing_key(detail: impl Into<String>) -> Self {
        Self::new(DeadLetterReason::MissingKey, detail)
    }

    pub(crate) fn wrong_type(detail: impl Into<String>) -> Self {
        Self::new(DeadLetterReason::WrongType, detail)
    }

    pub(crate) fn unknown_operation(detail: impl Into<String>) -> Self {
        Self::new(DeadLetterReason::UnknownOperation, detail)
    }

    pub(crate) fn with_key(mut self, key: &Key) -> Self {
        self.key = Some(key.clone());
        self
    }
}

/// A time in milliseconds since 1970; `None` for those that stand for "unknown" (zero, negative).
pub fn time_of_milliseconds(milliseconds: i64) -> Option<SystemTime> {
    let milliseconds = u64::try_from(milliseconds).ok().filter(|at| *at > 0)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds))
}
