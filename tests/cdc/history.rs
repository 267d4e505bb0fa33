//! One oracle for all ways: a real history of documents, loaded as SQL transactions, is read through
//! Debezium and Kafka as JSON, the same as Avro with a registry, and natively. Each ends in the
//! manifest of the history's prefix.
//!
//! Between the transactions others touch only a number beside the text, so that events come which do
//! not carry the text; whoever takes the placeholder for a text does not end in the manifest.

use crate::pipeline::{CONTENT, Pipeline, State, TABLES, kafka};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::OnceLock;
use vectide_connectors::testing::TlsProxy;
use vectide_tests::services::{Database, Services, quoted};
use vectide_tests::{data_directory, read_lines};

/// A prefix that has a checkpoint: the first 2,000 changes, in 735 commits.
const EVENTS: usize = 2_000;

/// Every how manyth commit is followed by updates that leave the texts alone.
const COMMITS_BETWEEN_TOUCHES: usize = 5;

/// The history in a database, with what must come out of it.
struct History {
    services: &'static Services,
    database: Database,
    manifest: State,
}

/// Loads the history once; `None` where it or the services can't be had.
fn history(test: &str) -> Option<&'static History> {
    static HISTORY: OnceLock<Option<History>> = OnceLock::new();
    let data = data_directory("otel-docs-changes", test)?;
    let services = Services::start_or_skip(test)?;
    let history = HISTORY.get_or_init(|| Some(load(services, &data)));
    history.as_ref()
}

fn load(services: &'static Services, data: &Path) -> History {
    let database = services.create_database("history");
    database.execute(TABLES);
    let connect = services.connect();
    // Both are there before the first row: what they see are transactions, not a copy.
    connect.capture(&database, "history_json", &[]);
    connect.capture(&database, "history_avro", &services.avro_settings());
    let (statements, manifest) = replay(data);
    database.execute(&statements);
    for name in ["history_json", "history_avro"] {
        connect.wait_until_delivered(&database, name);
    }
    History {
        services,
        database,
        manifest,
    }
}

/// The history as SQL, and the state after it, which is checked against the data's own checkpoint.
pub(crate) fn replay(data: &Path) -> (String, State) {
    let (mut statements, mut state) = (String::from("begin;\n"), State::new());
    let (mut commit, mut commits) = (String::new(), 0);
    for line in read_lines(&data.join("events.jsonl.zst")).take(EVENTS) {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        let (path, of) = (event["path"].as_str().unwrap(), event["commit"].as_str());
        if of != Some(&commit) {
            statements.push_str("commit;\n");
            commit = of.unwrap().to_owned();
            commits += 1;
            if commits % COMMITS_BETWEEN_TOUCHES == 0 {
                statements.push_str(
                    "update pages set version = version + 1 \
                     where path in (select path from pages order by version, path limit 3);\n",
                );
            }
            statements.push_str("begin;\n");
        }
        let row = quoted(path);
        if let Some(content) = event["content"].as_str() {
            let content_quoted = quoted(content);
            writeln!(
                statements,
                "insert into pages values ({row}, {content_quoted}) \
                 on conflict (path) do update set content = excluded.content;"
            )
            .unwrap();
            state.insert(path.to_owned(), hash(content));
        } else {
            writeln!(statements, "delete from pages where path = {row};").unwrap();
            state.remove(path);
        }
    }
    statements.push_str("commit;\n");
    expect_checkpoint(data, &state);
    (statements, state)
}

fn hash(text: &str) -> String {
    hexadecimal(&Sha256::digest(text.as_bytes()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The data say what the state is at this point: `path NUL sha256 LF` of all rows, hashed.
fn expect_checkpoint(data: &Path, state: &State) {
    let checkpoint = read_lines(&data.join("checkpoints.jsonl"))
        .map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap())
        .find(|checkpoint| checkpoint["seq"] == EVENTS);
    let mut all = Sha256::new();
    for (path, hash) in state {
        all.update(format!("{path}\0{hash}\n"));
    }
    let checkpoint = checkpoint.expect("a checkpoint of the prefix");
    assert_eq!(checkpoint["state_sha256"], hexadecimal(&all.finalize()));
}

#[test]
fn the_history_through_debezium_as_json_is_the_manifest() {
    let Some(history) = history("the_history_through_debezium_as_json") else {
        return;
    };
    let source = kafka(
        history.services,
        "history_json.public.pages",
        "{type: debezium}",
        "",
    );
    let pipeline = Pipeline::new(&source, CONTENT);
    pipeline.expect(&history.manifest, "as JSON");
    let again = pipeline.run_to_end();
    assert_eq!(again["epochs"], 0, "everything was read: {again}");
}

#[test]
fn the_history_through_debezium_as_avro_is_the_manifest() {
    let Some(history) = history("the_history_through_debezium_as_avro") else {
        return;
    };
    // By TLS, with a certificate that has to be named.
    let registry = history.services.registry_url();
    let address = registry.strip_prefix("http://127.0.0.1:").unwrap();
    let (port, path) = address.split_once('/').unwrap_or((address, ""));
    let proxy = TlsProxy::start(port.parse().unwrap()).unwrap();
    let registry = format!(
        "{{url: \"https://127.0.0.1:{}/{path}\", ca: {:?}}}",
        proxy.port(),
        proxy.certificate()
    );
    let source = kafka(
        history.services,
        "history_avro.public.pages",
        &format!("{{type: debezium, encoding: avro, registry: {registry}}}"),
        "",
    );
    Pipeline::new(&source, CONTENT).expect(&history.manifest, "as Avro");
}

/// The copy that a connector makes of rows that are there already; keys and values carry their
/// schemas.
#[test]
fn a_copy_of_the_rows_with_schemas_is_the_manifest() {
    let Some(history) = history("a_copy_of_the_rows_with_schemas") else {
        return;
    };
    let connect = history.services.connect();
    let settings = [
        (
            "key.converter",
            "org.apache.kafka.connect.json.JsonConverter",
        ),
        ("key.converter.schemas.enable", "true"),
        (
            "value.converter",
            "org.apache.kafka.connect.json.JsonConverter",
        ),
        ("value.converter.schemas.enable", "true"),
    ];
    connect.capture(&history.database, "history_copy", &settings);
    connect.wait_until_delivered(&history.database, "history_copy");
    let source = kafka(
        history.services,
        "history_copy.public.pages",
        "{type: debezium}",
        "",
    );
    Pipeline::new(&source, CONTENT).expect(&history.manifest, "of the copy");
}
