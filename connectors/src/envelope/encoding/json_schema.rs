//! The JSON Schemas of a registry, of which only the meaning of numbers, bytes and maps matters.
//!
//! Kafka Connect's converter writes a schema's name as `title` and its type as `connect.type`.
//! Whether a record is valid is not checked: its producer did that.
//!
//! Invariant: a schema that refers to itself ends; beyond that point values are as they stand.

use super::super::Rejected;
use super::logical::{Logical, misfit};
use super::shape::{SHAPE_DEPTH_MAX, Shape};
use serde_json::Value;
use std::collections::HashMap;

/// Shapes that one schema may have: it keeps references that fan out from filling the memory.
const SHAPES_MAX: usize = 50_000;

/// The shape that a schema tells; `references` are the texts of other schemas by their name.
pub(crate) fn shape_of_text(
    text: &str,
    references: &[(String, String)],
) -> Result<Shape, Rejected> {
    let parse = |text: &str| {
        serde_json::from_str::<Value>(text)
            .map_err(|error| misfit(format!("the schema is not JSON: {error}")))
    };
    let root = parse(text)?;
    let mut others = HashMap::new();
    for (name, text) in references {
        others.insert(name.as_str(), parse(text)?);
    }
    let mut reader = Reader {
        others: &others,
        is_within: Vec::new(),
        shapes: 0,
    };
    reader.shape(&root, &root)
}

struct Reader<'a> {
    others: &'a HashMap<&'a str, Value>,
    /// References that are being followed.
    is_within: Vec<*const Value>,
    shapes: usize,
}

impl<'a> Reader<'a> {
    fn shape(&mut self, schema: &'a Value, root: &'a Value) -> Result<Shape, Rejected> {
        self.shapes += 1;
        if self.shapes > SHAPES_MAX {
            return Err(misfit("the schema is too large"));
        }
        let is_known = self.is_within.iter().any(|it| std::ptr::eq(*it, schema));
        if is_known || self.is_within.len() >= SHAPE_DEPTH_MAX {
            return Ok(Shape::AsItStands);
        }
        self.is_within.push(schema);
        let shape = self.shape_of(schema, root);
        self.is_within.pop();
        shape
    }

    fn shape_of(&mut self, schema: &'a Value, root: &'a Value) -> Result<Shape, Rejected> {
        if let Some(reference) = schema["$ref"].as_str() {
            let (schema, root) = self.resolve(reference, root)?;
            return self.shape(schema, root);
        }
        for choice in ["oneOf", "anyOf"] {
            if let Some(choices) = schema[choice].as_array() {
                let mut choices = choices.iter().filter(|choice| choice["type"] != "null");
                return match (choices.next(), choices.next()) {
                    (Some(only), None) => self.shape(only, root),
                    _ => Ok(Shape::AsItStands),
                };
            }
        }
        if let Some(logical) = logical_of(schema) {
            return Ok(Shape::Logical(logical));
        }
        if schema["connect.type"] == "map" {
            return self.map(schema, root);
        }
        if let Some(properties) = schema["properties"].as_object() {
            let mut fields = Vec::with_capacity(properties.len());
            for (name, schema) in properties {
                fields.push((name.as_str().into(), self.shape(schema, root)?));
            }
            return Ok(Shape::object(fields));
        }
        match &schema["items"] {
            items @ Value::Object(_) => Ok(Shape::array(self.shape(items, root)?)),
            _ => Ok(Shape::AsItStands),
        }
    }

    fn map(&mut self, schema: &'a Value, root: &'a Value) -> Result<Shape, Rejected> {
        let has_names = schema["type"] == "object";
        let values = if has_names {
            &schema["additionalProperties"]
        } else {
            &schema["items"]["properties"]["value"]
        };
        let values = self.shape(values, root)?;
        if has_names && values == Shape::AsItStands {
            return Ok(Shape::AsItStands);
        }
        Ok(Shape::Map(Box::new(values)))
    }

    /// The schema behind `#/definitions/a`, `other.json` or `other.json#/$defs/a`.
    fn resolve(
        &self,
        reference: &str,
        root: &'a Value,
    ) -> Result<(&'a Value, &'a Value), Rejected> {
        let (document, pointer) = reference.split_once('#').unwrap_or((reference, ""));
        let root = match document {
            "" => Some(root),
            name => self.others.get(name),
        };
        let found = root.and_then(|root| Some((root.pointer(pointer)?, root)));
        found.ok_or_else(|| {
            misfit(format!(
                "the schema refers to `{reference}`, which is nowhere"
            ))
        })
    }
}

fn logical_of(schema: &Value) -> Option<Logical> {
    let scale = match &schema["connect.parameters"]["scale"] {
        Value::String(scale) => scale.parse().ok(),
        scale => scale.as_i64().and_then(|scale| i32::try_from(scale).ok()),
    };
    Logical::of_name(schema["title"].as_str()?, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(schema: &str, references: &[(String, String)], value: &str) -> String {
        let mut out = String::new();
        let shape = shape_of_text(schema, references).unwrap();
        shape.rewrite(value, &mut out).unwrap();
        out
    }

    #[test]
    fn schemas_as_the_converter_writes_them() {
        let schema = r##"{"type":"object","title":"Envelope","properties":{
            "after":{"connect.index":1,"oneOf":[{"type":"null"},{"$ref":"#/definitions/Value"}]},
            "op":{"type":"string"}},
          "definitions":{"Value":{"type":"object","title":"Value","properties":{
            "id":{"type":"integer","connect.type":"int32"},
            "day":{"oneOf":[{"type":"null"},{"type":"integer","title":"io.debezium.time.Date","connect.type":"int32","connect.version":1}]},
            "price":{"type":"number","title":"org.apache.kafka.connect.data.Decimal","connect.type":"bytes","connect.parameters":{"scale":"2"}},
            "map":{"type":"array","connect.type":"map","items":{"type":"object","properties":{"key":{"type":"integer"},"value":{"type":"number"}}}},
            "times":{"type":"array","items":{"type":"integer","title":"io.debezium.time.MicroTime"}},
            "other":{"$ref":"other.json"}}}}}"##;
        let other = (
            "other.json".to_owned(),
            r#"{"type":"object","properties":{"day":{"title":"io.debezium.time.Date"}}}"#
                .to_owned(),
        );
        let value = r#"{"op":"c","after":{"id":1,"day":1,"price":1.50,"map":[{"key":1,"value":2}],"times":[0],"other":{"day":0}}}"#;
        assert_eq!(
            rewrite(schema, &[other], value),
            r#"{"op":"c","after":{"id":1,"day":"1970-01-02","price":"1.50","map":{"1":2},"times":["00:00:00"],"other":{"day":"1970-01-01"}}}"#
        );
    }

    #[test]
    fn schemas_that_turn_in_circles() {
        let schema = r##"{"type":"object","properties":{"next":{"$ref":"#"},"day":{"title":"io.debezium.time.Date"}}}"##;
        let value = r#"{"next":{"day":0},"day":0}"#;
        let expected = r#"{"next":{"day":0},"day":"1970-01-01"}"#;
        assert_eq!(rewrite(schema, &[], value), expected);
        assert!(shape_of_text(r##"{"$ref":"#/nowhere"}"##, &[]).is_err());
        assert!(shape_of_text("nonsense", &[]).is_err());
        assert_eq!(shape_of_text("true", &[]), Ok(Shape::AsItStands));
    }
}
