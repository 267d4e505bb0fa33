//! `vectide validate`: everything that is wrong with a configuration, at once.

use crate::failure::{Failure, UNAVAILABLE};
use crate::registry::registry;
use std::path::Path;
use std::time::Duration;
use vectide_engine::{LoadedConfig, Plan, Redecoders, SectionCheck, editor_schema};
use vectide_model::{ComponentError, ConnectionCheck};
use vectide_serve::ServerConfig;

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

/// Longest wait for an answer of the outside world: two failed connections of most clients.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Checks a configuration, then looks at everything it needs in the outside world: one line each.
///
/// # Errors
/// Faults of the configuration; with the exit status 69, how many of the checks failed.
pub fn connect(config: &Path) -> Result<(), Failure> {
    validate(config)?;
    let loaded = load(config)?;
    let server = SectionCheck {
        section: "server".into(),
        checks: vec![check_port(&loaded.config().server)],
    };
    let mut sections = loaded.connection_checks().run(CONNECT_LIMIT)?;
    sections.push(server);
    let (mut checked, mut failed) = (0, 0);
    for SectionCheck { section, checks } in sections {
        for ConnectionCheck { what, result } in checks {
            checked += 1;
            match result {
                Ok(found) => println!("ok    {section}: {what}: {found}"),
                Err(ComponentError { fact, hint, .. }) => {
                    failed += 1;
                    let hint = match hint.as_str() {
                        "" => String::new(),
                        hint => format!(" (hint: {hint})"),
                    };
                    println!("FAIL  {section}: {what}: {fact}{hint}");
                }
            }
        }
    }
    if failed > 0 {
        return Err(Failure {
            status: UNAVAILABLE,
            message: format!("{failed} of {checked} checks failed"),
        });
    }
    Ok(())
}

fn check_port(server: &ServerConfig) -> ConnectionCheck {
    let result = server.address().and_then(|address| {
        let bound = std::net::TcpListener::bind(address);
        bound.map(|_| "it is free".to_owned()).map_err(|error| {
            let fact = format!("it can't be listened on: {error}");
            let hint = "another process may use the port; set server.listen";
            ComponentError::new("listen", fact, hint)
        })
    });
    ConnectionCheck {
        what: format!("address {}", server.listen),
        result,
    }
}

/// Reads and checks a configuration with this program's components.
///
/// # Errors
/// All its faults, with the exit status 78.
pub fn load(config: &Path) -> Result<LoadedConfig, Failure> {
    LoadedConfig::load(config, &registry(), &vectide_config::process_environment)
        .map_err(|report| Failure::config(&report))
}

/// Opens everything of a configuration but its sources, which are not read.
///
/// # Errors
/// What can't be opened, with the exit status 78.
pub fn open_without_sources(loaded: LoadedConfig) -> Result<(Plan, Redecoders), Failure> {
    let opened = loaded.open_without_sources(&registry());
    opened.map_err(|report| Failure::config(&report))
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
