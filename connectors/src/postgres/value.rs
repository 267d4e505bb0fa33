//! Values as PostgreSQL writes them in text, to stable JSON.
//!
//! The connection fixes how values are written (ISO dates, UTC, hexadecimal bytes), so that the
//! same value always gives the same JSON, in the snapshot as in the stream.
//!
//! Invariant: no digit is lost. Numbers keep their text; what JSON has no number for is a string.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// How values of a type become JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A string with PostgreSQL's own text: text, uuid, enums, intervals, ranges and all others.
    Text,
    /// true or false.
    Bool,
    /// A number with PostgreSQL's digits; NaN and infinities are strings.
    Number,
    /// `2024-01-31T10:11:12.5`; with a zone in UTC, ending in Z.
    Timestamp,
    /// Base64.
    Bytes,
    /// The value itself.
    Json,
    /// An array of such values, and what stands between them.
    Array(Box<Kind>, char),
}

/// Nesting of arrays: PostgreSQL's own limit is 6 dimensions.
const ARRAY_DEPTH_MAX: usize = 8;

impl Kind {
    pub(crate) fn array_of(element: Kind) -> Self {
        Self::Array(Box::new(element), ',')
    }

    /// Appends the value whose text is `text` as JSON.
    ///
    /// # Errors
    /// What is wrong with a JSON document that a later reader could not read.
    pub(crate) fn write(&self, text: &str, out: &mut String) -> Result<(), String> {
        match self {
            Self::Text => write_string(text, out),
            Self::Bool => match text {
                "t" | "true" => out.push_str("true"),
                "f" | "false" => out.push_str("false"),
                other => write_string(other, out),
            },
            Self::Number if is_json_number(text) => out.push_str(text),
            Self::Number => write_string(text, out),
            Self::Timestamp => write_timestamp(text, out),
            Self::Bytes => match decode_hex(text) {
                Some(bytes) => {
                    out.push('"');
                    STANDARD.encode_string(bytes, out);
                    out.push('"');
                }
                None => write_string(text, out),
            },
            Self::Json => return write_json(text, out),
            Self::Array(element, delimiter) => {
                let before = out.len();
                let mut parser = ArrayParser {
                    rest: without_bounds(text),
                    element,
                    delimiter: *delimiter,
                };
                let parsed = parser.array(ARRAY_DEPTH_MAX, out);
                if !parsed? || !parser.rest.is_empty() {
                    out.truncate(before);
                    write_string(text, out);
                }
            }
        }
        Ok(())
    }
}

/// Appends a JSON string.
pub(crate) fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut written = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => {
                out.push_str(&text[written..at]);
                out.push_str(&format!("\\u{byte:04x}"));
                written = at + 1;
                continue;
            }
            _ => continue,
        };
        out.push_str(&text[written..at]);
        out.push_str(escape);
        written = at + 1;
    }
    out.push_str(&text[written..]);
    out.push('"');
}

fn is_json_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole.len() == 1 || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|it| digits(it.strip_prefix(['+', '-']).unwrap_or(it)))
}

/// `2024-01-31 10:11:12+00` with T and Z. Infinity and years before Christ keep their text.
fn write_timestamp(text: &str, out: &mut String) {
    match text.split_once(' ') {
        Some((date, time)) if !time.contains(' ') => {
            let (time, zone) = match time.strip_suffix("+00") {
                Some(time) => (time, "Z"),
                None => (time, ""),
            };
            write_string(&format!("{date}T{time}{zone}"), out);
        }
        _ => write_string(text, out),
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let nibble = |byte: u8| (byte as char).to_digit(16);
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| u8::try_from(nibble(*high)? << 4 | nibble(*low)?).ok());
    rest.is_empty().then(|| bytes.collect()).flatten()
}

/// A JSON document as it stands. PostgreSQL's `json` keeps what was written, which is more than every
/// reader takes: half surrogate pairs, nesting without end.
fn write_json(text: &str, out: &mut String) -> Result<(), String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map_err(|error| format!("JSON that can't be read: {error}"))?;
    crate::envelope::json::check_surrogates(text).map_err(|rejected| rejected.detail)?;
    out.push_str(text.trim());
    Ok(())
}

/// An array's text without the bounds that it has when they do not begin at 1: `[0:2]={1,2,3}`.
fn without_bounds(text: &str) -> &str {
    match text.split_once('=') {
        Some((bounds, array)) if bounds.starts_with('[') && bounds.ends_with(']') => array,
        _ => text,
    }
}

/// Reads `{1,NULL,"a \"b\""}`.
struct ArrayParser<'a> {
    rest: &'a str,
    element: &'a Kind,
    delimiter: char,
}

impl ArrayParser<'_> {
    fn eat(&mut self, expected: char) -> bool {
        match self.rest.strip_prefix(expected) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Whether the text began with a whole array.
    fn array(&mut self, depth: usize, out: &mut String) -> Result<bool, String> {
        if depth == 0 || !self.eat('{') {
            return Ok(false);
        }
        out.push('[');
        if !self.eat('}') {
            loop {
                if !self.item(depth, out)? {
                    return Ok(false);
                }
                if self.eat('}') {
                    break;
                }
                if !self.eat(self.delimiter) {
                    return Ok(false);
                }
                out.push(',');
            }
        }
        out.push(']');
        Ok(true)
    }

    fn item(&mut self, depth: usize, out: &mut String) -> Result<bool, String> {
        if self.rest.starts_with('{') {
            return self.array(depth - 1, out);
        }
        if self.eat('"') {
            let Some(text) = self.quoted() else {
                return Ok(false);
            };
            self.element.write(&text, out)?;
            return Ok(true);
        }
        let delimiter = self.delimiter;
        let end = self.rest.find(['}', delimiter]);
        let (text, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        if text.eq_ignore_ascii_case("null") {
            out.push_str("null");
        } else {
            self.element.write(text, out)?;
        }
        Ok(true)
    }

    fn quoted(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(text);
                }
                '\\' => text.push(characters.next()?.1),
                other => text.push(other),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(kind: &Kind, text: &str) -> String {
        let mut out = String::new();
        kind.write(text, &mut out).unwrap();
        out
    }

    #[test]
    fn scalars() {
        for (kind, text, expected) in [
            (Kind::Text, "a \"b\"\n\u{1}é", r#""a \"b\"\n\u0001é""#),
            (Kind::Bool, "t", "true"),
            (Kind::Bool, "f", "false"),
            (Kind::Number, "-9007199254740993", "-9007199254740993"),
            (Kind::Number, "1.10", "1.10"),
            (Kind::Number, "1e+20", "1e+20"),
            (Kind::Number, "NaN", "\"NaN\""),
            (Kind::Number, "-Infinity", "\"-Infinity\""),
            (Kind::Number, "01", "\"01\""),
            (
                Kind::Timestamp,
                "2024-01-31 10:11:12.5",
                "\"2024-01-31T10:11:12.5\"",
            ),
            (
                Kind::Timestamp,
                "2024-01-31 10:11:12+00",
                "\"2024-01-31T10:11:12Z\"",
            ),
            (Kind::Timestamp, "infinity", "\"infinity\""),
            (
                Kind::Timestamp,
                "0044-03-15 10:00:00 BC",
                "\"0044-03-15 10:00:00 BC\"",
            ),
            (Kind::Bytes, "\\x00ff10", "\"AP8Q\""),
            (Kind::Bytes, "\\x", "\"\""),
            (
                Kind::Json,
                r#"{"b": 1.10, "a":[]}"#,
                r#"{"b": 1.10, "a":[]}"#,
            ),
        ] {
            assert_eq!(json(&kind, text), expected, "{text}");
        }
        for text in ["{", r#""\ud800""#, &"[".repeat(500)] {
            assert!(
                Kind::Json.write(text, &mut String::new()).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn arrays() {
        let numbers = Kind::array_of(Kind::Number);
        let texts = Kind::array_of(Kind::Text);
        for (kind, text, expected) in [
            (&numbers, "{}", "[]"),
            (&numbers, "{1,NULL,-3}", "[1,null,-3]"),
            (&numbers, "[0:1]={1,2}", "[1,2]"),
            (&numbers, "{{1,2},{3,4}}", "[[1,2],[3,4]]"),
            (
                &texts,
                r#"{a,"b,\"c\"","NULL",NULL,"\\"}"#,
                r#"["a","b,\"c\"","NULL",null,"\\"]"#,
            ),
            (&texts, "1 2 3", "\"1 2 3\""),
            (&texts, "{a", "\"{a\""),
            (&texts, "{a}b", "\"{a}b\""),
            (
                &Kind::array_of(Kind::Bytes),
                r#"{"\\x00ff"}"#,
                r#"["AP8="]"#,
            ),
            (
                &Kind::array_of(Kind::Json),
                r#"{"{\"a\": 1}"}"#,
                r#"[{"a": 1}]"#,
            ),
        ] {
            assert_eq!(json(kind, text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_json(text in ".{0,40}") {
            let array = Kind::array_of(Kind::array_of(Kind::Text));
            for kind in [Kind::Text, Kind::Number, Kind::Timestamp, Kind::Bytes, Kind::Bool, Kind::Json, array] {
                let mut out = String::new();
                if kind.write(&text, &mut out).is_ok() {
                    prop_assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{out}");
                }
            }
        }

        #[test]
        fn strings_come_back(text in any::<String>()) {
            let mut out = String::new();
            write_string(&text, &mut out);
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }

        #[test]
        fn numbers_are_those_of_json(text in "-?[0-9]{0,3}(\\.[0-9]{0,2})?(e[+-]?[0-9]{0,2})?") {
            let is_json = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert_eq!(is_json_number(&text), is_json);
        }
    }
}
