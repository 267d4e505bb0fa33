//! The endpoint of a running pipeline, as `curl` sees it: answers, and what bad requests get.

use serde_json::{Value, json};
use std::time::Duration;
use vectide_tests::{Running, call, free_port, vectide};

fn start() -> (Running, tempfile::TempDir, u16) {
    let directory = tempfile::tempdir().unwrap();
    let lines = [
        json!({"id": "guide/one.md", "title": "Zebras", "text": "Zebras have stripes. Ünïcödé ✓."}),
        json!({"id": "two", "title": "Clocks", "text": "Clocks tell the time of day."}),
        json!({"id": "three", "title": "Nothing", "text": ""}),
    ];
    let log: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(directory.path().join("log.jsonl"), log).unwrap();
    let port = free_port();
    let yaml = format!(
        r#"
apiVersion: vectide/v1
state: {{dir: ./state}}
sources:
  log: {{type: jsonl, path: log.jsonl, follow: true, format: {{type: change, key: id}}}}
documents:
  pages: {{from: log, text: "{{{{ text }}}}", metadata: {{title: "{{{{ title }}}}"}}}}
indexes:
  pages: {{from: pages, chunk: {{type: structured}}, embed: {{model: hashing, dimensions: 64}}}}
server: {{listen: "127.0.0.1:{port}"}}
"#
    );
    let config = directory.path().join("pipeline.yaml");
    std::fs::write(&config, yaml).unwrap();
    let mut running = Running::start(&config, port);
    running.wait_until("indexed", Duration::from_secs(20), |it| {
        it.client()
            .index("pages")
            .is_ok_and(|index| index.documents == 3)
    });
    (running, directory, port)
}

#[test]
fn answers_have_the_promised_shape() {
    let (running, _directory, _) = start();
    let (status, answer) = running.post(
        "/v1/indexes/pages/query",
        r#"{"text": "zebras stripes", "k": 1, "include": ["text", "metadata", "vector"]}"#,
    );
    assert_eq!(status, 200, "{answer}");
    let hit = &answer["hits"][0];
    assert_eq!(hit["document"], "guide/one.md");
    assert_eq!(hit["text"], "Zebras have stripes. Ünïcödé ✓.");
    assert_eq!(hit["span"], json!({"start": 0, "end": 31}));
    assert_eq!(hit["metadata"], json!({"title": "Zebras"}));
    assert_eq!(hit["position"]["source"], "log");
    assert_eq!(hit["position"]["offset"], 0);
    assert_eq!(hit["vector"].as_array().map(Vec::len), Some(64));
    assert!(
        hit["score"]
            .as_f64()
            .is_some_and(|score| score > 0.1 && score <= 1.001)
    );
    assert!(answer["as_of"]["epoch"].as_u64() >= Some(1));
    assert!(answer["as_of"]["positions"]["log"].is_object());
    assert!(answer["took_ms"]["total"].is_number());

    let (_, document) = running.get("/v1/indexes/pages/documents/guide/one.md");
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["chunks"][0]["span"]["end"], 31);
    let (_, index) = running.get("/v1/indexes/pages");
    let index: Value = serde_json::from_str(&index).unwrap();
    let counts = ["documents", "chunks", "vectors", "segments"].map(|name| index[name].as_u64());
    assert_eq!(counts, [Some(3), Some(2), Some(2), Some(0)]);

    let (_, metrics) = running.get("/metrics");
    for name in [
        "vectide_source_records_total",
        "vectide_documents",
        "vectide_chunks",
        "vectide_embedded_chunks_total",
        "vectide_reused_chunks_total",
        "vectide_freshness_seconds_bucket",
        "vectide_epoch",
        "vectide_query_duration_seconds_bucket",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    let (status, embeddings) = running.post(
        "/v1/embeddings",
        r#"{"model": "hashing", "input": ["one", "two"]}"#,
    );
    assert_eq!(
        (status, embeddings["data"][1]["index"].as_u64()),
        (200, Some(1))
    );
    assert!(
        running
            .get("/openapi.json")
            .1
            .contains("/v1/indexes/{index}/query")
    );

    assert!(running.terminate());
}

#[test]
fn bad_requests_get_a_clear_refusal() {
    let (running, _directory, _) = start();
    let big = format!(r#"{{"text": "{}"}}"#, "x".repeat(2 << 20));
    let cases = [
        ("/v1/indexes/nowhere/query", r#"{"text": "x"}"#, 404),
        ("/v1/indexes/pages/query", r#"{"text": ""}"#, 400),
        ("/v1/indexes/pages/query", r#"{"text": "x", "k": 0}"#, 400),
        (
            "/v1/indexes/pages/query",
            r#"{"text": "x", "k": 10000000}"#,
            400,
        ),
        ("/v1/indexes/pages/query", r#"{"vector": [1, 2]}"#, 400),
        ("/v1/indexes/pages/query", r#"{"vector": [NaN]}"#, 400),
        (
            "/v1/indexes/pages/query",
            r#"{"text": "x", "vector": [1]}"#,
            400,
        ),
        ("/v1/indexes/pages/query", r#"{"txet": "x"}"#, 400),
        ("/v1/indexes/pages/query", "not json", 400),
        ("/v1/indexes/pages/query", &big, 413),
    ];
    for (path, body, expected) in cases {
        let (status, problem) = running.post(path, body);
        let shown = &body[..body.len().min(60)];
        assert_eq!(status, expected, "{path} {shown}: {problem}");
        assert!(
            problem["code"].is_string() && problem["detail"].is_string(),
            "{problem}"
        );
    }
    assert!(running.terminate());
}

#[test]
fn the_query_command_prints_answers() {
    let (running, _directory, _) = start();
    let ask = |extra: &[&str]| {
        let mut command = vectide(&[
            "query",
            "--url",
            &running.url,
            "--index",
            "pages",
            "-k",
            "1",
        ]);
        command.args(extra).arg("clocks time").output().unwrap()
    };
    let text = String::from_utf8(ask(&[]).stdout).unwrap();
    assert!(
        text.contains("two") && text.contains("Clocks tell the time"),
        "{text}"
    );
    let answer: Value = serde_json::from_slice(&ask(&["--json"]).stdout).unwrap();
    assert_eq!(answer["hits"][0]["document"], "two");
    let wrong = vectide(&["query", "--url", &running.url, "--index", "page", "x"])
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("pages"),
        "{wrong:?}"
    );
}

#[test]
fn what_was_written_before_is_in_the_answer_to_its_position() {
    let (running, directory, _) = start();
    for number in 0..20 {
        let line = json!({"id": format!("own-{number}"), "text": format!("own write number{number}"), "title": ""});
        let log = std::fs::OpenOptions::new()
            .append(true)
            .open(directory.path().join("log.jsonl"));
        std::io::Write::write_all(&mut log.unwrap(), format!("{line}\n").as_bytes()).unwrap();
        let (status, told) = running.get("/v1/sources/log/position");
        assert_eq!(status, 200, "{told}");
        let told: Value = serde_json::from_str(&told).unwrap();
        let request = json!({"text": format!("own write number{number}"), "k": 100, "at_least": told["positions"]});
        let (status, answer) = running.post("/v1/indexes/pages/query", &request.to_string());
        assert_eq!(status, 200, "{answer}");
        let mut hits = answer["hits"].as_array().unwrap().iter();
        assert!(
            hits.any(|hit| hit["document"] == format!("own-{number}")),
            "{answer}"
        );
    }
    let config = directory.path().join("pipeline.yaml");
    let (status, told, complaints) = call(&["position"], &config, &["log"]);
    assert_eq!(status, Some(0), "{complaints}");
    let told: Value = serde_json::from_str(&told).unwrap();
    let length = std::fs::metadata(directory.path().join("log.jsonl"))
        .unwrap()
        .len();
    assert_eq!(told, json!({"log": {"log.jsonl": length}}));
    let (status, _, complaints) = call(&["position"], &config, &["lag"]);
    assert_eq!(status, Some(78), "{complaints}");
    assert!(complaints.contains("no source `lag`"), "{complaints}");
}
