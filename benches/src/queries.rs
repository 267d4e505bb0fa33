//! Queries a second and their latency, by HTTP with keep-alive, text to hits with texts.

use crate::load::{Setup, ask_for, shown, wait_for_documents, write_config, write_log};
use std::time::Duration;
use vectide_tests::{Running, free_port};

const TIME: Duration = Duration::from_secs(5);

pub(crate) fn run() {
    for vectors in [20_000, 100_000] {
        let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        write_log(&directory.path().join("docs.jsonl"), vectors);
        let port = free_port();
        let chunk = "{type: whole}";
        let setup = Setup {
            sources: &["docs"],
            model: "hashing",
            chunk,
            follow: true,
            port,
        };
        let config = write_config(directory.path(), &setup);
        let mut running = Running::start(&config, port);
        wait_for_documents(&mut running, "docs", vectors);
        let status = running
            .client()
            .index("docs")
            .unwrap_or_else(|error| panic!("{error}"));
        println!(
            "{vectors} vectors of 384 dimensions, {} segments:",
            status.segments
        );
        for clients in [1, 8, 32] {
            let latencies: Vec<f64> = std::thread::scope(|scope| {
                let running = &running;
                let askers: Vec<_> = (0..clients)
                    .map(|number| {
                        scope.spawn(move || ask_for(running, "docs", number * 1_000_000, TIME))
                    })
                    .collect();
                askers
                    .into_iter()
                    .flat_map(|it| it.join().unwrap_or_default())
                    .collect()
            });
            let rate = latencies.len() as f64 / TIME.as_secs_f64();
            println!(
                "  {clients:>2} clients: {rate:.0} queries/s, {}",
                shown(latencies)
            );
        }
    }
}
