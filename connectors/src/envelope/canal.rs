//! Canal's flat messages from MySQL: several rows of one table in one record, every value as text.
//!
//! | record | means |
//! | --- | --- |
//! | `type` INSERT, UPDATE | an upsert of each row in `data` |
//! | `type` DELETE | a delete of each row in `data` |
//! | `isDdl` and `type` TRUNCATE | all rows of the topic went |
//! | `isDdl`, or `type` QUERY, CREATE, ALTER … | ignored `schema_change` |
//! | no value | ignored `tombstone`: the record's key is no identity |
//!
//! The key is in the columns that `pkNames` names; the record's own key only decides over its
//! partition. An update of a key column is a delete and an upsert.
//!
//! Invariant: a record's rows become changes together or not at all.

use super::debezium::time_in;
use super::json::{Field, all_fields, check_surrogates, fields, kind, text_of};
use super::old_columns::{Operation, changes_of, identity_in};
use super::{Decoded, RawRecord, Rejected};
use serde_json::value::RawValue;

/// Statements that change no row.
const SCHEMA_CHANGES: [&str; 8] = [
    "\"QUERY\"",
    "\"CREATE\"",
    "\"ALTER\"",
    "\"ERASE\"",
    "\"RENAME\"",
    "\"CINDEX\"",
    "\"DINDEX\"",
    "\"TRUNCATE\"",
];

/// Decodes a record.
///
/// # Errors
/// What makes the record a dead letter; then nothing was added.
pub(crate) fn decode(record: &RawRecord<'_>, out: &mut Vec<Decoded>) -> Result<(), Rejected> {
    let text = text_of(record.value.unwrap_or(b"null"))?;
    if text == "null" {
        out.push(Decoded::Ignored("tombstone"));
        return Ok(());
    }
    let names = ["type", "isDdl", "data", "old", "pkNames", "es"];
    let [kind, is_ddl, data, old, key_columns, at] = fields(text, names.map(Some))?;
    check_surrogates(text)?;
    let Some(kind) = kind.map(RawValue::get) else {
        return Err(Rejected::undecodable(
            "no field `type`: not a message of Canal",
        ));
    };
    let changed_at = at.and_then(time_in);
    let is_ddl = is_ddl.is_some_and(|is_ddl| is_ddl.get() == "true");
    let operation = match kind {
        "\"TRUNCATE\"" => {
            out.push(Decoded::Truncate { changed_at });
            return Ok(());
        }
        _ if is_ddl || SCHEMA_CHANGES.contains(&kind) => {
            out.push(Decoded::Ignored("schema_change"));
            return Ok(());
        }
        "\"INSERT\"" | "\"UPDATE\"" => Operation::Upsert,
        "\"DELETE\"" => Operation::Delete,
        _ => {
            return Err(Rejected::unknown_operation(format!(
                "`type` is {}; known are INSERT, UPDATE, DELETE, TRUNCATE and those of schemas",
                kind.chars().take(40).collect::<String>()
            )));
        }
    };
    let key_columns = key_columns_of(key_columns)?;
    let rows = items(data, "data")?;
    let old_rows = items(old, "old")?;
    let mut changes = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let columns = columns_of(row)?;
        let old = match old_rows.get(index) {
            Some(old) if old.get() != "null" => columns_of(old)?,
            _ => Vec::new(),
        };
        let key = identity_in(&key_columns, &columns, &[])?;
        let old_key = identity_in(&key_columns, &columns, &old)?;
        changes.extend(changes_of(operation, (key, old_key), row.get(), changed_at));
    }
    out.append(&mut changes);
    Ok(())
}

fn key_columns_of(value: Option<&RawValue>) -> Result<Vec<String>, Rejected> {
    let columns: Option<Vec<String>> = match value {
        Some(value) => serde_json::from_str(value.get())
            .map_err(|_| Rejected::wrong_type("`pkNames` is no array of names"))?,
        None => None,
    };
    match columns.filter(|columns| !columns.is_empty()) {
        Some(columns) => Ok(columns),
        None => Err(Rejected::missing_key(
            "`pkNames` names no column: the table has no primary key",
        )),
    }
}

fn items<'a>(value: Option<&'a RawValue>, name: &str) -> Result<Vec<&'a RawValue>, Rejected> {
    let items: Option<Vec<&RawValue>> = match value {
        Some(value) => serde_json::from_str(value.get())
            .map_err(|_| Rejected::wrong_type(format!("`{name}` is no array")))?,
        None => None,
    };
    Ok(items.unwrap_or_default())
}

fn columns_of(row: &RawValue) -> Result<Vec<Field<'_>>, Rejected> {
    all_fields(row.get()).ok_or_else(|| {
        let kind = kind(row.get());
        Rejected::wrong_type(format!("a row is {kind}; it must be an object"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::time_of_milliseconds;
    use super::*;
    use vectide_model::DeadLetterReason::*;

    fn check(value: Option<&str>) -> Result<Vec<Decoded>, Rejected> {
        let mut out = Vec::new();
        decode(
            &RawRecord {
                topic: "t",
                key: None,
                value: value.map(str::as_bytes),
                headers: &[],
            },
            &mut out,
        )?;
        Ok(out)
    }

    fn changes(value: &str) -> Vec<(String, Option<String>)> {
        let changes = check(Some(value))
            .unwrap()
            .into_iter()
            .map(|decoded| match decoded {
                Decoded::Change(change) => {
                    assert_eq!(change.changed_at, time_of_milliseconds(1_589_373_560_000));
                    (
                        change.key.to_string(),
                        change.row.map(|row| row.to_string()),
                    )
                }
                other => panic!("decoded as {other:?}"),
            });
        changes.collect()
    }

    fn message(kind: &str, data: &str, old: &str) -> String {
        format!(
            r#"{{"data":{data},"database":"shop","es":1589373560000,"id":9,"isDdl":false,"mysqlType":{{"id":"int"}},"old":{old},"pkNames":["id"],"sql":"","table":"pages","ts":1589373560798,"type":"{kind}"}}"#
        )
    }

    #[test]
    fn several_rows_in_a_record() {
        let data = r#"[{"id":"1","n":"1.10"},{"id":"2","n":null}]"#;
        let upserts = [
            ("1".to_owned(), Some(r#"{"id":"1","n":"1.10"}"#.to_owned())),
            ("2".to_owned(), Some(r#"{"id":"2","n":null}"#.to_owned())),
        ];
        assert_eq!(changes(&message("INSERT", data, "null")), upserts);
        let old = r#"[{"n":"0"},{"n":"0"}]"#;
        assert_eq!(changes(&message("UPDATE", data, old)), upserts);
        assert_eq!(
            changes(&message("DELETE", data, "null")),
            [("1".to_owned(), None), ("2".to_owned(), None)]
        );
        let moved = changes(&message("UPDATE", r#"[{"id":"2"}]"#, r#"[{"id":"1"}]"#));
        assert_eq!(moved[0], ("1".to_owned(), None));
        assert_eq!(moved[1], ("2".to_owned(), Some(r#"{"id":"2"}"#.to_owned())));
    }

    #[test]
    fn records_that_are_no_rows_and_broken_ones() {
        for (value, expected) in [
            (None, "tombstone"),
            (
                Some(r#"{"isDdl":true,"type":"ALTER","sql":"x"}"#),
                "schema_change",
            ),
            (Some(r#"{"isDdl":false,"type":"QUERY"}"#), "schema_change"),
        ] {
            assert_eq!(check(value), Ok(vec![Decoded::Ignored(expected)]));
        }
        let truncate = check(Some(r#"{"isDdl":true,"type":"TRUNCATE","es":5}"#));
        let changed_at = time_of_milliseconds(5);
        assert_eq!(truncate, Ok(vec![Decoded::Truncate { changed_at }]));
        let keyless = message("INSERT", "[{}]", "null").replace(r#"["id"]"#, "null");
        for (value, expected) in [
            (&*keyless, MissingKey),
            (&message("INSERT", r#"[{"id":"1"},{}]"#, "null"), MissingKey),
            (&message("INSERT", "{}", "null"), WrongType),
            (&message("INSERT", "[1]", "null"), WrongType),
            (&message("UPDATE", r#"[{"id":"1"}]"#, "[1]"), WrongType),
            (&message("insert", "[]", "null"), UnknownOperation),
            ("{}", Undecodable),
            ("nonsense", Undecodable),
        ] {
            assert_eq!(check(Some(value)).unwrap_err().reason, expected, "{value}");
        }
    }
}
