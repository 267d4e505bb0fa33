//! Debezium's transactions: the block in a change event, and the begin and end in their own topic.
//!
//! Postgres's identifiers are `txId:LSN` and the LSN of begin, changes and end differ, so there the
//! part before the colon is the transaction. Others (MySQL's GTIDs, SQL Server's LSNs) hold colons
//! too, but not between two plain numbers, and stay whole.
//!
//! Invariant: a transaction has the same identifier in all its changes and in its markers.

use super::json::fields;
use super::{Rejected, TransactionMarker, TransactionPlace};
use serde_json::value::RawValue;
use std::sync::Arc;

/// Collections of one transaction that are told; a topic's record bounds them too.
const COLLECTIONS_MAX: usize = 100_000;

/// The transaction of an identifier.
pub(super) fn transaction_of(id: &str) -> &str {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit());
    match id.split_once(':') {
        Some((transaction, position)) if is_number(transaction) && is_number(position) => {
            transaction
        }
        _ => id,
    }
}

/// The place in its transaction that a change's block tells; `None` where it tells none.
///
/// # Errors
/// `WrongType` for a block that is none.
pub(super) fn place(block: Option<&RawValue>) -> Result<Option<TransactionPlace>, Rejected> {
    let Some(block) = block.map(RawValue::get).filter(|block| *block != "null") else {
        return Ok(None);
    };
    let [id, total_order] = fields(block, [Some("id"), Some("total_order")])?;
    place_of(id, total_order)
}

/// The same, of the two values.
pub(super) fn place_of(
    id: Option<&RawValue>,
    total_order: Option<&RawValue>,
) -> Result<Option<TransactionPlace>, Rejected> {
    let (Some(id), Some(total_order)) = (id, total_order) else {
        return Ok(None);
    };
    if id.get() == "null" || total_order.get() == "null" {
        return Ok(None);
    }
    Ok(Some(TransactionPlace {
        id: Arc::from(transaction_of(&text(id, "transaction.id")?)),
        total_order: count(total_order, "transaction.total_order")?,
    }))
}

/// A record of the transaction topic.
///
/// # Errors
/// `WrongType` for one that lacks what it should tell, `UnknownOperation` for another status.
pub(super) fn marker(value: &str) -> Result<TransactionMarker, Rejected> {
    let names = ["status", "id", "event_count", "data_collections"];
    let [status, id, event_count, collections] = fields(value, names.map(Some))?;
    let (Some(status), Some(id)) = (status, id) else {
        return Err(Rejected::undecodable("a transaction without status or id"));
    };
    let id = Arc::from(transaction_of(&text(id, "id")?));
    match status.get() {
        "\"BEGIN\"" => Ok(TransactionMarker::Begin { id }),
        "\"END\"" => Ok(TransactionMarker::End {
            id,
            event_count: match event_count {
                Some(number) => count(number, "event_count")?,
                None => return Err(Rejected::wrong_type("the end has no `event_count`")),
            },
            collections: match collections {
                Some(collections) => collections_of(collections)?,
                None => Vec::new(),
            },
        }),
        other => Err(Rejected::unknown_operation(format!(
            "the transaction's `status` is {}; known are BEGIN, END",
            other.chars().take(40).collect::<String>()
        ))),
    }
}

fn collections_of(value: &RawValue) -> Result<Vec<(Arc<str>, u64)>, Rejected> {
    let items: Option<Vec<&RawValue>> = serde_json::from_str(value.get())
        .map_err(|_| Rejected::wrong_type("`data_collections` is no array"))?;
    let items = items.unwrap_or_default();
    if items.len() > COLLECTIONS_MAX {
        return Err(Rejected::wrong_type("too many `data_collections`"));
    }
    let mut collections = Vec::with_capacity(items.len());
    for item in items {
        let found = fields(item.get(), [Some("data_collection"), Some("event_count")])?;
        let [Some(name), Some(number)] = found else {
            return Err(Rejected::wrong_type(
                "an entry of `data_collections` lacks its name or count",
            ));
        };
        let name = Arc::from(text(name, "data_collection")?);
        collections.push((name, count(number, "event_count")?));
    }
    Ok(collections)
}

/// A string's value; a number's text.
fn text(value: &RawValue, name: &str) -> Result<String, Rejected> {
    let text = value.get();
    if text.starts_with('"') {
        return serde_json::from_str(text)
            .map_err(|error| Rejected::undecodable(format!("`{name}`: {error}")));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(text.to_owned());
    }
    Err(Rejected::wrong_type(format!("`{name}` is no text")))
}

/// A number, which some converters write as a string.
fn count(value: &RawValue, name: &str) -> Result<u64, Rejected> {
    let digits = value.get().trim_matches('"');
    digits
        .parse()
        .map_err(|_| Rejected::wrong_type(format!("`{name}` is no count")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        for (id, expected) in [
            ("571:53195829", "571"),
            ("571", "571"),
            ("571:", "571:"),
            (
                "3e11fa47-71ca-11e1-9e33-c80aa9429562:23",
                "3e11fa47-71ca-11e1-9e33-c80aa9429562:23",
            ),
            ("00000025:00000d98:00a2", "00000025:00000d98:00a2"),
            (
                "file=mysql-bin.000003,pos=1234",
                "file=mysql-bin.000003,pos=1234",
            ),
        ] {
            assert_eq!(transaction_of(id), expected);
        }
    }

    #[test]
    fn markers() {
        let begin = r#"{"status":"BEGIN","id":"571:53195829","ts_ms":1,"event_count":null,"data_collections":null}"#;
        assert_eq!(
            marker(begin),
            Ok(TransactionMarker::Begin { id: "571".into() })
        );
        for number in ["2", "\"2\""] {
            let end = format!(
                r#"{{"status":"END","id":"571:53195832","event_count":{number},"data_collections":[{{"data_collection":"s.a","event_count":{number}}}]}}"#
            );
            let expected = TransactionMarker::End {
                id: "571".into(),
                event_count: 2,
                collections: vec![("s.a".into(), 2)],
            };
            assert_eq!(marker(&end), Ok(expected));
        }
        for wrong in [
            r#"{"status":"END","id":"1"}"#,
            r#"{"status":"END","id":"1","event_count":-1}"#,
            r#"{"status":"END","id":1.5,"event_count":1}"#,
            r#"{"status":"END","id":"1","event_count":1,"data_collections":{}}"#,
            r#"{"status":"END","id":"1","event_count":1,"data_collections":[{}]}"#,
            r#"{"status":"MIDDLE","id":"1"}"#,
            r#"{"status":"END"}"#,
        ] {
            assert!(marker(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn places() {
        let place_in = |text: &str| {
            let block: Box<RawValue> = serde_json::from_str(text).unwrap();
            place(Some(&block))
        };
        let expected = TransactionPlace {
            id: "571".into(),
            total_order: 3,
        };
        for block in [
            r#"{"id":"571:5","total_order":3,"data_collection_order":1}"#,
            r#"{"id":"571:6","total_order":"3"}"#,
            r#"{"id":571,"total_order":3}"#,
        ] {
            assert_eq!(place_in(block), Ok(Some(expected.clone())), "{block}");
        }
        for none in ["null", "{}", r#"{"id":null,"total_order":null}"#] {
            assert_eq!(place_in(none), Ok(None));
        }
        for wrong in [
            "1",
            r#"{"id":"1","total_order":"x"}"#,
            r#"{"id":{},"total_order":1}"#,
        ] {
            assert!(place_in(wrong).is_err(), "{wrong}");
        }
    }
}
