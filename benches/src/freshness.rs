//! From a line being appended to its being the answer: idle, and under 200 other changes a second.

use crate::load::{Setup, line, shown, text, wait_for_documents, write_config, write_log};
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vectide_tests::{Running, free_port};

const DOCUMENTS: usize = 5_000;
const SAMPLES: usize = 100;

pub(crate) fn run() {
    let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    for name in ["docs", "load"] {
        write_log(&directory.path().join(format!("{name}.jsonl")), DOCUMENTS);
    }
    let port = free_port();
    let chunk = "{type: whole}";
    let setup = Setup {
        sources: &["docs", "load"],
        model: "hashing",
        chunk,
        follow: true,
        port,
    };
    let config = write_config(directory.path(), &setup);
    let mut running = Running::start(&config, port);
    wait_for_documents(&mut running, "docs", DOCUMENTS);
    wait_for_documents(&mut running, "load", DOCUMENTS);
    let log = directory.path().join("docs.jsonl");
    println!("idle: {}", shown(sample(&running, &log, 0)));
    let done = AtomicBool::new(false);
    let load = directory.path().join("load.jsonl");
    let busy = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = append_to(&load);
            for number in 0.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let changed = line(number % DOCUMENTS, &text(number as u64 + 77, 120));
                file.write_all(changed.as_bytes())
                    .unwrap_or_else(|error| panic!("{error}"));
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let busy = sample(&running, &log, SAMPLES);
        done.store(true, Ordering::Relaxed);
        busy
    });
    println!("under 200 changes/s in another source: {}", shown(busy));
}

fn append_to(path: &std::path::Path) -> std::fs::File {
    OpenOptions::new()
        .append(true)
        .open(path)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Milliseconds until a change was visible, once for each of many changes.
fn sample(running: &Running, log: &std::path::Path, from: usize) -> Vec<f64> {
    let client = running.client();
    let mut file = append_to(log);
    (from..from + SAMPLES)
        .map(|number| {
            // Several words: one alone shares its dimension of the hashing embedder with others.
            let needle = text(1_000_000 + number as u64, 8).trim().to_owned();
            let start = Instant::now();
            let changed = line(number, &needle);
            file.write_all(changed.as_bytes())
                .unwrap_or_else(|error| panic!("{error}"));
            loop {
                let answer = client
                    .query("docs", &needle, 1)
                    .unwrap_or_else(|error| panic!("{error}"));
                let found = answer.hits.first().and_then(|hit| hit.text.as_deref());
                if found.is_some_and(|text| text == needle) {
                    break;
                }
            }
            let waited = start.elapsed().as_secs_f64() * 1e3;
            std::thread::sleep(Duration::from_millis(20));
            waited
        })
        .collect()
}
