//! The OpenAPI document: complete, consistent, and true of what the server really answers.

use crate::memory::MODEL;
use crate::server::Server;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Method, path as described, path to call.
const ROUTES: [(&str, &str, &str); 13] = [
    (
        "post",
        "/v1/indexes/{index}/query",
        "/v1/indexes/pages/query",
    ),
    (
        "post",
        "/v1/indexes/{index}/query/batch",
        "/v1/indexes/pages/query/batch",
    ),
    ("get", "/v1/indexes", "/v1/indexes"),
    ("get", "/v1/indexes/{index}", "/v1/indexes/pages"),
    (
        "get",
        "/v1/indexes/{index}/documents/{id}",
        "/v1/indexes/pages/documents/plain",
    ),
    (
        "get",
        "/v1/sources/{source}/position",
        "/v1/sources/pages/position",
    ),
    ("post", "/v1/embeddings", "/v1/embeddings"),
    ("get", "/v1/models", "/v1/models"),
    ("get", "/v1/models/{model}", "/v1/models/letters"),
    ("get", "/livez", "/livez"),
    ("get", "/readyz", "/readyz"),
    ("get", "/metrics", "/metrics"),
    ("get", "/openapi.json", "/openapi.json"),
];

fn body_of(path: &str) -> Option<Value> {
    match path {
        "/v1/indexes/pages/query" => {
            let include = ["text", "metadata", "vector"];
            Some(json!({"text": "engine", "k": 3, "include": include}))
        }
        path if path.ends_with("/batch") => {
            Some(json!({"queries": [{"text": "engine"}, {"text": "index", "k": 2}]}))
        }
        "/v1/embeddings" => Some(json!({"model": MODEL, "input": ["a", "b"]})),
        _ => None,
    }
}

/// A schema of the document with all components within reach.
fn schema(document: &Value, inner: &Value) -> Value {
    json!({"allOf": [inner], "components": document["components"]})
}

fn refs(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(target)) = fields.get("$ref") {
                found.insert(target.clone());
            }
            fields.values().for_each(|value| refs(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| refs(value, found)),
        _ => {}
    }
}

#[test]
fn it_describes_all_routes_and_nothing_else() {
    let server = Server::start();
    let document = server.get("/openapi.json").ok();
    assert_eq!(document["openapi"], "3.1.0");
    let printed: Value = serde_json::from_str(&vectide_serve::openapi().unwrap()).unwrap();
    assert_eq!(document, printed);
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            described.insert((method.clone(), path.clone()));
        }
    }
    let routes = ROUTES
        .iter()
        .map(|(method, path, _)| ((*method).into(), (*path).into()));
    assert_eq!(described, routes.collect());
    let mut targets = BTreeSet::new();
    refs(&document, &mut targets);
    assert!(targets.len() > 10, "{targets:?}");
    for target in targets {
        let pointer = target.strip_prefix('#').unwrap();
        assert!(
            document.pointer(pointer).is_some(),
            "{target} leads nowhere"
        );
    }
    let ids: BTreeSet<&str> = ROUTES
        .iter()
        .map(|(method, path, _)| {
            document["paths"][path][method]["operationId"]
                .as_str()
                .unwrap()
        })
        .collect();
    assert_eq!(ids.len(), ROUTES.len(), "operation ids are unique");
}

#[test]
fn answers_are_what_it_says() {
    let server = Server::start();
    let document = server.get("/openapi.json").ok();
    for (method, described, path) in ROUTES {
        let body = body_of(path).map(|body| body.to_string());
        let operation = &document["paths"][described][method];
        if let Some(body) = &body {
            let content = &operation["requestBody"]["content"]["application/json"]["schema"];
            let body: Value = serde_json::from_str(body).unwrap();
            let outcome = jsonschema::validate(&schema(&document, content), &body);
            assert!(outcome.is_ok(), "request of {path}: {outcome:?}");
        }
        let reply = match &body {
            Some(body) => server.post(path, body),
            None => server.get(path),
        };
        assert_eq!(reply.status, 200, "{path}");
        let content = operation["responses"]["200"]["content"]
            .as_object()
            .unwrap();
        let (media, content) = content.iter().next().unwrap();
        assert!(
            reply.header("content-type").starts_with(media),
            "{path}: {media}"
        );
        if media == "application/json" {
            let validator = jsonschema::validator_for(&schema(&document, &content["schema"]));
            let outcome = validator
                .unwrap()
                .validate(&reply.json())
                .map_err(|e| e.to_string());
            assert_eq!(outcome, Ok(()), "{path}: {}", reply.text());
        }
    }
}

#[test]
fn problems_are_what_it_says() {
    let server = Server::start();
    let document = server.get("/openapi.json").ok();
    let inner = json!({"$ref": "#/components/schemas/Problem"});
    let validator = jsonschema::validator_for(&schema(&document, &inner)).unwrap();
    let problems = [
        server.post("/v1/indexes/pages/query", "{}"),
        server.get("/v1/indexes/none"),
        server.get("/nowhere"),
    ];
    for problem in problems {
        let outcome = validator
            .validate(&problem.json())
            .map_err(|error| error.to_string());
        assert_eq!(outcome, Ok(()), "{}", problem.text());
    }
}

#[test]
fn its_schemas_refuse_what_is_wrong() {
    let document: Value = serde_json::from_str(&vectide_serve::openapi().unwrap()).unwrap();
    let check = |name: &str, instance: Value, valid: bool| {
        let inner = json!({"$ref": format!("#/components/schemas/{name}")});
        let validator = jsonschema::validator_for(&schema(&document, &inner)).unwrap();
        assert_eq!(validator.is_valid(&instance), valid, "{name}: {instance}");
    };
    check("QueryRequest", json!({"text": "a"}), true);
    check("QueryRequest", json!({"text": "a", "k": 0}), false);
    check("QueryRequest", json!({"text": "a", "k": 10_001}), false);
    check("QueryRequest", json!({"text": "a", "k": 1.5}), false);
    check("QueryRequest", json!({"txt": "a"}), false);
    check(
        "QueryRequest",
        json!({"text": "a", "include": ["txt"]}),
        false,
    );
    check("QueryResponse", json!({"hits": []}), false);
    check(
        "EmbeddingsRequest",
        json!({"model": "m", "input": ["a"]}),
        true,
    );
    check(
        "EmbeddingsRequest",
        json!({"model": "m", "input": [1]}),
        false,
    );
    check("EmbeddingsRequest", json!({"model": "m"}), false);
}
