//! The values that rows are filtered by, in a form whose bytes are in the order of the values.
//!
//! A key is the field's name, a zero, the kind of the value and the value. Numbers are ordered as numbers,
//! whole ones exactly whatever their size; texts by their bytes.
//!
//! Invariant: keys of one field stand together, those of one kind in the order of their values; equal values
//! have equal keys.

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};
use std::sync::Arc;

/// Ends a field's name.
const NAME_END: u8 = 0;

/// Kinds of values, in the order of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Boolean = 1,
    Number = 2,
    Text = 3,
}

impl Kind {
    /// The kind of a JSON value that can be filtered by.
    pub(crate) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(_) => Some(Self::Boolean),
            Value::Number(_) => Some(Self::Number),
            Value::String(_) => Some(Self::Text),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

/// A field's value as bytes.
pub type AttributeKey = Box<[u8]>;

/// What all keys of a field begin with; with `end` a key behind them all.
pub(crate) fn field_bound(field: &str, end: bool) -> AttributeKey {
    let mut key = Vec::with_capacity(field.len() + 1);
    key.extend_from_slice(field.as_bytes());
    key.push(NAME_END + u8::from(end));
    key.into()
}

/// What all keys of a field with values of a kind begin with; with `end` a key behind them all.
pub(crate) fn kind_bound(field: &str, kind: Kind, end: bool) -> AttributeKey {
    let mut key = Vec::from(field_bound(field, false));
    key.push(kind as u8 + u8::from(end));
    key.into()
}

/// The key of a value; `None` for one that can't be filtered by.
pub(crate) fn key(field: &str, value: &Value) -> Option<AttributeKey> {
    let mut key = Vec::from(kind_bound(field, Kind::of(value)?, false));
    match value {
        Value::Bool(is_set) => key.push(u8::from(*is_set)),
        Value::Number(number) => key.extend(number_bytes(number)),
        Value::String(text) => key.extend(text_bytes(text)),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    }
    Some(key.into())
}

/// Bytes of a text that are in its key: longer ones are no values that somebody filters by, and each would be kept
/// for its segment.
pub(crate) const TEXT_BYTES_MAX: usize = 256;

/// The text, or its beginning and a hash of it all: equal texts are found, and those with a short beginning.
fn text_bytes(text: &str) -> Vec<u8> {
    match text.as_bytes().get(..TEXT_BYTES_MAX) {
        Some(start) if text.len() > TEXT_BYTES_MAX => {
            let hash = blake3::hash(text.as_bytes());
            [start, &hash.as_bytes()[..16]].concat()
        }
        _ => text.as_bytes().to_vec(),
    }
}

/// The number as the nearest 64-bit float, then what a whole number is greater than that: both with their
/// signs turned so that their bytes are in the order of the numbers.
fn number_bytes(number: &Number) -> [u8; 16] {
    // No -0.0, which is another float.
    let float = number.as_f64().unwrap_or(f64::NAN) + 0.0;
    let whole = number.as_i64().map(i128::from);
    let whole = whole.or_else(|| number.as_u64().map(i128::from));
    let rest = whole.map_or(0, |whole| (whole - float as i128) as i64);
    let bits = float.to_bits();
    let ordered = if float.is_sign_negative() {
        !bits
    } else {
        bits ^ (1 << 63)
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&ordered.to_be_bytes());
    bytes[8..].copy_from_slice(&(rest ^ i64::MIN).to_be_bytes());
    bytes
}

/// The attributes of a row: keys in order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attributes(Option<Arc<[AttributeKey]>>);

impl Attributes {
    /// The values of these fields in a JSON object. A field may be a path, `owner.team`; an array stands for
    /// each of its elements; `null`, objects and missing fields for no value.
    pub fn of(metadata: &str, fields: &[Arc<str>]) -> Self {
        if fields.is_empty() {
            return Self::default();
        }
        // Metadata is rendered by this program; were it no object, there would be no fields in it.
        let metadata: Value = serde_json::from_str(metadata).unwrap_or_default();
        let mut keys = Vec::new();
        for field in fields {
            match value_at(&metadata, field) {
                Some(Value::Array(values)) => {
                    keys.extend(values.iter().filter_map(|value| key(field, value)));
                }
                value => keys.extend(value.and_then(|value| key(field, value))),
            }
        }
        Self::from_keys(keys)
    }

    /// A row with these keys.
    pub fn from_keys(mut keys: Vec<AttributeKey>) -> Self {
        keys.sort_unstable();
        keys.dedup();
        Self((!keys.is_empty()).then(|| keys.into()))
    }

    /// The keys, in order.
    pub fn keys(&self) -> &[AttributeKey] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// A field by its name, or by the names on the way to it.
fn value_at<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    if let Some(value) = value.get(field) {
        return Some(value);
    }
    field
        .match_indices('.')
        .find_map(|(at, _)| value_at(value.get(&field[..at])?, &field[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn number_key(number: impl Into<Value>) -> AttributeKey {
        key("n", &number.into()).unwrap()
    }

    #[test]
    fn values_are_found_by_name_path_and_element() {
        let metadata = json!({
            "lang": "en", "a": {"b": {"c": 1}, "x.y": true}, "x.y": [1, "two", null, [3]], "none": null,
        });
        let of = |fields: &[&str]| {
            let fields: Vec<Arc<str>> = fields.iter().map(|it| (*it).into()).collect();
            Attributes::of(&metadata.to_string(), &fields)
        };
        let expected = |keys: Vec<Option<AttributeKey>>| {
            Attributes::from_keys(keys.into_iter().flatten().collect())
        };
        assert_eq!(of(&["lang"]), expected(vec![key("lang", &json!("en"))]));
        assert_eq!(of(&["a.b.c"]), expected(vec![key("a.b.c", &json!(1))]));
        assert_eq!(of(&["a.x.y"]), expected(vec![key("a.x.y", &json!(true))]));
        let both = vec![key("x.y", &json!(1)), key("x.y", &json!("two"))];
        assert_eq!(of(&["x.y"]), expected(both));
        assert_eq!(of(&["none", "missing", "a", "a.b"]), Attributes::default());
        assert_eq!(
            Attributes::of("no json", &["lang".into()]),
            Attributes::default()
        );
    }

    #[test]
    fn long_texts_have_short_keys() {
        let long = |end: &str| key("n", &json!(format!("{}{end}", "x".repeat(5_000)))).unwrap();
        assert!(long("a").len() < 300);
        assert_eq!(long("a"), long("a"));
        assert_ne!(long("a"), long("b"));
    }

    #[test]
    fn great_whole_numbers_are_told_apart() {
        let near = 1_u64 << 60;
        assert!(number_key(near) < number_key(near + 1));
        assert!(number_key(u64::MAX - 1) < number_key(u64::MAX));
        assert!(number_key(i64::MIN) < number_key(i64::MIN + 1));
        assert_eq!(number_key(-0.0), number_key(0));
        assert_eq!(number_key(3.0), number_key(3));
    }

    proptest! {
        #[test]
        fn keys_are_in_the_order_of_values(a: f64, b: f64, m: i64, n: i64, s: String, t: String) {
            if a.is_finite() && b.is_finite() {
                let order = (a + 0.0).total_cmp(&(b + 0.0));
                prop_assert_eq!(number_key(a).cmp(&number_key(b)), order);
            }
            prop_assert_eq!(number_key(m).cmp(&number_key(n)), m.cmp(&n));
            let text = |text: &String| key("n", &json!(text)).unwrap();
            prop_assert_eq!(text(&s).cmp(&text(&t)), s.cmp(&t));
            prop_assert!(number_key(m) < text(&s));
            let bounds = (kind_bound("n", Kind::Text, false), kind_bound("n", Kind::Text, true));
            prop_assert!(bounds.0 <= text(&s) && text(&s) < bounds.1);
            let bounds = (field_bound("n", false), field_bound("n", true));
            prop_assert!(bounds.0 <= text(&s) && text(&s) < bounds.1);
        }
    }
}
