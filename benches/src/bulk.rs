//! The slowest query while everything else is being loaded.

use crate::load::{
    Setup, append_to, line, shown, text, wait_for_documents, write_config, write_log,
};
use std::io::Write;
use std::time::{Duration, Instant};
use vectide_tests::{Running, free_port};

const ASKED_AT_LEAST: Duration = Duration::from_secs(10);

pub(crate) fn run() {
    for (model, documents) in [("hashing", 50_000), ("all-MiniLM-L6-v2", 400)] {
        let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let log = directory.path().join("docs.jsonl");
        write_log(&log, 20);
        let port = free_port();
        let chunk = "{type: whole}";
        let setup = Setup {
            sources: &["docs"],
            model,
            chunk,
            follow: true,
            port,
        };
        let config = write_config(directory.path(), &setup);
        let mut running = Running::start(&config, port);
        wait_for_documents(&mut running, "docs", 20);
        let client = running.client();
        let bulk: String = (20..documents)
            .map(|id| line(id, &text(id as u64 + 1, 120)))
            .collect();
        append_to(&log)
            .write_all(bulk.as_bytes())
            .unwrap_or_else(|error| panic!("{error}"));
        let start = Instant::now();
        let mut latencies = Vec::new();
        let mut loaded = 0;
        while loaded < documents as u64 {
            let asked = Instant::now();
            let question = text(latencies.len() as u64 + 3, 8);
            client
                .query("docs", &question, 10)
                .unwrap_or_else(|error| panic!("{error}"));
            latencies.push(asked.elapsed().as_secs_f64() * 1e3);
            loaded = client.index("docs").map_or(loaded, |index| index.documents);
            std::thread::sleep(Duration::from_millis(2));
        }
        let seconds = start.elapsed().as_secs_f64();
        let queries = latencies.len();
        println!(
            "{model}: {documents} documents loaded in {seconds:.1} s beside {queries} queries: {}",
            shown(latencies)
        );
        if start.elapsed() < ASKED_AT_LEAST {
            println!("  (the load was over within {ASKED_AT_LEAST:?})");
        }
    }
}
