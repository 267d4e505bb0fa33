//! What benchmarks feed in and how they look at a running process. Seeded: every run has the same
//! input.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vectide_app::evaluate::Percentiles;
use vectide_tests::Running;

/// Words of a document, as in the figures of other systems.
pub(crate) const WORDS: usize = 120;

/// xorshift64: enough to choose words.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A text of words from a vocabulary of 5,000.
pub(crate) fn text(seed: u64, words: usize) -> String {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut out = String::with_capacity(words * 8);
    for _ in 0..words {
        let _ = write!(
            out,
            "w{} ",
            (random.next() % 5_000).wrapping_mul(2_654_435_761) % 1_000_000
        );
    }
    out
}

/// One line of a log.
pub(crate) fn line(id: usize, text: &str) -> String {
    format!("{{\"id\":\"doc-{id}\",\"text\":\"{text}\"}}\n")
}

/// A log of documents.
pub(crate) fn write_log(path: &Path, documents: usize) {
    let lines: String = (0..documents)
        .map(|id| line(id, &text(id as u64 + 1, WORDS)))
        .collect();
    std::fs::write(path, lines).unwrap_or_else(|error| panic!("{error}"));
}

/// A log, open for appending.
pub(crate) fn append_to(path: &Path) -> File {
    let file = File::options().append(true).open(path);
    file.unwrap_or_else(|error| panic!("{error}"))
}

/// What a benchmark's pipeline is made of.
pub(crate) struct Setup<'a> {
    pub(crate) sources: &'a [&'a str],
    pub(crate) model: &'a str,
    pub(crate) chunk: &'a str,
    pub(crate) follow: bool,
    pub(crate) port: u16,
}

/// A configuration with an index for each source, whose log is `<source>.jsonl`.
pub(crate) fn write_config(directory: &Path, setup: &Setup<'_>) -> PathBuf {
    let Setup {
        sources,
        model,
        chunk,
        follow,
        port,
    } = setup;
    let mut yaml = String::from("apiVersion: vectide/v1\nstate: {dir: ./state}\nsources:\n");
    for name in *sources {
        let _ = writeln!(
            yaml,
            "  {name}: {{type: jsonl, path: {name}.jsonl, follow: {follow}, \
             format: {{type: change, key: id}}}}"
        );
    }
    yaml.push_str("documents:\n");
    for name in *sources {
        let _ = writeln!(yaml, "  {name}: {{from: {name}, text: \"{{{{ text }}}}\"}}");
    }
    yaml.push_str("indexes:\n");
    for name in *sources {
        let _ = writeln!(
            yaml,
            "  {name}: {{from: {name}, chunk: {chunk}, embed: {{model: {model}}}, shards: 2}}"
        );
    }
    let _ = writeln!(yaml, "server: {{listen: \"127.0.0.1:{port}\"}}");
    let path = directory.join("pipeline.yaml");
    std::fs::write(&path, yaml).unwrap_or_else(|error| panic!("{error}"));
    path
}

/// Waits until an index holds that many documents.
pub(crate) fn wait_for_documents(running: &mut Running, index: &str, documents: usize) {
    running.wait_until("indexed", Duration::from_secs(1_800), |it| {
        it.client()
            .index(index)
            .is_ok_and(|index| index.documents >= documents as u64)
    });
}

/// Asks over and over on one connection until the time is over: latencies in milliseconds.
pub(crate) fn ask_for(running: &Running, index: &str, seed: u64, time: Duration) -> Vec<f64> {
    let client = running.client();
    let start = Instant::now();
    let mut latencies = Vec::new();
    for number in 0.. {
        if start.elapsed() > time {
            break;
        }
        let question = text(seed.wrapping_add(number) | 1, 8);
        let asked = Instant::now();
        client
            .query(index, &question, 10)
            .unwrap_or_else(|error| panic!("{error}"));
        latencies.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    latencies
}

/// Percentiles for a table.
pub(crate) fn shown(latencies: Vec<f64>) -> String {
    let slowest = latencies.iter().copied().fold(0.0, f64::max);
    let of = Percentiles::of(latencies);
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, slowest {slowest:.1} ms",
        of.p50, of.p99
    )
}
