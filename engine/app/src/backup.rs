//! `vectide backup`, `restore` and `compact`: a state's copy, its way back, and its room.
//!
//! Invariant: where a process runs the pipeline it is asked, and goes on meanwhile; otherwise the state
//! is taken as it lies there.

use crate::check::print_report;
use crate::failure::Failure;
use crate::validate;
use std::path::Path;
use vectide_engine::{AskError, StateError};

/// Copies the state of a pipeline, running or not, to a folder that does not exist yet, and prints what
/// it holds as JSON.
///
/// # Errors
/// A bad configuration, a state that is missing or damaged, or a folder that can't be written.
pub fn back_up(config: &Path, target: &Path) -> Result<(), Failure> {
    let directory = validate::load(config)?.state_directory();
    let report = here_or_there(
        || vectide_engine::back_up(&directory, target),
        || vectide_engine::ask_backup(&directory, target),
    )?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Puts a backup where the configuration has its state, and checks all of it.
///
/// # Errors
/// A bad configuration, a state that is there already, a backup that is damaged or another pipeline's,
/// or faults in it.
pub fn restore(config: &Path, backup: &Path) -> Result<(), Failure> {
    let (plan, _) = validate::open_without_sources(validate::load(config)?)?;
    vectide_engine::restore(&plan, backup)?;
    print_report(&vectide_engine::check_state(&plan)?, false)
}

/// Gives back the room of what is gone from a state, and prints its size before and after as JSON.
///
/// # Errors
/// A bad configuration, or a state that is missing or damaged.
pub fn compact(config: &Path) -> Result<(), Failure> {
    let directory = validate::load(config)?.state_directory();
    let report = here_or_there(
        || vectide_engine::compact_state(&directory),
        || vectide_engine::ask_compact(&directory),
    )?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Does something with a state, or has it done by the process that has the state.
pub(crate) fn here_or_there<T>(
    here: impl FnOnce() -> Result<T, StateError>,
    there: impl FnOnce() -> Result<T, AskError>,
) -> Result<T, Failure> {
    match here() {
        Err(StateError::InUse { .. }) => Ok(there()?),
        done => Ok(done?),
    }
}
