//! Every configuration that is shipped is valid and runs.

use std::path::Path;
use vectide_connectors::testing::{KafkaBroker, KafkaRecord, PostgresServer};
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
    assert_eq!(checked, 5);
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

#[test]
fn postgres_runs() {
    let Some(server) = PostgresServer::start_or_skip("postgres_runs") else {
        return;
    };
    let mut client = server.client();
    client.execute(
        "CREATE TABLE articles (id int PRIMARY KEY, title text, body text); \
         INSERT INTO articles VALUES (1, 'T', 'B')",
    );
    let directory = tempfile::tempdir().unwrap();
    let port = format!("port: {}", server.port());
    let config = prepare(
        "postgres.yaml",
        directory.path(),
        &[
            ("port: 5432", &port),
            ("database: shop", "database: postgres"),
            ("user: vectide", "user: postgres"),
            ("${PGPASSWORD:-}", server.password()),
        ],
    );
    assert_eq!(run_to_end(&config)["documents"], 1);
    // The next run goes on where this one ended.
    client.execute("INSERT INTO articles VALUES (2, 'U', 'C'), (3, 'V', 'D')");
    client.execute("DELETE FROM articles WHERE id = 1");
    let report = run_to_end(&config);
    assert_eq!(
        (&report["documents"], &report["dead_letters"]),
        (&2.into(), &0.into())
    );
    client.execute("TRUNCATE articles");
    assert_eq!(run_to_end(&config)["documents"], 0);
    assert_eq!(run_to_end(&config)["epochs"], 0);
}
