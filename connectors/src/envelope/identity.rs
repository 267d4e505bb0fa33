//! The identity of a row by its columns, however many they are.
//!
//! One column: its value. Several: an object of them as JSON with sorted names, no white space, and
//! one spelling of strings. So a key has one identity whatever order a converter writes it in.
//!
//! Invariant: two keys that differ in the source differ here; numbers keep their digits.

use super::Rejected;
use super::encoding::InlineSchemas;
use super::json::{Field, all_fields, scalar_key, write_canonical};
use serde_json::value::RawValue;
use vectide_model::Key;

/// Key columns hold scalars, or small structures; deeper ones are no keys.
const KEY_DEPTH_MAX: usize = 32;

/// The identity in a record's key: JSON with or without its schema, or text.
///
/// # Errors
/// What makes the record a dead letter.
pub(super) fn identity(bytes: Option<&[u8]>, schemas: &mut InlineSchemas) -> Result<Key, Rejected> {
    let Some(bytes) = bytes else {
        return Err(Rejected::missing_key(
            "the record has no key: the table has no primary key (set `message.key.columns`)",
        ));
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Rejected::undecodable(format!("the key is not UTF-8 at byte {at}"))
    })?;
    let value = text.trim();
    let Ok(whole) = serde_json::from_str::<&RawValue>(value) else {
        return Ok(Key::from(text));
    };
    let columns = all_fields(whole.get());
    let (schema, payload) = match columns.as_deref() {
        Some([(first, a), (second, b)]) => match (&**first, &**second) {
            ("schema", "payload") => (a, b),
            ("payload", "schema") => (b, a),
            _ => return identity_of(value, columns.as_deref()),
        },
        columns => return identity_of(value, columns),
    };
    let mut rewritten = String::new();
    schemas
        .shape(schema.get())?
        .rewrite(payload.get(), &mut rewritten)?;
    identity_of(&rewritten, all_fields(&rewritten).as_deref())
}

/// The rejection, with the key where the record has a usable one.
pub(super) fn with_identity(
    key: Option<&[u8]>,
    schemas: &mut InlineSchemas,
    rejected: Rejected,
) -> Rejected {
    match identity(key, schemas) {
        Ok(key) => rejected.with_key(&key),
        Err(_) => rejected,
    }
}

/// The identity in a key without its schema; `columns` are its fields if it is an object.
pub(super) fn identity_of(value: &str, columns: Option<&[Field<'_>]>) -> Result<Key, Rejected> {
    let value = match columns {
        Some([]) => return Err(Rejected::missing_key("the key is an empty object")),
        Some([(_, only)]) => only.get(),
        _ => value,
    };
    if !value.starts_with(['{', '[']) {
        return scalar_key(value);
    }
    let mut canonical = String::with_capacity(value.len());
    write_canonical(value, KEY_DEPTH_MAX, &mut canonical)?;
    Ok(Key::from(canonical))
}
