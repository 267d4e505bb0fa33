//! A bad configuration is told whole: every fault with its line, what is allowed and the nearest
//! name; exit status 78, and nothing is touched.

use vectide_tests::{Running, call, free_port, vectide, write_config};

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
    embed: {model: all-MiniLM-L6}
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

/// Each model has options of its own: one that another model has is told with those that this one has.
#[test]
fn a_model_refuses_options_that_it_does_not_have() {
    let directory = tempfile::tempdir().unwrap();
    let source = "{type: jsonl, path: log.jsonl, format: {type: change, key: id}}";
    let path = write_config(directory.path(), "pipeline", source, "");
    let plain = std::fs::read_to_string(&path).unwrap();
    let validate = |embed: &str| {
        let section = plain.replace("embed: {model: hashing}", &format!("embed: {embed}"));
        assert!(embed == "{model: hashing}" || section != plain);
        std::fs::write(&path, section).unwrap();
        let (status, _, complaints) = call(&["validate"], &path, &[]);
        (status, complaints)
    };
    for (embed, told) in [
        ("{model: hashing, path: x}", "allowed: device | dimensions"),
        (
            "{model: hashing, max_tokens: 9}",
            "unknown key `max_tokens`",
        ),
        ("{model: hashing, dimensions: 7}", "dimensions: "),
        ("{model: hashing, device: cuda}", "does not run on CUDA"),
        ("{model: hashing, device: gpu}", "auto | cpu | cuda"),
        (
            "{model: all-MiniLM-L6-v2, dimensions: 9}",
            "unknown key `dimensions`",
        ),
        ("{model: bert}", "path"),
        ("{model: brt, path: x}", "did you mean `bert`?"),
        ("{modle: hashing}", "did you mean `model`?"),
        ("{}", "the key `model` is missing"),
        ("hashing", "write `{model: hashing, …}`"),
    ] {
        let (status, complaints) = validate(embed);
        assert_eq!(status, Some(78), "{embed}: {complaints}");
        assert!(complaints.contains(told), "{embed}: {complaints}");
        assert!(complaints.contains("indexes.pages.embed"), "{complaints}");
    }
    for embed in [
        "{model: hashing}",
        "{model: hashing, device: auto, dimensions: 8}",
        "{model: all-MiniLM-L6-v2, device: cpu, max_tokens: 128, precision: f32}",
        "{model: bert, path: ./x, dimensions: 64, query_prefix: 'query: ', passage_prefix: ''}",
    ] {
        let (status, complaints) = validate(embed);
        assert_eq!(status, Some(0), "{embed}: {complaints}");
    }
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

#[test]
fn what_a_pipeline_needs_is_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("log.jsonl"),
        "{\"id\":1,\"text\":\"a\"}\n",
    )
    .unwrap();
    let source = "{type: jsonl, path: log.jsonl, format: {type: change, key: id}, follow: true}";
    let port = free_port();
    let more = format!("server: {{listen: \"127.0.0.1:{port}\"}}\ndead_letters: {{dir: ./dead}}");
    let config = write_config(directory.path(), "pipeline", source, &more);
    let (status, told, complaints) = call(&["validate", "--connect"], &config, &[]);
    assert_eq!(status, Some(0), "{told}{complaints}");
    for line in [
        "ok    state: folder",
        "ok    indexes.pages: model hashing: built in",
        "ok    dead_letters: folder",
        "ok    sources.pages: log",
        "ok    server: address",
    ] {
        assert!(told.contains(line), "{line} is missing in {told}");
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(
        left.len(),
        2,
        "only the log and the configuration are there: {left:?}"
    );

    // The pipeline that runs has the state and the port; a second one may have neither.
    let running = Running::start(&config, port);
    let gone = "{type: jsonl, path: gone.jsonl, format: {type: change, key: id}}";
    let second = write_config(directory.path(), "second", gone, &more);
    let (status, told, complaints) = call(&["validate", "--connect"], &second, &[]);
    assert_eq!(status, Some(69), "{told}");
    for (line, hint) in [
        ("FAIL  state: folder", "end that process"),
        ("FAIL  sources.pages: log", "name an existing file"),
        ("FAIL  server: address", "server.listen"),
    ] {
        let found = told.lines().find(|it| it.starts_with(line));
        assert!(
            found.is_some_and(|it| it.contains(hint)),
            "{line} {hint}: {told}"
        );
    }
    assert!(complaints.contains("3 of 5 checks failed"), "{complaints}");
    assert!(running.terminate());
}

#[test]
fn a_broker_that_is_away_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let source = format!(
        "{{type: kafka, brokers: \"127.0.0.1:{}\", topics: [pages], format: {{type: upsert}}}}",
        free_port()
    );
    let more = format!(
        "dead_letters: {{topic: dead, brokers: \"127.0.0.1:{}\"}}",
        free_port()
    );
    let config = write_config(directory.path(), "pipeline", &source, &more);
    let (status, told, _) = call(&["validate", "--connect"], &config, &[]);
    assert_eq!(status, Some(69), "{told}");
    for line in [
        "FAIL  sources.pages: brokers 127.0.0.1",
        "FAIL  dead_letters: topic dead",
    ] {
        let found = told.lines().find(|it| it.starts_with(line));
        assert!(
            found.is_some_and(|it| it.contains("check `brokers`")),
            "{line}: {told}"
        );
    }
}

#[test]
fn one_place_takes_dead_letters() {
    let directory = tempfile::tempdir().unwrap();
    let source = "{type: jsonl, path: log.jsonl, format: {type: change, key: id}}";
    for (section, complaint) in [
        ("{dir: a, topic: b, brokers: \"c:1\"}", "exactly one field"),
        ("{brokers: \"c:1\"}", "exactly one field"),
        ("{topic: b}", "missing field `brokers`"),
        ("{dir: a, brokers: \"c:1\"}", "brokers"),
        ("{dri: a}", "did you mean `dir`"),
        ("{keep: 0}", "keep"),
        ("{dir: a, max_file: 2MiB, max_total: 1MiB}", "max_total"),
    ] {
        let more = format!("dead_letters: {section}");
        let config = write_config(directory.path(), "pipeline", source, &more);
        let (status, _, complaints) = call(&["validate"], &config, &[]);
        assert_eq!(status, Some(78), "{section}: {complaints}");
        assert!(complaints.contains(complaint), "{section}: {complaints}");
    }
    for section in [
        "{keep: 5}",
        "{dir: a, keep: 5}",
        "{topic: b, brokers: \"c:1\"}",
    ] {
        let more = format!("dead_letters: {section}");
        let config = write_config(directory.path(), "pipeline", source, &more);
        let (status, _, complaints) = call(&["validate"], &config, &[]);
        assert_eq!(status, Some(0), "{section}: {complaints}");
    }
}
