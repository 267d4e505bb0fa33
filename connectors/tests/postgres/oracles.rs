//! Two oracles: a real history with its checkpoints, and the keys of Debezium's events.

use crate::support::{Database, catch_up, open, rows};
use serde_json::{Value, json};
use std::path::PathBuf;
use vectide_connectors::envelope::format::RecordFormat;
use vectide_connectors::envelope::{Decoded, RawRecord};
use vectide_connectors::testing::ModelState;
use vectide_model::ReadMode;

#[test]
fn keys_are_those_of_debezium() {
    let Some(database) = Database::new(
        "keys_of_debezium",
        "CREATE TABLE one (id bigint PRIMARY KEY); INSERT INTO one VALUES (9007199254740993);
         CREATE TABLE two (b text, a int, PRIMARY KEY (b, a)); INSERT INTO two VALUES ('x \"é\"', 7);",
    ) else {
        return;
    };
    for (table, key) in [
        ("public.one", r#"{"id":9007199254740993}"#),
        ("public.two", r#"{"b":"x \"é\"","a":7}"#),
    ] {
        let mut config = database.config(&[table]);
        config["publication"] = json!(table.replace('.', "_"));
        config["slot"] = json!(format!("keys_{}", table.replace('.', "_")));
        let state = ModelState::default();
        catch_up(&state, open(config));
        let format: RecordFormat = serde_json::from_value(json!({"type": "debezium"})).unwrap();
        let mut events = Vec::new();
        let record = RawRecord {
            topic: "t",
            key: Some(key.as_bytes()),
            value: Some(br#"{"op":"c","after":{},"source":{}}"#),
            headers: &[],
        };
        let mut decoder = format.open().unwrap();
        decoder.decode(&record, &mut events).unwrap();
        let [Decoded::Change(change)] = &events[..] else {
            panic!("{events:?}");
        };
        let key = change.key.clone();
        assert_eq!(state.rows().into_keys().collect::<Vec<_>>(), [key]);
    }
}

/// `path NUL sha256 LF` of all documents, as the history's checkpoints define it.
fn state_hash(state: &ModelState) -> (u64, String) {
    use sha2::{Digest, Sha256};
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|it| format!("{it:02x}"))
            .collect::<String>()
    };
    let mut hash = Sha256::new();
    let found = rows(state);
    for (path, row) in &found {
        let content = row["content"].as_str().unwrap();
        hash.update(format!("{path}\0{}\n", hex(&Sha256::digest(content))));
    }
    (found.len() as u64, hex(&hash.finalize()))
}

/// A real history, a commit as a transaction: the first 500 events are there before the source is,
/// the others come while it follows.
#[test]
fn a_real_history_ends_in_its_checkpoint() {
    use std::io::BufRead;
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let data = std::env::var_os("VECTIDE_TEST_DATA").map_or(beside, PathBuf::from);
    let data = data.join("otel-docs-changes");
    if !data.is_dir() {
        println!("skipped: a_real_history: the data set `otel-docs-changes` is not there");
        return;
    }
    let Some(database) = Database::new(
        "real_history",
        "CREATE TABLE documents (path text PRIMARY KEY, content text, at timestamptz);",
    ) else {
        return;
    };
    let file = std::fs::File::open(data.join("events.jsonl.zst")).unwrap();
    let reader = std::io::BufReader::new(zstd::Decoder::new(file).unwrap());
    let events: Vec<Value> = reader
        .lines()
        .take(1000)
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    let quote = |value: &Value| format!("'{}'", value.as_str().unwrap().replace('\'', "''"));
    let write = |events: &[Value]| {
        let mut client = database.client();
        for commit in events.chunk_by(|left, right| left["commit"] == right["commit"]) {
            let statements = commit.iter().map(|event| {
                let path = quote(&event["path"]);
                if event["op"] == "d" {
                    return format!("DELETE FROM documents WHERE path = {path};");
                }
                let (content, at) = (quote(&event["content"]), quote(&event["commit_time"]));
                format!(
                    "INSERT INTO documents VALUES ({path}, {content}, {at}) ON CONFLICT (path) \
                     DO UPDATE SET content = EXCLUDED.content, at = EXCLUDED.at;"
                )
            });
            client.execute(&statements.collect::<String>());
        }
    };
    write(&events[..500]);
    let state = ModelState::default();
    let run = state.run(database.source(&["public.documents"]), ReadMode::Follow);
    write(&events[500..]);
    let checkpoints = std::fs::read_to_string(data.join("checkpoints.jsonl")).unwrap();
    let expected: Value = serde_json::from_str(checkpoints.lines().next().unwrap()).unwrap();
    assert_eq!(expected["seq"], 1000);
    let expected = (
        expected["live_docs"].as_u64().unwrap(),
        expected["state_sha256"].as_str().unwrap().to_owned(),
    );
    state.wait_until("the checkpoint is reached", |it| state_hash(it) == expected);
    run.stop().unwrap();
    assert_eq!(state.dead_letters(), []);
}
