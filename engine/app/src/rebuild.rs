//! `vectide plan` and `vectide rebuild`: a changed pipeline from the rows of an earlier state.

use crate::failure::Failure;
use crate::validate;
use std::path::Path;
use vectide_engine::RebuildEstimate;

/// Prints what a configuration would make of the rows of the state in `from`, without which its own is
/// looked at: for a person, or as one JSON object.
///
/// # Errors
/// A bad configuration, or a state that is missing, in use or has other sources.
pub fn plan(config: &Path, from: Option<&Path>, json: bool) -> Result<(), Failure> {
    let (plan, _) = validate::open_without_sources(validate::load(config)?)?;
    let from = from.unwrap_or(&plan.state_directory);
    let estimate = vectide_engine::estimate_rebuild(&plan, from)?;
    if json {
        println!("{}", serde_json::to_string(&estimate)?);
    } else {
        print(&estimate);
    }
    Ok(())
}

/// Makes the state of a configuration from the rows of the state in `from`, and prints what was done as
/// JSON.
///
/// # Errors
/// A bad configuration, a state that is missing, in use or has other sources, or one that is there already.
pub fn rebuild(config: &Path, from: &Path) -> Result<(), Failure> {
    let (plan, _) = validate::open_without_sources(validate::load(config)?)?;
    let report = vectide_engine::rebuild(plan, from)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn print(estimate: &RebuildEstimate) {
    match &estimate.changed[..] {
        [] => println!("nothing changed since epoch {}", estimate.epoch),
        changed => println!(
            "changed since epoch {}: {}",
            estimate.epoch,
            changed.join(", ")
        ),
    }
    for index in &estimate.indexes {
        println!(
            "indexes.{}: {} documents, {} chunks; {} texts to embed, {} tokens, {} bytes; {} rows \
             without a document",
            index.name,
            index.documents,
            index.chunks,
            index.embedded_texts,
            index.embedded_tokens,
            index.embedded_bytes,
            index.unusable_rows
        );
    }
}
