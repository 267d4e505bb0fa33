//! Where dead letters are written besides the state, and how one looks as JSON.
//!
//! Invariant: the JSON of a letter holds everything that is known of it; bytes stand there in
//! base64, and as text besides where they are UTF-8.

mod directory;
mod topic;

pub use directory::DirectoryConfig;
pub use topic::TopicConfig;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::time::SystemTime;
use vectide_model::KeptLetter;

/// A dead letter as a JSON object.
#[derive(Serialize)]
struct LetterJson<'a> {
    id: u64,
    time: String,
    reason: &'a str,
    detail: &'a str,
    source: &'a str,
    partition: &'a str,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_key: Option<Bytes<'a>>,
    /// Missing where the record had no value at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<Bytes<'a>>,
    /// Only a part of the bytes was kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_cut: bool,
}

#[derive(Serialize)]
struct Bytes<'a> {
    base64: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

impl<'a> Bytes<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Self {
            base64: STANDARD.encode(bytes),
            text: std::str::from_utf8(bytes).ok(),
        }
    }
}

/// A letter as one JSON object, as it stands in a line of a folder of letters.
pub fn letter_json(kept: &KeptLetter) -> serde_json::Result<String> {
    let letter = &kept.letter;
    serde_json::to_string(&LetterJson {
        id: kept.id,
        time: time_text(kept.written_at),
        reason: letter.reason.as_str(),
        detail: &letter.detail,
        source: &letter.position.source,
        partition: &letter.position.partition,
        offset: letter.position.offset,
        key: letter.key.as_deref(),
        raw_key: letter.raw_key.as_deref().map(Bytes::of),
        raw: (!letter.is_tombstone).then(|| Bytes::of(&letter.raw)),
        is_cut: letter.is_cut,
    })
}

/// RFC 3339 in UTC. A clock before 1970 is told as 1970: the formatter refuses such times.
pub fn time_text(time: SystemTime) -> String {
    let time = time.max(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use vectide_model::{DeadLetter, DeadLetterReason, Position};

    pub(super) fn letter(id: u64, raw: Option<&[u8]>) -> KeptLetter {
        let position = Position {
            source: "pages".into(),
            partition: "t/3".into(),
            offset: 9,
        };
        let reason = DeadLetterReason::Undecodable;
        KeptLetter {
            id,
            written_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            letter: DeadLetter::of_record(reason, position, None, "why", (Some(b"\xff"), raw)),
        }
    }

    #[test]
    fn everything_is_told() {
        let json = letter_json(&letter(7, Some(b"not json"))).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "id": 7, "time": "1970-01-01T00:00:01.500Z", "reason": "undecodable",
                "detail": "why", "source": "pages", "partition": "t/3", "offset": 9,
                "raw_key": {"base64": "/w=="},
                "raw": {"base64": "bm90IGpzb24=", "text": "not json"},
            })
        );
        let tombstone = letter_json(&letter(7, None)).unwrap();
        assert!(!tombstone.contains("\"raw\""), "{tombstone}");
    }
}
