//! Completes a row from the one before it, where the source left out what did not change.
//!
//! Postgres does not tell large columns that an update did not touch. The row that is held has them.
//!
//! Invariant: a row is completed in full or not at all; a placeholder never passes for a value.

use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use vectide_model::Row;

/// `row` with `fields` taken from `held`; `Err` names the first field that is not there.
pub(crate) fn complete(row: &Row, fields: &[Arc<str>], held: Option<&Row>) -> Result<Row, String> {
    let missing = |field: &str| match held {
        None => {
            format!("the record leaves out `{field}`, which did not change, and no row is held")
        }
        Some(_) => format!(
            "the record leaves out `{field}`, which did not change, and the row held has no such field"
        ),
    };
    // A row is the text of one JSON object: its decoder has checked that.
    let held: BTreeMap<Cow<'_, str>, &RawValue> = held
        .and_then(|held| serde_json::from_str(held).ok())
        .unwrap_or_default();
    let row = row.trim_end();
    let mut text = row.strip_suffix('}').unwrap_or(row).trim_end().to_owned();
    for field in fields {
        let value = held.get(&**field).ok_or_else(|| missing(field))?;
        if !text.ends_with('{') {
            text.push(',');
        }
        text.push_str(&serde_json::Value::from(&**field).to_string());
        text.push(':');
        text.push_str(value.get());
    }
    text.push('}');
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: &str, fields: &[&str], held: Option<&str>) -> Result<String, String> {
        let fields: Vec<Arc<str>> = fields.iter().map(|field| (*field).into()).collect();
        let held = held.map(Row::from);
        complete(&row.into(), &fields, held.as_ref()).map(|row| row.to_string())
    }

    #[test]
    fn values_are_taken_as_they_stand() {
        let held =
            Some(r#"{"id":1,"body":"a\u00e9 \"}","big":12345678901234567890.10,"x":{"y":[1]}}"#);
        for (row, fields, expected) in [
            (
                r#"{"id":1}"#,
                &["body"][..],
                r#"{"id":1,"body":"a\u00e9 \"}"}"#,
            ),
            (
                r#"{"id":{"a":{}}}"#,
                &["x"],
                r#"{"id":{"a":{}},"x":{"y":[1]}}"#,
            ),
            (
                "{}",
                &["big", "x"],
                r#"{"big":12345678901234567890.10,"x":{"y":[1]}}"#,
            ),
            (r#"{"id":1}"#, &[], r#"{"id":1}"#),
        ] {
            assert_eq!(check(row, fields, held).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn what_is_not_held_is_told() {
        assert!(
            check("{}", &["body"], None)
                .unwrap_err()
                .contains("no row is held")
        );
        assert!(
            check("{}", &["body"], Some("{}"))
                .unwrap_err()
                .contains("no such field")
        );
    }
}
