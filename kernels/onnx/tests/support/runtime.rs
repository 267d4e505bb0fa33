//! ONNX Runtime and the real models of the tests, which `scripts/onnx.sh` fetches.
//!
//! Invariant: a test that goes without them says so, and fails where they are required
//! (`VECTIDE_REQUIRE_SERVICES=1`, as in CI).

// Not every test uses all of it.
#![allow(dead_code)]
// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

static FETCHED: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/onnx.sh");
    let output = Command::new(script)
        .output()
        .map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().into()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().into()),
    }
});

/// What was fetched; says what `test` goes without when there is nothing.
fn fetched(test: &str) -> Option<&'static Path> {
    match &*FETCHED {
        Ok(folder) => Some(folder),
        Err(reason) => {
            let required = std::env::var("VECTIDE_REQUIRE_SERVICES");
            let is_required = required.is_ok_and(|value| value == "1");
            assert!(!is_required, "{test} needs ONNX Runtime: {reason}");
            println!("skipped: {test}: {reason}");
            None
        }
    }
}

/// The folder of ONNX Runtime's library.
pub(crate) fn library(test: &str) -> Option<PathBuf> {
    fetched(test).map(|folder| folder.join("runtime"))
}

/// The folder of all-MiniLM-L6-v2 as it is quantised while it runs.
pub(crate) fn quantized_minilm(test: &str) -> Option<PathBuf> {
    fetched(test).map(|folder| folder.join("all-MiniLM-L6-v2-q"))
}

/// The folder of all-MiniLM-L6-v2.
pub(crate) fn minilm(test: &str) -> Option<PathBuf> {
    fetched(test).map(|folder| folder.join("all-MiniLM-L6-v2"))
}
