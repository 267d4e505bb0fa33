//! Debezium's placeholder for a large column that an update did not touch, in all its forms.
//!
//! | column | form |
//! | --- | --- |
//! | text, JSON, XML | the text itself |
//! | bytes | base64 of its bytes (also the URL-safe one), or hex with `binary.handling.mode=hex` |
//! | array of text | an array of the text |
//! | array of integers | an array of its bytes, one integer each |
//! | array of UUIDs | an array of the name-based UUID (version 3) of its bytes |
//! | hstore | `{text: text}`, as an object or as JSON text |
//!
//! Invariant: a row never holds the placeholder; the fields that did are named. Text that merely
//! speaks of the placeholder is no placeholder.

use super::Rejected;
use super::json::all_fields;
use super::object::object_of;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use md5::{Digest, Md5};
use memchr::memmem::Finder;
use serde_json::Value;
use std::fmt::Write;
use std::sync::Arc;
use vectide_model::Row;

/// What Debezium writes unless it is told otherwise.
pub(crate) const DEFAULT: &str = "__debezium_unavailable_value";

/// Integers by which an array of them is recognised at first sight; the whole is compared then.
const INTEGERS_AT_FIRST_SIGHT: usize = 7;

/// Recognises one placeholder.
pub(crate) struct Placeholder {
    bytes: Vec<u8>,
    texts: Vec<String>,
    hex: String,
    /// Find each form in a row; `None` where JSON has more than one spelling of the text, and every
    /// row must be looked at.
    finders: Option<Vec<Finder<'static>>>,
}

impl Placeholder {
    /// By the connector's `unavailable.value.placeholder`, which may be `hex:` and bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn new(configured: &str) -> Result<Self, String> {
        let bytes = match configured.strip_prefix("hex:") {
            Some(digits) => bytes_of_hex(digits)
                .ok_or_else(|| format!("`{configured}` is not `hex:` and pairs of hex digits"))?,
            None => configured.as_bytes().to_vec(),
        };
        if bytes.is_empty() {
            return Err("the placeholder is empty, which every empty text would be".to_owned());
        }
        let own_text = String::from_utf8(bytes.clone()).ok();
        let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let mut texts = vec![
            STANDARD.encode(&bytes),
            STANDARD_NO_PAD.encode(&bytes),
            URL_SAFE_NO_PAD.encode(&bytes),
            uuid_of_name(&bytes),
        ];
        if let Some(text) = &own_text {
            texts.push(text.clone());
            let hstore = serde_json::json!({ text.as_str(): text });
            texts.push(hstore.to_string());
        }
        let finders = is_spelled_one_way(own_text.as_deref().unwrap_or_default())
            .then(|| finders(&bytes, own_text.as_deref(), &hex));
        Ok(Self {
            bytes,
            texts,
            hex,
            finders,
        })
    }

    fn may_be_in(&self, row: &str) -> bool {
        let Some(finders) = &self.finders else {
            return true;
        };
        finders.iter().any(|it| it.find(row.as_bytes()).is_some())
    }

    /// The row without the fields that hold the placeholder, and their names.
    ///
    /// # Errors
    /// `Undecodable` where a field which may hold it can't be read.
    pub(crate) fn take_out(&self, row: &str) -> Result<(Row, Vec<Arc<str>>), Rejected> {
        if !self.may_be_in(row) {
            return Ok((Row::from(row), Vec::new()));
        }
        let mut unchanged = Vec::new();
        let mut kept = Vec::new();
        for (name, value) in all_fields(row).unwrap_or_default() {
            let is_placeholder = self.may_be_in(value.get())
                && self.is_in(&serde_json::from_str(value.get()).map_err(|error| {
                    Rejected::undecodable(format!("field `{name}` can't be read: {error}"))
                })?);
            if is_placeholder {
                unchanged.push(Arc::from(name));
            } else {
                kept.push((name, value));
            }
        }
        if unchanged.is_empty() {
            return Ok((Row::from(row), unchanged));
        }
        let kept = kept.iter().map(|(name, value)| (&**name, value.get()));
        Ok((Row::from(object_of(kept)), unchanged))
    }

    /// Recursion is bounded by the parser's own limit on nesting.
    fn is_in(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => {
                self.texts.iter().any(|form| form == text) || text.eq_ignore_ascii_case(&self.hex)
            }
            Value::Array(items) => {
                let bytes = self.bytes.iter().map(|byte| i64::from(*byte));
                // Java's bytes are signed.
                let signed = self.bytes.iter().map(|byte| i64::from(byte.cast_signed()));
                let is_bytes = |bytes: &mut dyn Iterator<Item = i64>| {
                    items.iter().map(Value::as_i64).eq(bytes.map(Some))
                };
                is_bytes(&mut { bytes })
                    || is_bytes(&mut { signed })
                    || items.iter().any(|item| self.is_in(item))
            }
            Value::Object(fields) => fields.values().any(|value| self.is_in(value)),
            _ => false,
        }
    }
}

/// Whether JSON writes the text in only one way in practice: nothing in it needs an escape.
fn is_spelled_one_way(text: &str) -> bool {
    let is_plain = |byte: u8| (0x20..0x7f).contains(&byte) && !matches!(byte, b'"' | b'\\' | b'/');
    text.bytes().all(is_plain)
}

fn finders(bytes: &[u8], text: Option<&str>, hex: &str) -> Vec<Finder<'static>> {
    let first = &bytes[..bytes.len().min(INTEGERS_AT_FIRST_SIGHT)];
    let integers = |number: fn(u8) -> i64| {
        let numbers: Vec<String> = first.iter().map(|byte| number(*byte).to_string()).collect();
        numbers.join(",")
    };
    let mut forms = vec![
        // Without its last character, which padding may change.
        STANDARD_NO_PAD.encode(bytes),
        URL_SAFE_NO_PAD.encode(bytes),
        uuid_of_name(bytes),
        hex.to_owned(),
        hex.to_ascii_uppercase(),
        integers(i64::from),
        integers(|byte| i64::from(byte.cast_signed())),
    ];
    forms.extend(text.map(str::to_owned));
    forms.sort();
    forms.dedup();
    forms
        .iter()
        .map(|form| Finder::new(form).into_owned())
        .collect()
}

fn bytes_of_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok())
        .collect()
}

/// Java's `UUID.nameUUIDFromBytes`: version 3 of the bytes alone, without a namespace.
fn uuid_of_name(bytes: &[u8]) -> String {
    let mut hash: [u8; 16] = Md5::digest(bytes).into();
    hash[6] = hash[6] & 0x0f | 0x30;
    hash[8] = hash[8] & 0x3f | 0x80;
    let mut text = String::new();
    for (index, byte) in hash.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms(text: &str) -> Vec<String> {
        let integers: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
        let quoted = serde_json::to_string(text).unwrap();
        let hstore = format!("{{{quoted}:{quoted}}}");
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        vec![
            quoted.clone(),
            format!("\"{}\"", STANDARD.encode(text)),
            format!("\"{}\"", URL_SAFE_NO_PAD.encode(text)),
            format!("\"{hex}\""),
            format!("\"{}\"", hex.to_ascii_uppercase()),
            format!("[{quoted}]"),
            format!("[\"{}\"]", uuid_of_name(text.as_bytes())),
            format!("[{}]", integers.join(",")),
            hstore.clone(),
            serde_json::to_string(&hstore).unwrap(),
            format!("{{\"nested\":{quoted}}}"),
        ]
    }

    #[test]
    fn every_form_of_every_placeholder() {
        for text in [DEFAULT, "é\"/nichts", "?"] {
            let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
            for configured in [text.to_owned(), format!("hex:{hex}")] {
                let placeholder = Placeholder::new(&configured).unwrap();
                for form in forms(text) {
                    let row = format!("{{\"id\": 1.10,\"body\":{form},\"z\":null}}");
                    let (row, unchanged) = placeholder.take_out(&row).unwrap();
                    assert_eq!(&*row, "{\"id\":1.10,\"z\":null}", "{form}");
                    assert_eq!(unchanged, [Arc::from("body")], "{form}");
                }
            }
        }
    }

    #[test]
    fn the_name_based_uuid_is_the_one_of_java() {
        assert_eq!(
            uuid_of_name(DEFAULT.as_bytes()),
            "b68a35a7-17ad-35b3-af2a-ae46edb4545a"
        );
    }

    #[test]
    fn signed_bytes() {
        let placeholder = Placeholder::new("hex:ff00").unwrap();
        for array in ["[255,0]", "[-1,0]"] {
            let row = format!("{{\"a\":{array}}}");
            assert_eq!(&*placeholder.take_out(&row).unwrap().0, "{}");
        }
    }

    #[test]
    fn what_is_no_placeholder_is_left_alone() {
        let placeholder = Placeholder::new(DEFAULT).unwrap();
        for row in [
            r#"{"a":"text about __debezium_unavailable_value"}"#,
            r#"{"a":[95,95,100,101,98,101,122]}"#,
            r#"{"__debezium_unavailable_value":1}"#,
            "{}",
        ] {
            assert_eq!(
                placeholder.take_out(row).unwrap(),
                (Row::from(row), Vec::new())
            );
        }
        let odd = r#"{"a":[1e999,"__debezium_unavailable_value"]}"#;
        assert!(placeholder.take_out(odd).is_err());
        for wrong in ["", "hex:", "hex:1", "hex:gg", "hex:é"] {
            assert!(Placeholder::new(wrong).is_err(), "{wrong}");
        }
    }
}
