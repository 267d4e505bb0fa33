//! An amount of data as people write it in a configuration: `512B`, `10kB`, `64MiB`.
//!
//! Invariant: a value prints in the largest unit that is exact (binary before decimal) and reads
//! back as itself. There is no bare `64M`: it means two things.

use super::{UnitError, read_with_unit};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Name and bytes of each unit; the first that divides a value prints it.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

const ALLOWED: &str = "a whole number and a unit (B, kB, MB, GB, TB by thousands; \
                       KiB, MiB, GiB, TiB by 1024), such as `64MiB`";

/// A number of bytes.
///
/// ```
/// # use vectide_model::ByteSize;
/// let size: ByteSize = "64MiB".parse()?;
/// assert_eq!(size.as_bytes(), 64 * 1024 * 1024);
/// assert_eq!(ByteSize::from_bytes(10_000).to_string(), "10kB");
/// # Ok::<(), vectide_model::UnitError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize {
    bytes: u64,
}

impl ByteSize {
    /// So many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self { bytes }
    }

    /// So many mebibytes.
    #[must_use]
    pub const fn mebibytes(count: u64) -> Self {
        Self::from_bytes(count << 20)
    }

    /// In bytes.
    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        self.bytes
    }

    /// In bytes, as lengths in memory are counted; what this machine can't address becomes the
    /// greatest it can.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.bytes).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bytes = read_with_unit(text, &UNITS, ALLOWED)?;
        Ok(Self { bytes })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS
            .iter()
            .find(|(_, factor)| self.bytes > 0 && self.bytes.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => write!(out, "{}{unit}", self.bytes / factor),
            None => write!(out, "{}B", self.bytes),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn schema_id() -> Cow<'static, str> {
        "vectide_model::ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": format!("An amount of data: {ALLOWED}."),
            "pattern": "^[0-9]{1,20}(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)$",
            "examples": ["512B", "10kB", "64MiB"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_every_unit() {
        for (text, bytes) in [
            ("0B", 0),
            ("512B", 512),
            ("10kB", 10_000),
            ("3MB", 3_000_000),
            ("1KiB", 1024),
            ("64MiB", 67_108_864),
            ("2GiB", 2_147_483_648),
            ("1TiB", 1_099_511_627_776),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.as_bytes(), bytes, "{text}");
            assert_eq!(size.to_string(), text);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, fact) in [
            ("64", "`64` has no unit"),
            ("64M", "`64M` has an unknown unit"),
            ("64mib", "`64mib` has an unknown unit"),
            ("MiB", "`MiB` does not begin with a whole number"),
            ("16777216TiB", "`16777216TiB` is too large"),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap_err().fact, fact);
        }
    }

    proptest! {
        #[test]
        fn reads_back_what_it_prints(bytes: u64) {
            let size = ByteSize::from_bytes(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
            let json = serde_json::to_string(&size).unwrap();
            prop_assert_eq!(serde_json::from_str::<ByteSize>(&json).unwrap(), size);
        }
    }
}
