//! The shapes of OpenAI's embeddings and models API, as its reference gives them.

use crate::memory::{DIMENSION, MODEL, WAIT, embed};
use crate::server::{Server, until};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use vectide_serve::ServerConfig;

/// `CreateEmbeddingResponse`, `Embedding` and its usage of OpenAI's API description, version 2.3:
/// required fields and types. `embedding` is a string when `encoding_format` is `base64`.
fn openai_response(embedding: Value) -> Value {
    json!({
        "type": "object",
        "required": ["object", "model", "data", "usage"],
        "properties": {
            "object": {"const": "list"},
            "model": {"type": "string"},
            "data": {"type": "array", "items": {
                "type": "object",
                "required": ["index", "object", "embedding"],
                "properties": {
                    "index": {"type": "integer"},
                    "object": {"const": "embedding"},
                    "embedding": embedding,
                },
            }},
            "usage": {
                "type": "object",
                "required": ["prompt_tokens", "total_tokens"],
                "properties": {
                    "prompt_tokens": {"type": "integer"},
                    "total_tokens": {"type": "integer"},
                },
            },
        },
    })
}

fn assert_valid(schema: &Value, instance: &Value) {
    if let Err(error) = jsonschema::validate(schema, instance) {
        panic!("{error} in {instance}");
    }
}

#[test]
fn floats_and_base64_are_the_same_vectors() {
    let server = Server::start();
    let texts = ["one text", "another text here"];
    let call = |input: Value, format: Option<&str>| {
        let mut body = json!({"model": MODEL, "input": input});
        if let Some(format) = format {
            body["encoding_format"] = format.into();
        }
        server.post("/v1/embeddings", &body.to_string()).ok()
    };
    let floats = call(json!(texts), None);
    assert_valid(
        &openai_response(json!({"type": "array", "items": {"type": "number"}})),
        &floats,
    );
    assert_eq!(floats, call(json!(texts), Some("float")));
    let coded = call(json!(texts), Some("base64"));
    assert_valid(&openai_response(json!({"type": "string"})), &coded);
    for (index, text) in texts.iter().enumerate() {
        let expected = embed(text);
        let numbers: Vec<f32> =
            serde_json::from_value(floats["data"][index]["embedding"].clone()).unwrap();
        assert_eq!(numbers, expected);
        let bytes = STANDARD
            .decode(coded["data"][index]["embedding"].as_str().unwrap())
            .unwrap();
        let numbers: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(numbers, expected);
        assert_eq!(floats["data"][index]["index"], index);
    }
    assert_eq!(
        floats["usage"],
        json!({"prompt_tokens": 5, "total_tokens": 5})
    );
    assert_eq!(floats["model"], MODEL);
    let alone = call(json!(texts[0]), None);
    assert_eq!(alone["data"].as_array().unwrap().len(), 1);
    assert_eq!(alone["data"][0], floats["data"][0]);
}

#[test]
fn optional_fields_of_the_api_are_taken() {
    let server = Server::start();
    let body = json!({"model": MODEL, "input": "a", "user": "u", "dimensions": DIMENSION});
    server.post("/v1/embeddings", &body.to_string()).ok();
}

#[test]
fn a_large_batch_keeps_its_order() {
    let server = Server::start();
    let texts: Vec<String> = (0..2048)
        .map(|number| format!("text number {number}"))
        .collect();
    let body = json!({"model": MODEL, "input": texts});
    let answer = server.post("/v1/embeddings", &body.to_string()).ok();
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), texts.len());
    for (object, text) in data.iter().zip(&texts) {
        let vector: Vec<f32> = serde_json::from_value(object["embedding"].clone()).unwrap();
        assert_eq!(vector, embed(text));
    }
    assert_eq!(answer["usage"]["total_tokens"], 3 * 2048);
}

#[test]
fn errors_have_the_shape_that_openai_clients_read() {
    let schema = json!({
        "type": "object",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["type", "message", "param", "code"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }},
    });
    let server = Server::start();
    let problem = server
        .post("/v1/embeddings", "{}")
        .problem(400, "missing_field");
    assert_valid(&schema, &problem);
    assert_eq!(problem["error"]["type"], "invalid_request_error");
    assert_valid(
        &schema,
        &server.get("/v1/models/x").problem(404, "model_not_found"),
    );
}

#[test]
fn models_are_listed_and_described() {
    let server = Server::start();
    let list = server.get("/v1/models").ok();
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!(
        (&model["id"], &model["object"]),
        (&json!(MODEL), &json!("model"))
    );
    assert!(model["created"].as_u64().unwrap() > 1_600_000_000);
    assert_eq!(model["owned_by"], "vectide");
    assert_eq!(server.get(&format!("/v1/models/{MODEL}")).ok(), *model);
}

#[test]
fn batches_leave_threads_to_queries_and_end_when_nobody_waits() {
    let config = ServerConfig {
        query_threads: Some(2),
        request_timeout: vectide_model::HumanDuration::from_milliseconds(500),
        ..Default::default()
    };
    let server = Server::with(config);
    let mut texts = vec![WAIT];
    texts.resize(2048, "text");
    let body = json!({"model": MODEL, "input": texts}).to_string();
    std::thread::scope(|scope| {
        let batches: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| server.post("/v1/embeddings", &body)))
            .collect();
        until("a batch waits", || {
            server.memory.waiting.load(Ordering::SeqCst) == 1
        });
        server
            .post("/v1/indexes/pages/query", r#"{"text":"engine"}"#)
            .ok();
        for batch in batches {
            batch.join().unwrap().problem(504, "timeout");
        }
    });
    let pieces = || server.memory.embedded_pieces.load(Ordering::SeqCst);
    let begun = pieces();
    server.memory.open_gate();
    server
        .post(
            "/v1/embeddings",
            &json!({"model": MODEL, "input": "a"}).to_string(),
        )
        .ok();
    assert!(
        begun <= 2 && pieces() <= begun + 2,
        "{begun} pieces begun, then {}",
        pieces()
    );
}
