//! Looking into JSON without building it: named fields as raw text, scalars, identities.
//!
//! Invariant: numbers are never converted. A key `9007199254740993` or `1.10` keeps its digits, so
//! that two keys which differ in the source differ here.

use super::Rejected;
use memchr::memmem::Finder;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;
use vectide_model::Key;

/// The kind of a JSON value, with its article, for messages.
pub(crate) fn kind(value: &str) -> &'static str {
    match value.trim_start().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// The bytes as text, without surrounding white space and byte order mark.
pub(crate) fn text_of(bytes: &[u8]) -> Result<&str, Rejected> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Rejected::undecodable(format!("invalid UTF-8 at byte {}", error.valid_up_to()))
    })?;
    Ok(text.trim_start_matches('\u{feff}').trim())
}

/// The values of the named fields of one object, in the order of `names`; the whole text is checked
/// to be JSON. Of a field that occurs twice the last value counts, as everywhere.
///
/// # Errors
/// `Undecodable` for what is not JSON, `WrongType` for JSON that is not an object.
pub(crate) fn fields<'de, const N: usize>(
    text: &'de str,
    names: [Option<&str>; N],
) -> Result<[Option<&'de RawValue>; N], Rejected> {
    if !text.trim_start().starts_with('{') {
        return Err(not_an_object(text));
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let found = FieldSeed { names }
        .deserialize(&mut deserializer)
        .and_then(|found| deserializer.end().map(|()| found));
    found.map_err(|error| Rejected::undecodable(format!("not JSON: {error}")))
}

/// Whether the whole text is one JSON value of Unicode text.
///
/// # Errors
/// `Undecodable` when it is not.
pub(crate) fn check_json(text: &str) -> Result<(), Rejected> {
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => check_surrogates(text),
        Err(error) => Err(Rejected::undecodable(format!("not JSON: {error}"))),
    }
}

fn not_an_object(text: &str) -> Rejected {
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Rejected::wrong_type(format!("expected an object, found {}", kind(text))),
        Err(error) => Rejected::undecodable(format!("not JSON: {error}")),
    }
}

struct FieldSeed<'n, const N: usize> {
    names: [Option<&'n str>; N],
}

impl<'de, const N: usize> DeserializeSeed<'de> for FieldSeed<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for FieldSeed<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(FieldName(name)) = map.next_key()? {
            if !self.names.contains(&Some(&*name)) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value: &'de RawValue = map.next_value()?;
            for (slot, wanted) in found.iter_mut().zip(self.names) {
                if wanted == Some(&*name) {
                    *slot = Some(value);
                }
            }
        }
        Ok(found)
    }
}

/// A field's name, borrowed unless it holds an escape.
struct FieldName<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for FieldName<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = FieldName<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a field name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<FieldName<'de>, E> {
                Ok(FieldName(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<FieldName<'de>, E> {
                Ok(FieldName(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

/// The value at a path of nested objects; `None` where a step is missing or no object.
pub(crate) fn at_path<'de>(value: &'de RawValue, path: &[Box<str>]) -> Option<&'de RawValue> {
    let mut value = value;
    for name in path {
        let Ok([Some(inner)]) = fields(value.get(), [Some(name)]) else {
            return None;
        };
        value = inner;
    }
    Some(value)
}

/// A field of an object: its name, and its value as it stands.
pub(crate) type Field<'a> = (String, &'a RawValue);

/// All fields of an object, in its order; `None` for another kind of value.
pub(crate) fn all_fields(text: &str) -> Option<Vec<Field<'_>>> {
    struct AllVisitor;
    impl<'de> Visitor<'de> for AllVisitor {
        type Value = Vec<(String, &'de RawValue)>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::new();
            while let Some(FieldName(name)) = map.next_key()? {
                fields.push((name.into_owned(), map.next_value()?));
            }
            Ok(fields)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.deserialize_map(AllVisitor).ok()
}

/// A scalar as the text of a key: a string's value, a number's or boolean's JSON text.
///
/// # Errors
/// `MissingKey` for null and for everything that is no scalar.
pub(crate) fn scalar_key(value: &str) -> Result<Key, Rejected> {
    match value.as_bytes().first() {
        Some(b'"') => match serde_json::from_str::<String>(value) {
            Ok(text) => Ok(Key::from(text)),
            Err(error) => Err(Rejected::undecodable(format!("the key: {error}"))),
        },
        Some(b't' | b'f' | b'-' | b'0'..=b'9') => Ok(Key::from(value)),
        Some(b'n') => Err(Rejected::missing_key("the key is null")),
        _ => Err(Rejected::missing_key(format!(
            "the key is {}; it must be a string, number or boolean",
            kind(value)
        ))),
    }
}

/// A value with sorted fields, no white space and strings in one spelling; numbers keep their text.
/// `depth` bounds the recursion.
///
/// # Errors
/// `Undecodable` for strings that are no text and for values nested deeper than `depth`.
pub(crate) fn write_canonical(value: &str, depth: usize, out: &mut String) -> Result<(), Rejected> {
    let broken = |error: serde_json::Error| Rejected::undecodable(format!("the key: {error}"));
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Rejected::undecodable("the key is nested too deeply"));
    };
    match value.as_bytes().first() {
        Some(b'{') => {
            let mut fields = all_fields(value).unwrap_or_default();
            fields.sort_by(|(left, _), (right, _)| left.cmp(right));
            for (index, (name, field)) in fields.iter().enumerate() {
                out.push(if index == 0 { '{' } else { ',' });
                out.push_str(&serde_json::to_string(name).map_err(broken)?);
                out.push(':');
                write_canonical(field.get(), depth, out)?;
            }
            out.push_str(if fields.is_empty() { "{}" } else { "}" });
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(value).map_err(broken)?;
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(item.get(), depth, out)?;
            }
            out.push(']');
        }
        Some(b'"') => {
            let text: String = serde_json::from_str(value).map_err(broken)?;
            out.push_str(&serde_json::to_string(&text).map_err(broken)?);
        }
        _ => out.push_str(value),
    }
    Ok(())
}

/// How the escape of half a surrogate pair begins.
static SURROGATE_ESCAPES: LazyLock<[Finder<'static>; 2]> =
    LazyLock::new(|| ["\\ud", "\\uD"].map(Finder::new));

/// Whether text that passed the syntax check may still hold a string that is no Unicode text: half
/// a surrogate pair. Such text is rare, so a cheap suspicion decides who pays for the full check.
///
/// # Errors
/// `Undecodable` when it does hold one.
pub(crate) fn check_surrogates(text: &str) -> Result<(), Rejected> {
    let is_suspicious = SURROGATE_ESCAPES
        .iter()
        .any(|escape| escape.find(text.as_bytes()).is_some());
    if !is_suspicious {
        return Ok(());
    }
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(Rejected::undecodable(format!("not Unicode text: {error}"))),
    }
}
