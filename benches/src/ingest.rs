//! Documents a second from a log to committed and published, and what it costs in memory.

use crate::load::{Setup, WORDS, write_config, write_log};
use std::process::Stdio;
use std::time::Duration;
use vectide_tests::{run_to_end, vectide};

const DOCUMENTS: usize = 20_000;

pub(crate) fn run() {
    for (chunk, what) in [
        ("{type: whole}", "one chunk a document"),
        (
            "{type: structured, target_tokens: 60, max_tokens: 80, min_tokens: 40}",
            "about two",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        write_log(&directory.path().join("docs.jsonl"), DOCUMENTS);
        let setup = Setup {
            sources: &["docs"],
            model: "hashing",
            chunk,
            follow: false,
            port: 0,
        };
        let config = write_config(directory.path(), &setup);
        let mut command = vectide(&["run", "--until-caught-up"]);
        let mut child = command
            .arg(&config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{error}"));
        let status = format!("/proc/{}/status", child.id());
        let mut peak = String::new();
        while child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let read = std::fs::read_to_string(&status).unwrap_or_default();
            if let Some(line) = read.lines().find(|line| line.starts_with("VmHWM")) {
                peak = line.trim_start_matches("VmHWM:").trim().to_owned();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = child
            .wait_with_output()
            .unwrap_or_else(|error| panic!("{error}"));
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}"));
        let seconds = report["seconds"].as_f64().unwrap_or(f64::NAN);
        println!(
            "{DOCUMENTS} documents of {WORDS} words, {what} ({} chunks), hashing embedder, committed \
             and synced: {:.0} documents/s ({seconds:.2} s, {} epochs), peak memory {peak}",
            report["chunks"],
            DOCUMENTS as f64 / seconds,
            report["epochs"]
        );
        let again = run_to_end(&config);
        println!(
            "after a restart: {} chunks embedded",
            again["embedded_chunks"]
        );
    }
    println!(
        "limit: the same rows into the store alone, synced, reached 59,000 documents/s in a trial"
    );
}
