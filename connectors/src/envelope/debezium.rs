//! Debezium's change events as JSON, with or without their schema, for key and value independently.
//!
//! Identity comes from the record's key alone: a delete may carry no old row, and a change of the
//! primary key arrives as a delete under the old key and a create under the new one.
//!
//! | record | means |
//! | --- | --- |
//! | `op` c, r, u | upsert of `after`, its text kept as it stands; `r` may come at any time |
//! | `op` d, or no value (tombstone) | delete; both in a row are one delete |
//! | `op` t (truncate) | dead letter `unknown_operation`: it has no key to delete |
//! | `op` m (logical message) | ignored `logical_message` |
//! | no `op`: only `ts_ms` | ignored `heartbeat` |
//! | no `op`: `status` and `id` | ignored `transaction_marker` |
//! | no `op`: `ddl` or `tableChanges` | ignored `schema_change` |
//! | any other value | dead letter `undecodable` |
//!
//! The key of a table with one key column is that column's value; of several, the key object as
//! JSON with sorted names. A key that is not JSON (`StringConverter`) is taken as its text.
//!
//! Debezium writes a placeholder for a large column that an update did not touch. A row with it is
//! a dead letter, `wrong_type`: the placeholder must never pass for text.

use super::json::{
    all_fields, check_surrogates, fields, kind, scalar_key, text_of, write_canonical,
};
use super::{Decoded, DecodedChange, RawRecord, Rejected, time_of_milliseconds};
use memchr::memmem::Finder;
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::LazyLock;
use std::time::SystemTime;
use vectide_model::{Key, Row};

/// Key columns hold scalars, or small structures; deeper ones are no keys.
const KEY_DEPTH_MAX: usize = 32;

/// Decodes a record.
///
/// # Errors
/// What makes the record a dead letter.
pub fn decode(record: &RawRecord<'_>) -> Result<Decoded, Rejected> {
    let Some(bytes) = record.value else {
        return delete(record.key, None);
    };
    let text = text_of(bytes)?;
    if text == "null" {
        return delete(record.key, None);
    }
    let envelope = Envelope::parse(text).map_err(|rejected| known_key(record.key, rejected))?;
    let Some(envelope) = envelope else {
        return delete(record.key, None);
    };
    match envelope.operation {
        None => envelope
            .kind_without_operation()
            .map_err(|rejected| known_key(record.key, rejected)),
        Some("\"d\"") => delete(record.key, envelope.changed_at()),
        Some("\"c\"" | "\"r\"" | "\"u\"") => {
            let key = identity(record.key)?;
            let row = envelope.row().map_err(|rejected| rejected.with_key(&key))?;
            Ok(change(key, Some(row), envelope.changed_at()))
        }
        Some("\"m\"") => Ok(Decoded::Ignored("logical_message")),
        Some("\"t\"") => Err(Rejected::unknown_operation(
            "the table was truncated (`op` is t): its rows are still held; \
             delete them at the source row by row, or read the source anew",
        )),
        Some(operation) => Err(known_key(record.key, unknown(operation))),
    }
}

fn delete(key: Option<&[u8]>, changed_at: Option<SystemTime>) -> Result<Decoded, Rejected> {
    Ok(change(identity(key)?, None, changed_at))
}

fn change(key: Key, row: Option<Row>, changed_at: Option<SystemTime>) -> Decoded {
    Decoded::Change(DecodedChange {
        key,
        row,
        unchanged_fields: Vec::new(),
        transaction: None,
        changed_at,
    })
}

fn known_key(key: Option<&[u8]>, rejected: Rejected) -> Rejected {
    match identity(key) {
        Ok(key) => rejected.with_key(&key),
        Err(_) => rejected,
    }
}

fn unknown(operation: &str) -> Rejected {
    if operation.starts_with('"') {
        let shown: String = operation.chars().take(40).collect();
        return Rejected::unknown_operation(format!("`op` is {shown}; known are c, r, u, d, t, m"));
    }
    Rejected::wrong_type(format!("`op` is {}; it must be a string", kind(operation)))
}

/// The parts of a change event that matter here, as they stand in the record.
struct Envelope<'a> {
    schema: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
    operation: Option<&'a str>,
    after: Option<&'a RawValue>,
    source: Option<&'a RawValue>,
    timestamp: Option<&'a RawValue>,
    status: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    ddl: Option<&'a RawValue>,
    table_changes: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    /// `None` for a record whose payload is null: a tombstone written with its schema.
    fn parse(text: &'a str) -> Result<Option<Self>, Rejected> {
        let outer = Self::parts(text)?;
        check_surrogates(text)?;
        match outer.payload {
            Some(payload) if outer.operation.is_none() && outer.schema.is_some() => {
                match payload.get() {
                    "null" => Ok(None),
                    payload => Self::parts(payload).map(Some),
                }
            }
            _ => Ok(Some(outer)),
        }
    }

    fn parts(text: &'a str) -> Result<Self, Rejected> {
        let names = [
            "schema",
            "payload",
            "op",
            "after",
            "source",
            "ts_ms",
            "status",
            "id",
            "ddl",
            "tableChanges",
        ];
        let found = fields(text, names.map(Some))?;
        let [
            schema,
            payload,
            operation,
            after,
            source,
            timestamp,
            status,
            id,
            ddl,
            table_changes,
        ] = found;
        Ok(Self {
            schema,
            payload,
            operation: operation.map(RawValue::get),
            after,
            source,
            timestamp,
            status,
            id,
            ddl,
            table_changes,
        })
    }

    fn kind_without_operation(&self) -> Result<Decoded, Rejected> {
        if self.ddl.is_some() || self.table_changes.is_some() {
            return Ok(Decoded::Ignored("schema_change"));
        }
        if self.status.is_some() && self.id.is_some() {
            return Ok(Decoded::Ignored("transaction_marker"));
        }
        if self.timestamp.is_some() && self.after.is_none() && self.source.is_none() {
            return Ok(Decoded::Ignored("heartbeat"));
        }
        Err(Rejected::undecodable(
            "no field `op`: not a Debezium change event (for plain rows: `format: {type: upsert}`)",
        ))
    }

    fn row(&self) -> Result<Row, Rejected> {
        let Some(after) = self.after.map(RawValue::get).filter(|row| *row != "null") else {
            return Err(Rejected::undecodable(
                "`after` is missing, so there is no row",
            ));
        };
        if !after.starts_with('{') {
            let kind = kind(after);
            return Err(Rejected::wrong_type(format!(
                "`after` is {kind}; it must be an object"
            )));
        }
        if let Some(column) = unavailable_column(after) {
            return Err(Rejected::wrong_type(format!(
                "column `{column}` holds Debezium's placeholder for a value that the update did not \
                 change; set REPLICA IDENTITY FULL on the table, so that the whole row is sent"
            )));
        }
        Ok(Row::from(after))
    }

    /// When the database committed the change.
    fn changed_at(&self) -> Option<SystemTime> {
        let [milliseconds] = fields(self.source?.get(), [Some("ts_ms")]).ok()?;
        time_of_milliseconds(milliseconds?.get().parse().ok()?)
    }
}

/// The identity in a record's key.
fn identity(bytes: Option<&[u8]>) -> Result<Key, Rejected> {
    let Some(bytes) = bytes else {
        return Err(Rejected::missing_key(
            "the record has no key: the table has no primary key (set `message.key.columns`)",
        ));
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Rejected::undecodable(format!("the key is not UTF-8 at byte {at}"))
    })?;
    let value = text.trim();
    let Ok(whole) = serde_json::from_str::<&RawValue>(value) else {
        return Ok(Key::from(text));
    };
    let columns = all_fields(whole.get());
    match columns.as_deref() {
        Some([(first, a), (second, b)]) => match (&**first, &**second) {
            ("schema", "payload") => identity_of(b.get(), all_fields(b.get()).as_deref()),
            ("payload", "schema") => identity_of(a.get(), all_fields(a.get()).as_deref()),
            _ => identity_of(value, columns.as_deref()),
        },
        columns => identity_of(value, columns),
    }
}

/// The identity in a key without its schema; `columns` are its fields if it is an object.
fn identity_of(value: &str, columns: Option<&[(String, &RawValue)]>) -> Result<Key, Rejected> {
    let value = match columns {
        Some([]) => return Err(Rejected::missing_key("the key is an empty object")),
        Some([(_, only)]) => only.get(),
        _ => value,
    };
    if !value.starts_with(['{', '[']) {
        return scalar_key(value);
    }
    let mut canonical = String::with_capacity(value.len());
    write_canonical(value, KEY_DEPTH_MAX, &mut canonical)?;
    Ok(Key::from(canonical))
}

/// The placeholder as Debezium writes it into columns of text and JSON.
const PLACEHOLDER: &str = "__debezium_unavailable_value";
/// The same for bytes, whose JSON is base64 (without padding: `base64-url-safe` has the same start).
const PLACEHOLDER_BASE64: &str = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ";
/// The same for bytes with `binary.handling.mode=hex`.
const PLACEHOLDER_HEX: &str = "5f5f646562657a69756d5f756e617661696c61626c655f76616c7565";
/// The same for arrays of UUIDs: the name-based UUID (version 3) of the text.
const PLACEHOLDER_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";
/// How an array of integers, one for each byte, begins in compact JSON.
const PLACEHOLDER_INTEGERS: &str = "95,95,100,101,98,101,122";

/// Finds any form; made once, as making a searcher costs more than a search in a short row.
static PLACEHOLDER_FORMS: LazyLock<[Finder<'static>; 5]> = LazyLock::new(|| {
    [
        PLACEHOLDER,
        PLACEHOLDER_BASE64,
        PLACEHOLDER_HEX,
        PLACEHOLDER_UUID,
        PLACEHOLDER_INTEGERS,
    ]
    .map(Finder::new)
});

/// The first column whose value is the placeholder in one of its forms. Text that merely speaks of
/// the placeholder is no placeholder.
fn unavailable_column(row: &str) -> Option<String> {
    let is_suspicious = PLACEHOLDER_FORMS
        .iter()
        .any(|form| form.find(row.as_bytes()).is_some());
    if !is_suspicious {
        return None;
    }
    match serde_json::from_str(row) {
        Ok(Value::Object(columns)) => columns
            .into_iter()
            .find_map(|(name, value)| holds_placeholder(&value).then_some(name)),
        // Suspicious and not readable as values: better parked than embedded.
        _ => Some("(unknown)".to_owned()),
    }
}

/// Recursion is bounded by the parser's own limit on nesting.
fn holds_placeholder(value: &Value) -> bool {
    match value {
        Value::String(text) => {
            text == PLACEHOLDER
                || text.trim_end_matches('=') == PLACEHOLDER_BASE64
                || text.eq_ignore_ascii_case(PLACEHOLDER_HEX)
                || text == PLACEHOLDER_UUID
        }
        Value::Array(items) => {
            let bytes = PLACEHOLDER.bytes().map(u64::from);
            items.iter().map(Value::as_u64).eq(bytes.map(Some))
                || items.iter().any(holds_placeholder)
        }
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| name == PLACEHOLDER || holds_placeholder(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use vectide_model::DeadLetterReason::{self, *};

    fn decode_text(key: Option<&str>, value: Option<&str>) -> Result<Decoded, Rejected> {
        decode(&RawRecord {
            topic: "t",
            key: key.map(str::as_bytes),
            value: value.map(str::as_bytes),
            headers: &[],
        })
    }

    fn key_and_row(key: &str, value: Option<&str>) -> (String, Option<String>) {
        match decode_text(Some(key), value).unwrap() {
            Decoded::Change(change) => (
                change.key.to_string(),
                change.row.map(|row| row.to_string()),
            ),
            other => panic!("decoded as {other:?}"),
        }
    }

    fn reason(key: Option<&str>, value: Option<&str>) -> DeadLetterReason {
        decode_text(key, value).unwrap_err().reason
    }

    #[test]
    fn operations_with_and_without_schema() {
        let row = r#"{"id":1,"text":"a","n":1.10}"#;
        for operation in ["c", "r", "u"] {
            let bare = format!(
                r#"{{"before":null,"after":{row},"source":{{"ts_ms":1700000000123,"snapshot":"first"}},"op":"{operation}","ts_ms":5}}"#
            );
            let wrapped = format!(r#"{{"schema":{{"type":"struct"}},"payload":{bare}}}"#);
            for value in [&bare, &wrapped] {
                for key in [r#"{"id":1}"#, r#"{"schema":{},"payload":{"id":1}}"#, "1"] {
                    let Decoded::Change(change) = decode_text(Some(key), Some(value)).unwrap()
                    else {
                        panic!("ignored");
                    };
                    assert_eq!((&*change.key, change.row.as_deref()), ("1", Some(row)));
                    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
                    assert_eq!(change.changed_at, Some(at));
                }
            }
        }
    }

    #[test]
    fn every_form_of_a_delete() {
        for value in [
            None,
            Some("null"),
            Some(r#"{"schema":null,"payload":null}"#),
            Some(r#"{"op":"d","before":{"id":1},"after":null}"#),
            Some(r#"{"op":"d","before":null}"#),
            Some(r#"{"schema":{},"payload":{"op":"d","after":null}}"#),
        ] {
            assert_eq!(key_and_row(r#"{"id":1}"#, value), ("1".to_owned(), None));
            assert_eq!(reason(None, value), MissingKey);
        }
    }

    #[test]
    fn identities() {
        for (key, expected) in [
            (r#"{"id":"a b"}"#, "a b"),
            (r#"{"id":9007199254740993}"#, "9007199254740993"),
            (r#"{"b": 1.10, "a": "\u00e9"}"#, r#"{"a":"é","b":1.10}"#),
            (r#"{"a":"é","b":1.10}"#, r#"{"a":"é","b":1.10}"#),
            (r#"{"id":{"y":[1, 2],"x":null}}"#, r#"{"x":null,"y":[1,2]}"#),
            (r#"{"payload":{"id":7},"schema":{}}"#, "7"),
            (r#"{"schema":{},"payload":"x"}"#, "x"),
            (r#"{"schema":1,"table":2}"#, r#"{"schema":1,"table":2}"#),
            ("\"x\"", "x"),
            ("Struct{id=1}", "Struct{id=1}"),
        ] {
            assert_eq!(key_and_row(key, None).0, expected, "{key}");
        }
        for key in [None, Some("null"), Some("{}"), Some(r#"{"id":null}"#)] {
            assert_eq!(reason(key, None), MissingKey, "{key:?}");
        }
        let nested = format!(r#"{{"id":{}{}}}"#, "[".repeat(200), "]".repeat(200));
        assert_eq!(reason(Some(&nested), None), Undecodable);
    }

    #[test]
    fn records_that_are_no_rows() {
        for (value, expected) in [
            (r#"{"ts_ms":1}"#, "heartbeat"),
            (r#"{"schema":{},"payload":{"ts_ms":1}}"#, "heartbeat"),
            (
                r#"{"status":"BEGIN","id":"1:2","ts_ms":1}"#,
                "transaction_marker",
            ),
            (
                r#"{"source":{},"ts_ms":1,"ddl":"x","tableChanges":[]}"#,
                "schema_change",
            ),
            (
                r#"{"op":"m","ts_ms":1,"message":{"prefix":"p"}}"#,
                "logical_message",
            ),
        ] {
            let decoded = decode_text(Some(r#"{"serverName":"s"}"#), Some(value)).unwrap();
            assert_eq!(decoded, Decoded::Ignored(expected), "{value}");
        }
    }

    #[test]
    fn broken_records() {
        let key = Some(r#"{"id":1}"#);
        for (value, expected) in [
            ("", Undecodable),
            ("nonsense", Undecodable),
            (r#"{"op":"c","after":{"id":1}"#, Undecodable),
            (r#"{"id":1,"text":"a plain row"}"#, Undecodable),
            (r#"{"op":"c","after":null}"#, Undecodable),
            (r#"{"op":"c"}"#, Undecodable),
            (r#"{"op":"c","after":"{}"}"#, WrongType),
            (r#"{"op":1,"after":{}}"#, WrongType),
            (r#"{"op":"x","after":{}}"#, UnknownOperation),
            (r#"{"op":"t","before":null,"after":null}"#, UnknownOperation),
            (r#"{"op":"c","after":{"t":"\ud800"}}"#, Undecodable),
            ("[]", WrongType),
            (r#"{"schema":{},"payload":[]}"#, WrongType),
        ] {
            assert_eq!(reason(key, Some(value)), expected, "{value}");
        }
        assert_eq!(reason(None, Some(r#"{"op":"c","after":{}}"#)), MissingKey);
        assert_eq!(reason(None, Some(r#"{"op":"t"}"#)), UnknownOperation);
        let rejected = decode_text(key, Some(r#"{"op":"x"}"#)).unwrap_err();
        assert_eq!(rejected.key.as_deref(), Some("1"));
    }

    #[test]
    fn placeholders_never_pass() {
        let integers: Vec<String> = PLACEHOLDER.bytes().map(|byte| byte.to_string()).collect();
        let column = |value: &str| format!(r#"{{"op":"u","after":{{"id":1,"body":{value}}}}}"#);
        for value in [
            format!("\"{PLACEHOLDER}\""),
            format!("\"{PLACEHOLDER_BASE64}==\""),
            format!("\"{PLACEHOLDER_HEX}\""),
            format!("[\"{PLACEHOLDER}\"]"),
            format!("[\"{PLACEHOLDER_UUID}\"]"),
            format!("[{}]", integers.join(",")),
            format!("{{\"{PLACEHOLDER}\":\"{PLACEHOLDER}\"}}"),
        ] {
            let rejected = decode_text(Some("1"), Some(&column(&value))).unwrap_err();
            assert_eq!(rejected.reason, WrongType, "{value}");
            assert!(rejected.detail.contains("`body`"), "{}", rejected.detail);
        }
        let about = column(&format!("\"the text {PLACEHOLDER} stands for a value\""));
        assert!(key_and_row("1", Some(&about)).1.is_some());
    }
}
