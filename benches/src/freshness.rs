//! From a line being appended to its being the answer: idle, and under 200 other changes a second.

use crate::load::{
    Setup, WORDS, append_to, line, shown, text, wait_for_documents, write_config, write_log,
};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vectide_tests::{Running, free_port};

/// Longest wait for a change to be the answer.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let client = running.client();
    let ask = |question: &str| {
        let answer = client.query("docs", question, 1);
        let answer = answer.unwrap_or_else(|error| panic!("{error}"));
        answer.hits.into_iter().next().and_then(|hit| hit.text)
    };
    println!("idle: {}", shown(follow_needles(&log, 0..SAMPLES, &ask)));
    let done = AtomicBool::new(false);
    let load = directory.path().join("load.jsonl");
    let busy = std::thread::scope(|scope| {
        scope.spawn(|| write_changes_until(&done, &load, 0..DOCUMENTS));
        let busy = follow_needles(&log, SAMPLES..SAMPLES * 2, &ask);
        done.store(true, Ordering::Relaxed);
        busy
    });
    println!("under 200 changes/s in another source: {}", shown(busy));
}

/// Changes documents of a log, one every 5 ms.
pub(crate) fn write_changes_until(done: &AtomicBool, log: &Path, documents: Range<usize>) {
    let mut file = append_to(log);
    for number in documents.cycle() {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let changed = line(number, &text(number as u64 + 77, WORDS));
        file.write_all(changed.as_bytes())
            .unwrap_or_else(|error| panic!("{error}"));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Milliseconds until a change was the answer, once for each of many changes. `ask` gives the text
/// of the best hit.
pub(crate) fn follow_needles(
    log: &Path,
    documents: Range<usize>,
    ask: &dyn Fn(&str) -> Option<String>,
) -> Vec<f64> {
    let mut file = append_to(log);
    documents
        .map(|number| {
            // Several words: one alone shares its dimension of the hashing embedder with others.
            let needle = text(1_000_000 + number as u64, 8).trim().to_owned();
            let start = Instant::now();
            file.write_all(line(number, &needle).as_bytes())
                .unwrap_or_else(|error| panic!("{error}"));
            while ask(&needle).is_none_or(|found| found != needle) {
                assert!(start.elapsed() < PATIENCE, "a change does not arrive");
            }
            let waited = start.elapsed().as_secs_f64() * 1e3;
            std::thread::sleep(Duration::from_millis(20));
            waited
        })
        .collect()
}
