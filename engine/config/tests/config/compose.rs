//! The schema for editors: valid, deterministic, and of one mind with the checker.

use crate::pipeline::{GOOD, Jsonl, Pipeline, lookup, schema};
use schemars::schema_for;
use serde_json::Value;
use vectide_config::{ConfigSchema, Document, SchemaError, SchemaHead, TagTable};

pub(crate) fn composed() -> Value {
    schema().compose(&SchemaHead {
        id: "https://example.org/pipeline.schema.json",
        title: "Pipeline",
        description: "A pipeline.",
    })
}

#[test]
fn is_valid_and_says_what_it_is() {
    let composed = composed();
    jsonschema::meta::validate(&composed).unwrap();
    assert_eq!(composed["$id"], "https://example.org/pipeline.schema.json");
    assert_eq!(composed["title"], "Pipeline");
    let names: Vec<&String> = composed["$defs"].as_object().unwrap().keys().collect();
    for name in [
        "source",
        "source.jsonl",
        "source.jsonl.Format",
        "source.kafka",
        "chunker",
    ] {
        assert!(
            names.iter().any(|known| *known == name),
            "{name} is not in {names:?}"
        );
    }
    assert_eq!(
        composed["$defs"]["source.jsonl"]["properties"]["format"]["$ref"],
        "#/$defs/source.jsonl.Format"
    );
}

#[test]
fn is_the_same_each_time_and_sorted() {
    let text = composed().to_string();
    assert_eq!(text, composed().to_string());
    let mut sorted = composed();
    sorted.sort_all_objects();
    assert_eq!(text, sorted.to_string());
}

#[test]
fn accepts_the_good_and_names_the_bad() {
    let validator = jsonschema::validator_for(&composed()).unwrap();
    let document = Document::parse("good.yaml", GOOD.as_bytes(), &lookup).unwrap();
    let mut value = document.root().to_json();
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|e| e.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    value["sources"]["history"]["type"] = "kafka".into();
    assert!(!validator.is_valid(&value));
}

#[test]
fn mistakes_of_the_program_are_told() {
    let table = || TagTable::new("source").with("jsonl", schema_for!(Jsonl));
    let root = || ConfigSchema::new(schema_for!(Pipeline)).unwrap();
    assert_eq!(
        root().tagged("sinks.*", table().unwrap()).unwrap_err(),
        SchemaError::UnknownPlace("sinks.*".to_owned())
    );
    assert_eq!(
        table()
            .unwrap()
            .with("jsonl", schema_for!(Jsonl))
            .unwrap_err(),
        SchemaError::Twice("jsonl".to_owned())
    );
    let once = root().tagged("sources.*", table().unwrap()).unwrap();
    assert_eq!(
        once.tagged("sources.*", table().unwrap()).unwrap_err(),
        SchemaError::Twice("sources.*".to_owned())
    );
}

/// Models are chosen by `model`, not by `type`, and say so when that is missing or unknown.
#[test]
fn a_table_may_have_another_tag() {
    #[derive(serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its schema is used")]
    struct Root {
        embed: Value,
    }
    #[derive(serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its schema is used")]
    struct Hashing {
        #[serde(default)]
        dimensions: Option<u16>,
    }
    let models = TagTable::new("embedding").keyed_by("model");
    let models = models.with("hashing", schema_for!(Hashing)).unwrap();
    let root = ConfigSchema::new(schema_for!(Root)).unwrap();
    let schema = root.tagged("embed", models).unwrap();
    let told = |text: &str| {
        let mut document = Document::parse("p.yaml", text.as_bytes(), &|_| None).unwrap();
        document.check(&schema).to_string()
    };
    assert_eq!(told("embed: {model: hashing, dimensions: 8}\n"), "");
    let unknown = told("embed: {model: hash, dimensions: 8}\n");
    assert!(
        unknown.contains("`hash` is not a known embedding model"),
        "{unknown}"
    );
    let missing = told("embed: {type: hashing}\n");
    assert!(missing.contains("the key `model` is missing"), "{missing}");
    let other = told("embed: {model: hashing, path: x}\n");
    assert!(other.contains("allowed: dimensions"), "{other}");

    let head = SchemaHead {
        id: "urn:test",
        title: "t",
        description: "d",
    };
    let validator = jsonschema::validator_for(&schema.compose(&head)).unwrap();
    let is_valid = |embed: Value| validator.is_valid(&serde_json::json!({"embed": embed}));
    assert!(is_valid(
        serde_json::json!({"model": "hashing", "dimensions": 8})
    ));
    assert!(!is_valid(serde_json::json!({"type": "hashing"})));
    assert!(!is_valid(
        serde_json::json!({"model": "hashing", "path": "x"})
    ));
}
