//! The clock goes back or forward by an hour, between two processes and while one runs: nothing is lost, no
//! epoch goes back, and what is written afterwards is found.
//!
//! 3 rounds; `VECTIDE_TORTURE=1` makes it 20.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use vectide_tests::{
    Random, Running, append, expect_sound, free_port, is_torture, run_to_end, seed, texts, vectide,
    write_config,
};

/// More than the head of a shard holds: names of segments are made from the time.
const DOCUMENTS: usize = 9_000;

/// By how much the clock is wrong.
const HOURS: [&str; 4] = ["-1h", "+1h", "+0", YESTERDAY];

const YESTERDAY: &str = "-1d";

/// Where Debian and Fedora keep the library for programs with threads.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// Starts a pipeline whose clock is what the file says. The clock that only rises is left alone, as by a
/// real change of the time.
fn start(library: &str, clock: &Path, config: &Path, port: u16) -> Running {
    let mut command = vectide(&["run"]);
    command.arg(config).envs([
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ]);
    Running::spawn(command, port)
}

fn write(log: &Path, from: usize, documents: usize) {
    let line = |id: usize| format!("{{\"id\":\"{id}\",\"text\":\"page {id} of all\"}}\n");
    let lines: String = (from..from + documents).map(line).collect();
    append(log, &lines);
}

/// Waits until so many documents are answered; gives the epoch.
fn follow(running: &mut Running, clock: &Path, documents: usize) -> u64 {
    running.wait_until("followed", Duration::from_secs(60), |running| {
        let index = running.client().index("pages");
        index.is_ok_and(|index| index.documents == documents as u64)
    });
    let question = format!("{{\"text\": \"page {} of all\", \"k\": 1}}", documents - 1);
    let (status, answer) = running.post("/v1/indexes/pages/query", &question);
    assert_eq!(status, 200, "{answer}");
    if fs::read_to_string(clock).unwrap() == YESTERDAY {
        let published_at = answer["as_of"]["published_at"].as_str().unwrap();
        let today = Command::new("date").args(["-u", "+%F"]).output().unwrap();
        let today = String::from_utf8(today.stdout).unwrap();
        assert!(
            !published_at.starts_with(today.trim()),
            "it has the right time: {published_at}"
        );
    }
    answer["as_of"]["epoch"].as_u64().unwrap()
}

fn config(directory: &Path, port: u16) -> PathBuf {
    let source =
        "{type: jsonl, path: ./pages.jsonl, follow: true, format: {type: change, key: id}}";
    let server = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
    write_config(directory, "pipeline", source, &server)
}

#[test]
fn a_clock_that_jumps_harms_nothing() {
    let Some(library) = LIBRARIES.into_iter().find(|it| Path::new(it).exists()) else {
        println!("skipped: a_clock_that_jumps: libfaketime is not installed");
        return;
    };
    let rounds = if is_torture() { 20 } else { 3 };
    let mut random = Random::new(seed());
    let directory = tempfile::tempdir().unwrap();
    let (log, clock) = (
        directory.path().join("pages.jsonl"),
        directory.path().join("clock"),
    );
    fs::write(&log, "").unwrap();
    let port = free_port();
    let config = config(directory.path(), port);
    let (mut written, mut epoch) = (0, 0);
    let mut grow = |documents: usize| {
        write(&log, written, documents);
        written += documents;
        written
    };
    for round in 0..rounds {
        let mut set = || {
            let hours = HOURS[random.below(HOURS.len() as u64) as usize];
            fs::write(&clock, hours).unwrap();
        };
        if round == 0 {
            fs::write(&clock, YESTERDAY).unwrap();
        } else {
            set();
        }
        let mut running = start(library, &clock, &config, port);
        let documents = if round == 0 { DOCUMENTS } else { 500 };
        for documents in [documents, 100, 1] {
            let now = follow(&mut running, &clock, grow(documents));
            assert!(now > epoch, "round {round}: epoch {now} after {epoch}");
            epoch = now;
            // While it runs.
            set();
        }
        assert!(running.terminate(), "round {round}");
        expect_sound(&config, &format!("round {round}"));
    }
    assert_eq!(run_to_end(&config)["embedded_chunks"], 0);
    assert_eq!(texts(&config).len(), written);
}
