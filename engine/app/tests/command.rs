//! The command line as such: its name, its version, its commands, and what a wrong one gets. What the
//! commands do is tested end to end in the workspace's `tests`, with the binary that this test makes
//! cargo build.

use std::process::{Command, Output};

fn vectide(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vectide"))
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn help_names_every_command_and_a_wrong_one_is_refused() {
    let help = String::from_utf8(vectide(&["--help"]).stdout).unwrap();
    for command in [
        "run", "validate", "tap", "dlq", "schema", "query", "eval", "export", "embed", "model",
    ] {
        assert!(help.contains(command), "{help}");
    }
    let version = String::from_utf8(vectide(&["--version"]).stdout).unwrap();
    assert_eq!(
        version.trim(),
        concat!("vectide ", env!("CARGO_PKG_VERSION"))
    );
    let wrong = vectide(&["rnu"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("rnu"),
        "{wrong:?}"
    );
}

#[test]
fn a_missing_configuration_is_told() {
    let missing = vectide(&["validate", "/nonexistent/pipeline.yaml"]);
    assert_eq!(missing.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nonexistent/pipeline.yaml"));
}
