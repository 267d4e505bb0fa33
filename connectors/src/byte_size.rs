//! Sizes in a configuration: people write `16MiB`, programs count bytes.
//!
//! Invariant: a size is a whole number of bytes below 2^63; anything else is an error that shows a
//! right one.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;

/// A number of bytes, written as `512`, `64KiB`, `8MiB`, `1GiB`, `10kB`, `10MB` or `1GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Longest suffix first, so that `MiB` is not read as `B`.
const UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl ByteSize {
    /// A number of mebibytes.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    /// The size as a length in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
            .unwrap_or((text, 1));
        let number: u64 = number.trim().parse().ok()?;
        let bytes = number.checked_mul(factor)?;
        (bytes < 1 << 63).then_some(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS[..3]
            .iter()
            .rev()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        write!(formatter, "{}{unit}", self.0 / factor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl de::Visitor<'_> for SizeVisitor {
            type Value = ByteSize;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a size in bytes, such as `16MiB`, `64KiB` or 4096")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                if bytes < 1 << 63 {
                    return Ok(ByteSize(bytes));
                }
                Err(E::invalid_value(de::Unexpected::Unsigned(bytes), &self))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes)
                    .map(ByteSize)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                ByteSize::parse(text)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size: bytes, or a number with a unit (`64KiB`, `16MiB`, `1GiB`, `10MB`)",
            "anyOf": [
                {"type": "string", "pattern": "^[0-9]+ *([KMG]iB|[kMG]?B)?$"},
                {"type": "integer", "minimum": 0}
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("\"16MiB\"", 16 << 20),
            ("\"64 KiB\"", 64 << 10),
            ("\"1GB\"", 1_000_000_000),
            ("\"7B\"", 7),
            ("\"7\"", 7),
            ("4096", 4096),
            ("0", 0),
        ] {
            let size: ByteSize = serde_json::from_str(text).unwrap();
            assert_eq!(size, ByteSize(bytes), "{text}");
            let written = serde_json::to_string(&size).unwrap();
            assert_eq!(
                serde_json::from_str::<ByteSize>(&written).unwrap(),
                size,
                "{written}"
            );
        }
        assert_eq!(ByteSize::mebibytes(8).to_string(), "8MiB");
        for text in [
            "\"MiB\"",
            "\"-1\"",
            "-1",
            "\"1.5MiB\"",
            "\"9999999999GiB\"",
            "true",
        ] {
            assert!(serde_json::from_str::<ByteSize>(text).is_err(), "{text}");
        }
    }
}
