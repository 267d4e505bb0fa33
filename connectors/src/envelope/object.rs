//! Objects with some of their fields left out, and objects inside Kafka Connect's `schema` and
//! `payload`.
//!
//! Invariant: what is kept is copied as it stands.

use super::encoding::write_string;
use super::json::fields;
use serde_json::value::RawValue;

/// An object of these fields.
pub(super) fn object_of<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    let mut separator = '{';
    for (name, value) in fields {
        out.push(separator);
        separator = ',';
        write_string(name, &mut out);
        out.push(':');
        out.push_str(value);
    }
    out.push_str(if separator == '{' { "{}" } else { "}" });
    out
}

/// Schema and payload, where a value is wrapped in both: an object that begins with a field `schema`
/// whose `type` is text, as Kafka Connect's converter writes it.
pub(super) fn wrapped(text: &str) -> Option<(&RawValue, &RawValue)> {
    // Most records are not wrapped, and then nothing more is looked at.
    let rest = text.strip_prefix('{')?.trim_start();
    rest.strip_prefix("\"schema\"")?;
    let [Some(schema), Some(payload)] = fields(text, [Some("schema"), Some("payload")]).ok()?
    else {
        return None;
    };
    match fields(schema.get(), [Some("type")]) {
        Ok([Some(kind)]) if kind.get().starts_with('"') => Some((schema, payload)),
        _ => None,
    }
}
