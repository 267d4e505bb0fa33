//! Reads a plain scalar as null, boolean, number or text, by YAML 1.2's core schema.
//!
//! Invariant: what is no null, boolean or number by that schema is a text, unchanged: `yes`, `on`
//! and `1_000` are texts.

use saphyr_parser::Tag;
use serde_json::{Number, Value};

/// What a plain scalar stands for.
pub(crate) enum Plain {
    /// Null, a boolean, a number or a text.
    Value(Value),
    /// A number that a configuration can't hold: beyond 64 bits, infinite, or not a number.
    BadNumber,
}

/// Types a plain (not quoted) scalar.
pub(crate) fn read_plain(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Value(Value::Null),
        "true" | "True" | "TRUE" => return Plain::Value(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Plain::Value(Value::Bool(false)),
        _ => {}
    }
    if let Some((digits, radix)) = prefixed_digits(text) {
        return match u64::from_str_radix(digits, radix) {
            Ok(number) => Plain::Value(number.into()),
            Err(_) => Plain::BadNumber,
        };
    }
    if is_decimal_integer(text) {
        return read_integer(text);
    }
    if is_float(text) {
        return match text.parse().ok().and_then(Number::from_f64) {
            Some(number) => Plain::Value(Value::Number(number)),
            None => Plain::BadNumber,
        };
    }
    Plain::Value(Value::String(text.to_owned()))
}

/// The value of a scalar with a tag of YAML's core schema; `None` if it is no such value.
pub(crate) fn read_tagged(tag: &Tag, text: &str) -> Option<Value> {
    let is_text = tag.handle.is_empty() && tag.suffix == "!";
    if is_text || (tag.is_yaml_core_schema() && tag.suffix == "str") {
        return Some(Value::String(text.to_owned()));
    }
    let Plain::Value(value) = read_plain(text) else {
        return None;
    };
    let fits = match tag.suffix.as_str() {
        "int" => value.is_i64() || value.is_u64(),
        "float" => value.is_number(),
        "bool" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    };
    (fits && tag.is_yaml_core_schema()).then_some(value)
}

/// `0x1f` -> (`1f`, 16), `0o17` -> (`17`, 8); digits are checked.
fn prefixed_digits(text: &str) -> Option<(&str, u32)> {
    let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(digits), _) => (digits, 16),
        (_, Some(digits)) => (digits, 8),
        _ => return None,
    };
    let all_digits = digits.chars().all(|digit| digit.is_digit(radix));
    (all_digits && !digits.is_empty()).then_some((digits, radix))
}

fn is_decimal_integer(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn read_integer(text: &str) -> Plain {
    if let Ok(number) = text.parse::<i64>() {
        return Plain::Value(number.into());
    }
    match text.parse::<u64>() {
        Ok(number) => Plain::Value(number.into()),
        Err(_) => Plain::BadNumber,
    }
}

/// `[-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`, or one of the words.
fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (mantissa, ""),
    };
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(is_decimal_integer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn follows_the_core_schema() {
        let table = [
            ("", json!(null)),
            ("~", json!(null)),
            ("Null", json!(null)),
            ("true", json!(true)),
            ("FALSE", json!(false)),
            ("yes", json!("yes")),
            ("0", json!(0)),
            ("-7", json!(-7)),
            ("+7", json!(7)),
            ("010", json!(10)),
            ("0o17", json!(15)),
            ("0x1F", json!(31)),
            ("0xZZ", json!("0xZZ")),
            ("18446744073709551615", json!(u64::MAX)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1.", json!(1.0)),
            ("1e3", json!(1000.0)),
            ("1e", json!("1e")),
            (".", json!(".")),
            ("-", json!("-")),
            ("1_000", json!("1_000")),
            ("1.2.3", json!("1.2.3")),
            ("10s", json!("10s")),
            ("inf", json!("inf")),
            ("nan", json!("nan")),
            ("e5", json!("e5")),
        ];
        for (text, expected) in table {
            let Plain::Value(value) = read_plain(text) else {
                panic!("{text} is a bad number");
            };
            assert_eq!(value, expected, "{text}");
        }
        for text in [
            "18446744073709551616",
            "-9223372036854775809",
            ".inf",
            "-.INF",
            ".nan",
            "1e999",
        ] {
            assert!(matches!(read_plain(text), Plain::BadNumber), "{text}");
        }
    }
}
