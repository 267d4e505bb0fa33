//! From starting the process to its first answer, with a million documents in the state: after an end and
//! after a kill.

use crate::load::{Setup, line, shown, text, wait_for_documents, write_config};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;
use vectide_tests::{Running, free_port, vectide};

/// `VECTIDE_BENCH_DOCUMENTS` sets another number.
const DOCUMENTS: usize = 1_000_000;

/// Short ones: what is opened are vectors and the journal, not texts.
const WORDS: usize = 20;

const RESTARTS: usize = 5;

pub(crate) fn run() {
    let documents = std::env::var("VECTIDE_BENCH_DOCUMENTS");
    let documents = documents.map_or(DOCUMENTS, |number| {
        number
            .parse()
            .unwrap_or_else(|error| panic!("{number}: {error}"))
    });
    let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let log = File::create(directory.path().join("docs.jsonl"));
    let mut log = BufWriter::new(log.unwrap_or_else(|error| panic!("{error}")));
    for id in 0..documents {
        let line = line(id, &text(id as u64 + 1, WORDS));
        log.write_all(line.as_bytes())
            .unwrap_or_else(|error| panic!("{error}"));
    }
    drop(log);
    let port = free_port();
    let setup = Setup {
        sources: &["docs"],
        model: "hashing",
        chunk: "{type: whole}",
        follow: true,
        port,
    };
    let config = write_config(directory.path(), &setup);
    let began_at = Instant::now();
    let mut running = Running::start(&config, port);
    wait_for_documents(&mut running, "docs", documents);
    println!(
        "{documents} documents of {WORDS} words indexed in {:.1} s",
        began_at.elapsed().as_secs_f64()
    );
    let start = || {
        let began_at = Instant::now();
        let mut command = vectide(&["run"]);
        command.arg(&config);
        let running = Running::spawn(command, port);
        let answer = running.client().query("docs", "w1 w2 w3", 10);
        let answer = answer.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(answer.hits.len(), 10);
        (running, began_at.elapsed().as_secs_f64() * 1e3)
    };
    let (mut ended, mut killed) = (Vec::new(), Vec::new());
    for _ in 0..RESTARTS {
        assert!(running.terminate());
        let (next, waited) = start();
        ended.push(waited);
        next.kill();
        let (next, waited) = start();
        killed.push(waited);
        running = next;
    }
    println!("first answer after an end: {}", shown(ended));
    println!("first answer after a kill: {}", shown(killed));
    println!("{} MiB of memory", running.memory_bytes() >> 20);
}
