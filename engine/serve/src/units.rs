//! Sizes and durations as people write them in a configuration: `1MiB`, `10s`.
//!
//! Invariant: what is printed is read back as the same value.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A number of bytes: `4096`, `"64KiB"`, `"1MiB"`, `"1GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl ByteSize {
    fn parse(text: &str) -> Option<Self> {
        let (digits, unit) = BYTE_UNITS
            .iter()
            .find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)))
            .unwrap_or((text, 1));
        digits
            .trim()
            .parse::<u64>()
            .ok()?
            .checked_mul(unit)
            .map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |bytes: u64| self.0 >= bytes && self.0.is_multiple_of(bytes);
        match BYTE_UNITS.iter().find(|(_, bytes)| whole(*bytes)) {
            Some((name, bytes)) => write!(f, "{}{name}", self.0 / bytes),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A duration with its unit: `"250ms"`, `"10s"`, `"5min"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(pub Duration);

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = humantime::format_duration(self.0).to_string();
        f.write_str(&text.replace(' ', ""))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer) {
            Ok(NumberOrText::Number(bytes)) => Some(Self(bytes)),
            Ok(NumberOrText::Text(text)) => Self::parse(text.trim()),
            Err(_) => None,
        }
        .ok_or_else(|| D::Error::custom("not a size: write it like `64KiB` or `1MiB`"))
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer) {
            Ok(NumberOrText::Text(text)) => humantime::parse_duration(text.trim()).ok().map(Self),
            Ok(NumberOrText::Number(_)) | Err(_) => None,
        }
        .ok_or_else(|| D::Error::custom("not a duration: write it with its unit, `250ms` or `10s`"))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": "^[0-9]+ *(B|KiB|MiB|GiB)?$"},
            ],
        })
    }
}

impl JsonSchema for TimeSpan {
    fn schema_name() -> Cow<'static, str> {
        "TimeSpan".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^([0-9]+ *[a-z]+ *)+$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    fn check<T>(json: &str, expect: Option<T>)
    where
        T: for<'a> Deserialize<'a> + Serialize + PartialEq + Debug,
    {
        let read = serde_json::from_str::<T>(json).ok();
        assert_eq!(read, expect, "{json}");
        if let Some(value) = read {
            let printed = serde_json::to_string(&value).unwrap();
            assert_eq!(
                serde_json::from_str::<T>(&printed).unwrap(),
                value,
                "{printed}"
            );
        }
    }

    #[test]
    fn sizes_and_durations_are_read_and_printed() {
        check("4096", Some(ByteSize(4096)));
        check("\"4096\"", Some(ByteSize(4096)));
        check("\"4097B\"", Some(ByteSize(4097)));
        check("\"64 KiB\"", Some(ByteSize(64 << 10)));
        check("\"1MiB\"", Some(ByteSize(1 << 20)));
        check("0", Some(ByteSize(0)));
        for bad in [
            "-1",
            "1.5",
            "\"1MB\"",
            "\"99999999999GiB\"",
            "null",
            "[]",
            "\"\"",
        ] {
            check::<ByteSize>(bad, None);
        }
        check("\"250ms\"", Some(TimeSpan(Duration::from_millis(250))));
        check("\"10s\"", Some(TimeSpan(Duration::from_secs(10))));
        check("\"1min 30s\"", Some(TimeSpan(Duration::from_secs(90))));
        for bad in ["10", "\"10\"", "\"-1s\"", "\"soon\"", "null"] {
            check::<TimeSpan>(bad, None);
        }
    }
}
