//! `vectide position`: where sources end now, as a query's `at_least` takes it.

use crate::failure::{Failure, UNAVAILABLE};
use crate::validate;
use std::collections::BTreeMap;
use std::path::Path;

/// Asks the sources of a configuration, or one of them, and prints one JSON object: source, partition,
/// next offset. No pipeline has to run.
///
/// # Errors
/// A bad configuration, a source that is not there, or, with the exit status 69, one that does not
/// tell.
pub fn position(config: &Path, source: Option<&str>) -> Result<(), Failure> {
    let loaded = validate::load(config)?;
    let probes = loaded.position_probes(source);
    let probes = probes.map_err(|report| Failure::config(&report))?;
    let mut ends = BTreeMap::new();
    for (name, probe) in probes {
        let end = probe.end().map_err(|error| Failure {
            status: UNAVAILABLE,
            message: format!("source `{name}`: {}\nhint: {}", error.fact, error.hint),
        })?;
        ends.insert(name, end);
    }
    println!("{}", serde_json::to_string(&ends)?);
    Ok(())
}
