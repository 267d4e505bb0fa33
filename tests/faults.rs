//! Every call that makes state durable fails or is the last one the process makes: with the
//! n-th fsync or rename of the real binary is answered by an error or by a kill, the n-th write by a
//! kill; and on a small tmpfs the disk is full at some moment.
//!
//! Whatever happens, the next run ends with the right state, and nothing that was committed before is
//! lost. A process that a failed call ends says so in words; none goes on with a state that it could
//! not write, and none hangs.
//!
//! Each kind of fault strikes at random calls, 8 of each; `VECTIDE_TORTURE=1` makes it 160. The seed is
//! printed, and `VECTIDE_SEED` repeats it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use vectide_tests::{
    Random, SmallDisk, call, can_trace, edit, is_torture, run_to_end, seed, signal, sound_epoch,
    texts, vectide_binary, write_config,
};

/// More than the head of a shard holds, so that segments are written as well.
const DOCUMENTS: usize = 9_000;

/// Longest run, traced and on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Calls of one kind, and what happens to one of them.
struct Fault {
    what: &'static str,
    calls: &'static str,
    effect: &'static str,
}

const FAULTS: [Fault; 5] = [
    Fault {
        what: "killed at a sync",
        calls: "fsync,fdatasync",
        effect: "signal=KILL",
    },
    Fault {
        what: "killed at a rename",
        calls: "rename,renameat,renameat2",
        effect: "signal=KILL",
    },
    Fault {
        what: "killed at a write",
        calls: "write,pwrite64,writev",
        effect: "signal=KILL",
    },
    Fault {
        what: "a sync fails",
        calls: "fsync,fdatasync",
        effect: "error=EIO",
    },
    Fault {
        what: "a rename fails",
        calls: "rename,renameat,renameat2",
        effect: "error=EIO",
    },
];

/// Runs a configuration to its end under which writes the calls to `trace`.
fn traced(config: &Path, calls: &str, inject: Option<String>, trace: &Path) -> Output {
    let mut command = Command::new("strace");
    command.args(["-f", "-e", &format!("trace={calls}"), "-o"]);
    command.arg(trace);
    // Ten times as fast, but no signal comes through it (strace 6.1).
    if !inject.as_ref().is_some_and(|it| it.starts_with("signal")) {
        command.arg("--seccomp-bpf");
    }
    if let Some(inject) = inject {
        command.args(["-e", &format!("inject={calls}:{inject}")]);
    }
    command.arg(vectide_binary());
    run(command, config)
}

fn run(mut command: Command, config: &Path) -> Output {
    command.args(["run", "--until-caught-up"]).arg(config);
    command
        .env("VECTIDE_LOG", "warn")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.process_group(0).spawn().unwrap();
    let began_at = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began_at.elapsed() > PATIENCE {
            // With all that it started: what strace traces outlives it.
            signal("-KILL", &format!("-{}", child.id()));
            panic!("a process hangs after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// How many calls the thread makes that makes most: strace counts by thread.
fn calls_in(trace: &Path) -> u64 {
    let text = fs::read_to_string(trace).unwrap();
    let mut calls: BTreeMap<&str, u64> = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains('(')) {
        let (thread, _) = line.split_once(' ').unwrap();
        *calls.entry(thread).or_default() += 1;
    }
    calls.into_values().max().unwrap_or_default()
}

/// A log of two versions of the documents, and what is left of them.
fn write_log(log: &Path) -> BTreeMap<String, String> {
    let mut documents = BTreeMap::new();
    let mut lines = String::new();
    for number in 0..DOCUMENTS + DOCUMENTS / 3 {
        let (id, version) = (number % DOCUMENTS, number / DOCUMENTS + 1);
        let text = format!("page {id} version {version}");
        lines += &format!("{{\"id\":\"{id}\",\"text\":\"{text}\"}}\n");
        documents.insert(id.to_string(), text);
    }
    fs::write(log, lines).unwrap();
    documents
}

fn config(directory: &Path) -> PathBuf {
    let source = "{type: jsonl, path: ../pages.jsonl, format: {type: change, key: id}}";
    fs::create_dir_all(directory).unwrap();
    let config = write_config(directory, "pipeline", source, "");
    // The disk is to be full, not spared.
    edit(&config, "./state}", "./state, min_free: 0B}");
    config
}

/// Whether the process was ended by its fault, which it then says in words.
fn has_ended(output: &Output, is_killed: bool, place: &str) -> bool {
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(!complaints.contains("panicked"), "{place}: {complaints}");
    let has_ended = !output.status.success();
    assert!(
        !has_ended || is_killed || complaints.contains("error: "),
        "{place}: {complaints}"
    );
    has_ended
}

/// What was committed is sound, and the next run goes on from there to the right end.
fn recovers(config: &Path, expected: &BTreeMap<String, String>, place: &str) {
    let before = sound_epoch(config, place);
    run_to_end(config);
    assert!(
        sound_epoch(config, place) >= before,
        "{place}: the epoch went back"
    );
    assert!(texts(config) == *expected, "{place}: other texts");
}

#[test]
fn the_state_survives_a_full_disk() {
    let strikes = if is_torture() { 50 } else { 10 };
    let directory = tempfile::tempdir().unwrap();
    let expected = write_log(&directory.path().join("pages.jsonl"));
    let clean = config(&directory.path().join("clean"));
    run_to_end(&clean);
    let used = Command::new("du")
        .arg("-sb")
        .arg(clean.with_file_name("state"))
        .output()
        .unwrap();
    let used = String::from_utf8_lossy(&used.stdout);
    let used: u64 = used.split_whitespace().next().unwrap().parse().unwrap();
    let mut random = Random::new(seed());
    let mut full = 0;
    for strike in 0..strikes {
        let bytes = used / 20 + random.below(used / 2);
        let at = directory.path().join(format!("disk-{strike}"));
        let Some(disk) = SmallDisk::mount(&at, bytes) else {
            eprintln!("skipped: the_state_survives_a_full_disk: this user may not mount a tmpfs");
            return;
        };
        let config = config(&at);
        let place = format!("a disk of {bytes} bytes");
        let output = run(Command::new(vectide_binary()), &config);
        full += usize::from(has_ended(&output, false, &place));
        disk.grow(used * 4);
        recovers(&config, &expected, &place);
    }
    println!("{full} of {strikes} disks were full before the end");
    assert!(full > 0, "no disk was full");
}

/// Reads of a process before it comes to its configuration: its libraries.
const READS_OF_LIBRARIES: u64 = 40;

#[test]
fn a_read_that_fails_is_told_and_harms_nothing() {
    if !can_trace("a_read_that_fails") {
        return;
    }
    let strikes = if is_torture() { 100 } else { 10 };
    let mut random = Random::new(seed());
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("pages.jsonl");
    let mut expected = write_log(&log);
    let config = config(&directory.path().join("pipeline"));
    run_to_end(&config);
    // In tables, which are read block by block.
    let compacted = call(&["compact"], &config, &[]);
    assert_eq!(compacted.0, Some(0), "{compacted:?}");
    let trace = directory.path().join("trace");
    let mut change = |number: u64| {
        let mut lines = fs::read_to_string(&log).unwrap();
        for id in 0..DOCUMENTS / 10 {
            let text = format!("page {id} of change {number}");
            lines += &format!("{{\"id\":\"{id}\",\"text\":\"{text}\"}}\n");
            expected.insert(id.to_string(), text);
        }
        fs::write(&log, lines).unwrap();
        expected.clone()
    };
    let calls = "read,pread64";
    change(0);
    assert!(traced(&config, calls, None, &trace).status.success());
    let all = calls_in(&trace);
    let mut counts = [0, 0];
    for strike in 1..=strikes {
        let expected = change(strike);
        let at = READS_OF_LIBRARIES + random.below(all - READS_OF_LIBRARIES);
        let place = format!("read {at} of {all}");
        let output = traced(&config, calls, Some(format!("error=EIO:when={at}")), &trace);
        counts[usize::from(has_ended(&output, false, &place))] += 1;
        recovers(&config, &expected, &place);
    }
    println!(
        "{} processes ended by a read that failed, {} went on",
        counts[1], counts[0]
    );
    assert!(counts[1] > 0, "no read failed");
}

#[test]
fn the_state_survives_calls_that_fail_or_are_the_last() {
    if !can_trace("the_state_survives_calls_that_fail") {
        return;
    }
    let strikes = if is_torture() { 160 } else { 8 };
    let mut random = Random::new(seed());
    let directory = tempfile::tempdir().unwrap();
    let expected = write_log(&directory.path().join("pages.jsonl"));
    let trace = directory.path().join("trace");
    for (number, fault) in FAULTS.iter().enumerate() {
        let clean = config(&directory.path().join(format!("clean-{number}")));
        assert!(traced(&clean, fault.calls, None, &trace).status.success());
        let calls = calls_in(&trace);
        let mut counts = [0, 0];
        for strike in 0..strikes {
            let folder = directory.path().join(format!("{number}-{strike}"));
            let config = config(&folder);
            let at = random.below(calls) + 1;
            let place = format!("{}: call {at} of {calls}", fault.what);
            let inject = format!("{}:when={at}", fault.effect);
            let output = traced(&config, fault.calls, Some(inject), &trace);
            let is_killed = fault.effect.starts_with("signal");
            counts[usize::from(has_ended(&output, is_killed, &place))] += 1;
            recovers(&config, &expected, &place);
            fs::remove_dir_all(&folder).unwrap();
        }
        let [unharmed, ended] = counts;
        assert!(ended > 0, "{}: it never struck", fault.what);
        println!(
            "{}: {ended} ended, {unharmed} met no such call, of {calls}",
            fault.what
        );
    }
}
