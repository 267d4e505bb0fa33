//! Reading one's own writes: a query that says how far the answer has to be.
//!
//! An application that has written to its database knows the position of its write; a query that
//! carries it waits until a state is published which holds it. The wait holds no thread: the
//! published positions are looked at every few milliseconds.
//!
//! Invariant: an answer which is not marked as stale covers every position that was asked for.

use crate::endpoint::Endpoint;
use crate::problem::{Refusal, listed, nearest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use utoipa::ToSchema;
use vectide_model::{HumanDuration, Positions};

/// How often the published positions are looked at: well below the freshness of a pipeline, and
/// thousands of waiting queries cost a fraction of a core.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// What a query may wait when it does not say: as long as a person waits for a page.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);

/// Positions, as a client writes them: source -> partition -> next offset.
pub type Wanted = BTreeMap<String, BTreeMap<String, OffsetView>>;

/// An offset: a number, or a Postgres log sequence number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum OffsetView {
    /// The next offset: everything before it is wanted.
    Number(u64),
    /// Two hexadecimal numbers, `0/16B3748`.
    Lsn(String),
}

impl OffsetView {
    fn value(&self) -> Option<u64> {
        match self {
            Self::Number(offset) => Some(*offset),
            Self::Lsn(text) => {
                let (high, low) = text.split_once('/')?;
                let half = |digits: &str| u32::from_str_radix(digits, 16).ok().map(u64::from);
                Some(half(high)? << 32 | half(low)?)
            }
        }
    }
}

/// What to do when the wanted positions do not come in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// Answer 503 with the positions that there are.
    #[default]
    Fail,
    /// Answer from what there is, marked as `stale`.
    Serve,
}

pub(crate) const ON_TIMEOUT_NAMES: [&str; 2] = ["fail", "serve"];

/// The part of a request that says how far its answer has to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct AtLeast {
    wanted: Positions,
    timeout: Duration,
    on_timeout: OnTimeout,
}

impl AtLeast {
    /// Checks what a client wrote. `timeout_max` is the server's limit of a request.
    pub(crate) fn new(
        wanted: &Wanted,
        timeout: Option<HumanDuration>,
        on_timeout: OnTimeout,
        timeout_max: Duration,
    ) -> Result<Self, Refusal> {
        let mut checked = Positions::new();
        for (source, partitions) in wanted {
            let of_source = checked.entry(source.as_str().into()).or_default();
            for (partition, offset) in partitions {
                let offset = offset.value().ok_or_else(|| {
                    let fact = format!("`at_least.{source}.{partition}` is no offset");
                    let hint =
                        "send a whole number, or a log sequence number such as \"0/16B3748\"";
                    Refusal::invalid("at_least", fact, hint)
                })?;
                of_source.insert(partition.as_str().into(), offset);
            }
        }
        let timeout = timeout.map_or(TIMEOUT_DEFAULT.min(timeout_max), |it| it.as_duration());
        if timeout > timeout_max {
            let fact = format!("`timeout` is {} ms", timeout.as_millis());
            let hint = format!(
                "at most {} ms, the server's `request_timeout`",
                timeout_max.as_millis()
            );
            return Err(Refusal::invalid("timeout", fact, hint));
        }
        Ok(Self {
            wanted: checked,
            timeout,
            on_timeout,
        })
    }

    /// Waits until a published state covers what is wanted. Says whether it does.
    ///
    /// # Errors
    /// A source that there is not; nothing published; not covered in time, unless such an answer is
    /// wanted all the same.
    pub(crate) async fn wait(&self, endpoint: &Endpoint) -> Result<bool, Refusal> {
        if self.wanted.is_empty() {
            return Ok(true);
        }
        self.check_sources(&endpoint.service.sources())?;
        let start = Instant::now();
        loop {
            let held = endpoint.service.positions().unwrap_or_default();
            if covers(&held, &self.wanted) {
                return Ok(true);
            }
            if start.elapsed() >= self.timeout {
                return match self.on_timeout {
                    OnTimeout::Serve => Ok(false),
                    OnTimeout::Fail => Err(not_yet(self.timeout, held)),
                };
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn check_sources(&self, known: &[String]) -> Result<(), Refusal> {
        let mut asked = self.wanted.keys();
        let Some(unknown) = asked.find(|source| !known.iter().any(|it| **it == ***source)) else {
            return Ok(());
        };
        let hint = match nearest(unknown, known) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("there is {}", listed(known)),
        };
        let fact = format!("there is no source `{unknown}`");
        Err(Refusal::invalid("at_least", fact, hint))
    }
}

fn not_yet(timeout: Duration, held: Arc<Positions>) -> Refusal {
    let fact = format!(
        "the wanted positions were not in the index within {} ms",
        timeout.as_millis()
    );
    Refusal::unavailable("not_yet", fact).positions(held)
}

/// Whether a state at `held` holds everything before the offsets of `wanted`.
fn covers(held: &Positions, wanted: &Positions) -> bool {
    wanted.iter().all(|(source, partitions)| {
        let held = held.get(source);
        partitions.iter().all(|(partition, offset)| {
            let next = held.and_then(|it| it.get(partition)).copied();
            next.unwrap_or_default() >= *offset
        })
    })
}

/// What is wrong with a time.
pub(crate) fn duration_fault(field: &str, value: &Value) -> Option<(String, String)> {
    let text = value.as_str();
    let good = text.is_some_and(|text| text.parse::<HumanDuration>().is_ok());
    (!good && !value.is_null()).then(|| {
        let hint = "send a time with its unit, \"500ms\" or \"2s\"";
        (format!("`{field}` is {value}"), hint.into())
    })
}

/// What is wrong with one of the fields, before they are read by their types.
pub(crate) fn fault(field: &str, value: &Value) -> Option<(String, String)> {
    match field {
        "at_least" => at_least_fault(value),
        "timeout" => duration_fault("timeout", value),
        "on_timeout" => {
            let good = value
                .as_str()
                .is_some_and(|it| ON_TIMEOUT_NAMES.contains(&it));
            (!good).then(|| {
                let fact = format!("`on_timeout` is {value}");
                (fact, format!("send one of {}", listed(&ON_TIMEOUT_NAMES)))
            })
        }
        _ => None,
    }
}

fn at_least_fault(value: &Value) -> Option<(String, String)> {
    let hint = || "send {\"source\": {\"partition\": offset}}, as `as_of.positions` has it".into();
    let Value::Object(sources) = value else {
        return Some(("`at_least` is not an object".into(), hint()));
    };
    sources.iter().find_map(|(source, partitions)| {
        let Value::Object(partitions) = partitions else {
            return Some((format!("`at_least.{source}` is not an object"), hint()));
        };
        let wrong = partitions
            .iter()
            .find(|(_, offset)| !offset.is_string() && offset.as_u64().is_none());
        wrong.map(|(partition, offset)| {
            let fact = format!("`at_least.{source}.{partition}` is {offset}");
            (fact, hint())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(of: &[(&str, &str, u64)]) -> Positions {
        let mut positions = Positions::new();
        for (source, partition, offset) in of {
            let of_source = positions.entry((*source).into()).or_default();
            of_source.insert((*partition).into(), *offset);
        }
        positions
    }

    #[test]
    fn every_wanted_partition_must_be_reached() {
        let held = positions(&[("a", "0", 10), ("a", "1", 5), ("b", "0", 1)]);
        for (wanted, expected) in [
            (positions(&[]), true),
            (positions(&[("a", "0", 10)]), true),
            (positions(&[("a", "0", 11)]), false),
            (positions(&[("a", "0", 3), ("a", "1", 6)]), false),
            (positions(&[("a", "2", 0)]), true),
            (positions(&[("a", "2", 1)]), false),
            (positions(&[("c", "0", 1)]), false),
        ] {
            assert_eq!(covers(&held, &wanted), expected, "{wanted:?}");
        }
    }

    #[test]
    fn log_sequence_numbers_are_offsets() {
        let lsn = |text: &str| OffsetView::Lsn(text.into()).value();
        assert_eq!(lsn("0/16B3748"), Some(0x16B_3748));
        assert_eq!(lsn("1A/0"), Some(0x1A << 32));
        for wrong in ["", "16B3748", "0/x", "0/1/2", "1FFFFFFFF/0"] {
            assert_eq!(lsn(wrong), None, "{wrong}");
        }
    }
}
