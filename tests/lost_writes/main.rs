//! The power fails, and the disk has lost what it was not made to keep: all calls of the real binary that
//! change files are played to a disk in memory, which is cut off at a random call. What was not synced is
//! gone or torn, each write by itself.
//!
//! Whatever is left, the next run ends with the right state, and no commit that was acknowledged before
//! is missing.
//!
//! 50 disks; `VECTIDE_TORTURE=1` makes it 500. The seed is printed, and `VECTIDE_SEED` repeats it.

mod disk;
mod trace;

use disk::Disk;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use trace::Call;
use vectide_tests::{
    Random, can_trace, edit, files_under, is_torture, run_to_end, seed, sound_epoch, texts,
    vectide_binary, write_config,
};

/// More than the head of a shard holds, so that segments are written as well.
const DOCUMENTS: usize = 9_000;

/// Lines of the second run: some change documents, some bring new ones.
const CHANGES: usize = 3_000;

fn line(number: usize) -> (String, String) {
    let id = if number < DOCUMENTS {
        number
    } else {
        // Every third is new.
        let change = number - DOCUMENTS;
        if change.is_multiple_of(3) {
            number
        } else {
            change
        }
    };
    (id.to_string(), format!("page {id} of line {number}"))
}

fn append(log: &Path, numbers: std::ops::Range<usize>) {
    let mut text = fs::read_to_string(log).unwrap_or_default();
    for (id, page) in numbers.map(line) {
        text += &format!("{{\"id\":\"{id}\",\"text\":\"{page}\"}}\n");
    }
    fs::write(log, text).unwrap();
}

/// A configuration in a folder of its own, over the log beside that.
fn config(directory: &Path) -> PathBuf {
    fs::create_dir_all(directory).unwrap();
    let source = "{type: jsonl, path: ../pages.jsonl, format: {type: change, key: id}}";
    let config = write_config(directory, "pipeline", source, "commit: {rows: 300}");
    edit(&config, "./state}", "./state, min_free: 0B}");
    config
}

/// Runs a command with a configuration and adds its calls to those before.
fn record(command: &[&str], config: &Path, calls: &mut Vec<Call>) {
    let log = config.with_file_name("calls");
    let output = trace::traced(vectide_binary(), &log)
        .args(command)
        .arg(config)
        .env("VECTIDE_LOG", "warn")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    trace::read(&fs::read_to_string(log).unwrap(), calls);
}

/// The epoch that was acknowledged before a step: it is noted beside the store after each commit.
fn acknowledged(disk: &Disk, before: usize) -> u64 {
    let note = disk.last_written("last-commit", before);
    let epoch = note.map(|note| note[8..16].try_into().unwrap());
    epoch.map_or(0, u64::from_le_bytes)
}

/// The disk that has everything is the real one.
fn is_played_right(disk: &Disk, state: &Path, target: &Path) {
    disk.write(disk.steps(), None, target);
    let relative = |folder: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let found = files_under(folder).into_iter().map(|path| {
            let bytes = fs::read(&path).unwrap();
            (path.strip_prefix(folder).unwrap().into(), bytes)
        });
        found.collect()
    };
    let (real, played) = (relative(state), relative(target));
    for (path, bytes) in &real {
        // The socket's file is not written by any call that is traced.
        assert!(
            played.get(path) == Some(bytes),
            "{path:?} was not played right"
        );
    }
    assert_eq!(real.len(), played.len());
    fs::remove_dir_all(target).unwrap();
}

#[test]
fn a_disk_that_loses_what_was_not_synced_loses_no_commit() {
    if !can_trace("a_disk_that_loses_what_was_not_synced") {
        return;
    }
    let seeds = if is_torture() { 500 } else { 50 };
    let mut random = Random::new(seed());
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("pages.jsonl");
    let recorded = config(&directory.path().join("recorded"));
    let state = recorded.with_file_name("state");
    let mut calls = Vec::new();
    append(&log, 0..DOCUMENTS);
    let run = ["run", "--until-caught-up"];
    record(&run, &recorded, &mut calls);
    // Brings everything from the journal into tables, and those together.
    record(&["compact"], &recorded, &mut calls);
    append(&log, DOCUMENTS..DOCUMENTS + CHANGES);
    record(&run, &recorded, &mut calls);
    record(&["compact"], &recorded, &mut calls);
    let disk = Disk::play(calls, &state);
    is_played_right(&disk, &state, &directory.path().join("played"));
    let expected: BTreeMap<String, String> = (0..DOCUMENTS + CHANGES).map(line).collect();
    assert!(texts(&recorded) == expected, "without a fault");

    let mut epochs = BTreeMap::new();
    for number in 0..seeds {
        let before = random.below(disk.steps() as u64 + 1) as usize;
        let place = format!(
            "disk {number}, cut off at step {before} of {}",
            disk.steps()
        );
        let folder = directory.path().join(format!("{number}"));
        let config = config(&folder);
        disk.write(before, Some(&mut random), &folder.join("state"));
        let acknowledged = acknowledged(&disk, before);
        let epoch = sound_epoch(&config, &place);
        assert!(
            epoch >= acknowledged,
            "{place}: epoch {epoch} after {acknowledged}"
        );
        *epochs.entry(epoch - acknowledged).or_insert(0) += 1;
        run_to_end(&config);
        assert!(sound_epoch(&config, &place) >= epoch, "{place}: went back");
        assert!(texts(&config) == expected, "{place}: other texts");
        fs::remove_dir_all(&folder).unwrap();
    }
    println!("epochs more than were acknowledged, and how often: {epochs:?}");
}
