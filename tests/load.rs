//! Long and heavy loads: memory does not grow with time, and what comes faster than it can be taken waits
//! outside.
//!
//! The soak takes 2 minutes; `VECTIDE_TORTURE=1` makes it 60.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vectide_tests::{
    Running, expect_sound, export, free_port, is_torture, run_to_end, write_config,
};

const MIB: u64 = 1024 * 1024;

/// Memory that a pipeline of this size may come to, whatever is thrown at it: caches, three epochs in
/// flight, heads and the store's tables in memory.
const MEMORY_MAX: u64 = 1536 * MIB;

fn config(directory: &Path, port: u16) -> PathBuf {
    let format = "{type: change, key: id, op: op}";
    let source = format!("{{type: jsonl, path: ./pages.jsonl, follow: true, format: {format}}}");
    let server = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
    write_config(directory, "pipeline", &source, &server)
}

fn upsert(id: u64, version: u64) -> String {
    let text = format!("page {id} in version {version} ").repeat(8);
    format!(
        "{{\"op\":\"u\",\"id\":\"{id}\",\"text\":\"{}\"}}\n",
        text.trim()
    )
}

fn documents(running: &Running) -> u64 {
    let index = running.client().index("pages");
    index.map_or(0, |index| index.documents)
}

/// The greatest memory seen while `until` does not hold yet.
fn peak(running: &mut Running, what: &str, until: impl Fn(&Running) -> bool) -> u64 {
    let peak = AtomicU64::new(0);
    running.wait_until(what, Duration::from_secs(300), |running| {
        peak.fetch_max(running.memory_bytes(), Ordering::Relaxed);
        until(running)
    });
    peak.into_inner()
}

/// The part of changes that were visible within a second.
fn fresh(metrics: &str) -> f64 {
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    };
    value("vectide_freshness_seconds_bucket{le=\"1\"}") / value("vectide_freshness_seconds_count")
}

/// 200 changes a second to 5,000 keys, and 50 queries a second.
#[test]
fn memory_does_not_grow_with_time() {
    let length = Duration::from_secs(if is_torture() { 3_600 } else { 120 });
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("pages.jsonl");
    fs::write(&log, (0..5_000).map(|id| upsert(id, 0)).collect::<String>()).unwrap();
    let port = free_port();
    let config = config(directory.path(), port);
    let running = Running::start(&config, port);
    let stop = AtomicBool::new(false);
    let mut memory = Vec::new();
    let (changes, queries) = std::thread::scope(|scope| {
        let write = scope.spawn(|| {
            let mut file = OpenOptions::new().append(true).open(&log).unwrap();
            let mut changes = 0;
            while !stop.load(Ordering::Relaxed) {
                let ids = (0..20).map(|at| (changes + at) * 7 % 5_000);
                let lines: String = ids.map(|id| upsert(id, changes)).collect();
                file.write_all(lines.as_bytes()).unwrap();
                changes += 20;
                std::thread::sleep(Duration::from_millis(100));
            }
            changes
        });
        let ask = scope.spawn(|| {
            let mut queries = 0;
            while !stop.load(Ordering::Relaxed) {
                let question = format!("{{\"text\": \"page {} version\"}}", queries % 5_000);
                let (status, answer) = running.post("/v1/indexes/pages/query", &question);
                assert_eq!(status, 200, "{answer}");
                queries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            queries
        });
        let began_at = Instant::now();
        while began_at.elapsed() < length {
            std::thread::sleep(length / 60);
            memory.push(running.memory_bytes());
        }
        stop.store(true, Ordering::Relaxed);
        (write.join().unwrap(), ask.join().unwrap())
    });
    let (_, metrics) = running.get("/metrics");
    let fresh = fresh(&metrics);
    assert!(running.terminate());
    expect_sound(&config, "after the soak");
    // The first third fills caches and the store's tables in memory.
    let mean = |part: &[u64]| part.iter().sum::<u64>() / part.len() as u64;
    let (middle, end) = (mean(&memory[20..40]), mean(&memory[40..]));
    println!(
        "{changes} changes and {queries} queries in {length:?}: {} MiB in the middle third, {} MiB in \
         the last; {:.2} % of the changes visible within a second",
        middle / MIB,
        end / MIB,
        fresh * 100.0
    );
    assert!(end < middle + middle / 4 + 32 * MIB, "{memory:?}");
    assert!(fresh > 0.99, "{fresh}");
}

/// A log that has everything at once is taken as fast as it can be and no faster: memory stays bounded.
#[test]
fn what_comes_faster_than_it_can_be_taken_waits_outside() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("pages.jsonl");
    let mut file = BufWriter::new(File::create(&log).unwrap());
    for number in 0..200_000 {
        file.write_all(upsert(number % 40_000, number / 40_000).as_bytes())
            .unwrap();
    }
    // A line of 100 MiB, and one after it.
    file.write_all(b"{\"op\":\"u\",\"id\":\"large\",\"text\":\"")
        .unwrap();
    (0..100).for_each(|_| file.write_all(&vec![b'x'; MIB as usize]).unwrap());
    file.write_all(b"\"}\n").unwrap();
    file.write_all(upsert(40_000, 1).as_bytes()).unwrap();
    file.flush().unwrap();
    let port = free_port();
    let config = config(directory.path(), port);
    let mut running = Running::start(&config, port);
    let taken = peak(&mut running, "everything taken", |running| {
        documents(running) == 40_001
    });

    // A million deletes, most of nothing.
    for id in 0..1_000_000 {
        writeln!(file, "{{\"op\":\"d\",\"id\":\"{id}\"}}").unwrap();
    }
    file.flush().unwrap();
    let deleted = peak(&mut running, "everything deleted", |running| {
        documents(running) == 0
    });
    assert!(running.terminate());
    println!(
        "{} MiB while 200,000 changes and a line of 100 MiB were taken, {} MiB while a million deletes \
         were",
        taken / MIB,
        deleted / MIB
    );
    assert!(
        taken < MEMORY_MAX && deleted < MEMORY_MAX,
        "{taken} {deleted}"
    );
    run_to_end(&config);
    expect_sound(&config, "after everything was deleted");
    let letters = export(&config, "dead-letters");
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0]["reason"], "too_large");
}
