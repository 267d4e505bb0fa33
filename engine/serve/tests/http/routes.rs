//! Every route's good answers, request ids, keys, metrics.

use crate::memory::{DIMENSION, MODEL, embed};
use crate::server::Server;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use vectide_serve::{ApiKey, ServerConfig};

const QUERY: &str = "/v1/indexes/pages/query";

#[test]
fn a_text_finds_what_brute_force_finds() {
    let server = Server::start();
    let text = "run the engine";
    let answer = server
        .post(QUERY, &json!({"text": text, "k": 4}).to_string())
        .ok();
    let hits = answer["hits"].as_array().unwrap();
    let expected = server.memory.expected(text, 4);
    assert_eq!(hits.len(), 4);
    for (hit, (document, score)) in hits.iter().zip(&expected) {
        assert_eq!(hit["document"], *document);
        assert!((hit["score"].as_f64().unwrap() - f64::from(*score)).abs() < 1e-6);
    }
    let mut names: Vec<&String> = hits[0].as_object().unwrap().keys().collect();
    names.sort_unstable();
    let mut wanted = vec![
        "document", "chunk", "score", "text", "span", "metadata", "position",
    ];
    wanted.sort_unstable();
    assert_eq!(names, wanted);
    let as_of = json!({
        "epoch": 42,
        "positions": {"pages": {"pages/0": 5}},
        "published_at": "2023-11-14T22:13:20.123456Z",
    });
    assert_eq!(answer["as_of"], as_of);
    assert_eq!(
        answer["took_ms"],
        json!({"embed": 1.234, "search": 0.5, "total": 1.734})
    );
}

#[test]
fn a_batch_has_the_answers_of_its_queries() {
    let server = Server::start();
    let queries = [
        json!({"text": "run the engine", "k": 4}),
        json!({"vector": embed("index"), "k": 2, "include": []}),
        json!({"text": "run the engine", "k": 1, "as_of": 42, "exact": true}),
    ];
    let alone = |query: &Value| server.post(QUERY, &query.to_string()).ok();
    let mut batch = queries.clone();
    batch.iter_mut().for_each(|it| it["as_of"] = json!(42));
    let body = json!({ "queries": batch }).to_string();
    let answers = server.post(&format!("{QUERY}/batch"), &body).ok();
    let expected: Vec<Value> = queries.iter().map(alone).collect();
    assert_eq!(answers["answers"], json!(expected));
}

#[test]
fn spans_count_scalar_values_and_metadata_keeps_its_digits() {
    let server = Server::start();
    let reply = server.post(QUERY, r#"{"text":"Zwölf Boxkämpfer jagen Viktor.","k":1}"#);
    let hit = &reply.ok()["hits"][0];
    assert_eq!(hit["text"], "Zwölf Boxkämpfer jagen Viktor.\n");
    assert_eq!(hit["span"], json!({"start": 18, "end": 49}));
    assert_eq!(hit["position"]["source"], "pages");
    assert!(
        reply.text().contains("12345678901234567890"),
        "{}",
        reply.text()
    );
}

#[test]
fn a_vector_is_as_good_as_its_text() {
    let server = Server::start();
    let body = json!({"vector": embed("run the engine"), "k": 3, "include": []});
    let by_vector = server.post(QUERY, &body.to_string()).ok();
    let body = json!({"text": "run the engine", "k": 3, "include": []});
    let by_text = server.post(QUERY, &body.to_string()).ok();
    assert_eq!(by_vector["hits"], by_text["hits"]);
}

#[test]
fn hits_carry_what_is_included() {
    let server = Server::start();
    let check = |include: Value, expect: &[&str]| {
        let body = json!({"text": "engine", "include": include});
        let answer = server.post(QUERY, &body.to_string()).ok();
        for name in ["text", "metadata", "vector"] {
            let there = answer["hits"][0].get(name).is_some();
            assert_eq!(there, expect.contains(&name), "{name} of {include}");
        }
    };
    check(json!([]), &[]);
    check(json!(["vector"]), &["vector"]);
    check(json!(["text", "text"]), &["text"]);
    check(
        json!(["text", "metadata", "vector"]),
        &["text", "metadata", "vector"],
    );
    let answer = server.post(QUERY, r#"{"text":"engine"}"#).ok();
    let hits = answer["hits"].as_array().unwrap();
    assert_eq!(hits.len(), 7, "k is 10 by default and there are 7 chunks");
    assert!(hits[0].get("vector").is_none() && hits[0].get("text").is_some());
}

#[test]
fn content_types_of_json_and_none_are_taken() {
    let server = Server::start();
    let body = Some(&br#"{"text":"engine"}"#[..]);
    let types = [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/vnd.x+json",
    ];
    for content_type in types {
        let headers = [("content-type", content_type)];
        assert_eq!(
            server.call("POST", QUERY, &headers, body).status,
            200,
            "{content_type}"
        );
    }
    assert_eq!(server.call("POST", QUERY, &[], body).status, 200);
}

#[test]
fn indexes_are_listed_and_described() {
    let server = Server::start();
    let index = server.get("/v1/indexes/pages").ok();
    assert_eq!(server.get("/v1/indexes").ok(), json!({"indexes": [index]}));
    let expected = json!({
        "name": "pages", "documents": 5, "chunks": 7, "vectors": 7, "segments": 0, "shards": 1,
        "model": {"name": MODEL, "fingerprint": "letters-1", "dimension": DIMENSION,
            "tokens_max": 256, "device": "cpu"},
        "epoch": 42, "positions": {"pages": {"pages/0": 5}},
        "published_at": "2023-11-14T22:13:20.123456Z", "freshness": 0.012,
    });
    assert_eq!(index, expected);
}

#[test]
fn documents_are_found_with_slashes_as_they_are_and_encoded() {
    let server = Server::start();
    let check = |path: &str, id: &str| {
        let document = server
            .get(&format!("/v1/indexes/pages/documents/{path}"))
            .ok();
        assert_eq!(document["id"], id, "{path}");
        document
    };
    let document = check("docs/guide/start.md", "docs/guide/start.md");
    assert_eq!(
        check("docs%2Fguide%2Fstart.md", "docs/guide/start.md"),
        document
    );
    assert_eq!(
        check("docs/guide%2fstart.md", "docs/guide/start.md"),
        document
    );
    check("plain", "plain");
    check("docs/guide/gr%C3%B6%C3%9Fe.md", "docs/guide/größe.md");
    check("a%252Fb", "a%2Fb");
    check("with%20space%3F%23.txt", "with space?#.txt");
    assert_eq!(document["text"], "Install the engine.\nThen run it.\n");
    assert_eq!(document["metadata"]["path"], "docs/guide/start.md");
    assert_eq!(document["position"]["partition"], "pages/0");
    assert_eq!(
        document["chunks"][1]["span"],
        json!({"start": 20, "end": 33})
    );
    assert_eq!(document["as_of"]["epoch"], 42);
    let hit = &server
        .post(QUERY, r#"{"text":"Install the engine.","k":1}"#)
        .ok()["hits"][0];
    assert_eq!(hit["chunk"], document["chunks"][0]["id"]);
}

#[test]
fn probes_tell_the_state() {
    let server = Server::start();
    assert_eq!(
        (server.get("/livez").status, server.get("/livez").text()),
        (200, "ok\n")
    );
    assert_eq!(
        server.get("/readyz").ok(),
        json!({"serving": true, "caught_up": false})
    );
    server.memory.serving.store(false, Ordering::SeqCst);
    let reply = server.get("/readyz");
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json(), json!({"serving": false, "caught_up": false}));
    assert_eq!(server.get("/livez").status, 200);
}

#[test]
fn request_ids_are_echoed_or_made() {
    let server = Server::start();
    let echoed = |id: &str| {
        let reply = server.call("GET", "/nowhere", &[("x-request-id", id)], None);
        reply.header("x-request-id").to_owned()
    };
    assert_eq!(echoed("abc-123"), "abc-123");
    let too_long = "x".repeat(129);
    assert_ne!(echoed(&too_long), too_long);
    assert_ne!(echoed("with space"), "with space");
    let (one, other) = (server.get("/livez"), server.get("/livez"));
    assert!(one.header("x-request-id").len() > 16);
    assert_ne!(one.header("x-request-id"), other.header("x-request-id"));
}

#[test]
fn everything_but_the_probes_wants_a_key() {
    let key = "0123456789abcdef-key";
    let api_keys = vec![ApiKey::new(key), ApiKey::new("another-key-of-them")];
    let server = Server::with(ServerConfig {
        api_keys,
        ..Default::default()
    });
    let paths = [
        "/v1/indexes",
        "/v1/indexes/pages",
        "/v1/indexes/pages/documents/plain",
        "/v1/models",
        "/metrics",
        "/openapi.json",
        "/nowhere",
        "/v1/embeddings",
    ];
    for path in paths {
        let reply = server.get(path);
        reply.problem(401, "missing_api_key");
        assert!(reply.header("www-authenticate").starts_with("Bearer"));
        let wrong = [("authorization", "Bearer 0123456789abcdef-kez")];
        let problem = server
            .call("GET", path, &wrong, None)
            .problem(401, "invalid_api_key");
        assert!(!problem.to_string().contains("0123456789"), "{problem}");
        let right = [("authorization", "Bearer 0123456789abcdef-key")];
        assert_ne!(server.call("GET", path, &right, None).status, 401, "{path}");
    }
    server
        .post(QUERY, r#"{"text":"engine"}"#)
        .problem(401, "missing_api_key");
    assert_eq!(
        (server.get("/livez").status, server.get("/readyz").status),
        (200, 200)
    );
}

/// The value of a metric's line, 0 where there is none.
fn metric(text: &str, line_start: &str) -> f64 {
    let value = |line: &str| line.strip_prefix(line_start)?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0.0)
}

#[test]
fn requests_and_queries_are_counted() {
    let server = Server::start();
    let text = || server.get("/metrics").text().to_owned();
    let before = text();
    for _ in 0..3 {
        server
            .post("/v1/indexes/pages/query", r#"{"text":"engine"}"#)
            .ok();
    }
    server
        .get("/v1/indexes/pages/documents/not/there")
        .problem(404, "document_not_found");
    server.get("/no/such/route").problem(404, "route_not_found");
    let reply = server.get("/metrics");
    assert!(
        reply
            .header("content-type")
            .starts_with("text/plain; version=0.0.4")
    );
    let after = text();
    let check = |line_start: &str, at_least: f64| {
        let grown = metric(&after, line_start) - metric(&before, line_start);
        assert!(grown >= at_least, "{line_start} grew by {grown}");
    };
    let requests = |route: &str, status: u16| {
        format!("vectide_http_requests_total{{route=\"{route}\",status=\"{status}\"}}")
    };
    check(&requests("/v1/indexes/{index}/query", 200), 3.0);
    check(&requests("/v1/indexes/{index}/documents/{*id}", 404), 1.0);
    check(&requests("unmatched", 404), 1.0);
    for stage in ["embed", "search", "total"] {
        check(
            &format!("vectide_query_duration_seconds_count{{stage=\"{stage}\"}}"),
            3.0,
        );
    }
}
