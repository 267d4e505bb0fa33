//! What a schema's names say about numbers and bytes, and their one spelling in JSON.
//!
//! Kafka Connect, Debezium, Avro and JSON Schema name the same few meanings in different places;
//! here they meet. The table is in docs/ENVELOPES.md.
//!
//! Invariant: no digit is lost. A decimal becomes a string with all its digits; a time that ISO 8601
//! can't say stays the number that it was.

use super::super::Rejected;
use super::time_text::{Unit, Zone, write_date, write_date_time, write_duration, write_time};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use num_bigint::BigInt;
use vectide_model::DeadLetterReason;

/// Postgres's longest numeric, 147,455 digits, has some 61 KiB; converting is quadratic.
const DECIMAL_BYTES_MAX: usize = 64 * 1024;

/// Postgres's largest scale is 16,383, Oracle's 127; a negative one is written as zeros.
const DECIMAL_SCALE_MAX: u32 = 20_000;

/// How Debezium writes Postgres's `infinity` as a number, whatever it counts.
const INFINITY: i64 = 9_223_372_036_825_200_000;
/// The same for `-infinity`.
const NEGATIVE_INFINITY: i64 = -9_223_372_036_832_400_000;

/// The meaning of a number or of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logical {
    /// Big-endian bytes; the point stands before so many digits.
    Decimal { scale: i32 },
    /// A structure of `scale` and `value`.
    VariableScaleDecimal,
    /// Days since 1970.
    Date,
    /// Since midnight.
    Time(Unit),
    /// Since 1970.
    Timestamp(Unit, Zone),
    /// A length of time.
    Duration(Unit),
}

impl Logical {
    /// The meaning behind a schema's name in Kafka Connect; `scale` is the parameter of that name.
    pub(crate) fn of_name(name: &str, scale: Option<i32>) -> Option<Self> {
        use Unit::{Microseconds, Milliseconds, Nanoseconds};
        Some(match name {
            "org.apache.kafka.connect.data.Decimal" => Self::Decimal { scale: scale? },
            "io.debezium.data.VariableScaleDecimal" => Self::VariableScaleDecimal,
            "org.apache.kafka.connect.data.Date" | "io.debezium.time.Date" => Self::Date,
            "org.apache.kafka.connect.data.Time" | "io.debezium.time.Time" => {
                Self::Time(Milliseconds)
            }
            "io.debezium.time.MicroTime" => Self::Time(Microseconds),
            "io.debezium.time.NanoTime" => Self::Time(Nanoseconds),
            "org.apache.kafka.connect.data.Timestamp" => Self::Timestamp(Milliseconds, Zone::Utc),
            "io.debezium.time.Timestamp" => Self::Timestamp(Milliseconds, Zone::Local),
            "io.debezium.time.MicroTimestamp" => Self::Timestamp(Microseconds, Zone::Local),
            "io.debezium.time.NanoTimestamp" => Self::Timestamp(Nanoseconds, Zone::Local),
            "io.debezium.time.MicroDuration" => Self::Duration(Microseconds),
            "io.debezium.time.NanoDuration" => Self::Duration(Nanoseconds),
            _ => return None,
        })
    }

    /// Writes a number of this meaning.
    pub(crate) fn write_integer(self, count: i64, out: &mut String) {
        let sign = match count {
            INFINITY => "\"infinity\"",
            NEGATIVE_INFINITY => "\"-infinity\"",
            _ => "",
        };
        if !sign.is_empty() && matches!(self, Self::Timestamp(..)) {
            out.push_str(sign);
            return;
        }
        let begin = out.len();
        out.push('"');
        let is_written = match self {
            Self::Date => write_date(count, out),
            Self::Timestamp(unit, zone) => write_date_time(count, unit, zone, out),
            Self::Time(unit) => {
                write_time(count, unit, out);
                true
            }
            Self::Duration(unit) => {
                write_duration(count, unit, out);
                true
            }
            Self::Decimal { .. } | Self::VariableScaleDecimal => false,
        };
        if is_written {
            out.push('"');
        } else {
            out.truncate(begin);
            out.push_str(&count.to_string());
        }
    }
}

/// Writes big-endian bytes of a two's complement with `scale` digits behind the point, as a string.
pub(crate) fn write_decimal(bytes: &[u8], scale: i32, out: &mut String) -> Result<(), Rejected> {
    if bytes.len() > DECIMAL_BYTES_MAX || scale.unsigned_abs() > DECIMAL_SCALE_MAX {
        return Err(misfit(format!(
            "a decimal of {} bytes and scale {scale}; the limits are {DECIMAL_BYTES_MAX} and \
             {DECIMAL_SCALE_MAX}",
            bytes.len()
        )));
    }
    let unscaled = BigInt::from_signed_bytes_be(bytes).to_string();
    let (sign, digits) = match unscaled.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", &*unscaled),
    };
    out.push('"');
    out.push_str(sign);
    let places = scale.unsigned_abs() as usize;
    if scale > 0 {
        let padded = format!("{digits:0>width$}", width = places + 1);
        let (whole, fraction) = padded.split_at(padded.len() - places);
        out.push_str(whole);
        out.push('.');
        out.push_str(fraction);
    } else {
        out.push_str(digits);
        if digits != "0" {
            out.extend(std::iter::repeat_n('0', places));
        }
    }
    out.push('"');
    Ok(())
}

/// Writes bytes as a base64 string.
pub(crate) fn write_bytes(bytes: &[u8], out: &mut String) {
    out.push('"');
    STANDARD.encode_string(bytes, out);
    out.push('"');
}

/// Writes text as a JSON string.
pub(crate) fn write_string(text: &str, out: &mut String) {
    let needs_escape = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    if text.bytes().any(needs_escape) {
        // Writing text into a string can't fail.
        out.push_str(&serde_json::to_string(text).unwrap_or_default());
        return;
    }
    out.push('"');
    out.push_str(text);
    out.push('"');
}

/// Writes a number; JSON has none for what is no number, so those become strings.
pub(crate) fn write_float(value: f64, out: &mut String) {
    match serde_json::Number::from_f64(value) {
        Some(number) => out.push_str(&number.to_string()),
        None => out.push_str(not_finite(value)),
    }
}

/// Writes a number of single precision with the fewest digits that tell it.
pub(crate) fn write_single(value: f32, out: &mut String) {
    if value.is_finite() {
        out.push_str(&serde_json::to_string(&value).unwrap_or_default());
    } else {
        out.push_str(not_finite(f64::from(value)));
    }
}

fn not_finite(value: f64) -> &'static str {
    if value.is_nan() {
        "\"NaN\""
    } else if value > 0.0 {
        "\"Infinity\""
    } else {
        "\"-Infinity\""
    }
}

/// Longest JSON of one record: the largest records that a log hands out have some 8 MiB, and text
/// grows less than sixfold. What a few bytes blow up to more (an array of nulls, which have no bytes
/// at all; empty messages with many fields) ends here.
pub(super) const JSON_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How much longer the JSON of a small record may be: fields that are null have one byte there and
/// their whole name here.
const JSON_BYTES_FOR_ONE: usize = 256;

/// What any record may have.
const JSON_BYTES_AT_LEAST: usize = 1024 * 1024;

/// Longest JSON of a record of so many bytes.
pub(super) fn json_bytes_max(record_bytes: usize) -> usize {
    let grown = record_bytes.saturating_mul(JSON_BYTES_FOR_ONE);
    grown
        .saturating_add(JSON_BYTES_AT_LEAST)
        .min(JSON_BYTES_MAX)
}

/// Refuses to go on when the JSON is too long.
pub(super) fn check_length(out: &str, bytes_max: usize) -> Result<(), Rejected> {
    if out.len() <= bytes_max {
        return Ok(());
    }
    Err(Rejected::new(
        DeadLetterReason::TooLarge,
        format!("the record has more than {bytes_max} bytes as JSON"),
    ))
}

/// A record that is not what its schema says.
pub(crate) fn misfit(detail: impl Into<String>) -> Rejected {
    Rejected::new(DeadLetterReason::Schema, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decimal(bytes: &[u8], scale: i32) -> String {
        let mut out = String::new();
        write_decimal(bytes, scale, &mut out).unwrap();
        out
    }

    #[test]
    fn decimals() {
        for (bytes, scale, expected) in [
            (&[0x04, 0xd2][..], 2, "\"12.34\""),
            (&[0xfb, 0x2e], 2, "\"-12.34\""),
            (&[0x05], 3, "\"0.005\""),
            (&[0xff], 2, "\"-0.01\""),
            (&[0x00], 2, "\"0.00\""),
            (&[], 0, "\"0\""),
            (&[0x0c], -2, "\"1200\""),
            (&[0x00], -2, "\"0\""),
            (
                &[0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                4,
                "\"472236648286964521.3696\"",
            ),
        ] {
            assert_eq!(decimal(bytes, scale), expected);
        }
        let mut out = String::new();
        assert!(write_decimal(&[1], i32::MIN, &mut out).is_err());
        assert!(write_decimal(&vec![1; DECIMAL_BYTES_MAX + 1], 0, &mut out).is_err());
        assert_eq!(out, "");
    }

    #[test]
    fn integers() {
        let write = |name: &str, count: i64| {
            let mut out = String::new();
            Logical::of_name(name, None)
                .unwrap()
                .write_integer(count, &mut out);
            out
        };
        for (name, count, expected) in [
            ("io.debezium.time.Date", 19_782, "\"2024-02-29\""),
            (
                "org.apache.kafka.connect.data.Date",
                19_782,
                "\"2024-02-29\"",
            ),
            ("io.debezium.time.Time", 49_501_500, "\"13:45:01.5\""),
            (
                "io.debezium.time.MicroTime",
                49_501_500_000,
                "\"13:45:01.5\"",
            ),
            (
                "io.debezium.time.NanoTime",
                49_501_500_000_001,
                "\"13:45:01.500000001\"",
            ),
            (
                "io.debezium.time.Timestamp",
                1_709_214_301_500,
                "\"2024-02-29T13:45:01.5\"",
            ),
            (
                "org.apache.kafka.connect.data.Timestamp",
                1_709_214_301_500,
                "\"2024-02-29T13:45:01.5Z\"",
            ),
            ("io.debezium.time.MicroTimestamp", INFINITY, "\"infinity\""),
            (
                "io.debezium.time.Timestamp",
                NEGATIVE_INFINITY,
                "\"-infinity\"",
            ),
            (
                "io.debezium.time.MicroTimestamp",
                i64::MAX,
                "9223372036854775807",
            ),
            ("io.debezium.time.MicroDuration", 1_500_000, "\"PT1.5S\""),
        ] {
            assert_eq!(write(name, count), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn decimals_keep_every_digit(value: i128, scale in 0_i32..40) {
            let text = decimal(&value.to_be_bytes(), scale);
            let digits: String = text.chars().filter(|c| c.is_ascii_digit() || *c == '-').collect();
            prop_assert_eq!(digits.parse::<i128>().unwrap(), value);
            if scale > 0 {
                let (_, fraction) = text.trim_matches('"').split_once('.').unwrap();
                prop_assert_eq!(fraction.len(), scale as usize);
            }
        }

        #[test]
        fn strings_are_json(text: String) {
            let mut out = String::new();
            write_string(&text, &mut out);
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }
}
