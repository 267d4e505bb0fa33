//! Lengths of time in a configuration: people write `200ms`, programs count nanoseconds.
//!
//! Invariant: a length of time always carries its unit; a bare number is refused.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::time::Duration;

/// A length of time, written as `200ms`, `10s`, `5m` or `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(pub Duration);

impl TimeSpan {
    /// A number of milliseconds.
    pub const fn milliseconds(count: u64) -> Self {
        Self(Duration::from_millis(count))
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            de::Error::custom(format!(
                "not a length of time such as `200ms` or `10s`: {error}"
            ))
        })
    }
}

impl JsonSchema for TimeSpan {
    fn schema_name() -> Cow<'static, str> {
        "TimeSpan".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A length of time with its unit: `200ms`, `10s`, `5m`",
            "type": "string",
            "pattern": "^[0-9]+ *[a-z]+( *[0-9]+ *[a-z]+)*$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, milliseconds) in [
            ("\"200ms\"", 200),
            ("\"10s\"", 10_000),
            ("\"1m 30s\"", 90_000),
        ] {
            let span: TimeSpan = serde_json::from_str(text).unwrap();
            assert_eq!(span, TimeSpan::milliseconds(milliseconds));
            let written = serde_json::to_string(&span).unwrap();
            assert_eq!(serde_json::from_str::<TimeSpan>(&written).unwrap(), span);
        }
        for text in ["200", "\"200\"", "\"fast\"", "\"-1s\""] {
            assert!(serde_json::from_str::<TimeSpan>(text).is_err(), "{text}");
        }
    }
}
