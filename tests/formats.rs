//! A state of every format that was ever written is opened by this program: it is whole, answers, and goes
//! on. `tests/formats` keeps one of each, with its configuration and its log.
//!
//! A format is made anew by running `pipeline.yaml` of the last one with the program that is to be kept,
//! until there is a sealed segment: `tar cf - pipeline.yaml pages.jsonl state | zstd -19`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use vectide_tests::{append, call, edit, expect_sound, export, files_under, run_to_end};

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

/// A layout that no program has yet.
const OF_TOMORROW: u8 = 200;

/// Makes every value of a store one of a later layout: each begins with its layout's version.
fn age(store: &Path) {
    let database = fjall::Database::builder(store).open().unwrap();
    for name in database.list_keyspace_names() {
        let keyspace = database.keyspace(&name, Default::default).unwrap();
        let entries: Vec<_> = keyspace
            .iter()
            .map(|entry| entry.into_inner().unwrap())
            .collect();
        for (key, value) in entries {
            let mut value = value.to_vec();
            if let Some(version) = value.first_mut() {
                *version = OF_TOMORROW;
                keyspace.insert(&*key, value).unwrap();
            }
        }
    }
    database.persist(fjall::PersistMode::SyncAll).unwrap();
}

fn segment_files(state: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = files_under(&state.join("segments"));
    let file = |path: PathBuf| (path.clone(), fs::read(path).unwrap());
    files.into_iter().map(file).collect()
}

/// What a program of tomorrow wrote, one of today refuses by name and leaves as it is.
#[test]
fn a_state_of_a_later_version_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let config = unpack(&kept()[0], directory.path());
    let state = directory.path().join("state");
    age(&state.join("store"));
    let segments = segment_files(&state);
    assert!(!segments.is_empty());
    let commands: [(&[&str], &[&str]); 5] = [
        (&["run", "--until-caught-up"], &[]),
        (&["check"], &[]),
        (&["export"], &["documents"]),
        (&["plan"], &[]),
        (&["compact"], &[]),
    ];
    for (command, rest) in commands {
        let (status, told, complaints) = call(command, &config, rest);
        assert_eq!(status, Some(1), "{command:?}: {told}{complaints}");
        let version = format!("layout version {OF_TOMORROW}");
        assert!(complaints.contains(&version), "{command:?}: {complaints}");
        assert!(complaints.contains("hint: "), "{command:?}: {complaints}");
        assert!(
            !complaints.contains("panicked"),
            "{command:?}: {complaints}"
        );
    }
    assert!(segment_files(&state) == segments, "segments were touched");
}
