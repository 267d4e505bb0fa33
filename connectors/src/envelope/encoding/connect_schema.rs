//! The schemas that Kafka Connect's `JsonConverter` puts into every message, and their cache.
//!
//! Invariant: a schema's text is parsed once while it stays among the last few that were seen;
//! what is remembered is bounded.

use super::super::Rejected;
use super::logical::{Logical, misfit};
use super::shape::{SHAPE_DEPTH_MAX, Shape};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// Schemas that are remembered: a source reads some tables, each with a few versions. When they are
/// more, all are forgotten, which costs parsing them again.
const SCHEMAS_MAX: usize = 512;

/// Shapes by the hash of their schema's text.
#[derive(Default)]
pub(crate) struct InlineSchemas {
    shapes: HashMap<u128, Arc<Shape>>,
}

impl InlineSchemas {
    /// The shape that a schema's text tells.
    pub(crate) fn shape(&mut self, schema: &str) -> Result<Arc<Shape>, Rejected> {
        let hash = xxh3_128(schema.as_bytes());
        if let Some(shape) = self.shapes.get(&hash) {
            return Ok(shape.clone());
        }
        let parsed: Value = serde_json::from_str(schema)
            .map_err(|error| misfit(format!("the record's schema: {error}")))?;
        let shape = Arc::new(shape_of(&parsed, SHAPE_DEPTH_MAX)?);
        if self.shapes.len() >= SCHEMAS_MAX {
            self.shapes.clear();
        }
        self.shapes.insert(hash, shape.clone());
        Ok(shape)
    }
}

fn shape_of(schema: &Value, depth: usize) -> Result<Shape, Rejected> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(misfit("the record's schema is nested too deeply"));
    };
    if let Some(logical) = schema["name"].as_str().and_then(|name| {
        let scale = &schema["parameters"]["scale"];
        Logical::of_name(name, scale.as_str().and_then(|scale| scale.parse().ok()))
    }) {
        return Ok(Shape::Logical(logical));
    }
    match schema["type"].as_str() {
        Some("struct") => {
            let mut fields = Vec::new();
            for field in schema["fields"].as_array().into_iter().flatten() {
                let Some(name) = field["field"].as_str() else {
                    return Err(misfit("the record's schema has a field without a name"));
                };
                fields.push((name.into(), shape_of(field, depth)?));
            }
            Ok(Shape::object(fields))
        }
        Some("array") => Ok(Shape::array(shape_of(&schema["items"], depth)?)),
        Some("map") => {
            let values = shape_of(&schema["values"], depth)?;
            let has_names = schema["keys"]["type"] == "string";
            if has_names && values == Shape::AsItStands {
                return Ok(Shape::AsItStands);
            }
            Ok(Shape::Map(Box::new(values)))
        }
        _ => Ok(Shape::AsItStands),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_of_every_kind() {
        let schema = r#"{"type":"struct","fields":[
            {"type":"int32","optional":false,"field":"id"},
            {"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","version":1,"parameters":{"scale":"2","connect.decimal.precision":"10"},"field":"price"},
            {"type":"struct","name":"io.debezium.data.VariableScaleDecimal","fields":[{"type":"int32","field":"scale"},{"type":"bytes","field":"value"}],"field":"any"},
            {"type":"array","items":{"type":"int32","name":"io.debezium.time.Date"},"field":"days"},
            {"type":"map","keys":{"type":"int16"},"values":{"type":"double"},"field":"sparse"},
            {"type":"map","keys":{"type":"string"},"values":{"type":"string"},"field":"hstore"},
            {"type":"string","name":"io.debezium.data.Json","field":"doc"},
            {"type":"struct","fields":[{"type":"int64","name":"io.debezium.time.MicroTimestamp","field":"at"}],"field":"nested"}
        ]}"#;
        let mut schemas = InlineSchemas::default();
        let shape = schemas.shape(schema).unwrap();
        let mut out = String::new();
        let value = r#"{"id":1,"price":"BNI=","any":{"scale":1,"value":"BNI="},"days":[0],"sparse":[[1,0.5]],"hstore":{"a":"b"},"doc":"{\"a\": 1}","nested":{"at":0}}"#;
        shape.rewrite(value, &mut out).unwrap();
        assert_eq!(
            out,
            r#"{"id":1,"price":"12.34","any":"123.4","days":["1970-01-01"],"sparse":{"1":0.5},"hstore":{"a":"b"},"doc":"{\"a\": 1}","nested":{"at":"1970-01-01T00:00:00"}}"#
        );
        assert!(Arc::ptr_eq(&shape, &schemas.shape(schema).unwrap()));
    }

    #[test]
    fn bounds() {
        let mut schemas = InlineSchemas::default();
        for index in 0..2 * SCHEMAS_MAX {
            schemas.shape(&format!("{{\"version\":{index}}}")).unwrap();
            assert!(schemas.shapes.len() <= SCHEMAS_MAX);
        }
        let (open, close) = (r#"{"type":"array","items":"#.repeat(100), "}".repeat(100));
        assert!(schemas.shape(&format!("{open}{{}}{close}")).is_err());
        assert!(schemas.shape("nonsense").is_err());
        assert!(schemas.shape(r#"{"type":"struct","fields":[{}]}"#).is_err());
        for odd in ["null", "1", "[]", r#"{"type":"struct","fields":3}"#] {
            assert_eq!(*schemas.shape(odd).unwrap(), Shape::AsItStands);
        }
    }
}
