//! Values with units, as configurations write them: `64MiB`, `10s`.
//!
//! Invariant: a value always carries its unit, prints in the largest one that is exact, and reads
//! back as itself.

mod byte_size;
mod human_duration;

pub use byte_size::ByteSize;
pub use human_duration::HumanDuration;

/// A text that is no value with a unit. The message says what is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fact}; allowed: {allowed}")]
pub struct UnitError {
    fact: String,
    allowed: &'static str,
}

/// What of a bad value is shown: enough to find it.
const SHOWN_CHARACTERS_MAX: usize = 60;

/// `64MiB` with the unit's factor -> the value in the base unit.
fn read_with_unit(
    text: &str,
    units: &[(&str, u64)],
    allowed: &'static str,
) -> Result<u64, UnitError> {
    let fail = |fact: String| UnitError { fact, allowed };
    let shown: String = text.chars().take(SHOWN_CHARACTERS_MAX).collect();
    let digits = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(fail(format!(
            "`{shown}` does not begin with a whole number"
        )));
    }
    if unit.is_empty() {
        return Err(fail(format!("`{shown}` has no unit")));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(fail(format!("`{shown}` has an unknown unit")));
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .ok_or_else(|| fail(format!("`{shown}` is too large")))
}
