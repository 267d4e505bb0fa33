//! Queries that say how far their answer has to be.

use crate::server::Server;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const QUERY: &str = "/v1/indexes/pages/query";

/// A query that wants `pages/0` at an offset; the published state has it at 5.
fn asking(offset: &Value, more: &Value) -> String {
    let mut request = json!({"text": "engine", "at_least": {"pages": {"pages/0": offset}}});
    let more = more.as_object().unwrap().clone();
    request.as_object_mut().unwrap().extend(more);
    request.to_string()
}

#[test]
fn what_is_there_is_answered_at_once_and_not_stale() {
    let server = Server::start();
    for offset in [json!(0), json!(5), json!("0/5")] {
        let answer = server.post(QUERY, &asking(&offset, &json!({}))).ok();
        assert_eq!(answer.get("stale"), None, "{offset}");
        assert!(!answer["hits"].as_array().unwrap().is_empty());
    }
}

#[test]
fn an_answer_waits_for_the_position() {
    let server = Server::start();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(150));
            server.memory.moved.store(2, Ordering::SeqCst);
        });
        let start = Instant::now();
        let answer = server.post(QUERY, &asking(&json!(7), &json!({}))).ok();
        assert!(start.elapsed() >= Duration::from_millis(100));
        assert_eq!(answer.get("stale"), None);
    });
}

#[test]
fn a_position_that_does_not_come_is_told_or_served_as_stale() {
    let server = Server::start();
    let searched = || server.memory.searched.load(Ordering::SeqCst);
    let failing = asking(&json!(9), &json!({"timeout": "50ms"}));
    let reply = server.post(QUERY, &failing);
    assert_eq!(reply.status, 503);
    assert_eq!(reply.header("retry-after"), "1");
    let problem = reply.json();
    assert_eq!(problem["code"], "not_yet");
    assert_eq!(problem["positions"], json!({"pages": {"pages/0": 5}}));
    assert_eq!(searched(), 0);
    let serving = json!({"timeout": "50ms", "on_timeout": "serve"});
    let answer = server.post(QUERY, &asking(&json!(9), &serving)).ok();
    assert_eq!(answer["stale"], true);
}

#[test]
fn bad_wishes_are_told() {
    let server = Server::start();
    for (request, field, hint) in [
        (
            json!({"text": "a", "at_least": {"page": {"0": 1}}}),
            "at_least",
            "did you mean `pages`?",
        ),
        (
            json!({"text": "a", "at_least": {"pages": 3}}),
            "at_least",
            "as_of.positions",
        ),
        (
            json!({"text": "a", "at_least": {"pages": {"0": -1}}}),
            "at_least",
            "as_of.positions",
        ),
        (
            json!({"text": "a", "at_least": {"pages": {"0": "x"}}}),
            "at_least",
            "sequence number",
        ),
        (
            json!({"text": "a", "at_least": []}),
            "at_least",
            "as_of.positions",
        ),
        (
            json!({"text": "a", "timeout": 5}),
            "timeout",
            "with its unit",
        ),
        (
            json!({"text": "a", "timeout": "2h"}),
            "timeout",
            "request_timeout",
        ),
        (
            json!({"text": "a", "on_timeout": "wait"}),
            "on_timeout",
            "`serve`",
        ),
    ] {
        let reply = server.post(QUERY, &request.to_string());
        assert_eq!(reply.status, 400, "{request}");
        let problem = reply.json();
        assert_eq!(problem["field"], field, "{request}");
        let told = problem["hint"].as_str().unwrap();
        assert!(told.contains(hint), "{request}: {told}");
    }
}

#[test]
fn a_sources_end_is_what_at_least_takes() {
    let server = Server::start();
    let told = server.get("/v1/sources/pages/position").ok();
    assert_eq!(told, json!({"positions": {"pages": {"pages/0": 5}}}));
    let request = json!({"text": "engine", "at_least": told["positions"]});
    let answer = server.post(QUERY, &request.to_string()).ok();
    assert_eq!(answer.get("stale"), None);

    let reply = server.get("/v1/sources/page/position");
    assert_eq!(reply.status, 404);
    let problem = reply.json();
    assert_eq!(problem["code"], "source_not_found");
    assert_eq!(problem["hint"], "did you mean `pages`?");
    assert_eq!(server.get("/v1/sources/gone/position").status, 503);
}
