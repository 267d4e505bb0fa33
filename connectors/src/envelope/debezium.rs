//! Debezium's change events, with or without their schema, for key and value independently.
//!
//! Identity comes from the record's key alone: a delete may carry no old row, and a change of the
//! primary key arrives as a delete under the old key and a create under the new one.
//!
//! | record | means |
//! | --- | --- |
//! | `op` c, r, u | upsert of `after`; `r` may come at any time |
//! | `op` d, or no value (tombstone) | delete; both in a row are one delete |
//! | `op` t | all rows of the topic went; the key may be missing |
//! | `op` m (logical message) | ignored `logical_message` |
//! | no `op`: only `ts_ms` | heartbeat |
//! | no `op`: `status` and `id` | begin or end of a transaction |
//! | no `op`: `ddl` or `tableChanges` | ignored `schema_change` |
//! | any other value | dead letter `undecodable` |
//!
//! The key of a table with one key column is that column's value; of several, the key object as
//! JSON with sorted names. A key that is not JSON (`StringConverter`) is taken as its text.
//!
//! A row without a schema is kept as it stands. With one, its values get their final texts
//! ([`super::encoding`]). Columns that hold Debezium's placeholder are left out and named
//! ([`super::placeholder`]).
//!
//! Invariant: identity, row and time come from the record alone; no order is concluded from them.

use super::encoding::{InlineSchemas, Shape};
use super::identity::{identity, with_identity};
use super::json::{check_surrogates, fields, kind, text_of};
use super::placeholder::Placeholder;
use super::transaction::{marker, place};
use super::{Decoded, DecodedChange, RawRecord, Rejected, time_of_milliseconds};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

/// Decodes change events.
pub(crate) struct DebeziumDecoder {
    schemas: InlineSchemas,
    placeholder: Placeholder,
}

impl DebeziumDecoder {
    pub(crate) fn new(placeholder: Placeholder) -> Self {
        Self {
            schemas: InlineSchemas::default(),
            placeholder,
        }
    }

    /// Decodes a record of JSON.
    ///
    /// # Errors
    /// What makes the record a dead letter.
    pub(crate) fn decode(&mut self, record: &RawRecord<'_>) -> Result<Decoded, Rejected> {
        let Some(bytes) = record.value else {
            return self.delete(record, None);
        };
        let text = text_of(bytes)?;
        if text == "null" {
            return self.delete(record, None);
        }
        let known_key =
            |schemas: &mut InlineSchemas, rejected| with_identity(record.key, schemas, rejected);
        match Envelope::parse(text) {
            Ok(None) => self.delete(record, None),
            Ok(Some(envelope)) => {
                self.decode_envelope(record, &envelope)
                    .map_err(|rejected| match rejected.key {
                        Some(_) => rejected,
                        None => known_key(&mut self.schemas, rejected),
                    })
            }
            Err(rejected) => Err(known_key(&mut self.schemas, rejected)),
        }
    }

    fn decode_envelope(
        &mut self,
        record: &RawRecord<'_>,
        envelope: &Envelope<'_>,
    ) -> Result<Decoded, Rejected> {
        match envelope.operation {
            None => envelope.without_operation(),
            Some("\"d\"") => self.delete(record, Some(envelope)),
            Some("\"c\"" | "\"r\"" | "\"u\"") => self.upsert(record, envelope),
            Some("\"m\"") => Ok(Decoded::Ignored("logical_message")),
            Some("\"t\"") => Ok(Decoded::Truncate {
                changed_at: envelope.changed_at(),
            }),
            Some(operation) => Err(unknown(operation)),
        }
    }

    fn upsert(
        &mut self,
        record: &RawRecord<'_>,
        envelope: &Envelope<'_>,
    ) -> Result<Decoded, Rejected> {
        let key = identity(record.key, &mut self.schemas)?;
        let shape = match envelope.schema {
            Some(schema) => Some(self.schemas.shape(schema.get())?),
            None => None,
        };
        let shape = shape
            .as_deref()
            .map_or(&Shape::AsItStands, |it| it.field("after"));
        let row = envelope.row(shape)?;
        let (row, unchanged_fields) = self.placeholder.take_out(&row)?;
        Ok(Decoded::Change(DecodedChange {
            key,
            row: Some(row),
            unchanged_fields,
            transaction: place(envelope.transaction)?,
            changed_at: envelope.changed_at(),
        }))
    }

    /// By an event or, without one, by a tombstone.
    fn delete(
        &mut self,
        record: &RawRecord<'_>,
        envelope: Option<&Envelope<'_>>,
    ) -> Result<Decoded, Rejected> {
        Ok(Decoded::Change(DecodedChange {
            key: identity(record.key, &mut self.schemas)?,
            row: None,
            unchanged_fields: Vec::<Arc<str>>::new(),
            transaction: place(envelope.and_then(|envelope| envelope.transaction))?,
            changed_at: envelope.and_then(Envelope::changed_at),
        }))
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
    /// The object that the parts are fields of.
    text: &'a str,
    /// Where the event is the payload of a message with its schema.
    schema: Option<&'a RawValue>,
    operation: Option<&'a str>,
    after: Option<&'a RawValue>,
    source: Option<&'a RawValue>,
    transaction: Option<&'a RawValue>,
    timestamp: Option<&'a RawValue>,
    status: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    is_schema_change: bool,
}

/// An envelope, or a message of schema and payload.
type Outer<'a> = (Envelope<'a>, Option<(&'a RawValue, &'a RawValue)>);

impl<'a> Envelope<'a> {
    /// `None` for a record whose payload is null: a tombstone written with its schema.
    fn parse(text: &'a str) -> Result<Option<Self>, Rejected> {
        let (outer, wrapped) = Self::parts(text)?;
        check_surrogates(text)?;
        let Some((schema, payload)) = wrapped.filter(|_| outer.operation.is_none()) else {
            return Ok(Some(outer));
        };
        if payload.get() == "null" {
            return Ok(None);
        }
        let (mut inner, _) = Self::parts(payload.get())?;
        inner.schema = Some(schema);
        Ok(Some(inner))
    }

    fn parts(text: &'a str) -> Result<Outer<'a>, Rejected> {
        let names = [
            "schema",
            "payload",
            "op",
            "after",
            "source",
            "transaction",
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
            transaction,
            timestamp,
            status,
            id,
            ddl,
            table_changes,
        ] = found;
        let envelope = Self {
            text,
            schema: None,
            operation: operation.map(RawValue::get),
            after,
            source,
            transaction,
            timestamp,
            status,
            id,
            is_schema_change: ddl.is_some() || table_changes.is_some(),
        };
        Ok((envelope, schema.zip(payload)))
    }

    fn without_operation(&self) -> Result<Decoded, Rejected> {
        if self.is_schema_change {
            return Ok(Decoded::Ignored("schema_change"));
        }
        if self.status.is_some() && self.id.is_some() {
            return marker(self.text).map(Decoded::Transaction);
        }
        if let Some(timestamp) = self.timestamp
            && self.after.is_none()
            && self.source.is_none()
        {
            return Ok(Decoded::Heartbeat {
                at: time_in(timestamp),
            });
        }
        Err(Rejected::undecodable(
            "no field `op`: not a Debezium change event (for plain rows: `format: {type: upsert}`; \
             for flattened events: `format: {type: debezium-flattened}`)",
        ))
    }

    fn row(&self, shape: &Shape) -> Result<Cow<'a, str>, Rejected> {
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
        if *shape == Shape::AsItStands {
            return Ok(Cow::Borrowed(after));
        }
        let mut row = String::with_capacity(after.len());
        shape.rewrite(after, &mut row)?;
        Ok(Cow::Owned(row))
    }

    /// When the database committed the change.
    fn changed_at(&self) -> Option<SystemTime> {
        let [milliseconds] = fields(self.source?.get(), [Some("ts_ms")]).ok()?;
        time_in(milliseconds?)
    }
}

/// A time in milliseconds, where it is one.
pub(super) fn time_in(milliseconds: &RawValue) -> Option<SystemTime> {
    time_of_milliseconds(milliseconds.get().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::super::TransactionMarker;
    use super::super::placeholder::DEFAULT;
    use super::*;
    use std::time::Duration;
    use vectide_model::DeadLetterReason::{self, *};

    fn decode_text(key: Option<&str>, value: Option<&str>) -> Result<Decoded, Rejected> {
        DebeziumDecoder::new(Placeholder::new(DEFAULT).unwrap()).decode(&RawRecord {
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
        let at = time_of_milliseconds(1);
        let begin = TransactionMarker::Begin { id: "1".into() };
        for (value, expected) in [
            (r#"{"ts_ms":1}"#, Decoded::Heartbeat { at }),
            (
                r#"{"schema":{},"payload":{"ts_ms":1}}"#,
                Decoded::Heartbeat { at },
            ),
            (
                r#"{"status":"BEGIN","id":"1:2","ts_ms":1}"#,
                Decoded::Transaction(begin.clone()),
            ),
            (
                r#"{"schema":{},"payload":{"status":"BEGIN","id":"1:2"}}"#,
                Decoded::Transaction(begin.clone()),
            ),
            (
                r#"{"source":{},"ts_ms":1,"ddl":"x","tableChanges":[]}"#,
                Decoded::Ignored("schema_change"),
            ),
            (
                r#"{"op":"m","ts_ms":1,"message":{"prefix":"p"}}"#,
                Decoded::Ignored("logical_message"),
            ),
            (
                r#"{"op":"t","before":null,"after":null,"source":{"ts_ms":1}}"#,
                Decoded::Truncate { changed_at: at },
            ),
        ] {
            for key in [None, Some(r#"{"serverName":"s"}"#)] {
                assert_eq!(decode_text(key, Some(value)).unwrap(), expected, "{value}");
            }
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
            (r#"{"status":"MIDDLE","id":"1"}"#, UnknownOperation),
            (r#"{"op":"c","after":{},"transaction":1}"#, WrongType),
            (
                r#"{"schema":{"type":"struct","fields":[{}]},"payload":{"op":"c","after":{}}}"#,
                Schema,
            ),
            (
                r#"{"schema":{"type":"struct","fields":[{"field":"after","type":"struct","fields":[{"field":"day","name":"io.debezium.time.Date"}]}]},"payload":{"op":"c","after":{"day":{}}}}"#,
                Schema,
            ),
            (r#"{"op":"c","after":{"t":"\ud800"}}"#, Undecodable),
            ("[]", WrongType),
            (r#"{"schema":{},"payload":[]}"#, WrongType),
        ] {
            assert_eq!(reason(key, Some(value)), expected, "{value}");
        }
        assert_eq!(reason(None, Some(r#"{"op":"c","after":{}}"#)), MissingKey);
        let rejected = decode_text(key, Some(r#"{"op":"x"}"#)).unwrap_err();
        assert_eq!(rejected.key.as_deref(), Some("1"));
    }

    #[test]
    fn placeholders_never_pass() {
        let value = format!(r#"{{"op":"u","after":{{"id":1,"body":"{DEFAULT}","n":2}}}}"#);
        let Decoded::Change(change) = decode_text(Some("1"), Some(&value)).unwrap() else {
            panic!("no change");
        };
        assert_eq!(change.row.as_deref(), Some(r#"{"id":1,"n":2}"#));
        assert_eq!(change.unchanged_fields, ["body".into()]);
        let about = value.replace(DEFAULT, &format!("the text {DEFAULT} stands for a value"));
        assert!(key_and_row("1", Some(&about)).1.is_some());
    }

    #[test]
    fn values_by_the_schema_of_key_and_row() {
        let date = r#"{"type":"int32","name":"io.debezium.time.Date","field":"day"}"#;
        let bytes = r#"{"type":"bytes","field":"blob"}"#;
        let schema = format!(
            r#"{{"type":"struct","fields":[{{"type":"struct","field":"before"}},{{"type":"struct","fields":[{date},{bytes}],"field":"after"}}]}}"#
        );
        let base64 = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==";
        let value = format!(
            r#"{{"schema":{schema},"payload":{{"op":"u","after":{{"day":19782,"blob":"{base64}"}},"transaction":{{"id":"5:9","total_order":"1"}}}}}}"#
        );
        let key = format!(
            r#"{{"schema":{{"type":"struct","fields":[{date}]}},"payload":{{"day":19782}}}}"#
        );
        let Decoded::Change(change) = decode_text(Some(&key), Some(&value)).unwrap() else {
            panic!("no change");
        };
        assert_eq!(&*change.key, "2024-02-29");
        assert_eq!(change.row.as_deref(), Some(r#"{"day":"2024-02-29"}"#));
        assert_eq!(change.unchanged_fields, ["blob".into()]);
        let transaction = change.transaction.unwrap();
        assert_eq!((&*transaction.id, transaction.total_order), ("5", 1));
    }

    #[test]
    fn a_changed_key_is_a_delete_and_a_create() {
        let delete = r#"{"op":"d","before":{"id":1},"after":null}"#;
        let create = r#"{"op":"c","before":null,"after":{"id":2}}"#;
        assert_eq!(key_and_row(r#"{"id":1}"#, Some(delete)).1, None);
        assert_eq!(key_and_row(r#"{"id":1}"#, None).1, None);
        assert_eq!(
            key_and_row(r#"{"id":2}"#, Some(create)),
            ("2".to_owned(), Some(r#"{"id":2}"#.to_owned()))
        );
    }
}
