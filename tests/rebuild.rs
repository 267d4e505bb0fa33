//! `vectide plan` and `vectide rebuild`: a changed pipeline from the rows of an earlier state is what it
//! would be from its sources, and embeds only what the model has not seen.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use vectide_tests::{
    Running, call, edit, expect_sound, export, free_port, run_to_end, write_config,
};

const DOCUMENTS: usize = 3_000;

const SOURCE: &str = "{type: jsonl, path: ./pages.jsonl, format: {type: change, key: id, op: op}}";

fn append(directory: &Path, lines: impl Iterator<Item = String>) {
    let lines: String = lines.collect();
    vectide_tests::append(&directory.join("pages.jsonl"), &lines);
}

fn upsert(id: usize, version: usize) -> String {
    let text = format!("Page {id} in version {version}. ").repeat(12);
    format!(
        "{{\"op\":\"u\",\"id\":\"{id}\",\"text\":\"{}\"}}\n",
        text.trim()
    )
}

fn delete(id: usize) -> String {
    format!("{{\"op\":\"d\",\"id\":\"{id}\"}}\n")
}

/// A configuration with a state of its own over the one log.
fn pipeline(directory: &Path, name: &str) -> PathBuf {
    let config = write_config(directory, name, SOURCE, "");
    edit(&config, "./state}", &format!("./{name}}}"));
    config
}

/// The same with another template and smaller chunks.
fn changed(directory: &Path, name: &str) -> PathBuf {
    let config = pipeline(directory, name);
    edit(&config, "{{ text }}", "# {{ key }}\\n\\n{{ text }}");
    edit(
        &config,
        "type: structured",
        "type: structured, target_tokens: 40, max_tokens: 64",
    );
    config
}

fn plan(config: &Path, from: &Path) -> Value {
    let arguments = ["--json", "--from", from.to_str().unwrap()];
    let (status, told, complaints) = call(&["plan"], config, &arguments);
    assert_eq!(status, Some(0), "{complaints}");
    serde_json::from_str(&told).unwrap()
}

fn rebuild(config: &Path, from: &Path) -> (Option<i32>, String, String) {
    call(&["rebuild"], config, &["--from", from.to_str().unwrap()])
}

fn rebuilt(config: &Path, from: &Path) -> Value {
    let (status, told, complaints) = rebuild(config, from);
    assert_eq!(status, Some(0), "{complaints}");
    serde_json::from_str(&told).unwrap()
}

/// Documents and chunks, with the positions of both.
fn held(config: &Path) -> (Vec<Value>, Vec<Value>) {
    (export(config, "documents"), export(config, "chunks"))
}

#[test]
fn a_changed_pipeline_is_made_of_the_rows() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    append(directory, (0..DOCUMENTS).map(|id| upsert(id, 1)));
    append(directory, (0..DOCUMENTS).step_by(3).map(|id| upsert(id, 2)));
    append(directory, (0..DOCUMENTS).step_by(10).map(delete));
    append(directory, std::iter::once("not JSON\n".to_owned()));
    let earlier = pipeline(directory, "earlier");
    run_to_end(&earlier);
    let documents = DOCUMENTS - DOCUMENTS / 10;
    let from = directory.join("earlier");

    // In its place the changed pipeline is refused, and told the way out.
    let in_place = changed(directory, "changed");
    edit(&in_place, "./changed}", "./earlier}");
    let (status, _, complaints) = call(&["run", "--until-caught-up"], &in_place, &[]);
    assert_eq!(status, Some(1));
    for word in [
        "documents.pages was",
        "indexes.pages was",
        "vectide plan",
        "vectide rebuild",
    ] {
        assert!(complaints.contains(word), "{word}: {complaints}");
    }

    let config = changed(directory, "changed");
    let estimate = plan(&config, &from);
    assert_eq!(
        estimate["changed"],
        serde_json::json!(["documents.pages", "indexes.pages"])
    );
    let index = &estimate["indexes"][0];
    assert_eq!(index["documents"], documents);
    let report = rebuilt(&config, &from);
    assert_eq!(report["documents"], documents);
    assert_eq!(
        report["chunks"], index["chunks"],
        "{report} was said to be {index}"
    );
    expect_sound(&config, "rebuilt");

    let fresh = changed(directory, "fresh");
    run_to_end(&fresh);
    assert!(held(&config) == held(&fresh), "not what the sources give");
    let letters = |config: &Path| export(config, "dead-letters").len();
    assert_eq!(letters(&config), 1, "a bad record stays one");

    // It goes on where the earlier one was: nothing is read or embedded twice.
    assert_eq!(run_to_end(&config)["embedded_chunks"], 0);
    append(directory, (5..50).map(|id| upsert(id, 3)));
    run_to_end(&config);
    run_to_end(&fresh);
    assert!(
        held(&config) == held(&fresh),
        "not what the sources give afterwards"
    );
    expect_sound(&config, "afterwards");
}

#[test]
fn what_was_embedded_before_is_remembered() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    append(directory, (0..20).map(|id| upsert(id, 1)));
    let with_model = |name: &str| {
        let config = pipeline(directory, name);
        edit(&config, "model: hashing", "model: all-MiniLM-L6-v2");
        config
    };
    let earlier = with_model("earlier");
    let embedded = run_to_end(&earlier)["embedded_chunks"].as_u64().unwrap();
    assert!(embedded >= 20);
    // Metadata and shards change; the texts do not.
    let config = with_model("changed");
    edit(
        &config,
        "\"{{ text }}\"",
        "\"{{ text }}\", metadata: {id: \"{{ key }}\"}",
    );
    edit(
        &config,
        "    from: pages\n",
        "    from: pages\n    shards: 2\n",
    );
    let estimate = plan(&config, &directory.join("earlier"));
    assert_eq!(estimate["indexes"][0]["embedded_texts"], 0, "{estimate}");
    let report = rebuilt(&config, &directory.join("earlier"));
    assert_eq!(report["embedded_chunks"], 0, "{report}");
    expect_sound(&config, "rebuilt");
    // Other texts have to be embedded, and it is said how many.
    let other = with_model("other");
    edit(&other, "{{ text }}", "{{ text }} {{ key }}");
    let index = plan(&other, &directory.join("earlier"))["indexes"][0].clone();
    let report = rebuilt(&other, &directory.join("earlier"));
    assert_eq!(report["embedded_chunks"], index["embedded_texts"]);
    assert!(
        index["embedded_tokens"].as_u64() > index["embedded_texts"].as_u64(),
        "{index}"
    );
}

#[test]
fn what_can_not_be_rebuilt_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    append(directory, (0..3).map(|id| upsert(id, 1)));
    let port = free_port();
    let earlier = pipeline(directory, "earlier");
    edit(&earlier, "127.0.0.1:0", &format!("127.0.0.1:{port}"));
    edit(&earlier, "op: op}", "op: op}, follow: true");
    let from = directory.join("earlier");
    let refuse = |config: &Path, words: &[&str]| {
        let (status, told, complaints) = rebuild(config, &from);
        assert_eq!(status, Some(1), "{told}");
        for word in words {
            assert!(complaints.contains(word), "{word}: {complaints}");
        }
    };
    let config = changed(directory, "changed");
    refuse(&config, &["there is no state"]);
    let running = Running::start(&earlier, port);
    refuse(&config, &["another process uses it"]);

    // A backup of it can be rebuilt meanwhile.
    let backup = directory.join("backup");
    let (status, _, complaints) = call(&["backup"], &earlier, &[backup.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{complaints}");
    rebuilt(&config, &backup);
    assert!(running.terminate());
    refuse(&config, &["it is there already", "state.dir"]);
    let other = write_config(directory, "other", "{type: files, path: ./pages}", "");
    edit(&other, "./state}", "./other}");
    fs::create_dir(directory.join("pages")).unwrap();
    refuse(&other, &["no rows of a source `pages` of this type"]);
    assert!(!directory.join("other").exists());
}
