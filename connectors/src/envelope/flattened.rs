//! Debezium's events after its transformation `ExtractNewRecordState`: the row alone, with what is
//! left of the envelope in fields of a common prefix.
//!
//! | record | means |
//! | --- | --- |
//! | no value, or JSON null | delete |
//! | `__deleted` `"true"` or `true`, or `__op` d | delete; a tombstone behind it deletes once more |
//! | `__op` t | all rows of the topic went |
//! | any other object | upsert of its fields without those of the prefix |
//! | topic of heartbeats, or key `serverName` and only `ts_ms` | heartbeat |
//! | topic that ends with `.transaction` | begin or end of a transaction |
//!
//! So every mode of deletes is right, except `drop`, which tells nobody of a delete.
//!
//! Invariant: a field of the prefix never enters a row, whether it is known here or not.

use super::debezium::time_in;
use super::encoding::InlineSchemas;
use super::identity::{identity, with_identity};
use super::json::{Field, all_fields, check_json, fields, kind, text_of};
use super::object::{object_of, wrapped};
use super::placeholder::Placeholder;
use super::transaction::{marker, place_of};
use super::{Decoded, DecodedChange, RawRecord, Rejected, TransactionPlace};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::time::SystemTime;

/// The field of rewritten deletes; its name does not follow the configured prefix.
const DELETED: &str = "__deleted";

/// How the topics of heartbeats begin, unless configured otherwise.
const HEARTBEAT_TOPICS: &str = "__debezium-heartbeat.";
/// How the topic of transactions ends, unless configured otherwise.
const TRANSACTION_TOPIC: &str = ".transaction";

/// Decodes flattened events.
pub(crate) struct FlattenedDecoder {
    schemas: InlineSchemas,
    placeholder: Placeholder,
    metadata_prefix: String,
}

/// What the fields of the prefix tell.
#[derive(Default)]
struct Metadata<'a> {
    is_deleted: bool,
    operation: Option<&'a RawValue>,
    changed_at: Option<&'a RawValue>,
    transaction: Option<&'a RawValue>,
    total_order: Option<&'a RawValue>,
}

impl FlattenedDecoder {
    pub(crate) fn new(placeholder: Placeholder, metadata_prefix: &str) -> Self {
        Self {
            schemas: InlineSchemas::default(),
            placeholder,
            metadata_prefix: metadata_prefix.to_owned(),
        }
    }

    /// Decodes a record of JSON.
    ///
    /// # Errors
    /// What makes the record a dead letter.
    pub(crate) fn decode(&mut self, record: &RawRecord<'_>) -> Result<Decoded, Rejected> {
        let decoded = self.decode_value(record);
        decoded.map_err(|rejected| with_identity(record.key, &mut self.schemas, rejected))
    }

    fn decode_value(&mut self, record: &RawRecord<'_>) -> Result<Decoded, Rejected> {
        let text = text_of(record.value.unwrap_or(b"null"))?;
        check_json(text)?;
        let value = match wrapped(text) {
            Some((schema, payload)) => {
                let mut rewritten = String::new();
                let shape = self.schemas.shape(schema.get())?;
                shape.rewrite(payload.get(), &mut rewritten)?;
                Cow::Owned(rewritten)
            }
            None => Cow::Borrowed(text),
        };
        if value == "null" {
            return self.delete(record, &Metadata::default());
        }
        let Some(fields) = all_fields(&value) else {
            return Err(Rejected::wrong_type(format!(
                "expected an object, found {}",
                kind(&value)
            )));
        };
        if let Some(decoded) = without_row(record, &value, &fields)? {
            return Ok(decoded);
        }
        let metadata = self.metadata(&fields)?;
        let operation = metadata.operation.map(RawValue::get);
        match operation.filter(|operation| *operation != "null") {
            _ if metadata.is_deleted => self.delete(record, &metadata),
            Some("\"d\"") => self.delete(record, &metadata),
            Some("\"t\"") => Ok(Decoded::Truncate {
                changed_at: metadata.time(),
            }),
            Some("\"c\"" | "\"r\"" | "\"u\"") | None => self.upsert(record, &value, &fields),
            Some(other) => Err(Rejected::unknown_operation(format!(
                "`{}op` is {}; known are c, r, u, d, t",
                self.metadata_prefix,
                other.chars().take(40).collect::<String>()
            ))),
        }
    }

    fn metadata<'a>(&self, fields: &[Field<'a>]) -> Result<Metadata<'a>, Rejected> {
        let mut metadata = Metadata::default();
        for (name, value) in fields {
            if name == DELETED {
                metadata.is_deleted = is_deleted(value)?;
                continue;
            }
            // Without a prefix a column of the table could be meant.
            let known = match &*self.metadata_prefix {
                "" => None,
                prefix => name.strip_prefix(prefix),
            };
            match known {
                Some("op") => metadata.operation = Some(value),
                Some("source_ts_ms") => metadata.changed_at = Some(value),
                Some("transaction_id") => metadata.transaction = Some(value),
                Some("transaction_total_order") => metadata.total_order = Some(value),
                _ => {}
            }
        }
        Ok(metadata)
    }

    fn is_metadata(&self, name: &str) -> bool {
        name == DELETED
            || !self.metadata_prefix.is_empty() && name.starts_with(&self.metadata_prefix)
    }

    fn upsert(
        &mut self,
        record: &RawRecord<'_>,
        value: &str,
        fields: &[Field<'_>],
    ) -> Result<Decoded, Rejected> {
        let metadata = self.metadata(fields)?;
        let has_metadata = fields.iter().any(|(name, _)| self.is_metadata(name));
        let row = if has_metadata {
            let kept = fields.iter().filter(|(name, _)| !self.is_metadata(name));
            Cow::Owned(object_of(kept.map(|(name, value)| (&**name, value.get()))))
        } else {
            Cow::Borrowed(value)
        };
        let (row, unchanged_fields) = self.placeholder.take_out(&row)?;
        Ok(Decoded::Change(DecodedChange {
            key: identity(record.key, &mut self.schemas)?,
            row: Some(row),
            unchanged_fields,
            transaction: metadata.place()?,
            changed_at: metadata.time(),
        }))
    }

    fn delete(
        &mut self,
        record: &RawRecord<'_>,
        metadata: &Metadata<'_>,
    ) -> Result<Decoded, Rejected> {
        Ok(Decoded::Change(DecodedChange {
            key: identity(record.key, &mut self.schemas)?,
            row: None,
            unchanged_fields: Vec::new(),
            transaction: metadata.place()?,
            changed_at: metadata.time(),
        }))
    }
}

impl Metadata<'_> {
    fn time(&self) -> Option<SystemTime> {
        self.changed_at.and_then(time_in)
    }

    fn place(&self) -> Result<Option<TransactionPlace>, Rejected> {
        place_of(self.transaction, self.total_order)
    }
}

fn is_deleted(value: &RawValue) -> Result<bool, Rejected> {
    match value.get() {
        "true" | "\"true\"" => Ok(true),
        "false" | "\"false\"" | "null" => Ok(false),
        other => Err(Rejected::wrong_type(format!(
            "`{DELETED}` is {}; it must be \"true\" or \"false\"",
            kind(other)
        ))),
    }
}

/// Heartbeats and transactions pass the transformation as they are.
fn without_row(
    record: &RawRecord<'_>,
    value: &str,
    columns: &[Field<'_>],
) -> Result<Option<Decoded>, Rejected> {
    if let [(name, at)] = columns
        && name == "ts_ms"
        && (record.topic.starts_with(HEARTBEAT_TOPICS) || has_server_name(record.key))
    {
        return Ok(Some(Decoded::Heartbeat { at: time_in(at) }));
    }
    if record.topic.ends_with(TRANSACTION_TOPIC) {
        let [status, id] = fields(value, [Some("status"), Some("id")])?;
        if status.is_some() && id.is_some() {
            return Ok(Some(Decoded::Transaction(marker(value)?)));
        }
    }
    Ok(None)
}

fn has_server_name(key: Option<&[u8]>) -> bool {
    let key = key
        .and_then(|key| std::str::from_utf8(key).ok())
        .unwrap_or("");
    let key = wrapped(key).map_or(key, |(_, payload)| payload.get());
    matches!(fields(key, [Some("serverName")]), Ok([Some(_)]))
}

#[cfg(test)]
mod tests {
    use super::super::placeholder::DEFAULT;
    use super::super::{TransactionMarker, time_of_milliseconds};
    use super::*;
    use vectide_model::DeadLetterReason::*;

    fn decode_of(
        (topic, prefix): (&str, &str),
        key: Option<&str>,
        value: Option<&str>,
    ) -> Result<Decoded, Rejected> {
        let placeholder = Placeholder::new(DEFAULT).unwrap();
        FlattenedDecoder::new(placeholder, prefix).decode(&RawRecord {
            topic,
            key: key.map(str::as_bytes),
            value: value.map(str::as_bytes),
            headers: &[],
        })
    }

    fn row(prefix: &str, value: Option<&str>) -> Option<String> {
        match decode_of(("t", prefix), Some(r#"{"id":1}"#), value) {
            Ok(Decoded::Change(change)) => {
                assert_eq!(&*change.key, "1");
                change.row.map(|row| row.to_string())
            }
            other => panic!("decoded as {other:?}"),
        }
    }

    #[test]
    fn every_mode_of_deletes() {
        for value in [
            None,
            Some("null"),
            Some(r#"{"schema":{"type":"struct"},"payload":null}"#),
            Some(r#"{"id":1,"__deleted":"true"}"#),
            Some(r#"{"id":1,"__deleted":true}"#),
            Some(r#"{"id":1,"__op":"d"}"#),
            Some(r#"{"schema":{"type":"struct"},"payload":{"id":1,"__deleted":"true"}}"#),
        ] {
            assert_eq!(row("__", value), None, "{value:?}");
        }
    }

    #[test]
    fn metadata_never_enters_a_row() {
        for (prefix, value, expected) in [
            ("__", r#"{"id": 1, "n": 1.10}"#, r#"{"id": 1, "n": 1.10}"#),
            (
                "__",
                r#"{"id":1,"__deleted":"false","__op":"u","__lsn":5,"__anything":{}}"#,
                r#"{"id":1}"#,
            ),
            (
                "meta.",
                r#"{"id":1,"meta.op":"u","__op":"x","__deleted":null}"#,
                r#"{"id":1,"__op":"x"}"#,
            ),
            (
                "",
                r#"{"id":1,"op":"x","__deleted":false}"#,
                r#"{"id":1,"op":"x"}"#,
            ),
            ("__", r#"{"id":1,"__op":null}"#, r#"{"id":1}"#),
        ] {
            assert_eq!(row(prefix, Some(value)).as_deref(), Some(expected));
        }
        let value = format!(
            r#"{{"id":1,"body":"{DEFAULT}","__source_ts_ms":5,"__transaction_id":"7:9","__transaction_total_order":2}}"#
        );
        let decoded = decode_of(("t", "__"), Some("1"), Some(&value)).unwrap();
        let expected = DecodedChange {
            key: "1".into(),
            row: Some(r#"{"id":1}"#.into()),
            unchanged_fields: vec!["body".into()],
            transaction: Some(TransactionPlace {
                id: "7".into(),
                total_order: 2,
            }),
            changed_at: time_of_milliseconds(5),
        };
        assert_eq!(decoded, Decoded::Change(expected));
    }

    #[test]
    fn records_that_are_no_rows() {
        let at = time_of_milliseconds(5);
        let heartbeat = Some(r#"{"ts_ms":5}"#);
        for (topic, key) in [
            ("__debezium-heartbeat.shop", None),
            ("beats", Some(r#"{"serverName":"shop"}"#)),
        ] {
            let decoded = decode_of((topic, "__"), key, heartbeat).unwrap();
            assert_eq!(decoded, Decoded::Heartbeat { at });
        }
        assert!(matches!(
            decode_of(("t", "__"), Some("1"), heartbeat),
            Ok(Decoded::Change(_))
        ));
        let begin = Some(r#"{"status":"BEGIN","id":"7:9"}"#);
        assert_eq!(
            decode_of(("shop.transaction", "__"), Some("{}"), begin).unwrap(),
            Decoded::Transaction(TransactionMarker::Begin { id: "7".into() })
        );
        let truncate = Some(r#"{"__op":"t","__source_ts_ms":5}"#);
        assert_eq!(
            decode_of(("t", "__"), None, truncate).unwrap(),
            Decoded::Truncate { changed_at: at }
        );
    }

    #[test]
    fn broken_records() {
        for (key, value, expected) in [
            (None, "{}", MissingKey),
            (Some("1"), "", Undecodable),
            (Some("1"), "{", Undecodable),
            (Some("1"), "[]", WrongType),
            (Some("1"), r#"{"__deleted":1}"#, WrongType),
            (Some("1"), r#"{"__op":"x"}"#, UnknownOperation),
            (Some("1"), r#"{"a":"\ud800"}"#, Undecodable),
        ] {
            let rejected = decode_of(("t", "__"), key, Some(value)).unwrap_err();
            assert_eq!(rejected.reason, expected, "{value}");
        }
    }
}
