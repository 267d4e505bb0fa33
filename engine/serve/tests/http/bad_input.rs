//! What can be wrong with a request, each with its status, code and field; and after all of it the
//! server still answers.

use crate::memory::{AWAY, DIMENSION, FAIL, PANIC, SECRET};
use crate::server::Server;
use serde_json::json;

const QUERY: &str = "/v1/indexes/pages/query";

/// What `k` may be, as hints tell it.
const RANGE: &str = "1 to 10000";

/// Body of a query -> status, code, field, and a piece of the hint.
type Case<'a> = (&'a str, u16, &'a str, Option<&'a str>, &'a str);

fn check(server: &Server, path: &str, cases: &[Case<'_>]) {
    for (body, status, code, field, hint) in cases {
        let reply = server.post(path, body);
        let shown: String = body.chars().take(80).collect();
        assert_eq!(reply.status, *status, "{shown}: {}", reply.text());
        let problem = reply.problem(*status, code);
        assert_eq!(problem["field"].as_str(), *field, "{shown}: {problem}");
        assert_eq!(
            problem["error"]["param"].as_str(),
            *field,
            "{shown}: {problem}"
        );
        assert!(
            problem["hint"].as_str().unwrap().contains(hint),
            "{shown}: {problem}"
        );
    }
    server.post(QUERY, r#"{"text":"engine"}"#).ok();
}

#[rustfmt::skip] // A table is read by its columns.
const NOT_A_QUERY: &[Case<'_>] = &[
    ("", 400, "malformed_json", None, "object"),
    ("   ", 400, "malformed_json", None, "object"),
    ("text", 400, "malformed_json", None, "object"),
    (r#"{"text":"a""#, 400, "malformed_json", None, "object"),
    (r#"{"text":"a"} x"#, 400, "malformed_json", None, "object"),
    (r#"{"text":"\ud800"}"#, 400, "malformed_json", None, "object"),
    ("[]", 400, "invalid_request", None, "`text`"),
    (r#"["a"]"#, 400, "invalid_request", None, "`text`"),
    ("null", 400, "invalid_request", None, "`text`"),
    (r#"{"txt":"a"}"#, 400, "unknown_field", Some("txt"), "`text`"),
    (r#"{"text":"a","top_k":3}"#, 400, "unknown_field", Some("top_k"), "`k`"),
    (r#"{"text":"a","Vector":[]}"#, 400, "unknown_field", Some("Vector"), "`vector`"),
    ("{}", 400, "missing_field", Some("text"), "exactly one"),
    (r#"{"text":null}"#, 400, "missing_field", Some("text"), "exactly one"),
    (r#"{"text":"a","vector":[1]}"#, 400, "conflicting_fields", Some("text"), "exactly one"),
];

#[test]
fn bodies_that_are_not_what_a_query_is() {
    let server = Server::start();
    check(&server, QUERY, NOT_A_QUERY);
    let deep = "[".repeat(100_000);
    check(
        &server,
        QUERY,
        &[(&deep, 400, "malformed_json", None, "object")],
    );
}

#[rustfmt::skip] // A table is read by its columns.
const VALUES: &[Case<'_>] = &[
    (r#"{"text":""}"#, 400, "invalid_field", Some("text"), "search"),
    (r#"{"text":" \n\t\u3000"}"#, 400, "invalid_field", Some("text"), "search"),
    (r#"{"text":5}"#, 400, "invalid_field", Some("text"), "string"),
    (r#"{"text":"a","k":0}"#, 400, "invalid_field", Some("k"), RANGE),
    (r#"{"text":"a","k":-1}"#, 400, "invalid_field", Some("k"), RANGE),
    (r#"{"text":"a","k":1.5}"#, 400, "invalid_field", Some("k"), RANGE),
    (r#"{"text":"a","k":10001}"#, 400, "invalid_field", Some("k"), RANGE),
    (r#"{"text":"a","k":10000000}"#, 400, "invalid_field", Some("k"), RANGE),
    (r#"{"text":"a","k":1e30}"#, 400, "invalid_field", Some("k"), RANGE),
    (r#"{"text":"a","k":"10"}"#, 400, "invalid_field", Some("k"), RANGE),
    (r#"{"text":"a","k":null}"#, 400, "invalid_field", Some("k"), RANGE),
    (r#"{"text":"a","k":99999999999999999999}"#, 400, "invalid_field", Some("k"), RANGE),
    (r#"{"vector":[]}"#, 400, "invalid_field", Some("vector"), "dimensions"),
    (r#"{"vector":[NaN]}"#, 400, "malformed_json", None, "no NaN"),
    (r#"{"vector":[-Infinity]}"#, 400, "malformed_json", None, "no NaN"),
    (r#"{"vector":[1e999]}"#, 400, "malformed_json", None, "64-bit"),
    (r#"{"vector":[0,1e39]}"#, 400, "invalid_field", Some("vector"), "finite"),
    (r#"{"vector":[0,"1"]}"#, 400, "invalid_field", Some("vector"), "numbers"),
    (r#"{"vector":[null]}"#, 400, "invalid_field", Some("vector"), "numbers"),
    (r#"{"vector":"AAAA"}"#, 400, "invalid_field", Some("vector"), "array"),
    (r#"{"text":"a","include":["txt"]}"#, 400, "invalid_field", Some("include"), "`text`"),
    (r#"{"text":"a","include":[1]}"#, 400, "invalid_field", Some("include"), "`vector`"),
    (r#"{"text":"a","include":"text"}"#, 400, "invalid_field", Some("include"), "array"),
    (r#"{"text":"a","group_by":"chunk"}"#, 400, "invalid_field", Some("group_by"), "document"),
    (r#"{"text":"a","group_by":"document","group_size":0}"#, 400, "invalid_field", Some("group_size"), "1 to 100"),
    (r#"{"text":"a","group_by":"document","group_size":"2"}"#, 400, "invalid_field", Some("group_size"), "1 to 100"),
    (r#"{"text":"a","mode":"words"}"#, 400, "invalid_field", Some("mode"), "keyword"),
    (r#"{"text":"a","mode":"hybird"}"#, 400, "invalid_field", Some("mode"), "did you mean `hybrid`"),
    (r#"{"text":"a","fusion":"rrf"}"#, 400, "invalid_field", Some("fusion"), "hybrid"),
    (r#"{"text":"a","mode":"hybrid","fusion":"max"}"#, 400, "invalid_field", Some("fusion"), "weighted"),
    (r#"{"text":"a","mode":"hybrid","rrf_k":-1}"#, 400, "invalid_field", Some("rrf_k"), "0 to 10000"),
    (r#"{"text":"a","mode":"hybrid","vector_weight":0.5}"#, 400, "invalid_field", Some("vector_weight"), "weighted"),
    (r#"{"text":"a","mode":"hybrid","fusion":"weighted","vector_weight":2}"#, 400, "invalid_field", Some("vector_weight"), "0 to 1"),
    (r#"{"text":"a","mode":"hybrid","fusion":"weighted","rrf_k":2}"#, 400, "invalid_field", Some("rrf_k"), "rrf"),
    (r#"{"text":"a","filter":"lang"}"#, 400, "invalid_field", Some("filter"), "object"),
    (r#"{"text":"a","filter":{"lang":{"$near":1}}}"#, 400, "invalid_field", Some("filter"), "$prefix"),
    (r#"{"text":"a","group_size":2}"#, 400, "invalid_field", Some("group_size"), "group_by"),
    (r#"{"text":"a","exact":1}"#, 400, "invalid_field", Some("exact"), "true or false"),
    (r#"{"text":"a","as_of":"42"}"#, 400, "invalid_field", Some("as_of"), "as_of.epoch"),
    (r#"{"text":"a","as_of":43}"#, 400, "epoch_not_held", Some("as_of"), "at_least"),
    (r#"{"text":"a","as_of":41}"#, 410, "epoch_not_held", Some("as_of"), "state.history"),
    (r#"{"text":"a","budget":5}"#, 400, "invalid_field", Some("budget"), "unit"),
];

const BATCH: &str = "/v1/indexes/pages/query/batch";

#[rustfmt::skip] // A table is read by its columns.
const BATCHES: &[Case<'_>] = &[
    ("{}", 400, "missing_field", Some("queries"), "add"),
    (r#"{"queries":{}}"#, 400, "invalid_field", Some("queries"), "array"),
    (r#"{"queries":[]}"#, 400, "invalid_field", Some("queries"), "1 to 256"),
    (r#"{"queries":["a"]}"#, 400, "invalid_field", Some("queries"), "objects"),
    (r#"{"queries":[{"text":"a"},{"txt":"b"}]}"#, 400, "invalid_field", Some("queries"), "fields"),
    (r#"{"queries":[{"text":"a"},{"text":"b","k":0}]}"#, 400, "invalid_field", Some("k"), RANGE),
    (r#"{"queries":[{"text":"a"},{"k":1}]}"#, 400, "missing_field", Some("text"), "exactly one"),
    (r#"{"queries":[{"text":"a","at_least":{"pages":{"pages/0":1}}}]}"#, 400, "invalid_field", Some("queries"), "as_of"),
];

#[test]
fn batches_that_are_none() {
    let server = Server::start();
    check(&server, BATCH, BATCHES);
    let many = vec![json!({"text": "a"}); 257];
    let many = json!({ "queries": many }).to_string();
    check(
        &server,
        BATCH,
        &[(&many, 400, "invalid_field", Some("queries"), "1 to 256")],
    );
    let reply = server.post(BATCH, r#"{"queries":[{"text":"a"},{"text":"b","k":0}]}"#);
    let problem = reply.problem(400, "invalid_field");
    assert!(
        problem["detail"].as_str().unwrap().contains("query 1 of"),
        "{problem}"
    );
}

#[test]
fn values_that_are_not_allowed() {
    let server = Server::start();
    check(&server, QUERY, VALUES);
    let long = json!({"text": "x".repeat(64 * 1024 + 1)}).to_string();
    let wrong_dimension = json!({"vector": vec![1.0; DIMENSION + 1]}).to_string();
    check(
        &server,
        QUERY,
        &[(&long, 400, "invalid_field", Some("text"), "65536")],
    );
    check(
        &server,
        QUERY,
        &[(&wrong_dimension, 400, "invalid_field", Some("vector"), "16")],
    );
}

#[test]
fn a_duplicate_field_is_refused() {
    let server = Server::start();
    let reply = server.post(QUERY, "{\"text\":\"a\",\"text\":\"b\"}");
    let problem = reply.problem(400, "invalid_request");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("duplicate field `text`"),
        "{problem}"
    );
}

#[test]
fn bytes_that_are_no_text() {
    let server = Server::start();
    let json = [("content-type", "application/json")];
    let reply = server.call("POST", QUERY, &json, Some(b"{\"text\":\"\xff\xfe\"}"));
    reply.problem(400, "malformed_json");
    server.get("/v1/indexes/%FF").problem(400, "invalid_path");
    server
        .get("/v1/indexes/pages/documents/%C3%28")
        .problem(400, "invalid_path");
}

#[test]
fn names_that_are_not_there() {
    let server = Server::start();
    let body = r#"{"text":"engine"}"#;
    let problem = server
        .post("/v1/indexes/page/query", body)
        .problem(404, "index_not_found");
    assert_eq!(problem["hint"], "did you mean `pages`?");
    assert_eq!(problem["field"], "index");
    let problem = server
        .get("/v1/indexes/zzz")
        .problem(404, "index_not_found");
    assert_eq!(problem["hint"], "there is `pages`");
    let near = server.get("/v1/indexes/pages/documents/docs/guide/stat.md");
    let problem = near.problem(404, "document_not_found");
    assert_eq!(problem["hint"], "did you mean `docs/guide/start.md`?");
    server
        .get("/v1/indexes/zzz/documents/plain")
        .problem(404, "index_not_found");
    server
        .get("/v1/models/letter")
        .problem(404, "model_not_found");
}

#[test]
fn routes_methods_and_content_types() {
    let server = Server::start();
    for path in [
        "/",
        "/v1",
        "/v1/indexes/",
        "/v1/indexes/pages/documents/",
        "/v2/indexes",
    ] {
        server.get(path).problem(404, "route_not_found");
    }
    let check = |method: &str, path: &str, allowed: &str| {
        let reply = server.call(method, path, &[], None);
        reply.problem(405, "method_not_allowed");
        assert!(
            reply.header("allow").contains(allowed),
            "{method} {path}: {:?}",
            reply.headers
        );
    };
    check("GET", QUERY, "POST");
    check("DELETE", "/v1/indexes/pages", "GET");
    check("PUT", "/v1/indexes/pages/documents/plain", "GET");
    check("POST", "/livez", "GET");
    check("GET", "/v1/embeddings", "POST");
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
        "json",
    ] {
        let headers = [("content-type", content_type)];
        let reply = server.call("POST", QUERY, &headers, Some(br#"{"text":"a"}"#));
        reply.problem(415, "unsupported_media_type");
    }
}

#[test]
fn bodies_that_are_too_large() {
    let server = Server::start();
    let just = |bytes: usize| format!("{{\"text\":\"{}\"}}", "x".repeat(bytes - 11));
    server
        .post(QUERY, &just(1 << 20))
        .problem(400, "invalid_field");
    for bytes in [(1 << 20) + 1, 4 << 20] {
        let problem = server
            .post(QUERY, &just(bytes))
            .problem(413, "body_too_large");
        assert!(
            problem["detail"].as_str().unwrap().contains("1048576"),
            "{problem}"
        );
    }
    server
        .post("/v1/embeddings", &just(2 << 20))
        .problem(413, "body_too_large");
    server.post(QUERY, r#"{"text":"engine"}"#).ok();
}

#[test]
fn faults_of_our_own_tell_nothing_of_the_inside() {
    let server = Server::start();
    for text in [PANIC, FAIL] {
        let reply = server.post(QUERY, &json!({"text": text}).to_string());
        reply.problem(500, "internal");
        assert!(!reply.text().contains(SECRET), "{}", reply.text());
        server.post(QUERY, r#"{"text":"engine"}"#).ok();
    }
    let reply = server.post(QUERY, &json!({"text": AWAY}).to_string());
    let problem = reply.problem(503, "unavailable");
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(problem["detail"], "nothing is published yet");
    assert!(
        server
            .get("/metrics")
            .text()
            .contains("vectide_http_panics_total")
    );
}

#[rustfmt::skip] // A table is read by its columns.
const EMBEDDINGS: &[Case<'_>] = &[
    ("{}", 400, "missing_field", Some("model"), "model"),
    (r#"{"model":"letters"}"#, 400, "missing_field", Some("input"), "input"),
    (r#"{"model":1,"input":"a"}"#, 400, "invalid_field", Some("model"), "string"),
    (r#"{"model":"letter","input":"a"}"#, 404, "model_not_found", Some("model"), "`letters`"),
    (r#"{"model":"letters","input":""}"#, 400, "invalid_field", Some("input"), "leave"),
    (r#"{"model":"letters","input":[]}"#, 400, "invalid_field", Some("input"), "2048"),
    (r#"{"model":"letters","input":["a"," "]}"#, 400, "invalid_field", Some("input"), "leave"),
    (r#"{"model":"letters","input":[1,2]}"#, 400, "invalid_field", Some("input"), "strings"),
    (r#"{"model":"letters","input":[[1,2]]}"#, 400, "invalid_field", Some("input"), "strings"),
    (r#"{"model":"letters","input":{}}"#, 400, "invalid_field", Some("input"), "string"),
    (r#"{"model":"letters","input":"a","encoding_format":"floats"}"#, 400, "invalid_field", Some("encoding_format"), "`float`"),
    (r#"{"model":"letters","input":"a","dimensions":8}"#, 400, "invalid_field", Some("dimensions"), "leave"),
    (r#"{"model":"letters","input":"a","dimensions":-8}"#, 400, "invalid_field", Some("dimensions"), "own number"),
    (r#"{"model":"letters","inputs":"a"}"#, 400, "unknown_field", Some("inputs"), "`input`"),
];

#[test]
fn embeddings_that_cannot_be_made() {
    let server = Server::start();
    check(&server, "/v1/embeddings", EMBEDDINGS);
    let many = json!({"model": "letters", "input": vec!["a"; 2049]}).to_string();
    check(
        &server,
        "/v1/embeddings",
        &[(&many, 400, "invalid_field", Some("input"), "2048")],
    );
}
