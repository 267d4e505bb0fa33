//! Every configuration that is shipped is valid and runs.

use std::path::Path;
use vectide_connectors::testing::{KafkaBroker, KafkaRecord};
use vectide_tests::{run_to_end, vectide};

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../configs")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The shipped text in a folder of its own, with the real model and port replaced so that tests
/// run fast and side by side.
fn prepare(name: &str, directory: &Path, replace: &[(&str, &str)]) -> std::path::PathBuf {
    let mut text = shipped(name);
    let common = [
        ("model: all-MiniLM-L6-v2", "model: hashing"),
        ("127.0.0.1:7700", "127.0.0.1:0"),
    ];
    for (from, to) in common.iter().chain(replace) {
        assert!(text.contains(from), "{name} has no `{from}`");
        text = text.replace(from, to);
    }
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn all_of_them_are_valid_as_they_are() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "yaml") {
            let output = vectide(&["validate"]).arg(&path).output().unwrap();
            let report = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {report}", path.display());
            checked += 1;
        }
    }
    assert_eq!(checked, 4);
}

#[test]
fn files_runs() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("docs")).unwrap();
    std::fs::write(directory.path().join("docs/a.md"), "# A\n\nText.\n").unwrap();
    let report = run_to_end(&prepare("files.yaml", directory.path(), &[]));
    assert_eq!(
        (&report["documents"], &report["chunks"]),
        (&1.into(), &1.into())
    );
}

#[test]
fn jsonl_runs() {
    let directory = tempfile::tempdir().unwrap();
    let lines = "{\"path\":\"a\",\"op\":\"c\",\"commit\":1,\"content\":\"one\"}\n\
                 {\"path\":\"b\",\"op\":\"c\",\"commit\":1,\"content\":\"two\"}\n\
                 {\"path\":\"a\",\"op\":\"d\",\"commit\":2,\"content\":null}\n";
    std::fs::write(directory.path().join("events.jsonl"), lines).unwrap();
    let report = run_to_end(&prepare("jsonl.yaml", directory.path(), &[]));
    assert_eq!(report["documents"], 1);
}

#[test]
fn kafka_configurations_run() {
    let Some(broker) = KafkaBroker::start_or_skip("kafka_configurations_run") else {
        return;
    };
    let address = broker.address();
    broker.create_topic("articles", 1, &[]);
    broker.create_topic("shop.public.articles", 1, &[]);
    let record = |topic, key: &'static str, value: &'static str| KafkaRecord {
        topic,
        partition: 0,
        key: Some(key.as_bytes()),
        value: Some(value.as_bytes()),
    };
    broker.produce(&[
        record("articles", "1", r#"{"title":"T","body":"B"}"#),
        record(
            "shop.public.articles",
            r#"{"id":1}"#,
            r#"{"op":"c","before":null,"after":{"id":1,"title":"T","body":"B"},"source":{}}"#,
        ),
    ]);
    for name in ["kafka-upsert.yaml", "kafka-debezium.yaml"] {
        let directory = tempfile::tempdir().unwrap();
        let config = prepare(name, directory.path(), &[("localhost:9092", &address)]);
        assert_eq!(run_to_end(&config)["documents"], 1, "{name}");
    }
}
