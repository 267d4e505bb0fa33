//! `vectide backup`, `restore`, `check` and `compact`, on a pipeline that runs under load and on one at
//! rest: a backup is the fold of its position, and what it is taken from goes on.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vectide_tests::{
    Running, append, call, edit, expect_sound, free_port, run_to_end, texts, vectide, write_config,
};

/// More than the head of a shard holds, so that there are segments, and some are replaced meanwhile.
const DOCUMENTS: usize = 12_000;

/// Keys that changes under way go to.
const CHANGED_KEYS: usize = 3_000;

/// Changes written with each append.
const APPENDED: usize = 100;

fn line(id: usize, version: usize) -> String {
    format!("{{\"op\":\"u\",\"id\":\"{id}\",\"text\":\"page {id} version {version}\"}}\n")
}

/// A configuration whose state is its own, over the log that all share.
fn pipeline(directory: &Path, name: &str, port: u16) -> PathBuf {
    let format = "{type: change, key: id, op: op}";
    let source = format!("{{type: jsonl, path: ./pages.jsonl, format: {format}, follow: true}}");
    let server = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
    let config = write_config(directory, name, &source, &server);
    edit(&config, "./state", &format!("./{name}"));
    config
}

/// What the first `bytes` of the log come to.
fn fold(log: &Path, bytes: u64) -> BTreeMap<String, String> {
    let text = fs::read(log).unwrap();
    let prefix = std::str::from_utf8(&text[..bytes as usize]).unwrap();
    let change = |line: &str| {
        let json: Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| json[name].as_str().unwrap().to_owned();
        (field("id"), field("text"))
    };
    prefix.lines().map(change).collect()
}

fn offset(report: &Value) -> u64 {
    let partitions = report["positions"]["pages"].as_object().unwrap();
    partitions.values().next().unwrap().as_u64().unwrap()
}

fn back_up(config: &Path, target: &Path) -> Value {
    let (status, told, complaints) = call(&["backup"], config, &[target.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{complaints}");
    serde_json::from_str(&told).unwrap()
}

/// Appends changes until it is told to stop.
fn change_on(log: &Path, stop: &AtomicBool) {
    let mut version = 1;
    while !stop.load(Ordering::Relaxed) {
        let keys = (0..APPENDED).map(|at| (version * APPENDED + at) % CHANGED_KEYS);
        let lines: String = keys.map(|id| line(id, version)).collect();
        append(log, &lines);
        version += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_backup_under_load_is_the_fold_of_its_position() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let log = directory.join("pages.jsonl");
    let lines: String = (0..DOCUMENTS).map(|id| line(id, 0)).collect();
    append(&log, &lines);
    let port = free_port();
    let config = pipeline(directory, "state", port);
    let mut running = Running::start(&config, port);
    running.wait_until("caught up", Duration::from_secs(60), |running| {
        running.get("/readyz").1.contains("\"caught_up\":true")
    });

    let stop = AtomicBool::new(false);
    let backups: Vec<(PathBuf, Value)> = std::thread::scope(|scope| {
        scope.spawn(|| change_on(&log, &stop));
        let backups = (0..3).map(|number| {
            let target = directory.join(format!("backup-{number}"));
            let report = back_up(&config, &target);
            expect_sound(&config, "the running state");
            let (status, told, complaints) = call(&["compact"], &config, &[]);
            assert_eq!(status, Some(0), "{complaints}");
            assert!(told.contains("bytes_after"), "{told}");
            (target, report)
        });
        let backups = backups.collect();
        stop.store(true, Ordering::Relaxed);
        backups
    });
    assert!(running.terminate());

    let offsets: Vec<u64> = backups.iter().map(|(_, report)| offset(report)).collect();
    assert!(
        offsets.is_sorted_by(|left, right| left < right),
        "changes came meanwhile: {offsets:?}"
    );
    for (number, (backup, report)) in backups.iter().enumerate() {
        assert_eq!(report["segment_files"], report["linked_files"], "{report}");
        assert!(report["segment_files"].as_u64().unwrap() > 0, "{report}");
        let restored = pipeline(directory, &format!("restored-{number}"), port);
        let (status, told, complaints) = call(&["restore"], &restored, &[backup.to_str().unwrap()]);
        assert_eq!(status, Some(0), "{told}{complaints}");
        assert_eq!(
            texts(&restored),
            fold(&log, offset(report)),
            "backup {number}"
        );
    }

    // From the last one the pipeline goes on, and embeds no more than what came since.
    let last = directory.join("restored-2.yaml");
    let report = run_to_end(&last);
    let text = fs::read(&log).unwrap();
    let since = &text[offsets[2] as usize..];
    let changes = since.iter().filter(|byte| **byte == b'\n').count() as u64;
    assert!(
        report["embedded_chunks"].as_u64().unwrap() <= changes,
        "{report} for {changes}"
    );
    let whole = fold(&log, fs::metadata(&log).unwrap().len());
    assert_eq!(texts(&last), whole);
    expect_sound(&last, "after catching up");
}

#[test]
fn a_state_at_rest_is_backed_up_and_compacted() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let log = directory.join("pages.jsonl");
    append(
        &log,
        &(0..DOCUMENTS).map(|id| line(id, 0)).collect::<String>(),
    );
    let config = pipeline(directory, "state", 0);
    run_to_end(&config);
    let compact = || -> Value {
        let (status, told, complaints) = call(&["compact"], &config, &[]);
        assert_eq!(status, Some(0), "{complaints}");
        serde_json::from_str(&told).unwrap()
    };
    // Brings what only the journal holds into tables.
    compact();
    // Nearly all of it goes.
    let deletes = (10..DOCUMENTS).map(|id| format!("{{\"op\":\"d\",\"id\":\"{id}\"}}\n"));
    append(&log, &deletes.collect::<String>());
    run_to_end(&config);
    let before = texts(&config);

    let report = compact();
    assert!(
        report["bytes_after"].as_u64() < report["bytes_before"].as_u64(),
        "{report}"
    );
    assert_eq!(texts(&config), before);
    expect_sound(&config, "after compacting");

    let backup = directory.join("backup");
    // What a backup that was killed left behind.
    fs::create_dir_all(directory.join("backup.unfinished/store")).unwrap();
    fs::write(directory.join("backup.unfinished/store/0.jnl"), "torn").unwrap();
    back_up(&config, &backup);
    assert!(!directory.join("backup.unfinished").exists());
    let restored = pipeline(directory, "restored", 0);
    let (status, told, _) = call(&["restore"], &restored, &[backup.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{told}");
    assert_eq!(texts(&restored), before);
}

#[test]
fn what_can_not_be_backed_up_or_restored_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    append(&directory.join("pages.jsonl"), &line(1, 1));
    let config = pipeline(directory, "state", 0);
    let refuse = |command: &str, config: &Path, folder: &str, words: &[&str]| {
        let folder = directory.join(folder);
        let (status, told, complaints) = call(&[command], config, &[folder.to_str().unwrap()]);
        assert_eq!(status, Some(1), "{command} {folder:?}: {told}");
        for word in words {
            assert!(
                complaints.contains(word),
                "{command} {folder:?}: {complaints}"
            );
        }
    };
    refuse("backup", &config, "backup", &["there is no state", "hint"]);
    run_to_end(&config);
    fs::create_dir(directory.join("there")).unwrap();
    refuse("backup", &config, "there", &["does not exist yet"]);
    // As a shell completes the name of a folder.
    back_up(&config, &directory.join("backup/"));
    refuse("backup", &config, "backup/", &["does not exist yet"]);
    refuse(
        "restore",
        &config,
        "backup",
        &["there is a state already", "move the folder"],
    );

    let empty = pipeline(directory, "empty", 0);
    refuse(
        "restore",
        &empty,
        "nowhere",
        &["the folder that `vectide backup` made"],
    );
    refuse(
        "restore",
        &empty,
        "there",
        &["the folder that `vectide backup` made"],
    );
    let other = pipeline(directory, "other", 0);
    edit(&other, "{{ text }}", "{{ text }}!");
    refuse(
        "restore",
        &other,
        "backup",
        &["another pipeline", "documents.pages"],
    );
    assert!(!directory.join("other/store").exists());

    // A segment's loss is found when it is restored.
    let damaged = directory.join("backup/store/keyspaces");
    fs::remove_dir_all(damaged).unwrap();
    let (status, ..) = call(
        &["restore"],
        &empty,
        &[directory.join("backup").to_str().unwrap()],
    );
    assert_ne!(status, Some(0));
    // Nothing is left that stands in the way of a sound one.
    back_up(&config, &directory.join("second"));
    let output = vectide(&["restore"])
        .arg(&empty)
        .arg(directory.join("second"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
