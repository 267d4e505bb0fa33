//! The parts of answers that say which state they are from, as the wire has them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use utoipa::ToSchema;
use vectide_model::{AsOf, Position, Span};

/// Source -> partition -> next offset: everything before it is in the answer.
pub type Positions = Arc<BTreeMap<Arc<str>, BTreeMap<Arc<str>, u64>>>;

/// The committed state an answer is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = AsOf)]
pub struct AsOfView {
    /// The epoch.
    pub epoch: u64,
    /// Source -> partition -> next offset: everything before it is in the answer.
    #[schema(value_type = BTreeMap<String, BTreeMap<String, u64>>)]
    pub positions: Positions,
    /// When the epoch became visible, RFC 3339.
    #[schema(format = DateTime)]
    pub published_at: String,
}

/// A place in a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Position)]
pub struct PositionView {
    /// Name of the source.
    #[schema(value_type = String)]
    pub source: Arc<str>,
    /// The ordered part of the source.
    #[schema(value_type = String)]
    pub partition: Arc<str>,
    /// Record offset, log sequence number or byte offset.
    pub offset: u64,
}

/// A stretch of a document's text in Unicode scalar values (as Python counts), end excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Span)]
pub struct SpanView {
    /// First.
    pub start: usize,
    /// One past the last.
    pub end: usize,
}

impl From<AsOf> for AsOfView {
    fn from(as_of: AsOf) -> Self {
        Self {
            epoch: as_of.epoch,
            positions: as_of.positions,
            published_at: rfc3339(as_of.published_at),
        }
    }
}

impl From<Position> for PositionView {
    fn from(position: Position) -> Self {
        Self {
            source: position.source,
            partition: position.partition,
            offset: position.offset,
        }
    }
}

impl From<Span> for SpanView {
    fn from(span: Span) -> Self {
        Self {
            start: span.start,
            end: span.end,
        }
    }
}

/// A time as RFC 3339 in UTC with microseconds. Times before 1970 or after 9999, which only a broken
/// clock gives, become the nearest of these.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    const YEAR_9999_S: u64 = 253_402_300_799;
    let since_1970 = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let since_1970 = since_1970.min(Duration::from_secs(YEAR_9999_S));
    humantime::format_rfc3339_micros(SystemTime::UNIX_EPOCH + since_1970).to_string()
}
