//! Dead letters through the real binary: written to a folder whatever happens to the process,
//! listed, shown and replayed; and a text that can't be embedded harms nobody else's.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vectide_engine::{ExportKind, export};
use vectide_model::{EmbedError, Embedder, Lane, ModelIdentity, ReadMode, TokenCounter};
use vectide_tests::{
    Running, Script, ScriptedPipeline, call, free_port, run_to_end, vectide, write_config,
};

fn source(key: &str) -> String {
    format!("{{type: jsonl, path: log.jsonl, format: {{type: change, key: {key}, op: op}}}}")
}

fn append(directory: &Path, lines: &[&str]) {
    let path = directory.join("log.jsonl");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    for line in lines {
        writeln!(file, "{line}").unwrap();
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Everything in a folder of letters, by number; a number may be there twice.
fn folder(directory: &Path) -> BTreeMap<u64, Value> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return BTreeMap::new();
    };
    let texts = entries.map(|it| std::fs::read_to_string(it.unwrap().path()).unwrap());
    let letters = texts.flat_map(|text| lines(&text));
    letters.map(|it| (it["id"].as_u64().unwrap(), it)).collect()
}

fn list(config: &Path, filters: &[&str]) -> Vec<Value> {
    let (status, told, complaints) = call(&["dlq", "list", "--json"], config, filters);
    assert_eq!(status, Some(0), "{complaints}");
    lines(&told)
}

fn documents(config: &Path) -> Vec<String> {
    let (_, told, _) = call(&["export"], config, &["documents"]);
    let ids = lines(&told);
    ids.iter()
        .map(|it| it["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn letters_are_written_to_the_folder_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(
        directory.path(),
        "p",
        &source("id"),
        "dead_letters: {dir: ./dead}",
    );
    append(
        directory.path(),
        &[
            "not json",
            r#"{"id":"a","op":"c","text":"good"}"#,
            r#"{"id":"b","op":"c"}"#,
        ],
    );
    assert_eq!(run_to_end(&config)["dead_letters"], 2);
    let dead = directory.path().join("dead");
    let written = folder(&dead);
    assert_eq!(written.keys().copied().collect::<Vec<_>>(), [0, 1]);
    assert_eq!(written[&0]["reason"], "undecodable");
    assert_eq!(written[&0]["raw"]["text"], "not json");
    assert_eq!(written[&0]["raw"]["base64"], "bm90IGpzb24=");
    assert_eq!(written[&0]["offset"], 0);
    assert_eq!(written[&1]["reason"], "render");
    assert_eq!(written[&1]["key"], "b");
    let listed: BTreeMap<u64, Value> = list(&config, &[])
        .into_iter()
        .map(|it| (it["id"].as_u64().unwrap(), it))
        .collect();
    assert_eq!(listed, written);

    append(directory.path(), &["[1]"]);
    run_to_end(&config);
    run_to_end(&config);
    let text: String = std::fs::read_dir(&dead)
        .unwrap()
        .map(|it| std::fs::read_to_string(it.unwrap().path()).unwrap())
        .collect();
    assert_eq!(
        text.lines().count(),
        3,
        "clean ends write nothing twice: {text}"
    );
}

#[test]
fn letters_survive_kills() {
    const BAD: usize = 6_000;
    let directory = tempfile::tempdir().unwrap();
    let more = "dead_letters: {dir: ./dead, max_file: 64KiB}";
    let config = write_config(directory.path(), "p", &source("id"), more);
    let bad: Vec<String> = (0..BAD)
        .map(|number| format!("bad line {number}"))
        .collect();
    append(
        directory.path(),
        &bad.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let dead = directory.path().join("dead");
    let files = || std::fs::read_dir(&dead).map_or(0, Iterator::count);
    let mut in_between = 0;
    for round in 1..8 {
        let mut command = vectide(&["run", "--until-caught-up"]);
        let command = command
            .arg(&config)
            .stdout(Stdio::null())
            .env("VECTIDE_LOG", "off");
        let mut child = command.spawn().unwrap();
        // About 24 files in all: the process is killed when some more of them are there.
        while child.try_wait().unwrap().is_none() && files() < round * 3 {
            std::thread::sleep(Duration::from_millis(1));
        }
        in_between += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run_to_end(&config);
    let in_state: BTreeSet<u64> = list(&config, &[])
        .iter()
        .map(|it| it["id"].as_u64().unwrap())
        .collect();
    let written = folder(&dead);
    println!("{in_between} of 7 kills came while letters were written");
    assert!(in_between > 0);
    assert_eq!(in_state.len(), BAD);
    assert_eq!(written.keys().copied().collect::<BTreeSet<_>>(), in_state);
}

/// Letters behind the place where an epoch was full came once more with each start from there.
#[test]
fn a_letter_is_kept_once_wherever_epochs_end() {
    const LINES: usize = 6_000;
    let directory = tempfile::tempdir().unwrap();
    let more = "dead_letters: {dir: ./dead, max_file: 16KiB}\ncommit: {rows: 30}";
    let config = write_config(directory.path(), "p", &source("id"), more);
    let line = |number: usize| match number % 2 {
        0 => format!(r#"{{"id":"{number}","op":"c","text":"page {number}"}}"#),
        _ => format!("bad line {number}"),
    };
    let log: Vec<String> = (0..LINES).map(line).collect();
    let log: Vec<&str> = log.iter().map(String::as_str).collect();
    append(directory.path(), &log);
    let dead = directory.path().join("dead");
    let files = || std::fs::read_dir(&dead).map_or(0, Iterator::count);
    for round in 1..5 {
        let mut command = vectide(&["run", "--until-caught-up"]);
        let command = command.arg(&config).stdout(Stdio::null());
        let mut child = command.env("VECTIDE_LOG", "off").spawn().unwrap();
        while child.try_wait().unwrap().is_none() && files() < round * 8 {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run_to_end(&config);
    let letters = list(&config, &[]);
    let places: BTreeSet<u64> = letters
        .iter()
        .map(|it| it["offset"].as_u64().unwrap())
        .collect();
    assert_eq!((letters.len(), places.len()), (LINES / 2, LINES / 2));
}

/// A log with letters of several kinds: what has `uid` instead of `id` is missing its key until the
/// configuration is put right.
fn mixed(directory: &Path) -> PathBuf {
    append(
        directory,
        &[
            r#"{"uid":"late","op":"c","text":"it comes late"}"#,
            r#"{"uid":"old","op":"c","text":"an old text"}"#,
            r#"{"id":"old","op":"u","text":"a new text"}"#,
            "not json",
            r#"{"id":"bare","op":"c"}"#,
            r#"{"uid":"bare-too","op":"c"}"#,
        ],
    );
    let config = write_config(directory, "p", &source("id"), "");
    assert_eq!(run_to_end(&config)["dead_letters"], 5);
    config
}

#[test]
fn letters_are_listed_and_shown() {
    let directory = tempfile::tempdir().unwrap();
    let config = mixed(directory.path());
    let reasons = |letters: Vec<Value>| -> Vec<String> {
        letters
            .iter()
            .map(|it| it["reason"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(list(&config, &["--source", "pages"]).len(), 5);
    assert_eq!(list(&config, &["--source", "other"]).len(), 0);
    let missing = reasons(list(&config, &["--reason", "missing_key"]));
    assert_eq!(missing, ["missing_key"; 3]);
    let (_, told, _) = call(&["dlq", "list"], &config, &["--reason", "undecodable"]);
    assert_eq!(told.lines().count(), 1);
    assert!(told.contains("undecodable\tpages log.jsonl@"), "{told}");
    let id = told.split('\t').next().unwrap();
    let (status, shown, _) = call(&["dlq", "show"], &config, &[id]);
    assert_eq!(status, Some(0));
    assert!(
        shown.contains("reason     undecodable") && shown.contains("not json"),
        "{shown}"
    );
    let (status, _, complaints) = call(&["dlq", "show"], &config, &["99"]);
    assert_eq!(status, Some(1));
    assert!(complaints.contains("no dead letter 99"), "{complaints}");
    let (status, _, complaints) = call(&["dlq", "list"], &config, &["--reason", "bad"]);
    assert_eq!(status, Some(2));
    assert!(complaints.contains("missing_key"), "{complaints}");
}

#[test]
fn letters_are_replayed_with_the_configuration_put_right() {
    let directory = tempfile::tempdir().unwrap();
    let config = mixed(directory.path());
    assert_eq!(documents(&config), ["old"]);
    let replay = |arguments: &[&str]| -> (Value, String) {
        let (status, told, complaints) = call(&["dlq", "replay"], &config, arguments);
        assert_eq!(status, Some(0), "{complaints}");
        (serde_json::from_str(&told).unwrap(), complaints)
    };
    // Nothing was put right yet: everything stays, and a second replay does the same.
    for _ in 0..2 {
        let (summary, complaints) = replay(&[]);
        let expected = serde_json::json!({"replayed": 0, "refused": 5, "remaining": 5});
        assert_eq!(summary, expected);
        assert!(
            complaints.contains("correct the row in its source"),
            "{complaints}"
        );
    }
    let before = list(&config, &[]);

    write_config(directory.path(), "p", &source("uid"), "");
    let (summary, _) = replay(&["0"]);
    assert_eq!(summary["replayed"], 1);
    assert_eq!(documents(&config), ["late", "old"]);
    let (summary, _) = replay(&["--reason", "missing_key"]);
    // `bare-too` has a key now and still no text: its row's letter takes the record's place.
    assert_eq!(
        summary,
        serde_json::json!({"replayed": 2, "refused": 0, "remaining": 3})
    );
    let reasons: Vec<Value> = list(&config, &[])
        .iter()
        .map(|it| it["reason"].clone())
        .collect();
    assert_eq!(reasons, ["undecodable", "render", "render"]);
    let kept = list(&config, &["--reason", "undecodable"]);
    assert_eq!(
        kept[0]["time"], before[2]["time"],
        "a letter keeps the time of its first failure"
    );

    // The letter of `old` was overtaken by a later change: that text stays.
    let (_, chunks, _) = call(&["export"], &config, &["chunks"]);
    let old = lines(&chunks)
        .into_iter()
        .find(|it| it["document"] == "old")
        .unwrap();
    assert_eq!(old["text"], "a new text");
    // Positions are those of the log: nothing is read twice or left out afterwards.
    append(
        directory.path(),
        &[r#"{"uid":"next","op":"c","text":"goes on"}"#],
    );
    let report = run_to_end(&config);
    assert_eq!(
        (&report["epochs"], &report["documents"]),
        (&1.into(), &3.into())
    );
}

/// The oldest letters leave the state while they are replayed: each is counted once.
#[test]
fn letters_may_go_while_they_are_replayed() {
    const LETTERS: usize = 2_000;
    let directory = tempfile::tempdir().unwrap();
    let records: Vec<String> = (0..LETTERS)
        .map(|number| format!(r#"{{"uid":"{number}","op":"c","text":"text {number}"}}"#))
        .collect();
    append(
        directory.path(),
        &records.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let config = write_config(directory.path(), "p", &source("id"), "");
    assert_eq!(run_to_end(&config)["dead_letters"], LETTERS);
    // First nothing is put right but how many are kept, then the key.
    for (key, keep) in [("id", 1_000), ("uid", 300)] {
        let keep = format!("dead_letters: {{keep: {keep}}}");
        write_config(directory.path(), "p", &source(key), &keep);
        let (status, told, complaints) = call(&["dlq", "replay"], &config, &[]);
        assert_eq!(status, Some(0), "{told}{complaints}");
        let (status, told, complaints) = call(&["check"], &config, &[]);
        assert_eq!(status, Some(0), "{told}{complaints}");
    }
    assert!(!documents(&config).is_empty());
}

#[test]
fn a_running_pipeline_keeps_its_letters_to_itself() {
    let directory = tempfile::tempdir().unwrap();
    append(directory.path(), &["not json"]);
    let port = free_port();
    let more = format!("server: {{listen: \"127.0.0.1:{port}\"}}");
    let config = write_config(directory.path(), "p", &source("id"), &more);
    let running = Running::start(&config, port);
    for command in [["dlq", "list"], ["dlq", "replay"]] {
        let (status, _, complaints) = call(&command, &config, &[]);
        assert_eq!(status, Some(1));
        assert!(
            complaints.contains("another process uses it"),
            "{complaints}"
        );
    }
    assert!(running.terminate());
}

#[test]
fn the_oldest_letters_go_loudly() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(
        directory.path(),
        "p",
        &source("id"),
        "dead_letters: {keep: 3}",
    );
    for number in 0..5 {
        append(directory.path(), &[&format!("bad {number}")]);
        let mut run = vectide(&["run", "--until-caught-up"]);
        let output = run.arg(&config).output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            complaints.contains("too many dead letters"),
            number >= 3,
            "{complaints}"
        );
    }
    let (_, told, complaints) = call(&["dlq", "list"], &config, &[]);
    let ids: Vec<&str> = told
        .lines()
        .map(|it| it.split('\t').next().unwrap())
        .collect();
    assert_eq!(ids, ["2", "3", "4"]);
    assert!(
        complaints.contains("2 older letters were removed"),
        "{complaints}"
    );
}

/// Fails every batch that has a certain text in it, as a model that chokes on it would.
struct Choking {
    inner: Arc<dyn Embedder>,
    calls: AtomicU64,
}

impl Embedder for Choking {
    fn identity(&self) -> &ModelIdentity {
        self.inner.identity()
    }
    fn token_counter(&self) -> Arc<dyn TokenCounter> {
        self.inner.token_counter()
    }
    fn embed(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if texts.iter().any(|text| text.contains("poison")) {
            return Err(EmbedError::Texts("the model choked".into()));
        }
        self.inner.embed(lane, texts)
    }
    fn bulk_threads(&self) -> usize {
        1
    }
    fn worth_remembering(&self) -> bool {
        self.inner.worth_remembering()
    }
}

#[test]
fn a_text_that_cannot_be_embedded_harms_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut pipeline = ScriptedPipeline::default();
    let choking = Arc::new(Choking {
        inner: pipeline.embedder.clone(),
        calls: AtomicU64::new(0),
    });
    pipeline.embedder = choking.clone();
    let page = |number: usize| {
        let text = match number {
            57 => "poison in a bottle".to_owned(),
            _ => format!("good text of page {number}"),
        };
        (format!("page-{number:03}"), Some(text))
    };
    let mut script = Script {
        batches: vec![((0..100).map(page).collect(), Duration::ZERO)],
    };
    let report = pipeline.run(directory.path(), script.clone());
    assert_eq!((report.documents, report.chunks), (100, 100));
    assert_eq!((report.embedded_chunks, report.dead_letters), (99, 1));
    // Of 32 texts a call, five halvings find the one: each is a call that fails and one that works.
    let calls = choking.calls.load(Ordering::Relaxed);
    assert!(calls < 40, "{calls} calls");
    let mut told = Vec::new();
    export(directory.path(), ExportKind::DeadLetters, &mut told).unwrap();
    let told = String::from_utf8(told).unwrap();
    assert!(
        told.contains(r#""reason":"embed""#) && told.contains("page-057"),
        "{told}"
    );
    assert!(told.contains("the model choked"), "{told}");

    // Nobody tries it again until the document changes; then all counts are those of good texts.
    let again = pipeline.start(directory.path(), script.clone(), ReadMode::UntilCaughtUp);
    assert_eq!(again.join().unwrap().dead_letters, 0);
    assert_eq!(choking.calls.load(Ordering::Relaxed), calls);
    let cured = ("page-057".to_owned(), Some("a cure in a bottle".to_owned()));
    script.batches.push((vec![cured], Duration::ZERO));
    script
        .batches
        .push((vec![("page-001".to_owned(), None)], Duration::ZERO));
    let report = pipeline.run(directory.path(), script);
    assert_eq!((report.documents, report.chunks), (99, 99));
    assert_eq!((report.embedded_chunks, report.dead_letters), (1, 0));
}
