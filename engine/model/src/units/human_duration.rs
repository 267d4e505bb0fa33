//! A length of time as people write it in a configuration: `200ms`, `10s`, `5m`, `1h`, `7d`.
//!
//! Invariant: a value prints in the largest unit that is exact and reads back as itself; there is
//! no number without a unit, because nobody remembers whether it would be seconds.

use super::{UnitError, read_with_unit};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Ten years; longer is a mistake, and sums of such values can't overflow.
const MILLISECONDS_MAX: u64 = 10 * 365 * 24 * 60 * 60 * 1000;

/// Name and length of each unit, longest first.
const UNITS: [(&str, u64); 5] = [
    ("d", 24 * 60 * 60 * 1000),
    ("h", 60 * 60 * 1000),
    ("m", 60 * 1000),
    ("s", 1000),
    ("ms", 1),
];

const ALLOWED: &str = "a whole number and a unit (ms, s, m, h, d), such as `200ms`, `10s` or `5m`";

/// A duration of at most ten years, in whole milliseconds.
///
/// ```
/// # use vectide_model::HumanDuration;
/// let timeout: HumanDuration = "1500ms".parse()?;
/// assert_eq!(timeout.as_duration(), std::time::Duration::from_millis(1500));
/// assert_eq!("120s".parse::<HumanDuration>()?.to_string(), "2m");
/// # Ok::<(), vectide_model::UnitError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration {
    milliseconds: u64,
}

impl HumanDuration {
    /// From whole milliseconds; what is beyond ten years becomes ten years.
    #[must_use]
    pub const fn from_milliseconds(milliseconds: u64) -> Self {
        let milliseconds = if milliseconds > MILLISECONDS_MAX {
            MILLISECONDS_MAX
        } else {
            milliseconds
        };
        Self { milliseconds }
    }

    /// From whole seconds; what is beyond ten years becomes ten years.
    #[must_use]
    pub const fn from_seconds(seconds: u64) -> Self {
        Self::from_milliseconds(seconds.saturating_mul(1000))
    }

    /// For the standard library's APIs.
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }

    /// In milliseconds.
    #[must_use]
    pub const fn as_milliseconds(self) -> u64 {
        self.milliseconds
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.as_duration()
    }
}

impl FromStr for HumanDuration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let milliseconds = read_with_unit(text, &UNITS, ALLOWED)?;
        if milliseconds > MILLISECONDS_MAX {
            return Err(UnitError {
                fact: format!("`{text}` is longer than ten years"),
                allowed: ALLOWED,
            });
        }
        Ok(Self { milliseconds })
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.milliseconds == 0 {
            return out.write_str("0s");
        }
        let exact = UNITS
            .iter()
            .find(|(_, length)| self.milliseconds.is_multiple_of(*length));
        match exact {
            Some((unit, length)) => write!(out, "{}{unit}", self.milliseconds / length),
            None => write!(out, "{}ms", self.milliseconds),
        }
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> Cow<'static, str> {
        "HumanDuration".into()
    }

    fn schema_id() -> Cow<'static, str> {
        "vectide_model::HumanDuration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": format!("A duration: {ALLOWED}."),
            "pattern": "^[0-9]{1,15}(ms|s|m|h|d)$",
            "examples": ["200ms", "10s", "5m", "1h"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_every_unit() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("200ms", 200),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("2d", 172_800_000),
        ] {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!(duration.as_milliseconds(), milliseconds, "{text}");
            assert_eq!(duration.to_string(), text);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, fact) in [
            ("", "`` does not begin with a whole number"),
            ("s", "`s` does not begin with a whole number"),
            ("-1s", "`-1s` does not begin with a whole number"),
            ("10", "`10` has no unit"),
            ("10 s", "`10 s` has an unknown unit"),
            ("1.5s", "`1.5s` has an unknown unit"),
            ("10sec", "`10sec` has an unknown unit"),
            ("3651d", "`3651d` is longer than ten years"),
            (
                "99999999999999999999s",
                "`99999999999999999999s` is too large",
            ),
            (
                "18446744073709551615d",
                "`18446744073709551615d` is too large",
            ),
        ] {
            assert_eq!(text.parse::<HumanDuration>().unwrap_err().fact, fact);
        }
    }

    proptest! {
        #[test]
        fn reads_back_what_it_prints(milliseconds in 0..=MILLISECONDS_MAX) {
            let duration = HumanDuration::from_milliseconds(milliseconds);
            prop_assert_eq!(duration.to_string().parse::<HumanDuration>(), Ok(duration));
            let json = serde_json::to_string(&duration).unwrap();
            prop_assert_eq!(serde_json::from_str::<HumanDuration>(&json).unwrap(), duration);
        }
    }
}
