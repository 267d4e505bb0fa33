//! A bad configuration is told whole: every fault with its line, what is allowed and the nearest
//! name; exit status 78, and nothing is touched.

use vectide_tests::vectide;

const BAD: &str = r#"apiVersion: vectide/v1
state: {dir: ./state}
sources:
  history:
    type: jsonll
    path: events.jsonl
  docs:
    type: files
    path: ./docs
    includ: ["*.md"]
documents:
  pages:
    from: histori
    text: "{{ content "
indexes:
  pages:
    from: page
    chunk: {type: structured, target_tokens: many}
    embed: {model: all-MiniLM-L6, device: gpu}
    shards: 0
server: {listen: "127.0.0.1:7700", port: 1}
"#;

#[test]
fn all_faults_are_reported_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.yaml");
    std::fs::write(&path, BAD).unwrap();
    for command in ["validate", "run"] {
        let output = vectide(&[command]).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{command}");
        let report = String::from_utf8(output.stderr).unwrap();
        println!("{report}");
        for (line, what) in [
            (5, "jsonl"),
            (10, "include"),
            (13, "history"),
            (14, "template"),
            (17, "pages"),
            (18, "target_tokens"),
            (19, "cuda"),
            (19, "all-MiniLM-L6-v2"),
            (20, "shards"),
            (21, "port"),
        ] {
            let place = format!("bad.yaml:{line}:");
            let told = report
                .split("bad.yaml:")
                .any(|problem| problem.starts_with(&format!("{line}:")) && problem.contains(what));
            assert!(told, "{place} {what} is missing");
        }
    }
    assert!(!directory.path().join("state").exists());
}

#[test]
fn the_shipped_schema_is_the_one_of_the_types() {
    let output = vectide(&["schema"]).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../configs/vectide.schema.json"
    );
    let shipped = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        printed == shipped,
        "run `make schema`: configs/vectide.schema.json is out of date"
    );
}
