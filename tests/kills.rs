//! The process is killed (SIGKILL) at random moments while it follows a real change history. After
//! each kill the state is the fold of the history up to the position in it, and neither epoch nor
//! positions are behind what a client was shown.
//!
//! 50 kills; `VECTIDE_TORTURE=1` makes it 1,000. The seed is printed, and `VECTIDE_SEED` repeats it.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use vectide_tests::{
    Random, Running, data_directory, expect_sound, export, free_port, is_torture, read_lines,
    run_to_end, seed, write_config,
};

/// A transaction of the history: its lines in the log, and what each did to which document.
#[derive(Default)]
struct Transaction {
    lines: String,
    changes: Vec<(String, Option<String>)>,
}

fn transactions(data: &Path) -> Vec<Transaction> {
    let mut transactions: Vec<Transaction> = Vec::new();
    let mut open = None;
    for line in read_lines(&data.join("events.jsonl.zst")) {
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        if open != text("commit") {
            open = text("commit");
            transactions.push(Transaction::default());
        }
        let transaction = transactions.last_mut().unwrap();
        transaction.lines += &line;
        transaction.lines.push('\n');
        let sha256 = text("content").map(|content| sha256(&content));
        transaction.changes.push((text("path").unwrap(), sha256));
    }
    transactions
}

/// What documents a prefix of the history leaves, going forward with the position.
#[derive(Default)]
struct Fold {
    documents: BTreeMap<String, String>,
    transactions: usize,
    bytes: u64,
}

impl Fold {
    /// Goes on to a position of the log, which has to be the end of a transaction.
    fn advance_to(&mut self, position: u64, transactions: &[Transaction]) {
        while self.bytes < position {
            let transaction = &transactions[self.transactions];
            self.bytes += transaction.lines.len() as u64;
            self.transactions += 1;
            for (path, sha256) in &transaction.changes {
                match sha256 {
                    Some(sha256) => drop(self.documents.insert(path.clone(), sha256.clone())),
                    None => drop(self.documents.remove(path)),
                }
            }
        }
        assert_eq!(self.bytes, position, "a position within a transaction");
    }
}

fn sha256(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn exported(config: &Path) -> BTreeMap<String, String> {
    let document = |json: serde_json::Value| {
        let field = |name: &str| json[name].as_str().unwrap().to_owned();
        (field("id"), field("sha256"))
    };
    export(config, "documents")
        .into_iter()
        .map(document)
        .collect()
}

fn position(positions: &serde_json::Value) -> u64 {
    let partitions = positions["pages"].as_object();
    let mut offsets = partitions.into_iter().flatten();
    offsets
        .next()
        .map_or(0, |(_, offset)| offset.as_u64().unwrap())
}

/// The epoch and the position that a client has been shown.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    epoch: u64,
    position: u64,
}

impl Shown {
    /// Takes in what is shown now; nothing goes back.
    fn see(&mut self, epoch: u64, position: u64) {
        assert!(epoch >= self.epoch, "epoch {epoch} after {self:?}");
        assert!(
            position >= self.position,
            "position {position} after {self:?}"
        );
        *self = Self { epoch, position };
    }
}

/// One life of the process: transactions are appended while it runs, and it is asked what it shows.
fn live(
    config: &Path,
    port: u16,
    (log, transactions): (&mut File, &[Transaction]),
    random: &mut Random,
    shown: &mut Shown,
) {
    let running = Running::start(config, port);
    let lifetime = Duration::from_millis(random.below(200));
    let born = SystemTime::now();
    let mut rest = transactions;
    while born.elapsed().is_ok_and(|age| age < lifetime) {
        let burst = (random.below(20) as usize + 1).min(rest.len());
        let (now, later) = rest.split_at(burst);
        append(log, now);
        rest = later;
        let (status, body) = running.get("/v1/indexes/pages");
        assert_eq!(status, 200, "{body}");
        let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
        shown.see(
            answer["epoch"].as_u64().unwrap(),
            position(&answer["positions"]),
        );
        std::thread::sleep(Duration::from_millis(random.below(15)));
    }
    append(log, rest);
    running.kill();
}

/// Whole transactions at a time: one that pauses in its middle is taken for two.
fn append(log: &mut File, transactions: &[Transaction]) {
    for transaction in transactions {
        log.write_all(transaction.lines.as_bytes()).unwrap();
    }
}

fn config(directory: &Path, log: &Path, port: u16) -> PathBuf {
    let source = format!(
        "{{type: jsonl, path: {}, follow: true, format: {{type: change, key: path, op: op, \
         transaction: commit}}}}",
        log.display()
    );
    let server = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
    let path = write_config(directory, "pipeline", &source, &server);
    let yaml = std::fs::read_to_string(&path).unwrap();
    let yaml = yaml.replace("{{ text }}", "{{ content }}");
    std::fs::write(
        &path,
        yaml.replace("{model: hashing}", "{model: hashing}\n    shards: 2"),
    )
    .unwrap();
    path
}

#[test]
fn the_state_survives_kills_at_any_moment() {
    let Some(data) = data_directory("otel-docs-changes", "the_state_survives_kills") else {
        return;
    };
    let kills = if is_torture() { 1_000 } else { 50 };
    let mut random = Random::new(seed());
    let transactions = transactions(&data);
    let directory = tempfile::tempdir().unwrap();
    let log_path = directory.path().join("events.jsonl");
    let mut log = File::create(&log_path).unwrap();
    let port = free_port();
    let config = config(directory.path(), &log_path, port);
    let (mut shown, mut fold) = (Shown::default(), Fold::default());
    let share = transactions.len().div_ceil(kills);
    let mut behind = 0;
    for (number, share) in transactions.chunks(share).enumerate() {
        live(&config, port, (&mut log, share), &mut random, &mut shown);
        let report = expect_sound(&config, "after a kill");
        shown.see(
            report["epoch"].as_u64().unwrap(),
            position(&report["positions"]),
        );
        fold.advance_to(shown.position, &transactions);
        assert!(exported(&config) == fold.documents, "after kill {number}");
        let written = std::fs::metadata(&log_path).unwrap().len();
        behind += usize::from(fold.bytes < written);
    }
    println!("{kills} kills, {behind} of them with changes that were not committed yet");
    assert!(
        behind > kills / 4,
        "the kills came when nothing was going on"
    );

    let report = run_to_end(&config);
    let written = std::fs::metadata(&log_path).unwrap().len();
    fold.advance_to(written, &transactions);
    assert_eq!(fold.transactions, transactions.len());
    assert!(exported(&config) == fold.documents, "at the end");
    assert_eq!(report["documents"], fold.documents.len());
    expect_sound(&config, "at the end");
}
