//! `vectide check` on real states: a sound one has no faults; a flipped bit in a file of any kind is
//! found, or changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use vectide_tests::{Random, call, files_under, run_to_end, seed, write_config};

/// More than a shard's head holds, so that there are sealed segments.
const DOCUMENTS: usize = 20_000;

/// Places in each file where a bit is flipped.
const FLIPS_PER_FILE: usize = 2;

/// Places in the journal: what is damaged there looks like what a crash tore.
const FLIPS_IN_JOURNAL: usize = 12;

/// A state with segments, tombstones and dead letters.
fn pipeline(directory: &Path) -> PathBuf {
    let log = directory.join("pages.jsonl");
    let line = |id: usize, version: usize| {
        let text = format!("page {id} version {version} about topic{}", id % 997);
        format!("{{\"id\":\"{id}\",\"text\":\"{text}\"}}\n")
    };
    let mut lines: String = (0..DOCUMENTS).map(|id| line(id, 1)).collect();
    lines.push_str("not JSON\n");
    fs::write(&log, &lines).unwrap();
    let source = "{type: jsonl, path: ./pages.jsonl, format: {type: change, key: id}}";
    let config = write_config(directory, "pipeline", source, "");
    run_to_end(&config);
    lines.extend((0..DOCUMENTS).step_by(40).map(|id| line(id, 2)));
    fs::write(&log, &lines).unwrap();
    run_to_end(&config);
    config
}

fn check(config: &Path) -> (Option<i32>, serde_json::Value, String) {
    let (status, told, complaints) = call(&["check"], config, &["--json"]);
    let report = serde_json::from_str(&told).unwrap_or_default();
    (status, report, complaints)
}

fn copy(from: &Path, to: &Path) {
    for file in files_under(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, &target).unwrap();
    }
}

fn flip(file: &Path, at: usize, bit: u64) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1 << bit;
    fs::write(file, bytes).unwrap();
}

/// Whether the commit names a segment file: it is missed. One that was built when the process ended is
/// in the folder and belongs to nothing until the next start sweeps it.
fn is_named(config: &Path, (kept, state): (&Path, &Path), name: &Path) -> bool {
    fs::remove_dir_all(state).unwrap();
    copy(kept, state);
    fs::remove_file(state.join(name)).unwrap();
    check(config).0 != Some(0)
}

#[test]
fn a_sound_state_has_no_faults() {
    let directory = tempfile::tempdir().unwrap();
    let config = pipeline(directory.path());
    let (status, report, complaints) = check(&config);
    assert_eq!(status, Some(0), "{report}\n{complaints}");
    for (field, expected) in [
        ("rows", DOCUMENTS),
        ("documents", DOCUMENTS),
        ("chunks", DOCUMENTS),
        ("vectors", DOCUMENTS),
        ("dead_letters", 1),
        ("faults", 0),
    ] {
        assert_eq!(report[field], expected, "{field} in {report}");
    }
    assert!(report["segments"].as_u64().unwrap() > 0, "{report}");
    let (status, told, _) = call(&["check"], &config, &[]);
    assert_eq!(status, Some(0));
    assert!(told.contains("20000 documents"), "{told}");
}

#[test]
fn no_state_and_another_pipelines_state_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let source = "{type: jsonl, path: ./pages.jsonl, format: {type: change, key: id}}";
    let config = write_config(directory.path(), "pipeline", source, "");
    let (status, _, complaints) = check(&config);
    assert_eq!(status, Some(1));
    assert!(complaints.contains("there is no state"), "{complaints}");

    fs::write(
        directory.path().join("pages.jsonl"),
        "{\"id\":\"1\",\"text\":\"a\"}\n",
    )
    .unwrap();
    run_to_end(&config);
    let yaml = fs::read_to_string(&config).unwrap();
    fs::write(&config, yaml.replace("{{ text }}", "{{ text }}!")).unwrap();
    let (status, _, complaints) = check(&config);
    assert_eq!(status, Some(1));
    assert!(complaints.contains("another pipeline"), "{complaints}");
}

#[test]
fn a_flipped_bit_is_found_or_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let config = pipeline(directory.path());
    let state = directory.path().join("state");
    let kept = directory.path().join("kept");
    copy(&state, &kept);
    fs::remove_dir_all(&state).unwrap();
    copy(&kept, &state);
    let (status, sound, complaints) = check(&config);
    assert_eq!(status, Some(0), "a copy is as sound: {complaints}");
    let mut random = Random::new(seed());
    let (mut found, mut harmless) = (BTreeMap::new(), BTreeMap::new());
    let files = files_under(&kept).into_iter();
    for file in files.filter(|file| fs::metadata(file).unwrap().len() > 0) {
        let name = file.strip_prefix(&kept).unwrap().to_owned();
        let is_segment = name.starts_with("segments");
        if is_segment && !is_named(&config, (&kept, &state), &name) {
            continue;
        }
        let is_journal = name.extension().is_some_and(|it| it == "jnl");
        let flips = if is_journal {
            FLIPS_IN_JOURNAL
        } else {
            FLIPS_PER_FILE
        };
        for _ in 0..flips {
            fs::remove_dir_all(&state).unwrap();
            copy(&kept, &state);
            let at = random.below(fs::metadata(&file).unwrap().len()) as usize;
            flip(&state.join(&name), at, random.below(8));
            let (status, report, complaints) = check(&config);
            if status == Some(0) {
                assert!(!is_segment, "byte {at} of {}", name.display());
                assert_eq!(report, sound, "byte {at} of {}", name.display());
                *harmless.entry(name.clone()).or_insert(0) += 1;
                continue;
            }
            *found.entry(name.clone()).or_insert(0) += 1;
            assert!(
                !complaints.contains("panicked"),
                "{}: {complaints}",
                name.display()
            );
            // Nor does a pipeline start with what it would serve.
            let (status, _, _) = call(&["run", "--until-caught-up"], &config, &[]);
            if is_segment {
                assert_ne!(status, Some(0), "byte {at} of {}", name.display());
            }
        }
    }
    let segments = found.keys().filter(|name| name.starts_with("segments"));
    assert!(segments.count() > 0, "no segment was looked at");
    println!("found: {found:#?}\nchanged nothing: {harmless:#?}");
}
