//! Line logs, read as a pipeline reads them: whole, stopped and resumed, followed, broken.

// The lint spares functions marked as tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use flate2::write::GzEncoder;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use vectide_connectors::JsonlConfig;
use vectide_connectors::testing::{HeldMap, RecordedRun, RecordingSink, Resume, run_source};
use vectide_model::{
    DeadLetterReason, OpenContext, Partition, ReadMode, Source, SourceConfig, SourceError,
};

type Positions = Resume;

const CHANGE_FORMAT: &str =
    r#"{"type": "change", "key": "path", "op": "op", "transaction": "commit"}"#;

fn config(path: &str, format: &str, more: &str) -> JsonlConfig {
    let json = format!(r#"{{"path": {path:?}, "format": {format} {more}}}"#);
    serde_json::from_str(&json).unwrap()
}

fn open(directory: &Path, config: JsonlConfig) -> Box<dyn Source> {
    let context = OpenContext::in_folder(directory);
    config.open(&context).unwrap()
}

fn start(
    directory: &Path,
    config: JsonlConfig,
    positions: &Positions,
    sink: RecordingSink,
) -> RecordedRun {
    let source = open(directory, config);
    run_source(
        source,
        positions.clone(),
        HeldMap::default(),
        ReadMode::UntilCaughtUp,
        sink,
    )
}

/// Reads to the end and expects it to be reached.
fn read_all(directory: &Path, config: JsonlConfig, positions: &Positions) -> RecordedRun {
    let mut run = start(directory, config, positions, RecordingSink::default());
    run.join().unwrap();
    assert_eq!(run.times_caught_up(), 1);
    run
}

fn write_log(directory: &Path, name: &str, text: &[u8]) -> PathBuf {
    let path = directory.join(name);
    let file = std::fs::File::create(&path).unwrap();
    if name.ends_with(".gz") {
        let mut out = GzEncoder::new(file, flate2::Compression::fast());
        out.write_all(text).unwrap();
        out.finish().unwrap();
    } else if name.ends_with(".zst") {
        zstd::stream::copy_encode(text, file, 1).unwrap();
    } else {
        (&file).write_all(text).unwrap();
    }
    path
}

fn test_data(file: &str, test: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("VECTIDE_TEST_DATA") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
    };
    let path = root.join("otel-docs-changes").join(file);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {test}: there is no {}", path.display());
    None
}

/// `path -> sha256 of the content`, as the manifest has it.
fn manifest_of(rows: &HeldMap) -> BTreeMap<String, String> {
    let hash = |row: &str| {
        let row: serde_json::Value = serde_json::from_str(row).unwrap();
        let digest = Sha256::digest(row["content"].as_str().unwrap());
        digest.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        })
    };
    rows.rows
        .iter()
        .map(|(key, row)| (key.to_string(), hash(row)))
        .collect()
}

#[test]
fn the_real_history_folds_to_its_manifest() {
    let test = "the_real_history_folds_to_its_manifest";
    let (Some(events), Some(manifest)) = (
        test_data("events.jsonl.zst", test),
        test_data("final_manifest.jsonl", test),
    ) else {
        return;
    };
    let expected: BTreeMap<String, String> = std::fs::read_to_string(manifest)
        .unwrap()
        .lines()
        .map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| entry[name].as_str().unwrap().to_owned();
            (text("path"), text("sha256"))
        })
        .collect();
    let path = events.to_str().unwrap();

    let whole = read_all(
        Path::new("/"),
        config(path, CHANGE_FORMAT, ""),
        &Positions::default(),
    );
    assert_eq!(whole.dead_letters(), []);
    let batches = whole.batches();
    assert_eq!(whole.changes().len(), 14_133);
    assert_eq!(batches.len(), 4_962, "one batch for each commit");
    assert_eq!(
        batches.iter().map(|batch| batch.changes.len()).max(),
        Some(633)
    );
    assert_eq!(
        batches
            .iter()
            .map(|batch| batch.split_transactions)
            .sum::<u64>(),
        0
    );
    assert_eq!(manifest_of(&whole.fold(HeldMap::default())), expected);

    // The same with a stop in the middle.
    let sink = RecordingSink::stopping_after(2_000);
    let mut first = start(
        Path::new("/"),
        config(path, CHANGE_FORMAT, ""),
        &Positions::default(),
        sink,
    );
    first.join().unwrap();
    assert_eq!(first.batches().len(), 2_000);
    let positions = first.resume(Positions::default());
    let rest = read_all(Path::new("/"), config(path, CHANGE_FORMAT, ""), &positions);
    assert_eq!(rest.changes().len() + first.changes().len(), 14_133);
    let rows = rest.fold(first.fold(HeldMap::default()));
    assert_eq!(manifest_of(&rows), expected);
}

/// A log with everything a line can be, good and bad.
const MIXED: &str = concat!(
    "\u{feff}{\"path\":\"a\",\"op\":\"c\",\"commit\":1,\"content\":\"é\\n\"}\n",
    "\n",
    "{\"path\":\"b\",\"op\":\"c\",\"commit\":1}\r\n",
    "not json\n",
    "{\"path\":\"a\",\"op\":\"d\",\"commit\":2}\n",
    "   \r\n",
    "{\"op\":\"c\",\"commit\":3}\n",
    "{\"path\":[1],\"op\":\"c\",\"commit\":3}\n",
    "{\"path\":\"c\",\"op\":\"z\",\"commit\":3}\n",
    "[]\n",
    "{\"path\":7,\"op\":\"r\",\"commit\":\"3\"}\n",
    "{\"path\":\"e\",\"op\":\"u\"}\n",
    "{\"path\":\"f\",\"op\":\"u\",\"commit\":null}",
);

#[test]
fn every_kind_of_line_is_a_change_or_a_dead_letter() {
    let directory = TempDir::new().unwrap();
    let mut text = MIXED.as_bytes().to_vec();
    text.extend_from_slice(b"\n{\"path\":\"\xff\"}\n{\"path\":\"big\",\"content\":\"");
    text.extend(std::iter::repeat_n(b'x', 10 << 20));
    text.extend_from_slice(b"\"}\n{\"path\":\"last\",\"op\":\"c\",\"commit\":9}\n");
    write_log(directory.path(), "log.jsonl", &text);
    let run = read_all(
        directory.path(),
        config("log.jsonl", CHANGE_FORMAT, ""),
        &Positions::default(),
    );

    use DeadLetterReason::*;
    let letters = run.dead_letters();
    let reasons: Vec<DeadLetterReason> = letters.iter().map(|letter| letter.reason).collect();
    assert_eq!(
        reasons,
        [
            Undecodable,
            MissingKey,
            MissingKey,
            UnknownOperation,
            WrongType,
            Undecodable,
            TooLarge
        ]
    );
    for letter in &letters {
        let at = usize::try_from(letter.position.offset).unwrap();
        assert!(text[at..].starts_with(&letter.raw[..letter.raw.len().min(100)]));
        assert!(at == 0 || text[at - 1] == b'\n');
    }
    assert_eq!(letters[6].raw.len(), 64 * 1024);
    assert_eq!(letters[3].key.as_deref(), Some("c"));

    let changes: Vec<(String, Option<String>, u64)> = run
        .changes()
        .into_iter()
        .map(|change| {
            let row = change.row.map(|row| row.to_string());
            (change.key.to_string(), row, change.position.offset)
        })
        .collect();
    let keys: Vec<&str> = changes.iter().map(|(key, _, _)| key.as_str()).collect();
    assert_eq!(keys, ["a", "b", "a", "7", "e", "f", "last"]);
    let first_row = r#"{"path":"a","op":"c","commit":1,"content":"é\n"}"#;
    assert_eq!(changes[0], ("a".into(), Some(first_row.into()), 0));
    assert_eq!(
        changes[1].1.as_deref(),
        Some(r#"{"path":"b","op":"c","commit":1}"#)
    );
    assert_eq!(changes[2].1, None);
    let end = run.resume(Positions::default()).positions["log.jsonl"];
    assert_eq!(end, text.len() as u64);
}

#[test]
fn transactions_are_batches() {
    let directory = TempDir::new().unwrap();
    write_log(directory.path(), "log.jsonl", MIXED.as_bytes());
    let run = read_all(
        directory.path(),
        config("log.jsonl", CHANGE_FORMAT, ""),
        &Positions::default(),
    );
    let batches = run.batches();
    let keys: Vec<Vec<&str>> = batches
        .iter()
        .map(|batch| batch.changes.iter().map(|change| &*change.key).collect())
        .collect();
    assert_eq!(keys, [vec!["a", "b"], vec!["a"], vec!["7"], vec!["e", "f"]]);
    let divisible: Vec<bool> = batches.iter().map(|batch| batch.divisible).collect();
    assert_eq!(
        divisible,
        [false, false, false, true],
        "the last two stand alone"
    );
    assert!(
        batches
            .iter()
            .all(|batch| batch.positions.contains_key("log.jsonl"))
    );

    let lines: String = (0..25)
        .map(|index| {
            format!(
                "{{\"path\":\"{index}\",\"op\":\"c\",\"commit\":{}}}\n",
                index / 12
            )
        })
        .collect();
    write_log(directory.path(), "long.jsonl", lines.as_bytes());
    let limited = config(
        "long.jsonl",
        CHANGE_FORMAT,
        r#", "max_transaction_changes": 5"#,
    );
    let run = read_all(directory.path(), limited, &Positions::default());
    let sizes: Vec<usize> = run
        .batches()
        .iter()
        .map(|batch| batch.changes.len())
        .collect();
    assert_eq!(sizes, [5, 5, 2, 5, 5, 2, 1]);
    let split: u64 = run
        .batches()
        .iter()
        .map(|batch| batch.split_transactions)
        .sum();
    assert_eq!(split, 2);
}

#[test]
fn plain_gzip_and_zstandard_are_equal_from_every_position() {
    let directory = TempDir::new().unwrap();
    let text: String = (0..40)
        .map(|index| {
            format!(
                "{{\"path\":\"k{}\",\"op\":\"u\",\"n\":{index}}}\n",
                index % 7
            )
        })
        .collect();
    let mixed = format!("{MIXED}\n{text}");
    for name in ["log.jsonl", "log.jsonl.gz", "log.jsonl.zst"] {
        write_log(directory.path(), name, mixed.as_bytes());
    }
    let offsets_and_rows = |run: &RecordedRun| -> Vec<(u64, Option<String>)> {
        let changes = run.changes().into_iter();
        changes
            .map(|change| {
                (
                    change.position.offset,
                    change.row.map(|row| row.to_string()),
                )
            })
            .collect()
    };
    let plain = read_all(
        directory.path(),
        config("log.jsonl", CHANGE_FORMAT, ""),
        &Positions::default(),
    );
    let expected = offsets_and_rows(&plain);
    assert!(expected.len() > 40);
    let line_starts: Vec<u64> = std::iter::once(0)
        .chain(mixed.match_indices('\n').map(|(at, _)| at as u64 + 1))
        .collect();
    for name in ["log.jsonl", "log.jsonl.gz", "log.jsonl.zst"] {
        for from in &line_starts {
            let positions = Positions::from(BTreeMap::from([(Partition::from(name), *from)]));
            let run = read_all(
                directory.path(),
                config(name, CHANGE_FORMAT, ""),
                &positions,
            );
            let rest: Vec<_> = expected
                .iter()
                .filter(|(at, _)| at >= from)
                .cloned()
                .collect();
            assert_eq!(offsets_and_rows(&run), rest, "{name} from {from}");
        }
    }
}

/// Runs with positions that are not in the log any more.
fn lost(directory: &Path, name: &str, positions: &Positions) -> String {
    let mut run = start(
        directory,
        config(name, CHANGE_FORMAT, ""),
        positions,
        RecordingSink::default(),
    );
    match run.join() {
        Err(error @ SourceError::PositionLost { .. }) => {
            assert_eq!(run.batches(), [], "nothing may be read");
            error.to_string()
        }
        other => panic!("expected a lost position, got {other:?}"),
    }
}

#[test]
fn another_log_under_the_same_name_is_a_lost_position() {
    let directory = TempDir::new().unwrap();
    let line = |key: &str| format!("{{\"path\":\"{key}\",\"op\":\"u\"}}\n");
    let old = line("a") + &line("b") + &line("c");
    for name in ["log.jsonl", "log.jsonl.gz", "log.jsonl.zst"] {
        write_log(directory.path(), name, old.as_bytes());
        let run = read_all(
            directory.path(),
            config(name, CHANGE_FORMAT, ""),
            &Positions::default(),
        );
        let positions = run.resume(Positions::default());
        assert_eq!(positions.positions[name], old.len() as u64);

        // Grown: the rest is read, and the position of the end stays good.
        write_log(
            directory.path(),
            name,
            (old.clone() + &line("d")).as_bytes(),
        );
        let rest = read_all(
            directory.path(),
            config(name, CHANGE_FORMAT, ""),
            &positions,
        );
        assert_eq!(rest.changes().len(), 1);

        // Shorter, another first line, and no line start at the position.
        write_log(directory.path(), name, line("a").as_bytes());
        assert!(lost(directory.path(), name, &positions).contains("ends at byte"));
        let other = line("x") + &line("b") + &line("c") + &line("d");
        write_log(directory.path(), name, other.as_bytes());
        assert!(lost(directory.path(), name, &positions).contains("first line"));
        let longer = line("a") + &line("bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb");
        write_log(directory.path(), name, longer.as_bytes());
        assert!(lost(directory.path(), name, &positions).contains("within one"));
    }
}

#[test]
fn a_log_that_ended_without_a_line_end_is_read_on() {
    let directory = TempDir::new().unwrap();
    write_log(
        directory.path(),
        "log.jsonl",
        b"{\"path\":\"a\",\"op\":\"c\"}",
    );
    let config = || config("log.jsonl", CHANGE_FORMAT, "");
    let first = read_all(directory.path(), config(), &Positions::default());
    assert_eq!(first.changes().len(), 1);
    write_log(
        directory.path(),
        "log.jsonl",
        b"{\"path\":\"a\",\"op\":\"c\"}\r\n{\"path\":\"b\",\"op\":\"c\"}\n",
    );
    let rest = read_all(
        directory.path(),
        config(),
        &first.resume(Positions::default()),
    );
    assert_eq!(&*rest.changes()[0].key, "b");
    assert_eq!((rest.changes().len(), rest.dead_letters().len()), (1, 0));
}

#[test]
fn broken_archives_and_missing_files_are_named() {
    let directory = TempDir::new().unwrap();
    let text = "{\"path\":\"a\",\"op\":\"c\"}\n".repeat(10_000);
    for name in ["log.jsonl.gz", "log.jsonl.zst"] {
        let path = write_log(directory.path(), name, text.as_bytes());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let mut run = start(
            directory.path(),
            config(name, CHANGE_FORMAT, ""),
            &Positions::default(),
            RecordingSink::default(),
        );
        assert!(matches!(run.join(), Err(SourceError::Failed { .. })));
        assert_eq!(run.times_caught_up(), 0);
    }
    let context = OpenContext::in_folder(directory.path());
    let missing = config("missing.jsonl", CHANGE_FORMAT, "").open(&context);
    assert_eq!(missing.err().unwrap().field, "path");
    let followed = config("log.jsonl.gz", CHANGE_FORMAT, r#", "follow": true"#);
    assert_eq!(followed.check()[0].field, "follow");
}

struct Appender(std::fs::File);

impl Appender {
    fn open(path: &Path) -> Self {
        let mut options = std::fs::OpenOptions::new();
        Self(options.append(true).create(true).open(path).unwrap())
    }

    fn append(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }
}

fn follow(directory: &Path, positions: &Positions) -> RecordedRun {
    let source = open(
        directory,
        config("log.jsonl", CHANGE_FORMAT, r#", "follow": true"#),
    );
    run_source(
        source,
        positions.clone(),
        HeldMap::default(),
        ReadMode::Follow,
        RecordingSink::default(),
    )
}

#[test]
fn a_followed_log_grows_and_its_transactions_stay_whole() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("log.jsonl");
    let mut log = Appender::open(&path);
    let mut run = follow(directory.path(), &Positions::default());
    run.wait_until("caught up with nothing", |run| run.times_caught_up() == 1);

    log.append("{\"path\":\"a\",\"op\":\"c\",\"commit\":1}\n{\"path\":\"b\",\"op\"");
    std::thread::sleep(std::time::Duration::from_millis(50));
    log.append(":\"c\",\"commit\":1}\n");
    run.wait_until("the transaction is quiet", |run| run.changes().len() == 2);
    assert_eq!(run.batches().len(), 1, "the halves of a line are one line");

    // The next transaction releases the one before it; nothing without a line end is read.
    log.append(
        "{\"path\":\"c\",\"op\":\"c\",\"commit\":2}\n{\"path\":\"d\",\"op\":\"c\",\"commit\":3}",
    );
    run.wait_until("the third change", |run| run.changes().len() == 3);
    std::thread::sleep(std::time::Duration::from_millis(400));
    assert_eq!(run.changes().len(), 3);
    let middle = run.resume(Positions::default());
    run.stop().unwrap();

    let mut rest = follow(directory.path(), &middle);
    log.append("\n");
    rest.wait_until("the last change", |run| run.changes().len() == 1);
    assert_eq!(&*rest.changes()[0].key, "d");

    // A log that is cut while it is followed.
    log.0.set_len(3).unwrap();
    assert!(matches!(rest.join(), Err(SourceError::PositionLost { .. })));
}

#[test]
fn a_followed_log_that_is_replaced_is_a_lost_position() {
    let directory = TempDir::new().unwrap();
    let line = "{\"path\":\"a\",\"op\":\"c\"}\n";
    let path = write_log(directory.path(), "log.jsonl", line.as_bytes());
    let mut run = follow(directory.path(), &Positions::default());
    run.wait_until("read", |run| run.changes().len() == 1);
    let other = write_log(directory.path(), "other.jsonl", line.repeat(3).as_bytes());
    std::fs::rename(other, path).unwrap();
    let lost = run.join().unwrap_err();
    assert!(matches!(lost, SourceError::PositionLost { .. }), "{lost}");
}

#[test]
fn a_growing_log_can_be_read_until_caught_up() {
    let directory = TempDir::new().unwrap();
    let text: String = (0..1000)
        .map(|index| {
            format!(
                "{{\"path\":\"{index}\",\"op\":\"c\",\"commit\":{}}}\n",
                index / 3
            )
        })
        .collect();
    let path = write_log(directory.path(), "log.jsonl", text.as_bytes());
    let writer = std::thread::spawn(move || {
        let mut log = Appender::open(&path);
        let began_at = std::time::Instant::now();
        let mut index = 1_000_000;
        while began_at.elapsed() < std::time::Duration::from_secs(1) {
            log.append(&format!(
                "{{\"path\":\"{index}\",\"op\":\"c\",\"commit\":{index}}}\n"
            ));
            index += 1;
        }
    });
    let followed = || config("log.jsonl", CHANGE_FORMAT, r#", "follow": true"#);
    let first = read_all(directory.path(), followed(), &Positions::default());
    assert!(!writer.is_finished() || first.changes().len() >= 1000);
    assert!(first.changes().len() >= 1000);
    writer.join().unwrap();
    let positions = first.resume(Positions::default());
    let rest = read_all(directory.path(), followed(), &positions);
    let whole = read_all(
        directory.path(),
        config("log.jsonl", CHANGE_FORMAT, ""),
        &Positions::default(),
    );
    assert_eq!(
        first.changes().len() + rest.changes().len(),
        whole.changes().len()
    );
}

#[derive(Clone, Debug)]
enum LineKind {
    Good { key: u8, op: u8, commit: Option<u8> },
    Bad,
    Empty,
    Long,
}

fn line_kind() -> impl Strategy<Value = LineKind> {
    prop_oneof![
        6 => (0..5u8, 0..4u8, prop::option::of(0..3u8))
            .prop_map(|(key, op, commit)| LineKind::Good { key, op, commit }),
        1 => Just(LineKind::Bad),
        1 => Just(LineKind::Empty),
        1 => Just(LineKind::Long),
    ]
}

fn render(kinds: &[LineKind], line_end: &str) -> String {
    let mut text = String::new();
    for (index, kind) in kinds.iter().enumerate() {
        match kind {
            LineKind::Good { key, op, commit } => {
                let op = ["c", "u", "r", "d"][usize::from(*op)];
                let commit = commit.map_or("null".to_owned(), |commit| commit.to_string());
                write!(
                    text,
                    r#"{{"path":{key},"op":"{op}","commit":{commit},"n":{index}}}"#
                )
                .unwrap();
            }
            LineKind::Bad => text.push_str("{\"path\":"),
            LineKind::Empty => {}
            LineKind::Long => text.push_str(&"z".repeat(300)),
        }
        text.push_str(line_end);
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// However often reading stops between two batches, the batches are those of one reading, and
    /// consecutive lines of a transaction lie in one.
    #[test]
    fn stops_change_nothing(
        kinds in prop::collection::vec(line_kind(), 0..60),
        line_end in prop_oneof![Just("\n"), Just("\r\n")],
        stops in prop::collection::vec(0usize..4, 0..20),
        suffix in prop_oneof![Just(""), Just(".gz"), Just(".zst")],
    ) {
        let directory = TempDir::new().unwrap();
        let name = format!("log.jsonl{suffix}");
        write_log(directory.path(), &name, render(&kinds, line_end).as_bytes());
        let config = || config(&name, CHANGE_FORMAT, r#", "max_line": "200B""#);
        let whole = read_all(directory.path(), config(), &Positions::default());

        let (mut positions, mut changes, mut letters) = (Positions::default(), Vec::new(), Vec::new());
        let rounds = stops.into_iter().map(RecordingSink::stopping_after);
        for sink in rounds.chain([RecordingSink::default()]) {
            let mut run = start(directory.path(), config(), &positions, sink);
            run.join().unwrap();
            positions = run.resume(positions);
            changes.extend(run.changes());
            letters.extend(run.dead_letters());
        }
        let told = |changes: Vec<vectide_model::Change>| -> Vec<_> {
            changes.into_iter().map(|change| (change.position.offset, change.key, change.row)).collect()
        };
        let (whole_changes, whole_letters) = (whole.changes(), whole.dead_letters());
        let good = kinds.iter().filter(|kind| matches!(kind, LineKind::Good { .. })).count();
        let bad = kinds.iter().filter(|kind| matches!(kind, LineKind::Bad | LineKind::Long)).count();
        prop_assert_eq!((whole_changes.len(), whole_letters.len()), (good, bad));
        prop_assert_eq!(told(changes), told(whole_changes));
        prop_assert_eq!(letters, whole_letters);

        let batch_of: BTreeMap<u64, usize> = whole
            .batches()
            .iter()
            .enumerate()
            .flat_map(|(index, batch)| batch.changes.iter().map(move |change| (change.position.offset, index)))
            .collect();
        let commits: Vec<Option<u8>> = kinds
            .iter()
            .filter_map(|kind| match kind {
                LineKind::Good { commit, .. } => Some(*commit),
                _ => None,
            })
            .collect();
        let batches: Vec<usize> = batch_of.into_values().collect();
        for (commits, batches) in commits.windows(2).zip(batches.windows(2)) {
            let is_same_transaction = commits[0].is_some() && commits[0] == commits[1];
            let stands_alone = commits == [None, None];
            prop_assert!(stands_alone || (batches[0] == batches[1]) == is_same_transaction);
        }
    }
}
