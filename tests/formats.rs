//! A state of every format that was ever written is opened by this program: it is whole, answers, and goes
//! on. `tests/formats` keeps one of each, with its configuration and its log.
//!
//! A format is made anew by running `pipeline.yaml` of the last one with the program that is to be kept,
//! until there is a sealed segment: `tar cf - pipeline.yaml pages.jsonl state | zstd -19`.

use std::fs;
use std::path::{Path, PathBuf};
use vectide_tests::{append, edit, expect_sound, export, run_to_end};

/// The states that are kept, by their format.
fn kept() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("formats");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files.collect()
}

fn unpack(archive: &Path, target: &Path) -> PathBuf {
    let file = fs::File::open(archive).unwrap();
    let bytes = zstd::Decoder::new(file).unwrap();
    tar::Archive::new(bytes).unpack(target).unwrap();
    target.join("pipeline.yaml")
}

#[test]
fn every_format_is_opened_and_goes_on() {
    let kept = kept();
    assert!(!kept.is_empty());
    for archive in kept {
        let directory = tempfile::tempdir().unwrap();
        let config = unpack(&archive, directory.path());
        let report = expect_sound(&config, &format!("{archive:?}"));
        assert_eq!(report["documents"], 8_316, "{report}");
        assert_eq!(report["segments"], 1, "{report}");
        assert_eq!(report["dead_letters"], 1, "{report}");
        // What its log gives today, in another folder.
        let fresh = directory.path().join("fresh.yaml");
        fs::copy(&config, &fresh).unwrap();
        edit(&fresh, "./state}", "./fresh}");
        run_to_end(&fresh);
        for what in ["documents", "chunks"] {
            assert!(
                export(&config, what) == export(&fresh, what),
                "{archive:?}: {what}"
            );
        }
        let log = directory.path().join("pages.jsonl");
        let line = r#"{"op":"u","id":"new","text":"a page of today","number":1}"#;
        append(&log, &format!("{line}\n"));
        assert_eq!(run_to_end(&config)["documents"], 8_317);
        expect_sound(&config, "afterwards");
    }
}
