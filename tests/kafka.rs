//! The real binary against a real broker: what comes by Kafka ends in the same state as the same
//! changes from a log, also when the process is ended and started again in between; and a truncate
//! that became a dead letter stays one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use vectide_connectors::testing::{KafkaBroker, KafkaRecord};
use vectide_tests::{call, edit, run_to_end, vectide, write_config};

const TOPIC: &str = "pages";
const PARTITIONS: i32 = 3;

fn config(directory: &Path, source: &str) -> PathBuf {
    std::fs::create_dir_all(directory).unwrap();
    write_config(directory, "pipeline", source, "")
}

fn export(config: &Path) -> String {
    let output = vectide(&["export"])
        .arg(config)
        .arg("documents")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Changes in rounds: creates, updates, deletes and creates again.
fn round(number: usize) -> Vec<(String, Option<String>)> {
    let text = |key: usize| {
        format!(
            "Text of page {key} in round {number}. {}",
            "More. ".repeat(key)
        )
    };
    (0..60)
        .filter(|key| !(key + number).is_multiple_of(3) || number == 0)
        .map(|key| {
            (
                format!("page-{key}"),
                (!(key + number).is_multiple_of(4)).then(|| text(key)),
            )
        })
        .collect()
}

#[test]
fn kafka_and_a_log_end_in_the_same_state() {
    let Some(broker) = KafkaBroker::start_or_skip("kafka_and_a_log") else {
        return;
    };
    broker.create_topic(TOPIC, PARTITIONS, &[]);
    let directory = tempfile::tempdir().unwrap();
    let kafka = config(
        &directory.path().join("kafka"),
        &format!(
            "{{type: kafka, brokers: \"{}\", topics: [{TOPIC}], format: {{type: upsert}}}}",
            broker.address()
        ),
    );
    let log = directory.path().join("log.jsonl");
    let jsonl = config(
        &directory.path().join("log"),
        &format!(
            "{{type: jsonl, path: {}, format: {{type: change, key: id, op: op}}}}",
            log.display()
        ),
    );
    let mut written = String::new();
    for number in 0..4 {
        for (key, text) in round(number) {
            let value = text
                .as_ref()
                .map(|text| serde_json::json!({"text": text}).to_string());
            let partition = key.bytes().map(i32::from).sum::<i32>() % PARTITIONS;
            broker.produce(&[KafkaRecord {
                topic: TOPIC,
                partition,
                key: Some(key.as_bytes()),
                value: value.as_deref().map(str::as_bytes),
            }]);
            let op = if text.is_some() { "u" } else { "d" };
            let line = serde_json::json!({"id": key, "op": op, "text": text});
            writeln!(written, "{line}").unwrap();
        }
        // Every round ends the process; the next one goes on where it stood.
        let report = run_to_end(&kafka);
        assert!(
            report["epochs"].as_u64().unwrap() > 0,
            "round {number}: {report}"
        );
    }
    std::fs::write(&log, written).unwrap();
    let from_log = run_to_end(&jsonl);
    let again = run_to_end(&kafka);
    assert_eq!(again["epochs"], 0, "everything was read: {again}");
    assert_eq!(again["documents"], from_log["documents"]);
    assert_eq!(again["chunks"], from_log["chunks"]);
    assert_eq!(export(&kafka), export(&jsonl));
}

/// A truncate decodes to no changes: a replay counted it as done, its letter was gone, and the rows
/// that it should have deleted stayed.
#[test]
fn a_truncate_that_became_a_letter_stays_one() {
    let Some(broker) = KafkaBroker::start_or_skip("a_truncate_that_became_a_letter") else {
        return;
    };
    broker.create_topic(TOPIC, 1, &[]);
    broker.produce(&[KafkaRecord {
        topic: TOPIC,
        value: Some(br#"{"op":"t","before":null,"after":null,"source":{"ts_ms":1}}"#),
        ..KafkaRecord::default()
    }]);
    let directory = tempfile::tempdir().unwrap();
    let config = config(
        directory.path(),
        &format!(
            "{{type: kafka, brokers: \"{}\", topics: [{TOPIC}], format: {{type: debezium}}, \
             max_message: 10B}}",
            broker.address()
        ),
    );
    assert_eq!(run_to_end(&config)["dead_letters"], 1);
    edit(&config, "max_message: 10B", "max_message: 1MiB");
    let (status, told, complaints) = call(&["dlq", "replay"], &config, &[]);
    assert_eq!(status, Some(0), "{complaints}");
    let summary: serde_json::Value = serde_json::from_str(&told).unwrap();
    let expected = serde_json::json!({"replayed": 0, "refused": 1, "remaining": 1});
    assert_eq!(summary, expected);
    assert!(
        complaints.contains("a truncate can't be replayed")
            && complaints.contains("--resnapshot pages"),
        "{complaints}"
    );
}
