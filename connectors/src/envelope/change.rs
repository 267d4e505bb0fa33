//! A change as one JSON object whose fields say the key, the operation and the transaction.
//!
//! The row is the whole object, and its text is kept as it stands: not parsed into values, not
//! written anew. So the decoder reads a line once, checks that it is JSON and picks the named
//! fields on the way.
//!
//! | field | allowed | otherwise |
//! | --- | --- | --- |
//! | key | string, number, boolean | missing, null or another type: `missing_key` |
//! | op | `c`, `u`, `r` (upserts), `d` (delete) | another string or missing: `unknown_operation`; another type: `wrong_type` |
//! | transaction | string, number, boolean | missing or null: the change stands alone; another type: `wrong_type` |

use super::Rejected;
use super::json::{at_path, check_surrogates, fields, kind, scalar_key};
use serde_json::value::RawValue;
use vectide_model::Key;

/// Where in an object a field lies: names joined by dots.
#[derive(Clone, Debug)]
struct FieldPath {
    text: String,
    first: Box<str>,
    rest: Box<[Box<str>]>,
}

impl FieldPath {
    fn new(text: &str) -> Self {
        let mut names = text.split('.').map(Box::from);
        Self {
            text: text.to_owned(),
            first: names.next().unwrap_or_default(),
            rest: names.collect(),
        }
    }
}

/// Decodes lines by the names of their fields.
#[derive(Clone, Debug)]
pub struct ChangeDecoder {
    key: FieldPath,
    operation: Option<FieldPath>,
    transaction: Option<FieldPath>,
}

/// A change as its line says it; borrows the line.
#[derive(Clone, Debug, PartialEq)]
pub struct LineChange<'a> {
    /// The row it is about.
    pub key: Key,
    /// The new row, `None` for a delete.
    pub row: Option<&'a str>,
    /// The transaction's value as JSON text; `None` when the change stands alone.
    pub transaction: Option<&'a str>,
}

impl ChangeDecoder {
    /// Field names may be paths of nested objects, `meta.key`.
    pub fn new(key: &str, operation: Option<&str>, transaction: Option<&str>) -> Self {
        Self {
            key: FieldPath::new(key),
            operation: operation.map(FieldPath::new),
            transaction: transaction.map(FieldPath::new),
        }
    }

    /// Whether lines name their transaction.
    pub fn is_transactional(&self) -> bool {
        self.transaction.is_some()
    }

    /// Decodes a line without its line end; `Ok(None)` for a line of white space.
    ///
    /// # Errors
    /// What makes the line a dead letter.
    pub fn decode<'a>(&self, line: &'a [u8]) -> Result<Option<LineChange<'a>>, Rejected> {
        let text = super::json::text_of(line)?;
        if text.is_empty() {
            return Ok(None);
        }
        let [key, operation, transaction] = fields(
            text,
            [
                Some(&*self.key.first),
                self.operation.as_ref().map(|path| &*path.first),
                self.transaction.as_ref().map(|path| &*path.first),
            ],
        )?;
        check_surrogates(text)?;
        let key = self.key_of(key)?;
        self.change_of(text, &key, operation, transaction)
            .map(Some)
            .map_err(|rejected| rejected.with_key(&key))
    }

    fn key_of(&self, value: Option<&RawValue>) -> Result<Key, Rejected> {
        let path = &self.key;
        match value.and_then(|value| at_path(value, &path.rest)) {
            Some(value) => scalar_key(value.get()),
            None => Err(Rejected::missing_key(format!(
                "no field `{}`, which holds the key",
                path.text
            ))),
        }
    }

    fn change_of<'a>(
        &self,
        text: &'a str,
        key: &Key,
        operation: Option<&'a RawValue>,
        transaction: Option<&'a RawValue>,
    ) -> Result<LineChange<'a>, Rejected> {
        let is_delete = match &self.operation {
            Some(path) => is_delete(path, operation.and_then(|value| at_path(value, &path.rest)))?,
            None => false,
        };
        let transaction = match &self.transaction {
            Some(path) => transaction_of(
                path,
                transaction.and_then(|value| at_path(value, &path.rest)),
            )?,
            None => None,
        };
        Ok(LineChange {
            key: key.clone(),
            row: (!is_delete).then_some(text),
            transaction,
        })
    }
}

fn is_delete(path: &FieldPath, value: Option<&RawValue>) -> Result<bool, Rejected> {
    let name = &path.text;
    let Some(value) = value.map(RawValue::get) else {
        return Err(Rejected::unknown_operation(format!(
            "no field `{name}`, which holds the operation"
        )));
    };
    match value {
        "\"c\"" | "\"u\"" | "\"r\"" => Ok(false),
        "\"d\"" => Ok(true),
        _ if value.starts_with('"') => Err(Rejected::unknown_operation(format!(
            "`{name}` is {}; known are c, u, r, d",
            shortened(value)
        ))),
        _ => Err(Rejected::wrong_type(format!(
            "`{name}` is {}; it must be one of the strings c, u, r, d",
            kind(value)
        ))),
    }
}

fn transaction_of<'a>(
    path: &FieldPath,
    value: Option<&'a RawValue>,
) -> Result<Option<&'a str>, Rejected> {
    match value.map(RawValue::get) {
        None | Some("null") => Ok(None),
        Some(value) if value.starts_with(['{', '[']) => Err(Rejected::wrong_type(format!(
            "`{}` is {}; a transaction is named by a string, number or boolean",
            path.text,
            kind(value)
        ))),
        Some(value) => Ok(Some(value)),
    }
}

/// The start of a value, for a message.
fn shortened(value: &str) -> String {
    const CHARACTERS_MAX: usize = 40;
    value.chars().take(CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectide_model::DeadLetterReason::{self, *};

    fn decoder() -> ChangeDecoder {
        ChangeDecoder::new("path", Some("op"), Some("meta.tx"))
    }

    #[test]
    fn good_lines() {
        let cases = [
            (
                r#"{"path":"a","op":"c","meta":{"tx":1}}"#,
                "a",
                true,
                Some("1"),
            ),
            (r#"{"path":"a","op":"r"}"#, "a", true, None),
            (
                r#"{"path":"a","op":"d","meta":{"tx":null}}"#,
                "a",
                false,
                None,
            ),
            (
                r#"{"path":12345678901234567890123,"op":"u","meta":3}"#,
                "12345678901234567890123",
                true,
                None,
            ),
            (r#"{"path":1.10,"op":"u"}"#, "1.10", true, None),
            (
                r#"{"path":true,"op":"u","meta":{"tx":"x y"}}"#,
                "true",
                true,
                Some("\"x y\""),
            ),
            (r#"{"\u0070ath":"\u00e9\n","op":"u"}"#, "é\n", true, None),
            (
                r#"{"path":"first","path":"last","op":"u"}"#,
                "last",
                true,
                None,
            ),
            (r#"{"path":"","op":"u"}"#, "", true, None),
            (r#"{"path":"\ud83d\ude00","op":"u"}"#, "😀", true, None),
        ];
        for (line, key, upsert, transaction) in cases {
            let padded = format!(" {line}\r");
            let change = decoder().decode(padded.as_bytes()).unwrap().unwrap();
            assert_eq!(&*change.key, key, "{line}");
            assert_eq!(change.row, upsert.then_some(line));
            assert_eq!(change.transaction, transaction, "{line}");
        }
        for empty in ["", "  \t\r", "\u{feff}"] {
            assert_eq!(decoder().decode(empty.as_bytes()), Ok(None));
        }
        let plain = ChangeDecoder::new("path", None, None);
        let line = r#"{"path":"a","op":"d"}"#;
        assert_eq!(
            plain.decode(line.as_bytes()).unwrap().unwrap().row,
            Some(line)
        );
    }

    #[test]
    fn bad_lines() {
        let deep = format!(r#"{{"path":"a","op":"u","x":{}1"#, "[".repeat(100_000));
        let cases: [(&[u8], DeadLetterReason); 18] = [
            (b"nonsense", Undecodable),
            (b"{\"path\":\"a\",\"op\":\"u\"", Undecodable),
            (b"{\"path\":\"a\",\"op\":\"u\"} {}", Undecodable),
            (b"{\"path\":\"a\",\"op\":\"u\",\"x\":tru}", Undecodable),
            (b"{\"path\":\"a\",\"op\":\"u\",\"x\":\"\xff\"}", Undecodable),
            (
                b"{\"path\":\"a\",\"op\":\"u\",\"x\":\"\\ud800\"}",
                Undecodable,
            ),
            (b"{\"path\":\"a\",\"op\":\"u\",\"x\":\"\x01\"}", Undecodable),
            (deep.as_bytes(), Undecodable),
            (b"[1,2]", WrongType),
            (b"\"text\"", WrongType),
            (b"[1,2", Undecodable),
            (b"{\"op\":\"u\"}", MissingKey),
            (b"{\"path\":null,\"op\":\"u\"}", MissingKey),
            (b"{\"path\":{\"a\":1},\"op\":\"u\"}", MissingKey),
            (b"{\"path\":\"a\",\"op\":\"x\"}", UnknownOperation),
            (b"{\"path\":\"a\"}", UnknownOperation),
            (b"{\"path\":\"a\",\"op\":1}", WrongType),
            (
                b"{\"path\":\"a\",\"op\":\"u\",\"meta\":{\"tx\":[]}}",
                WrongType,
            ),
        ];
        for (line, reason) in cases {
            let rejected = decoder().decode(line).unwrap_err();
            let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
            assert_eq!(rejected.reason, reason, "{shown}: {}", rejected.detail);
            assert!(!rejected.detail.is_empty());
        }
        let rejected = decoder().decode(br#"{"path":"a","op":"x"}"#).unwrap_err();
        assert_eq!(rejected.key.as_deref(), Some("a"));
    }
}
