//! What the environment asks of tests: what becomes of one whose service can't be had, and how long the
//! long ones are.
//!
//! Invariant: it is told by name, and where services are required (`VECTIDE_REQUIRE_SERVICES=1`, as in
//! CI) it fails.

/// The service, or why the test is skipped.
///
/// # Panics
/// When services are required and this one is not there.
pub fn started_or_skip<T>(test: &str, service: &str, started: Result<T, String>) -> Option<T> {
    match started {
        Ok(service) => Some(service),
        Err(reason) => {
            let required = std::env::var("VECTIDE_REQUIRE_SERVICES");
            let is_required = required.is_ok_and(|value| value == "1");
            assert!(!is_required, "{test} needs {service}: {reason}");
            println!("skipped: {test}: {reason}");
            None
        }
    }
}

/// Whether the long runs are wanted (`VECTIDE_TORTURE=1`).
pub fn is_torture() -> bool {
    std::env::var("VECTIDE_TORTURE").is_ok_and(|value| value == "1")
}
