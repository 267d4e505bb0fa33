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
        "run", "validate", "tap", "dlq", "schema", "query", "eval", "export", "embed", "bench",
        "model",
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

/// Asked for by name and not to be had, CUDA is an error with the reason, before any large file is looked
/// for: the folder has none.
#[test]
fn cuda_that_is_not_there_is_told_with_the_way_out() {
    let model = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../kernels/encoder/tests/data/random/cls-384"
    );
    let refused = vectide(&[
        "embed",
        "--model=bert",
        "--device=cuda",
        &format!("--path={model}"),
        "--input=/nonexistent/texts.jsonl",
        "--output=/nonexistent/vectors.npy",
    ]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let told = String::from_utf8_lossy(&refused.stderr);
    // A machine with a GPU misses the files next.
    if !told.contains("has no tokenizer.json") {
        assert!(
            told.contains("`device: cuda` can't be had: no GPU: "),
            "{told}"
        );
        assert!(
            told.contains("hint: ") && told.contains("`device: auto`"),
            "{told}"
        );
    }
}
