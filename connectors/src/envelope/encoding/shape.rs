//! The shape of a JSON value as its schema tells it, and rewriting values by it.
//!
//! Kafka Connect's JSON says `19782` and `"BNI="` where its schema says a date and a decimal. A
//! shape is what of the schema matters for that: the places whose text is not the final one.
//!
//! Invariant: what the schema gives no other meaning is copied as it stands, so numbers keep their
//! digits; a value that does not fit its shape is an error, never a guess.

use super::super::Rejected;
use super::super::json::{all_fields, fields, kind};
use super::logical::{Logical, misfit, write_decimal, write_string};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

/// Schemas are shallow; the bound keeps recursion from a hostile one shallow.
pub(crate) const SHAPE_DEPTH_MAX: usize = 48;

/// What a value's schema says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    /// The text is the final one, whatever it is.
    AsItStands,
    /// Numbers or base64 with a meaning.
    Logical(Logical),
    /// An object; fields without an entry are as they stand.
    Object(Vec<(Box<str>, Shape)>),
    /// An array of one kind of item.
    Array(Box<Shape>),
    /// A map as an object, or as an array of pairs `[key, value]` or `{"key":…,"value":…}`.
    Map(Box<Shape>),
}

impl Shape {
    /// An object, or `AsItStands` where none of its fields needs rewriting.
    pub(crate) fn object(fields: Vec<(Box<str>, Self)>) -> Self {
        let fields: Vec<_> = fields
            .into_iter()
            .filter(|(_, shape)| *shape != Self::AsItStands)
            .collect();
        if fields.is_empty() {
            Self::AsItStands
        } else {
            Self::Object(fields)
        }
    }

    /// An array, or `AsItStands` where its items are.
    pub(crate) fn array(items: Self) -> Self {
        match items {
            Self::AsItStands => items,
            items => Self::Array(Box::new(items)),
        }
    }

    /// The shape of a field.
    pub(crate) fn field(&self, name: &str) -> &Self {
        let Self::Object(fields) = self else {
            return &Self::AsItStands;
        };
        let found = fields.iter().find(|(field, _)| **field == *name);
        found.map_or(&Self::AsItStands, |(_, shape)| shape)
    }

    /// Writes `value` with its final texts.
    ///
    /// # Errors
    /// `Schema` where it does not fit.
    pub(crate) fn rewrite(&self, value: &str, out: &mut String) -> Result<(), Rejected> {
        if value == "null" || *self == Self::AsItStands {
            out.push_str(value);
            return Ok(());
        }
        match self {
            Self::AsItStands => Ok(()),
            Self::Logical(logical) => rewrite_logical(*logical, value, out),
            Self::Object(_) => self.rewrite_object(value, out),
            Self::Array(items) => rewrite_array(items, value, out),
            Self::Map(values) => rewrite_map(values, value, out),
        }
    }

    fn rewrite_object(&self, value: &str, out: &mut String) -> Result<(), Rejected> {
        let Some(fields) = all_fields(value) else {
            return Err(wrong_kind("an object", value));
        };
        let mut separator = '{';
        for (name, field) in &fields {
            out.push(separator);
            separator = ',';
            write_string(name, out);
            out.push(':');
            let shape = self.field(name);
            shape
                .rewrite(field.get(), out)
                .map_err(|rejected| in_field(name, rejected))?;
        }
        out.push_str(if fields.is_empty() { "{}" } else { "}" });
        Ok(())
    }
}

/// Says where a value did not fit.
fn in_field(name: &str, mut rejected: Rejected) -> Rejected {
    rejected.detail = format!("field `{name}`: {}", rejected.detail);
    rejected
}

fn wrong_kind(expected: &str, value: &str) -> Rejected {
    misfit(format!("the schema says {expected}, found {}", kind(value)))
}

fn rewrite_array(items: &Shape, value: &str, out: &mut String) -> Result<(), Rejected> {
    let Ok(values) = serde_json::from_str::<Vec<&RawValue>>(value) else {
        return Err(wrong_kind("an array", value));
    };
    out.push('[');
    for (index, item) in values.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        items.rewrite(item.get(), out)?;
    }
    out.push(']');
    Ok(())
}

fn rewrite_map(values: &Shape, value: &str, out: &mut String) -> Result<(), Rejected> {
    let mut separator = '{';
    let mut entry = |key: &str, value: &RawValue| {
        out.push(separator);
        separator = ',';
        write_map_key(key, out);
        out.push(':');
        values.rewrite(value.get(), out)
    };
    if value.starts_with('{') {
        for (name, value) in all_fields(value).unwrap_or_default() {
            entry(&serde_json::to_string(&name).unwrap_or_default(), value)?;
        }
    } else {
        let Ok(pairs) = serde_json::from_str::<Vec<&RawValue>>(value) else {
            return Err(wrong_kind("a map", value));
        };
        for pair in pairs {
            let (key, value) = pair_of(pair.get())?;
            entry(key.get(), value)?;
        }
    }
    out.push_str(if separator == '{' { "{}" } else { "}" });
    Ok(())
}

fn pair_of(pair: &str) -> Result<(&RawValue, &RawValue), Rejected> {
    if pair.starts_with('{') {
        if let [Some(key), Some(value)] = fields(pair, [Some("key"), Some("value")])? {
            return Ok((key, value));
        }
    } else if let Ok([key, value]) = serde_json::from_str::<[&RawValue; 2]>(pair) {
        return Ok((key, value));
    }
    Err(wrong_kind("a pair of key and value", pair))
}

/// A map's key as the name of a field: a string's own text, else its JSON.
pub(crate) fn write_map_key(key: &str, out: &mut String) {
    if key.starts_with('"') {
        out.push_str(key);
    } else {
        write_string(key, out);
    }
}

fn rewrite_logical(logical: Logical, value: &str, out: &mut String) -> Result<(), Rejected> {
    match logical {
        Logical::Decimal { scale } => rewrite_decimal(value, scale, out),
        Logical::VariableScaleDecimal => {
            let [scale, unscaled] = fields(value, [Some("scale"), Some("value")])?;
            let scale = scale.and_then(|scale| scale.get().parse().ok());
            let (Some(scale), Some(unscaled)) = (scale, unscaled) else {
                return Err(misfit("a decimal without its `scale` or `value`"));
            };
            rewrite_decimal(unscaled.get(), scale, out)
        }
        _ => match value.parse::<i64>() {
            Ok(count) => {
                logical.write_integer(count, out);
                Ok(())
            }
            // A converter that writes times as text has already said it.
            Err(_) if value.starts_with('"') => {
                out.push_str(value);
                Ok(())
            }
            Err(_) => Err(wrong_kind("a whole number", value)),
        },
    }
}

/// Base64 of the bytes, or the number itself (`decimal.format=NUMERIC`).
fn rewrite_decimal(value: &str, scale: i32, out: &mut String) -> Result<(), Rejected> {
    if value.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        write_string(value, out);
        return Ok(());
    }
    let bytes = serde_json::from_str::<&str>(value)
        .ok()
        .and_then(|text| STANDARD.decode(text).ok());
    match bytes {
        Some(bytes) => write_decimal(&bytes, scale, out),
        None => Err(wrong_kind("a decimal's bytes as base64", value)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::time_text::Unit;
    use super::*;

    fn rewrite(shape: &Shape, value: &str) -> Result<String, Rejected> {
        let mut out = String::new();
        shape.rewrite(value, &mut out)?;
        Ok(out)
    }

    #[test]
    fn only_what_has_a_meaning_is_written_anew() {
        let shape = Shape::object(vec![
            ("day".into(), Shape::Logical(Logical::Date)),
            (
                "price".into(),
                Shape::Logical(Logical::Decimal { scale: 2 }),
            ),
            ("plain".into(), Shape::AsItStands),
            ("map".into(), Shape::Map(Box::new(Shape::AsItStands))),
            (
                "times".into(),
                Shape::array(Shape::Logical(Logical::Time(Unit::Milliseconds))),
            ),
        ]);
        let value = r#"{"plain": {"n": 1.10}, "day":19782,"price":"BNI=","map":[[1,2],["a",3]],"times":[0,null]}"#;
        let expected = r#"{"plain":{"n": 1.10},"day":"2024-02-29","price":"12.34","map":{"1":2,"a":3},"times":["00:00:00",null]}"#;
        assert_eq!(rewrite(&shape, value).unwrap(), expected);
        assert_eq!(rewrite(&shape, "null").unwrap(), "null");
        assert_eq!(rewrite(&shape, "{}").unwrap(), "{}");
        let wrong = rewrite(&shape, r#"{"day":1.5}"#).unwrap_err();
        assert_eq!(
            wrong.detail,
            "field `day`: the schema says a whole number, found a number"
        );
        for wrong in [
            r#"{"price":"*"}"#,
            r#"{"price":{}}"#,
            r#"{"map":1}"#,
            r#"{"map":[[1]]}"#,
            r#"{"times":{}}"#,
            "[]",
        ] {
            assert!(rewrite(&shape, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_spelling_of_decimals_and_maps() {
        let decimal = Shape::Logical(Logical::Decimal { scale: 2 });
        assert_eq!(rewrite(&decimal, "12.30").unwrap(), "\"12.30\"");
        let variable = Shape::Logical(Logical::VariableScaleDecimal);
        let value = r#"{"scale":3,"value":"BNI="}"#;
        assert_eq!(rewrite(&variable, value).unwrap(), "\"1.234\"");
        assert!(rewrite(&variable, r#"{"scale":3}"#).is_err());
        let map = Shape::Map(Box::new(Shape::Logical(Logical::Date)));
        for value in [r#"{"a":0}"#, r#"[["a",0]]"#, r#"[{"key":"a","value":0}]"#] {
            assert_eq!(rewrite(&map, value).unwrap(), r#"{"a":"1970-01-01"}"#);
        }
        assert_eq!(rewrite(&map, "[]").unwrap(), "{}");
    }
}
