//! `vectide tap`: what a source says, decoded, as it comes; and nothing is left behind.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use vectide_tests::{call, vectide, write_config};

const LOG: &str = concat!(
    r#"{"id":"a","op":"c","text":"one","big":12345678901234567890.10}"#,
    "\n",
    "not json\n",
    r#"{"id":"a","op":"d"}"#,
    "\n",
    r#"{"id":"b","op":"u","text":"line\nbreak"}"#,
    "\n",
);

fn config(directory: &Path, follow: bool) -> PathBuf {
    std::fs::write(directory.join("log.jsonl"), LOG).unwrap();
    let source = format!(
        "{{type: jsonl, path: log.jsonl, format: {{type: change, key: id, op: op}}, follow: {follow}}}"
    );
    write_config(directory, "pipeline", &source, "")
}

#[test]
fn changes_are_printed_and_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), false);
    let (status, told, complaints) = call(&["tap"], &config, &["pages", "--json"]);
    assert_eq!(status, Some(0), "{complaints}");
    let mut lines: Vec<Value> = told
        .lines()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    lines.sort_by_key(|it| it["position"]["offset"].as_u64());
    let ops: Vec<&str> = lines.iter().map(|it| it["op"].as_str().unwrap()).collect();
    assert_eq!(ops, ["upsert", "dead_letter", "delete", "upsert"]);
    assert_eq!(lines[0]["row"]["text"], "one");
    assert!(
        told.contains("12345678901234567890.10"),
        "numbers stay as they are: {told}"
    );
    assert_eq!(lines[1]["reason"], "undecodable");
    assert_eq!(lines[1]["raw"], "not json");
    assert_eq!(lines[2]["row"], Value::Null);
    assert_eq!(lines[3]["position"]["partition"], "log.jsonl");

    let (_, told, _) = call(&["tap"], &config, &["pages"]);
    assert!(told.contains("upsert  a  log.jsonl@0  {"), "{told}");
    assert!(told.contains("delete  a  log.jsonl@"), "{told}");
    assert!(told.contains("dead letter: undecodable"), "{told}");
    assert_eq!(told.lines().count(), 4, "a row is one line: {told}");
    let (_, told, _) = call(&["tap"], &config, &["pages", "-n", "2"]);
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(!directory.path().join("state").exists());

    let (status, _, complaints) = call(&["tap"], &config, &["pgaes"]);
    assert_eq!(status, Some(78));
    assert!(
        complaints.contains("there is no source `pgaes`"),
        "{complaints}"
    );
    assert!(complaints.contains("allowed: pages"), "{complaints}");
}

fn start(config: &Path, arguments: &[&str]) -> Child {
    let mut command = vectide(&["tap"]);
    let command = command.arg(config).arg("pages").args(arguments);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn append(directory: &Path, line: &str) {
    let path = directory.join("log.jsonl");
    let mut log = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    writeln!(log, "{line}").unwrap();
}

#[test]
fn a_source_is_followed_until_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), true);
    let mut child = start(&config, &[]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..4 {
        lines.next().unwrap().unwrap();
    }
    append(directory.path(), r#"{"id":"c","op":"c","text":"new"}"#);
    let next = lines.next().unwrap().unwrap();
    assert!(next.starts_with("upsert  c"), "{next}");
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));

    // What is there now, and no more.
    let (status, told, _) = call(&["tap"], &config, &["pages", "--until-caught-up"]);
    assert_eq!((status, told.lines().count()), (Some(0), 5));

    // Only what comes from now on. How long it reads what is there is not known from outside, so
    // lines are appended until one is seen.
    let mut child = start(&config, &["--from", "now", "-n", "1"]);
    while child.try_wait().unwrap().is_none() {
        append(directory.path(), r#"{"id":"later","op":"c","text":"x"}"#);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut told = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut told)
        .unwrap();
    assert!(told.starts_with("upsert  later"), "{told}");
}

#[test]
fn a_reader_that_had_enough_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), false);
    let row = format!(r#"{{"id":"x","op":"u","text":"{}"}}"#, "x".repeat(1000));
    for _ in 0..500 {
        append(directory.path(), &row);
    }
    let mut child = start(&config, &["--json"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    drop(lines);
    let status = child.wait().unwrap();
    let mut complaints = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut complaints)
        .unwrap();
    assert_eq!((status.code(), complaints.as_str()), (Some(0), ""));
}
