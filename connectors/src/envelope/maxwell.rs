//! Maxwell's events from MySQL.
//!
//! | record | means |
//! | --- | --- |
//! | `type` insert, update, bootstrap-insert | upsert of `data` |
//! | `type` delete, or no value | delete |
//! | `type` bootstrap-start, bootstrap-complete | ignored `bootstrap_marker` |
//! | `type` of tables and databases | ignored `schema_change` |
//!
//! The key is in the columns that `primary_key_columns` names, else in the record's key
//! (`{"database":…,"table":…,"pk.id":1}`). An update of a key column is a delete and an upsert.
//!
//! `xid` is no transaction here: the event that ends one does not say how many there were, and they
//! may lie in other partitions, so it can't be known when all have come.
//!
//! Invariant: both ways of telling the key give the same identity.

use super::identity::identity_of;
use super::json::{Field, all_fields, check_surrogates, fields, kind, text_of};
use super::object::object_of;
use super::old_columns::{Operation, changes_of, identity_in};
use super::upsert::change_of;
use super::{Decoded, RawRecord, Rejected, time_of_milliseconds};
use serde_json::value::RawValue;
use std::time::SystemTime;
use vectide_model::Key;

/// How a key column begins in the record's key.
const KEY_COLUMN_PREFIX: &str = "pk.";

/// Decodes a record; an update of a key column is two changes.
///
/// # Errors
/// What makes the record a dead letter; then nothing was added.
pub(crate) fn decode(record: &RawRecord<'_>, out: &mut Vec<Decoded>) -> Result<(), Rejected> {
    let text = text_of(record.value.unwrap_or(b"null"))?;
    if text == "null" {
        let key = key_of_record(record.key)?.identity()?;
        out.push(Decoded::Change(change_of(key, None)));
        return Ok(());
    }
    let event = Event::parse(text)?;
    let operation = match event.kind {
        "\"insert\"" | "\"update\"" | "\"bootstrap-insert\"" => Operation::Upsert,
        "\"delete\"" => Operation::Delete,
        "\"bootstrap-start\"" | "\"bootstrap-complete\"" => {
            out.push(Decoded::Ignored("bootstrap_marker"));
            return Ok(());
        }
        kind if is_schema_change(kind) => {
            out.push(Decoded::Ignored("schema_change"));
            return Ok(());
        }
        kind => {
            return Err(Rejected::unknown_operation(format!(
                "`type` is {}; known are insert, update, delete, bootstrap-*, table-*, database-*",
                kind.chars().take(40).collect::<String>()
            )));
        }
    };
    let (row, columns) = event.row()?;
    let old = event
        .old
        .and_then(|old| all_fields(old.get()))
        .unwrap_or_default();
    let names = event.key_columns(record.key)?;
    let key = identity_in(&names, &columns, &[])?;
    let old_key = identity_in(&names, &columns, &old)?;
    out.extend(changes_of(
        operation,
        (key, old_key),
        row,
        event.changed_at(),
    ));
    Ok(())
}

fn is_schema_change(kind: &str) -> bool {
    ["\"table-", "\"database-"]
        .iter()
        .any(|of| kind.starts_with(of))
}

struct Event<'a> {
    kind: &'a str,
    data: Option<&'a RawValue>,
    old: Option<&'a RawValue>,
    key_columns: Option<&'a RawValue>,
    seconds: Option<&'a RawValue>,
}

impl<'a> Event<'a> {
    fn parse(text: &'a str) -> Result<Self, Rejected> {
        let names = ["type", "data", "old", "primary_key_columns", "ts"];
        let [kind, data, old, key_columns, seconds] = fields(text, names.map(Some))?;
        check_surrogates(text)?;
        let Some(kind) = kind else {
            return Err(Rejected::undecodable(
                "no field `type`: not an event of Maxwell",
            ));
        };
        Ok(Self {
            kind: kind.get(),
            data,
            old,
            key_columns,
            seconds,
        })
    }

    /// The row's text and its columns.
    fn row(&self) -> Result<(&'a str, Vec<Field<'a>>), Rejected> {
        let Some(data) = self.data.map(RawValue::get) else {
            return Err(Rejected::undecodable(
                "`data` is missing, so there is no row",
            ));
        };
        match all_fields(data) {
            Some(columns) => Ok((data, columns)),
            None => Err(Rejected::wrong_type(format!(
                "`data` is {}; it must be an object",
                kind(data)
            ))),
        }
    }

    fn key_columns(&self, key: Option<&[u8]>) -> Result<Vec<String>, Rejected> {
        if let Some(columns) = self.key_columns {
            let columns: Vec<String> = serde_json::from_str(columns.get())
                .map_err(|_| Rejected::wrong_type("`primary_key_columns` is no array of names"))?;
            if !columns.is_empty() {
                return Ok(columns);
            }
        }
        let columns = key_of_record(key)?.columns;
        Ok(columns.into_iter().map(|(name, _)| name).collect())
    }

    fn changed_at(&self) -> Option<SystemTime> {
        let seconds: i64 = self.seconds?.get().parse().ok()?;
        time_of_milliseconds(seconds.checked_mul(1000)?)
    }
}

/// The key columns of a record's key.
struct RecordKey<'a> {
    columns: Vec<Field<'a>>,
}

impl RecordKey<'_> {
    fn identity(&self) -> Result<Key, Rejected> {
        let columns = self.columns.iter();
        let object = object_of(columns.map(|(name, value)| (&**name, value.get())));
        identity_of(&object, all_fields(&object).as_deref())
    }
}

fn key_of_record(key: Option<&[u8]>) -> Result<RecordKey<'_>, Rejected> {
    let none = || {
        Rejected::missing_key(
            "neither `primary_key_columns` nor the record's key names key columns: the table has no \
             primary key, or Maxwell's `output_primary_key_columns` is off",
        )
    };
    let text = text_of(key.ok_or_else(none)?)?;
    let mut columns = Vec::new();
    for (name, value) in all_fields(text).unwrap_or_default() {
        if let Some(column) = name.strip_prefix(KEY_COLUMN_PREFIX) {
            columns.push((column.to_owned(), value));
        }
    }
    if columns.is_empty() {
        return Err(none());
    }
    Ok(RecordKey { columns })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectide_model::DeadLetterReason::*;

    const KEY: &str = r#"{"database":"shop","table":"pages","pk.id":1}"#;

    fn check(key: Option<&str>, value: Option<&str>) -> Result<Vec<Decoded>, Rejected> {
        let mut out = Vec::new();
        decode(
            &RawRecord {
                topic: "t",
                key: key.map(str::as_bytes),
                value: value.map(str::as_bytes),
                headers: &[],
            },
            &mut out,
        )?;
        Ok(out)
    }

    fn changes(key: Option<&str>, value: Option<&str>) -> Vec<(String, Option<String>)> {
        let decoded = check(key, value).unwrap();
        let changes = decoded.into_iter().map(|decoded| match decoded {
            Decoded::Change(change) => (
                change.key.to_string(),
                change.row.map(|row| row.to_string()),
            ),
            other => panic!("decoded as {other:?}"),
        });
        changes.collect()
    }

    #[test]
    fn operations() {
        let row = r#"{"id":1,"text":"a"}"#;
        for kind in ["insert", "update", "bootstrap-insert"] {
            let value = format!(
                r#"{{"database":"shop","table":"pages","type":"{kind}","ts":1477053234,"xid":23,"commit":true,"data":{row}}}"#
            );
            let expected = vec![("1".to_owned(), Some(row.to_owned()))];
            assert_eq!(changes(Some(KEY), Some(&value)), expected);
            let named = value.replace("\"type\"", "\"primary_key_columns\":[\"id\"],\"type\"");
            assert_eq!(changes(None, Some(&named)), expected);
            let Decoded::Change(change) = check(Some(KEY), Some(&value)).unwrap().remove(0) else {
                panic!("no change");
            };
            assert_eq!(change.changed_at, time_of_milliseconds(1_477_053_234_000));
        }
        let delete = r#"{"type":"delete","data":{"id":1}}"#;
        for value in [None, Some("null"), Some(delete)] {
            assert_eq!(changes(Some(KEY), value), [("1".to_owned(), None)]);
        }
    }

    #[test]
    fn a_changed_key_leaves_nothing_behind() {
        let value = r#"{"type":"update","data":{"id":2,"n":1},"old":{"id":1}}"#;
        assert_eq!(
            changes(Some(&KEY.replace('1', "2")), Some(value)),
            [
                ("1".to_owned(), None),
                ("2".to_owned(), Some(r#"{"id":2,"n":1}"#.to_owned()))
            ]
        );
        let two = r#"{"primary_key_columns":["b","a"],"type":"update","data":{"a":1,"b":2,"c":3},"old":{"c":4}}"#;
        assert_eq!(changes(None, Some(two))[0].0, r#"{"a":1,"b":2}"#);
        let key = r#"{"pk.b":2,"pk.a":1}"#;
        assert_eq!(changes(Some(key), None)[0].0, r#"{"a":1,"b":2}"#);
    }

    #[test]
    fn records_that_are_no_rows_and_broken_ones() {
        for (kind, expected) in [
            ("bootstrap-start", "bootstrap_marker"),
            ("bootstrap-complete", "bootstrap_marker"),
            ("table-alter", "schema_change"),
            ("database-create", "schema_change"),
        ] {
            let value = format!(r#"{{"type":"{kind}","data":{{}}}}"#);
            assert_eq!(
                check(None, Some(&value)),
                Ok(vec![Decoded::Ignored(expected)])
            );
        }
        for (key, value, expected) in [
            (None, r#"{"type":"insert","data":{"id":1}}"#, MissingKey),
            (
                Some("{}"),
                r#"{"type":"insert","data":{"id":1}}"#,
                MissingKey,
            ),
            (Some(KEY), r#"{"type":"insert","data":{}}"#, MissingKey),
            (Some(KEY), r#"{"type":"insert"}"#, Undecodable),
            (Some(KEY), r#"{"type":"insert","data":[]}"#, WrongType),
            (Some(KEY), r#"{"type":"x","data":{}}"#, UnknownOperation),
            (Some(KEY), r#"{"type":1,"data":{}}"#, UnknownOperation),
            (Some(KEY), r#"{"data":{}}"#, Undecodable),
            (Some(KEY), "nonsense", Undecodable),
            (None, "null", MissingKey),
        ] {
            assert_eq!(
                check(key, Some(value)).unwrap_err().reason,
                expected,
                "{value}"
            );
        }
    }
}
