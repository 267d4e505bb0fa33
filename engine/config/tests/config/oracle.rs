//! The checker accepts exactly what a general JSON Schema validator accepts.

use crate::compose::composed;
use crate::pipeline::{GOOD, lookup, schema};
use proptest::prelude::*;
use schemars::Schema;
use serde_json::{Map, Value, json};
use vectide_config::{ConfigSchema, Document};

fn accepts(schema: &ConfigSchema, value: &Value) -> (bool, String) {
    let text = value.to_string();
    let mut document = Document::parse("x.json", text.as_bytes(), &|_| None).unwrap();
    let report = document.check(schema);
    (report.is_empty(), report.to_string())
}

/// Values that come near what the schema wants, and values that do not.
fn piece() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(20),
        json!(65),
        json!(-1),
        json!(0.5),
        json!(""),
        json!("x"),
        json!("auto"),
        json!("jsonl"),
        json!("kafka"),
        json!("change"),
        json!("debezium"),
        json!("structured"),
        json!("cosine"),
        json!("10s"),
        json!("64MiB"),
        json!([]),
        json!(["x"]),
        json!([1]),
        json!({}),
        json!({"type": "change", "key": "k"}),
        json!({"minkowski": {"power": 2}}),
        json!({"weighted": [0.5]}),
        json!({"cosine": null}),
        json!({"type": "debezium", "schema": true}),
        json!({"type": "debezium", "key": "k"}),
        json!({"minkowski": {"power": 2}, "weighted": []}),
    ])
}

/// One change somewhere in a value: replace, remove, or add.
fn change(value: &mut Value, route: &[usize], piece: &Value, how: usize) {
    let Some((step, rest)) = route.split_first() else {
        *value = piece.clone();
        return;
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(step % map.len()).cloned().unwrap();
            match how {
                0 => {
                    map.remove(&key);
                }
                1 => {
                    map.insert("surprise".to_owned(), piece.clone());
                }
                2 => {
                    if let Some(kept) = map.remove(&key) {
                        map.insert(format!("{key}x"), kept);
                    }
                }
                _ => change(&mut map[&key], rest, piece, how - 3),
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let index = step % items.len();
            change(&mut items[index], rest, piece, how.saturating_sub(3));
        }
        other => *other = piece.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn agrees_on_changed_configurations(
        changes in prop::collection::vec(
            (prop::collection::vec(0_usize..12, 1..6), piece(), 0_usize..16), 0..3)
    ) {
        thread_local! {
            static BOTH: (ConfigSchema, jsonschema::Validator, Value) = {
                let good = Document::parse("good.yaml", GOOD.as_bytes(), &lookup).unwrap();
                let mut value = good.root().to_json();
                value["server"]["token"] = "t".into();
                (schema(), jsonschema::validator_for(&composed()).unwrap(), value)
            };
        }
        BOTH.with(|(schema, validator, good)| {
            let mut value = good.clone();
            for (route, piece, how) in &changes {
                change(&mut value, route, piece, *how);
            }
            prop_assume!(!value.is_null());
            let (accepted, report) = accepts(schema, &value);
            prop_assert_eq!(accepted, validator.is_valid(&value), "{}\n{}", value, report);
            Ok(())
        })?;
    }
}

/// Schemas of all supported keywords, over small values.
fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop::sample::select(vec![
        json!(true),
        json!(false),
        json!({}),
        json!({"type": "string"}),
        json!({"type": "integer"}),
        json!({"type": ["boolean", "null"]}),
        json!({"type": "object"}),
        json!({"type": "array"}),
        json!({"type": "number", "multipleOf": 2}),
        json!({"enum": ["a", 1, null]}),
        json!({"const": "a"}),
        json!({"type": "string", "const": "b"}),
        json!({"minimum": 1, "maximum": 3}),
        json!({"exclusiveMinimum": 1, "exclusiveMaximum": 3}),
        json!({"minLength": 1, "maxLength": 2}),
        json!({"pattern": "^a"}),
        json!({"minItems": 1, "maxItems": 2, "uniqueItems": true}),
        json!({"minProperties": 1, "maxProperties": 1}),
        json!({"required": ["a"]}),
        json!({"propertyNames": {"pattern": "^[ab]$"}}),
        json!({"dependentRequired": {"a": ["b"]}}),
        json!({"$ref": "#/$defs/Leaf"}),
        json!({"type": "object", "required": ["a"], "properties": {"a": {"const": "a"}}}),
        json!({"type": "object", "required": ["a"], "properties": {"a": {"const": "b"}, "b": {}}}),
    ]);
    leaf.prop_recursive(3, 24, 4, |inner| {
        let list = prop::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            list.clone().prop_map(|all| json!({"allOf": all})),
            list.clone().prop_map(|any| json!({"anyOf": any})),
            list.clone().prop_map(|one| json!({"oneOf": one})),
            list.clone().prop_map(|first| json!({"prefixItems": first})),
            (list, inner.clone())
                .prop_map(|(first, rest)| json!({"prefixItems": first, "items": rest})),
            inner.clone().prop_map(|not| json!({"not": not})),
            inner.clone().prop_map(|items| json!({"items": items})),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| json!({
                "properties": {"a": a}, "additionalProperties": b})),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| json!({
                "patternProperties": {"^a": a, "b$": b}, "additionalProperties": false})),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| json!({
                "properties": {"c": a}, "allOf": [b], "unevaluatedProperties": false})),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| json!({
                "if": a, "then": b, "else": c})),
        ]
    })
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop::sample::select(vec![
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(2.5),
        json!(""),
        json!("a"),
        json!("b"),
        json!("ab"),
        json!("abc"),
    ]);
    leaf.prop_recursive(2, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[abc]{1,2}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn agrees_on_any_schema(schema in any_schema(), values in prop::collection::vec(any_value(), 8)) {
        let root = json!({"allOf": [schema], "$defs": {"Leaf": {"type": "string", "minLength": 1}}});
        let validator = jsonschema::validator_for(&root).unwrap();
        let config = ConfigSchema::new(Schema::try_from(root.clone()).unwrap()).unwrap();
        for value in values.iter().filter(|value| !value.is_null()) {
            let (accepted, report) = accepts(&config, value);
            prop_assert_eq!(accepted, validator.is_valid(value), "{}\n{}\n{}", root, value, report);
        }
    }
}
