//! A real change history through the real binary: the state at the end, and at stops on the way,
//! equals what the history says.

use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};
use vectide_tests::{data_directory, export, read_lines, run_to_end};

fn config(directory: &Path, log: &Path, model: &str) -> PathBuf {
    let path = directory.join("pipeline.yaml");
    let yaml = format!(
        r#"
apiVersion: vectide/v1
state: {{dir: ./state}}
sources:
  history:
    type: jsonl
    path: {log}
    format: {{type: change, key: path, op: op, transaction: commit}}
documents:
  pages:
    from: history
    text: "{{{{ content }}}}"
    metadata: {{path: "{{{{ key }}}}"}}
indexes:
  pages:
    from: pages
    chunk: {{type: structured, target_tokens: 200, max_tokens: 256}}
    embed: {{model: {model}}}
    shards: 2
server: {{listen: "127.0.0.1:0"}}
"#,
        log = log.display()
    );
    std::fs::write(&path, yaml).unwrap();
    path
}

/// `path NUL sha256 LF` of all live documents, as the checkpoints define it.
fn state_hash(documents: &[serde_json::Value]) -> String {
    let mut hash = Sha256::new();
    for document in documents {
        let field = |name: &str| document[name].as_str().unwrap().to_owned();
        hash.update(format!("{}\0{}\n", field("id"), field("sha256")));
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn checkpoints(data: &Path) -> Vec<(usize, u64, String)> {
    read_lines(&data.join("checkpoints.jsonl"))
        .map(|line| {
            let at: serde_json::Value = serde_json::from_str(&line).unwrap();
            let hash = at["state_sha256"].as_str().unwrap().to_owned();
            (
                at["seq"].as_u64().unwrap() as usize,
                at["live_docs"].as_u64().unwrap(),
                hash,
            )
        })
        .collect()
}

#[test]
fn the_whole_history_ends_in_its_manifest() {
    let Some(data) = data_directory("otel-docs-changes", "the_whole_history") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), &data.join("events.jsonl.zst"), "hashing");
    let report = run_to_end(&config);
    let manifest: Vec<serde_json::Value> = read_lines(&data.join("final_manifest.jsonl"))
        .map(|line| serde_json::from_str(&line).unwrap())
        .collect();
    let documents = export(&config, "documents");
    assert_eq!(documents.len(), manifest.len());
    for (document, expected) in documents.iter().zip(&manifest) {
        assert_eq!(document["id"], expected["path"]);
        assert_eq!(document["sha256"], expected["sha256"], "{}", document["id"]);
        assert_eq!(document["bytes"], expected["bytes"]);
    }
    assert_eq!(report["documents"], manifest.len());
    assert_eq!(report["dead_letters"], 0);
    let chunks = export(&config, "chunks");
    assert_eq!(report["chunks"], chunks.len());
    println!("{report}");

    // Nothing is left to do, and nothing is embedded again.
    let again = run_to_end(&config);
    assert_eq!(again["embedded_chunks"], 0);
    assert_eq!(again["epochs"], 0);
    assert_eq!(again["documents"], report["documents"]);
}

/// The log grows between runs, as a followed log does; at each stop the state is the history's.
#[test]
fn a_stop_at_any_checkpoint_leaves_the_state_of_that_point() {
    let Some(data) = data_directory("otel-docs-changes", "a_stop_at_any_checkpoint") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("events.jsonl");
    let config = config(directory.path(), &log, "hashing");
    let mut events = read_lines(&data.join("events.jsonl.zst"));
    let mut written = 0;
    for (seq, live, hash) in checkpoints(&data) {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        for line in events.by_ref().take(seq - written) {
            writeln!(file, "{line}").unwrap();
        }
        written = seq;
        let report = run_to_end(&config);
        let documents = export(&config, "documents");
        assert_eq!(report["documents"], live, "after {seq} events");
        assert_eq!(state_hash(&documents), hash, "after {seq} events");
    }
    assert!(written > 14_000);
}

#[test]
fn the_first_events_with_the_real_model() {
    let Some(data) = data_directory("otel-docs-changes", "the_first_events") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("events.jsonl");
    let events: Vec<String> = read_lines(&data.join("events.jsonl.zst"))
        .take(2000)
        .collect();
    std::fs::write(&log, events.join("\n") + "\n").unwrap();
    let config = config(directory.path(), &log, "all-MiniLM-L6-v2");
    let report = run_to_end(&config);
    let (seq, live, hash) = checkpoints(&data).remove(1);
    assert_eq!(seq, 2000);
    assert_eq!(report["documents"], live);
    assert_eq!(state_hash(&export(&config, "documents")), hash);
    let (embedded, reused) = (&report["embedded_chunks"], &report["reused_chunks"]);
    println!(
        "{embedded} chunks embedded, {reused} reused in {} s",
        report["seconds"]
    );
    assert!(
        reused.as_u64() > embedded.as_u64(),
        "most chunks of updates are reused"
    );
}
