//! Bad records become dead letters with reason and position, are counted, and the rest goes on.

use std::path::{Path, PathBuf};
use vectide_tests::{run_to_end, vectide};

fn config(directory: &Path, log: &Path) -> PathBuf {
    let path = directory.join("pipeline.yaml");
    let yaml = format!(
        r#"
apiVersion: vectide/v1
state: {{dir: ./state}}
sources:
  log: {{type: jsonl, path: {}, format: {{type: change, key: id, op: op}}}}
documents:
  pages: {{from: log, text: "{{{{ text }}}}"}}
indexes:
  pages:
    from: pages
    chunk: {{type: structured}}
    embed: {{model: hashing}}
server: {{listen: "127.0.0.1:0"}}
"#,
        log.display()
    );
    std::fs::write(&path, yaml).unwrap();
    path
}

/// Good lines with every kind of bad one between them.
fn bad_log() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut line = |line: &[u8]| {
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    };
    line(br#"{"id":"first","op":"c","text":"good"}"#);
    line(b"not json at all");
    line(br#"{"op":"c","text":"no key"}"#);
    line(br#"{"id":{"a":1},"op":"c","text":"a key of a wrong type"}"#);
    line(br#"{"id":"x","op":7,"text":"an op of a wrong type"}"#);
    line(b"{\"id\":\"utf8\",\"op\":\"c\",\"text\":\"\xff\xfe\"}");
    line(br#"{"id":"x","op":"explode","text":"unknown op"}"#);
    line(
        format!(
            r#"{{"id":"big","op":"c","text":"{}"}}"#,
            "x".repeat(10 << 20)
        )
        .as_bytes(),
    );
    line(br#"{"id":"no-text","op":"c"}"#);
    line(br#"{"id":"empty","op":"c","text":""}"#);
    line(br#"{"id":"null","op":"c","text":null}"#);
    line(br#"{"id":42,"op":"c","text":"a number is a key"}"#);
    let solid = "a1b2c3d4e5".repeat(100_000);
    line(format!(r#"{{"id":"solid","op":"c","text":"{solid}"}}"#).as_bytes());
    line(br#"{"id":"gone","op":"d"}"#);
    let long = "k".repeat(70_000);
    line(format!(r#"{{"id":"{long}","op":"c","text":"a key that no store takes"}}"#).as_bytes());
    line(format!(r#"{{"id":"{long}","op":"d"}}"#).as_bytes());
    line(br#"{"id":"last","op":"u","text":"good as well"}"#);
    bytes
}

#[test]
fn every_kind_of_bad_record_is_told_and_the_rest_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log.jsonl");
    std::fs::write(&log, bad_log()).unwrap();

    let config = config(directory.path(), &log);
    let report = run_to_end(&config);
    let output = vectide(&["export"])
        .arg(&config)
        .arg("dead-letters")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let letters: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut reasons: Vec<&str> = letters
        .iter()
        .map(|letter| letter["reason"].as_str().unwrap())
        .collect();
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        [
            "missing_key",
            "missing_key",
            "render",
            "too_large",
            "too_large",
            "too_large",
            "undecodable",
            "undecodable",
            "unknown_operation",
            "wrong_type",
        ]
    );
    assert!(
        letters
            .iter()
            .all(|letter| letter["position"]["source"] == "log")
    );
    assert!(
        letters
            .iter()
            .all(|letter| !letter["detail"].as_str().unwrap().is_empty())
    );
    assert_eq!(report["dead_letters"], reasons.len());

    let output = vectide(&["export"])
        .arg(&config)
        .arg("documents")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let ids: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].to_string())
        .collect();
    let expected = ["42", "empty", "first", "last", "null", "solid"];
    assert_eq!(ids, expected.map(|id| format!("\"{id}\"")));
    // A second run finds nothing new: dead letters are not told twice.
    assert_eq!(run_to_end(&config)["dead_letters"], 0);
}
