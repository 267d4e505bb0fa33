//! `vectide validate`: everything that is wrong with a configuration, at once.

use crate::failure::Failure;
use crate::registry::registry;
use std::path::Path;
use vectide_engine::{LoadedConfig, editor_schema};

/// Checks a configuration without touching the outside world.
///
/// # Errors
/// All its faults, with the exit status 78.
pub fn validate(config: &Path) -> Result<(), Failure> {
    let loaded = load(config)?;
    let config_parts = loaded.config();
    println!(
        "{}: valid: {} source(s), {} document view(s), {} index(es)",
        config.display(),
        config_parts.sources.len(),
        config_parts.documents.len(),
        config_parts.indexes.len()
    );
    Ok(())
}

/// Reads and checks a configuration with this program's components.
///
/// # Errors
/// All its faults, with the exit status 78.
pub fn load(config: &Path) -> Result<LoadedConfig, Failure> {
    LoadedConfig::load(config, &registry(), &vectide_config::process_environment)
        .map_err(|report| Failure::config(&report))
}

/// Prints the JSON Schema of configurations, for editors.
///
/// # Errors
/// When the output can't be written.
pub fn print_schema() -> Result<(), Failure> {
    let schema = editor_schema(&registry())?;
    println!("{}", serde_json::to_string_pretty(&schema)?);
    Ok(())
}
