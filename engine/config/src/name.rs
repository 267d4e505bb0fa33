//! The name that a configuration gives to one of its entries: `history` under `sources:`.
//!
//! Invariant: a name is fit for file names, metric labels and URLs as it is: a small letter, then
//! at most 62 of small letters, digits, `_` and `-`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;

const ALLOWED: &str = "a small letter, then at most 62 of small letters, digits, `_` and `-`";

/// As long as a label of DNS may be.
const NAME_BYTES_MAX: usize = 63;

/// A checked name. As the key of a map it limits the map's keys, in serde and in the schema.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Name(String);

/// A text that can't be a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name; allowed: {ALLOWED}")]
pub struct NameError(String);

impl Name {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut bytes = text.bytes();
        let starts_well = bytes.next().is_some_and(|first| first.is_ascii_lowercase());
        let goes_on_well = bytes.all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
        });
        if starts_well && goes_on_well && text.len() <= NAME_BYTES_MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(crate::node::shortened(text)))
        }
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Name {
    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn schema_id() -> Cow<'static, str> {
        "vectide_config::Name".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": format!("A name: {ALLOWED}."),
            "pattern": "^[a-z][a-z0-9_-]{0,62}$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_the_pattern_accepts() {
        let pattern = regex::Regex::new("^[a-z][a-z0-9_-]{0,62}$").unwrap();
        let longest = "a".repeat(63);
        let too_long = "a".repeat(64);
        for text in [
            "a", "pages", "a-b_c9", "", "A", "9a", "_a", "a.b", "a b", "é", &longest, &too_long,
        ] {
            assert_eq!(
                text.parse::<Name>().is_ok(),
                pattern.is_match(text),
                "{text}"
            );
        }
    }
}
