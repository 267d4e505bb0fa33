//! Plain upserts: the record's key is the identity, its value the row, no value the delete.
//!
//! | record | means |
//! | --- | --- |
//! | key `abc` or `"abc"` | key `abc`: a JSON string is taken as its value |
//! | key `42`, `true` | key `42`, `true` |
//! | key `{"id":1}` or any other text | the text itself |
//! | no key, or JSON null | dead letter `missing_key` |
//! | value: a JSON object | the row, its text kept as it stands |
//! | key or value with Kafka Connect's `schema` and `payload` | the payload, by its schema |
//! | no value, or JSON null | delete |
//! | value: other JSON | dead letter `wrong_type` |
//!
//! Invariant: the key's text is never normalised, so what differs in the source differs here.

use super::encoding::InlineSchemas;
use super::json::{check_surrogates, fields, scalar_key, text_of};
use super::object::wrapped;
use super::{Decoded, DecodedChange, RawRecord, Rejected};
use std::borrow::Cow;
use vectide_model::{Key, Row};

/// Decodes a record of JSON.
///
/// # Errors
/// What makes the record a dead letter.
pub(crate) fn decode(
    record: &RawRecord<'_>,
    schemas: &mut InlineSchemas,
) -> Result<Decoded, Rejected> {
    let key = key_of(record.key, schemas)?;
    let row = row_of(record.value, schemas).map_err(|rejected| rejected.with_key(&key))?;
    Ok(Decoded::Change(change_of(key, row)))
}

/// A change of which nothing but key and row is known.
pub(super) fn change_of(key: Key, row: Option<Row>) -> DecodedChange {
    DecodedChange {
        key,
        row,
        unchanged_fields: Vec::new(),
        transaction: None,
        changed_at: None,
    }
}

/// The key's text, or the value that it is as JSON.
pub(super) fn key_of(bytes: Option<&[u8]>, schemas: &mut InlineSchemas) -> Result<Key, Rejected> {
    let Some(bytes) = bytes else {
        return Err(Rejected::missing_key("the record has no key"));
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Rejected::undecodable(format!("the key is not UTF-8 at byte {at}"))
    })?;
    let value = text.trim();
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(value).is_ok();
    if is_json && !value.starts_with(['{', '[']) {
        return scalar_key(value);
    }
    match unwrapped(value, schemas)? {
        Some(payload) if payload.starts_with(['{', '[']) => Ok(Key::from(payload)),
        Some(payload) => scalar_key(&payload),
        None => Ok(Key::from(text)),
    }
}

/// The payload by its schema, where a value is wrapped in one.
fn unwrapped(text: &str, schemas: &mut InlineSchemas) -> Result<Option<String>, Rejected> {
    let Some((schema, payload)) = wrapped(text) else {
        return Ok(None);
    };
    let mut rewritten = String::new();
    schemas
        .shape(schema.get())?
        .rewrite(payload.get(), &mut rewritten)?;
    Ok(Some(rewritten))
}

fn row_of(bytes: Option<&[u8]>, schemas: &mut InlineSchemas) -> Result<Option<Row>, Rejected> {
    let Some(bytes) = bytes else {
        return Ok(None);
    };
    let text = text_of(bytes)?;
    let text = match unwrapped(text, schemas)? {
        Some(payload) => Cow::Owned(payload),
        None => Cow::Borrowed(text),
    };
    if text == "null" {
        return Ok(None);
    }
    let [] = fields(&text, [])?;
    check_surrogates(&text)?;
    Ok(Some(Row::from(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectide_model::DeadLetterReason::{self, *};

    fn check(
        key: Option<&str>,
        value: Option<&[u8]>,
    ) -> Result<(String, Option<String>), DeadLetterReason> {
        let record = RawRecord {
            topic: "t",
            key: key.map(str::as_bytes),
            value,
            headers: &[],
        };
        match decode(&record, &mut InlineSchemas::default()) {
            Ok(Decoded::Change(change)) => Ok((
                change.key.to_string(),
                change.row.map(|row| row.to_string()),
            )),
            Ok(other) => panic!("decoded as {other:?}"),
            Err(rejected) => Err(rejected.reason),
        }
    }

    #[test]
    fn keys() {
        for (key, expected) in [
            ("abc", "abc"),
            ("\"abc\"", "abc"),
            ("\"a\\u00e9\"", "aé"),
            ("42", "42"),
            ("18446744073709551617", "18446744073709551617"),
            ("true", "true"),
            ("{\"id\":1}", "{\"id\":1}"),
            ("docs/a b.md", "docs/a b.md"),
            ("", ""),
            ("\"unclosed", "\"unclosed"),
        ] {
            assert_eq!(
                check(Some(key), None),
                Ok((expected.to_owned(), None)),
                "{key}"
            );
        }
        assert_eq!(check(None, Some(b"{}")), Err(MissingKey));
        assert_eq!(check(Some("null"), Some(b"{}")), Err(MissingKey));
        let record = RawRecord {
            topic: "t",
            key: Some(b"\xff"),
            value: None,
            headers: &[],
        };
        assert_eq!(
            decode(&record, &mut InlineSchemas::default())
                .unwrap_err()
                .reason,
            Undecodable
        );
    }

    #[test]
    fn values() {
        let row = |text: &str| Ok(("k".to_owned(), Some(text.to_owned())));
        assert_eq!(
            check(Some("k"), Some(b" {\"a\": 1.0}\n")),
            row("{\"a\": 1.0}")
        );
        assert_eq!(check(Some("k"), Some(b"\xef\xbb\xbf{}")), row("{}"));
        assert_eq!(check(Some("k"), Some(b"null")), Ok(("k".to_owned(), None)));
        for (value, reason) in [
            (&b""[..], Undecodable),
            (b"{", Undecodable),
            (b"{} {}", Undecodable),
            (b"\xff{}", Undecodable),
            (b"{\"a\":\"\\udc00\"}", Undecodable),
            (b"[]", WrongType),
            (b"\"{}\"", WrongType),
            (b"1", WrongType),
        ] {
            assert_eq!(check(Some("k"), Some(value)), Err(reason), "{value:?}");
        }
    }

    #[test]
    fn wrapped_in_a_schema() {
        let schema = r#"{"type":"struct","fields":[{"type":"int32","name":"io.debezium.time.Date","field":"day"}]}"#;
        let value = format!(r#"{{"schema": {schema}, "payload": {{"day": 0}}}}"#);
        let key = r#"{"schema":{"type":"int64"},"payload":7}"#;
        assert_eq!(
            check(Some(key), Some(value.as_bytes())),
            Ok(("7".to_owned(), Some(r#"{"day":"1970-01-01"}"#.to_owned())))
        );
        let null = format!(r#"{{"schema":{schema},"payload":null}}"#);
        assert_eq!(
            check(Some("k"), Some(null.as_bytes())),
            Ok(("k".to_owned(), None))
        );
        let own = r#"{"schema":{"a":1},"payload":1}"#;
        assert_eq!(
            check(Some("k"), Some(own.as_bytes())),
            Ok(("k".to_owned(), Some(own.to_owned())))
        );
    }
}
