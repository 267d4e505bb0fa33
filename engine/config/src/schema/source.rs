//! One JSON Schema, examined once: references resolve, patterns compile, and it says nothing that
//! the checker would pass over.
//!
//! Invariant: a keyword of JSON Schema 2020-12 that constrains values is either understood or
//! refused here; a constraint is never ignored in silence. No chain of references, `allOf`,
//! `anyOf` … leads back to its start at the same value, so checking always ends.

use regex::Regex;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// What makes a schema unusable: a mistake of the program, not of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A `$ref` to nothing inside the same schema.
    #[error("the schema refers to `{0}`, which it does not hold")]
    UnknownReference(String),
    /// A keyword that constrains values but is not supported here.
    #[error("the schema uses the keyword `{0}`, which is not supported")]
    UnsupportedKeyword(String),
    /// A pattern that is no regular expression.
    #[error("the schema's pattern `{0}` is not a regular expression: {1}")]
    BadPattern(String, String),
    /// A reference that leads back to itself.
    #[error("the schema refers in a circle at `{0}`")]
    Circle(String),
    /// A table for a path that the root schema does not have.
    #[error("the root schema has no place `{0}` for a table of components")]
    UnknownPlace(String),
    /// Two tables for one place, or two components of one name.
    #[error("`{0}` is registered twice")]
    Twice(String),
}

/// Keywords whose value is one schema.
const ONE_SCHEMA: [&str; 9] = [
    "additionalProperties",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedProperties",
    "contentSchema",
];
/// Keywords whose value is a list of schemas.
const LIST_OF_SCHEMAS: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
/// Keywords whose value is a map of schemas.
const MAP_OF_SCHEMAS: [&str; 3] = ["$defs", "patternProperties", "properties"];
/// Keywords that constrain values in ways nothing here understands.
const UNSUPPORTED: [&str; 12] = [
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveRef",
    "additionalItems",
    "contains",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "maxContains",
    "minContains",
    "unevaluatedItems",
];
/// Keywords that apply a schema to the very same value.
const IN_PLACE: [&str; 7] = ["allOf", "anyOf", "oneOf", "not", "if", "then", "else"];

/// A schema that passed examination.
#[derive(Clone, Debug)]
pub(crate) struct SchemaSource {
    pub(crate) root: Value,
    patterns: HashMap<String, Regex>,
}

impl SchemaSource {
    pub(crate) fn new(root: Value) -> Result<Self, SchemaError> {
        let mut source = Self {
            root,
            patterns: HashMap::new(),
        };
        let mut patterns = HashMap::new();
        source.examine(&source.root, &mut patterns)?;
        let mut done = HashSet::new();
        each_schema(&source.root, &mut |schema| {
            source.find_circle(schema, &mut Vec::new(), &mut done)
        })?;
        source.patterns = patterns;
        Ok(source)
    }

    fn examine(
        &self,
        root: &Value,
        patterns: &mut HashMap<String, Regex>,
    ) -> Result<(), SchemaError> {
        each_schema(root, &mut |schema| {
            let Value::Object(keywords) = schema else {
                return Ok(());
            };
            if let Some(keyword) = UNSUPPORTED
                .iter()
                .find(|name| keywords.contains_key(**name))
            {
                return Err(SchemaError::UnsupportedKeyword((*keyword).to_owned()));
            }
            if let Some(reference) = keywords.get("$ref") {
                self.target(reference)?;
            }
            for pattern in patterns_of(keywords) {
                let compiled = Regex::new(pattern).map_err(|error| {
                    SchemaError::BadPattern(pattern.to_owned(), error.to_string())
                })?;
                patterns.insert(pattern.to_owned(), compiled);
            }
            Ok(())
        })
    }

    /// Depth first along what applies to the same value.
    fn find_circle<'a>(
        &'a self,
        schema: &'a Value,
        above: &mut Vec<&'a Value>,
        done: &mut HashSet<*const Value>,
    ) -> Result<(), SchemaError> {
        if above.iter().any(|other| std::ptr::eq(*other, schema)) {
            let reference = schema.get("$ref").and_then(Value::as_str);
            return Err(SchemaError::Circle(reference.unwrap_or("#").to_owned()));
        }
        if !done.insert(std::ptr::from_ref(schema)) {
            return Ok(());
        }
        above.push(schema);
        if let Some(reference) = schema.get("$ref") {
            self.find_circle(self.target(reference)?, above, done)?;
        }
        for keyword in IN_PLACE {
            match schema.get(keyword) {
                Some(Value::Array(branches)) => {
                    for branch in branches {
                        self.find_circle(branch, above, done)?;
                    }
                }
                Some(branch) => self.find_circle(branch, above, done)?,
                None => {}
            }
        }
        above.pop();
        Ok(())
    }

    fn target(&self, reference: &Value) -> Result<&Value, SchemaError> {
        let text = reference.as_str().unwrap_or_default();
        text.strip_prefix('#')
            .and_then(|pointer| self.root.pointer(&percent_decoded(pointer)))
            .ok_or_else(|| SchemaError::UnknownReference(text.to_owned()))
    }

    /// What `$ref` of this schema refers to.
    pub(crate) fn referred<'a>(&'a self, schema: &'a Value) -> Option<&'a Value> {
        self.target(schema.get("$ref")?).ok()
    }

    /// Follows `$ref` to the schema that says something itself.
    pub(crate) fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let mut resolved = schema;
        while let Some(next) = self.referred(resolved) {
            resolved = next;
        }
        resolved
    }

    pub(crate) fn matches(&self, pattern: &str, text: &str) -> bool {
        self.patterns
            .get(pattern)
            .is_none_or(|regex| regex.is_match(text))
    }
}

fn patterns_of(keywords: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let own = keywords.get("pattern").and_then(Value::as_str);
    let names = keywords.get("patternProperties").and_then(Value::as_object);
    own.into_iter().chain(
        names
            .into_iter()
            .flat_map(|map| map.keys().map(String::as_str)),
    )
}

/// Calls `visit` with a schema and every schema inside it.
pub(crate) fn each_schema<'a, E>(
    schema: &'a Value,
    visit: &mut dyn FnMut(&'a Value) -> Result<(), E>,
) -> Result<(), E> {
    visit(schema)?;
    let Value::Object(keywords) = schema else {
        return Ok(());
    };
    for (keyword, value) in keywords {
        let keyword = keyword.as_str();
        match value {
            Value::Array(list) if LIST_OF_SCHEMAS.contains(&keyword) => {
                for inner in list {
                    each_schema(inner, visit)?;
                }
            }
            Value::Object(map) if MAP_OF_SCHEMAS.contains(&keyword) => {
                for inner in map.values() {
                    each_schema(inner, visit)?;
                }
            }
            _ if ONE_SCHEMA.contains(&keyword) => each_schema(value, visit)?,
            _ => {}
        }
    }
    Ok(())
}

/// As [`each_schema`], for changes in place.
pub(crate) fn each_schema_mut(schema: &mut Value, visit: &mut dyn FnMut(&mut Value)) {
    visit(schema);
    let Value::Object(keywords) = schema else {
        return;
    };
    for (keyword, value) in keywords.iter_mut() {
        let keyword = keyword.as_str();
        match value {
            Value::Array(list) if LIST_OF_SCHEMAS.contains(&keyword) => {
                for inner in list {
                    each_schema_mut(inner, visit);
                }
            }
            Value::Object(map) if MAP_OF_SCHEMAS.contains(&keyword) => {
                for inner in map.values_mut() {
                    each_schema_mut(inner, visit);
                }
            }
            _ if ONE_SCHEMA.contains(&keyword) => each_schema_mut(value, visit),
            _ => {}
        }
    }
}

/// References are URIs: `%7B` may stand for a brace of a type's name.
fn percent_decoded(pointer: &str) -> String {
    let bytes = pointer.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut place = 0;
    while place < bytes.len() {
        let hex = pointer.get(place + 1..place + 3);
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if bytes[place] == b'%' => {
                decoded.push(byte);
                place += 3;
            }
            _ => {
                decoded.push(bytes[place]);
                place += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(schema: Value) -> SchemaError {
        SchemaSource::new(schema).unwrap_err()
    }

    #[test]
    fn refuses_what_it_could_not_check() {
        assert_eq!(
            error(json!({"properties": {"a": {"contains": {}}}})),
            SchemaError::UnsupportedKeyword("contains".to_owned())
        );
        assert_eq!(
            error(json!({"$ref": "#/$defs/Gone"})),
            SchemaError::UnknownReference("#/$defs/Gone".to_owned())
        );
        assert!(matches!(
            error(json!({"items": {"pattern": "("}})),
            SchemaError::BadPattern(..)
        ));
        assert!(matches!(
            error(json!({"$ref": "#/$defs/A", "$defs": {
                "A": {"anyOf": [{"$ref": "#/$defs/B"}]}, "B": {"allOf": [{"$ref": "#/$defs/A"}]}}})),
            SchemaError::Circle(_)
        ));
    }

    #[test]
    fn a_schema_may_contain_itself_below() {
        let tree = json!({"properties": {"child": {"$ref": "#"}, "pattern": {"type": "string"}}});
        assert!(SchemaSource::new(tree).is_ok());
    }

    #[test]
    fn references_may_be_escaped() {
        let source = SchemaSource::new(json!({
            "$ref": "#/$defs/a~1b%7Bc", "$defs": {"a/b{c": {"type": "null"}}}))
        .unwrap();
        assert_eq!(source.resolve(&source.root), &json!({"type": "null"}));
    }
}
