//! Values that are documents themselves: text or bytes, in one field of the row.
//!
//! | record | means |
//! | --- | --- |
//! | any value (an empty one too) | upsert of `{"content": …}`; bytes as base64 |
//! | no value | delete |
//! | no key | dead letter `missing_key` |
//! | a key, or with `text` a value, that is not UTF-8 | dead letter `undecodable` |
//!
//! Invariant: key and text enter the row as they are; nothing in them is taken for JSON.

use super::encoding::{write_bytes, write_string};
use super::upsert::change_of;
use super::{Decoded, RawRecord, Rejected};
use vectide_model::{Key, Row};

/// What values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text,
    Bytes,
}

/// Decodes a record into a row with one field of that name.
///
/// # Errors
/// What makes the record a dead letter.
pub(crate) fn decode(
    record: &RawRecord<'_>,
    content: Content,
    field: &str,
) -> Result<Decoded, Rejected> {
    let Some(key) = record.key else {
        return Err(Rejected::missing_key("the record has no key"));
    };
    let key = Key::from(utf8(key, "key")?);
    let row = match record.value {
        Some(value) => Some(row_of(value, content, field).map_err(|it| it.with_key(&key))?),
        None => None,
    };
    Ok(Decoded::Change(change_of(key, row)))
}

fn row_of(value: &[u8], content: Content, field: &str) -> Result<Row, Rejected> {
    let mut row = String::with_capacity(value.len() + field.len() + 8);
    row.push('{');
    write_string(field, &mut row);
    row.push(':');
    match content {
        Content::Text => write_string(utf8(value, "value")?, &mut row),
        Content::Bytes => write_bytes(value, &mut row),
    }
    row.push('}');
    Ok(Row::from(row))
}

fn utf8<'a>(bytes: &'a [u8], part: &str) -> Result<&'a str, Rejected> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Rejected::undecodable(format!("the {part} is not UTF-8 at byte {at}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectide_model::DeadLetterReason::*;

    #[test]
    fn documents() {
        let check = |key: Option<&[u8]>, value: Option<&[u8]>, content| {
            let record = RawRecord {
                topic: "t",
                key,
                value,
                headers: &[],
            };
            match decode(&record, content, "content") {
                Ok(Decoded::Change(change)) => Ok((
                    change.key.to_string(),
                    change.row.map(|row| row.to_string()),
                )),
                Ok(other) => panic!("decoded as {other:?}"),
                Err(rejected) => Err(rejected.reason),
            }
        };
        for (value, content, expected) in [
            (
                &b"a\"\n\xc3\xa9"[..],
                Content::Text,
                r#"{"content":"a\"\né"}"#,
            ),
            (b"null", Content::Text, r#"{"content":"null"}"#),
            (b"", Content::Text, r#"{"content":""}"#),
            (b"\xff\x00", Content::Bytes, r#"{"content":"/wA="}"#),
        ] {
            let row = Some(expected.to_owned());
            assert_eq!(
                check(Some(b"\"k\""), Some(value), content),
                Ok(("\"k\"".to_owned(), row))
            );
        }
        assert_eq!(
            check(Some(b"k"), None, Content::Text),
            Ok(("k".to_owned(), None))
        );
        assert_eq!(check(None, Some(b""), Content::Text), Err(MissingKey));
        assert_eq!(check(Some(b"\xff"), None, Content::Bytes), Err(Undecodable));
        assert_eq!(
            check(Some(b"k"), Some(b"\xff"), Content::Text),
            Err(Undecodable)
        );
    }
}
