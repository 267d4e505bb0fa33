//! Plain upserts: the record's key is the identity, its value the row, no value the delete.
//!
//! | record | means |
//! | --- | --- |
//! | key `abc` or `"abc"` | key `abc`: a JSON string is taken as its value |
//! | key `42`, `true` | key `42`, `true` |
//! | key `{"id":1}` or any other text | the text itself |
//! | no key, or JSON null | dead letter `missing_key` |
//! | value: a JSON object | the row, its text kept as it stands |
//! | no value, or JSON null | delete |
//! | value: other JSON | dead letter `wrong_type` |

use super::json::{check_surrogates, fields, scalar_key, text_of};
use super::{Decoded, DecodedChange, RawRecord, Rejected};
use vectide_model::{Key, Row};

/// Decodes a record.
///
/// # Errors
/// What makes the record a dead letter.
pub fn decode(record: &RawRecord<'_>) -> Result<Decoded, Rejected> {
    let key = key_of(record.key)?;
    let row = row_of(record.value).map_err(|rejected| rejected.with_key(&key))?;
    Ok(Decoded::Change(DecodedChange {
        key,
        row,
        unchanged_fields: Vec::new(),
        transaction: None,
        changed_at: None,
    }))
}

fn key_of(bytes: Option<&[u8]>) -> Result<Key, Rejected> {
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
    Ok(Key::from(text))
}

fn row_of(bytes: Option<&[u8]>) -> Result<Option<Row>, Rejected> {
    let Some(bytes) = bytes else {
        return Ok(None);
    };
    let text = text_of(bytes)?;
    if text == "null" {
        return Ok(None);
    }
    let [] = fields(text, [])?;
    check_surrogates(text)?;
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
        match decode(&record) {
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
        assert_eq!(decode(&record).unwrap_err().reason, Undecodable);
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
}
