//! Good configurations become the values they say.

use crate::pipeline::{Format, GOOD, Jsonl, Kafka, Pipeline, Structured, lookup, schema};
use proptest::prelude::*;
use serde_json::{Value, json};
use vectide_config::{Document, Path, Position};

fn good() -> Document {
    let mut document = Document::parse("good.yaml", GOOD.as_bytes(), &lookup).unwrap();
    let report = document.check(&schema());
    assert!(report.is_empty(), "{report}");
    document
}

#[test]
fn reads_sections_as_types() {
    let document = good();
    let pipeline: Pipeline = document.parse_at("").unwrap();
    let index = &pipeline.indexes["pages"];
    assert_eq!(index.shards, Some(2));
    let server = pipeline.server.unwrap();
    assert_eq!(server.listen, "127.0.0.1:7700");
    assert_eq!(server.timeout.unwrap().as_milliseconds(), 10_000);
    assert_eq!(server.token.as_deref(), Some("1234567890"));
    let history: Jsonl = document.parse_section("sources.history", "type").unwrap();
    assert!(matches!(history.format, Format::Change { key, .. } if key == "path"));
    let orders: Kafka = document.parse_section("sources.orders", "type").unwrap();
    assert_eq!(orders.password.as_deref(), Some("hunter2-hunter2"));
    let chunk: Structured = document
        .parse_section("indexes.pages.chunk", "type")
        .unwrap();
    assert_eq!((chunk.target_tokens, chunk.max_tokens), (200, 256));
    assert_eq!(
        document.value_at("sources.orders.type").unwrap().as_str(),
        Some("kafka")
    );
    assert_eq!(
        document.paths_matching("sources.*"),
        [Path::from("sources.history"), Path::from("sources.orders")]
    );
}

#[test]
fn writes_and_reads_back() {
    let pipeline: Pipeline = good().parse_at("").unwrap();
    let text = serde_json::to_string_pretty(&pipeline).unwrap();
    let mut document = Document::parse("back.json", text.as_bytes(), &lookup).unwrap();
    let report = document.check(&schema());
    assert!(report.is_empty(), "{report}");
    assert_eq!(document.parse_at::<Pipeline>("").unwrap(), pipeline);
}

/// A password of digits is a text where a text is wanted, and a number elsewhere.
#[test]
fn variables_take_the_type_that_is_wanted() {
    let read = |text: &str| {
        let mut document = Document::parse("x.yaml", text.as_bytes(), &lookup).unwrap();
        let _ = document.check(&schema());
        document.root().to_json()
    };
    assert_eq!(
        read(
            "server:\n  listen: ${DIGITS}\n  tls: ${FLAG}\n  token: ${FLAG}\n  allow:\n  - ${DIGITS}\n"
        ),
        json!({"server": {
            "listen": "1234567890", "tls": true, "token": "true", "allow": ["1234567890"]}})
    );
    assert_eq!(
        read(
            "indexes:\n  a:\n    shards: ${SHARDS}\n  b: {shards: '${SHARDS}'}\n  c:\n    from: ${EMPTY}\n"
        ),
        json!({"indexes": {"a": {"shards": 2}, "b": {"shards": "2"}, "c": {"from": ""}}})
    );
    assert_eq!(
        read(
            "server:\n  listen: ${INJECT}\n  token: $${PORT}\n  allow: ['a${PORT}', '${NONE:-1}']\n"
        ),
        json!({"server": {"listen": "x\nserver: {listen: evil}", "token": "${PORT}",
               "allow": ["a7700", "1"]}})
    );
}

#[test]
fn aliases_stand_for_whole_values() {
    let text = "a: &a {x: [1, 2]}\nb: *a\nc: [*a]\n";
    let document = Document::parse("x.yaml", text.as_bytes(), &lookup).unwrap();
    let x = json!({"x": [1, 2]});
    assert_eq!(document.root().to_json(), json!({"a": x, "b": x, "c": [x]}));
}

#[test]
fn positions_point_at_what_people_look_for() {
    let document = good();
    let at = |path: &str| {
        let Position { line, column } = document.position_of(path);
        (line, column)
    };
    assert_eq!(at("sources"), (4, 1));
    assert_eq!(at("sources.history"), (5, 3));
    assert_eq!(at("sources.history.format"), (8, 5));
    assert_eq!(at("sources.history.format.key"), (8, 33));
    assert_eq!(at("sources.history.format.nothing"), (8, 5));
    assert_eq!(at("sources.orders.brokers[1]"), (11, 25));
    assert_eq!(at("sources.nothing.format"), (4, 1));
}

/// YAML is a superset of JSON: any JSON reads as itself.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e300..1e300).prop_map(Value::from),
        "[ -~éñ\\n\\t]{0,20}".prop_map(|text| Value::from(text.replace('$', "$$"))),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("[a-z $.:]{0,8}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn unescaped(value: &Value) -> Value {
    match value {
        Value::String(text) => text.replace("$$", "$").into(),
        Value::Array(items) => items.iter().map(unescaped).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), unescaped(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn any_json_reads_as_itself(value in any_json()) {
        prop_assume!(!value.is_null());
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let document = Document::parse("x.json", text.as_bytes(), &lookup);
            let document = document.map_err(|report| TestCaseError::fail(report.to_string()))?;
            prop_assert_eq!(document.root().to_json(), unescaped(&value));
        }
    }
}
