//! `vectide check`: whether a state is what its rows say.

use crate::backup::here_or_there;
use crate::failure::Failure;
use crate::validate;
use std::path::Path;
use vectide_engine::StateReport;

/// Checks the state of a pipeline, running or not, and prints what was found: for a person, or as
/// one JSON object.
///
/// # Errors
/// A bad configuration; a state that is missing or another pipeline's; or how much is wrong with it.
pub fn check(config: &Path, json: bool) -> Result<(), Failure> {
    let (plan, _) = validate::open_without_sources(validate::load(config)?)?;
    let report = here_or_there(
        || vectide_engine::check_state(&plan),
        || vectide_engine::ask_check(&plan.state_directory),
    )?;
    print_report(&report, json)
}

/// Prints what was found.
pub(crate) fn print_report(report: &StateReport, json: bool) -> Result<(), Failure> {
    if json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        println!(
            "epoch {}: {} rows, {} documents, {} chunks, {} vectors in {} segments and heads, {} \
             dead letters",
            report.epoch,
            report.rows,
            report.documents,
            report.chunks,
            report.vectors,
            report.segments,
            report.dead_letters
        );
        for fault in &report.told {
            println!("FAULT {fault}");
        }
        let told = report.told.len() as u64;
        if report.faults > told {
            println!("and {} more", report.faults - told);
        }
    }
    if report.faults > 0 {
        return Err(Failure::new(format!(
            "{} faults in the state\nhint: restore it from a copy, or remove it to build it again \
             from the sources",
            report.faults
        )));
    }
    Ok(())
}
