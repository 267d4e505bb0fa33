//! Writes the schema of the whole configuration, for editors: the root with every component in it.
//!
//! Editors complete keys and explain values from it, so each section that a tag chooses becomes
//! `if type is X then` the component's schema: unlike `oneOf`, that lets an editor say what is
//! wrong with the component that was meant. Invariants: the output depends on the schemas alone
//! and is sorted; it accepts what the checker accepts, except that variables stand for values
//! other than texts only in the checker.

use super::ConfigSchema;
use super::source::{SchemaSource, each_schema_mut};
use super::tagged::TagTable;
use crate::path::Pattern;
use serde_json::{Map, Value, json};

/// What the composed schema says of itself.
#[derive(Clone, Debug)]
pub struct SchemaHead<'a> {
    /// The URI under which it is published.
    pub id: &'a str,
    /// Its name in editors.
    pub title: &'a str,
    /// One sentence.
    pub description: &'a str,
}

impl ConfigSchema {
    /// The JSON Schema (2020-12) of the whole configuration, sorted by keys.
    #[must_use]
    pub fn compose(&self, head: &SchemaHead<'_>) -> Value {
        let mut composed = self.root.root.clone();
        for (pattern, table) in &self.tables {
            if let Some(place) = place_in(&mut composed, pattern) {
                let description = place.get("description").cloned();
                *place = json!({"$ref": format!("#/$defs/{}", escaped(&table.what))});
                if let Some(description) = description {
                    place["description"] = description;
                }
            }
        }
        for (_, table) in &self.tables {
            add_definitions(&mut composed, table);
        }
        if let Value::Object(keywords) = &mut composed {
            let schema = "https://json-schema.org/draft/2020-12/schema";
            keywords.insert("$schema".to_owned(), schema.into());
            keywords.insert("$id".to_owned(), head.id.into());
            keywords.insert("title".to_owned(), head.title.into());
            keywords.insert("description".to_owned(), head.description.into());
        }
        composed.sort_all_objects();
        composed
    }
}

/// The schema inside `root` of the values at `pattern`.
pub(super) fn place_in<'a>(root: &'a mut Value, pattern: &Pattern) -> Option<&'a mut Value> {
    let mut pointer = String::new();
    for segment in pattern.segments() {
        let holder = holder_of(root, &pointer)?;
        let schema = root.pointer(&holder)?;
        let step = match segment {
            Some(name) => {
                schema.get("properties")?.get(name)?;
                format!("/properties/{}", escaped(name))
            }
            None => step_to_any(schema)?,
        };
        pointer = holder + &step;
    }
    root.pointer_mut(&pointer)
}

/// The step to the schema of all entries of a map or list.
fn step_to_any(schema: &Value) -> Option<String> {
    if let Some(Value::Object(patterns)) = schema.get("patternProperties")
        && let [name] = patterns.keys().collect::<Vec<_>>()[..]
    {
        return Some(format!("/patternProperties/{}", escaped(name)));
    }
    ["additionalProperties", "items"]
        .into_iter()
        .find(|keyword| {
            schema
                .get(keyword)
                .is_some_and(|inner| *inner != Value::Bool(false))
        })
        .map(|keyword| format!("/{keyword}"))
}

/// Follows references, and out of `anyOf: [X, null]`, to what says what the value holds.
fn holder_of(root: &Value, pointer: &str) -> Option<String> {
    let mut pointer = pointer.to_owned();
    // Circles were refused; this only bounds what is left.
    for _ in 0..32 {
        let schema = root.pointer(&pointer)?;
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            pointer = reference.strip_prefix('#')?.to_owned();
        } else if let Some(Value::Array(branches)) = schema.get("anyOf") {
            let is_null = |branch: &Value| branch.get("type") == Some(&Value::from("null"));
            let index = branches.iter().position(|branch| !is_null(branch))?;
            pointer = format!("{pointer}/anyOf/{index}");
        } else {
            return Some(pointer);
        }
    }
    None
}

fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Adds `table.what`, which chooses by the tag, and `what.name` for each component.
fn add_definitions(composed: &mut Value, table: &TagTable) {
    let mut definitions = Map::new();
    let mut choices = Vec::new();
    for (name, source) in &table.components {
        let definition = format!("{}.{name}", table.what);
        choices.push(json!({
            "if": {"properties": {&table.tag: {"const": name}}, "required": [table.tag]},
            "then": {"$ref": format!("#/$defs/{}", escaped(&definition))},
        }));
        let (component, inner) = component_schema(table, name, &definition, source);
        definitions.insert(definition, component);
        definitions.extend(inner);
    }
    let names: Vec<&String> = table.components.keys().collect();
    let chooser = json!({
        "type": "object",
        "properties": {&table.tag: {
            "description": format!("The {} of {}.", table.tag, table.what),
            "enum": names,
        }},
        "required": [table.tag],
        "allOf": choices,
    });
    definitions.insert(table.what.clone(), chooser);
    if let Value::Object(keywords) = composed {
        let all = keywords.entry("$defs").or_insert_with(|| json!({}));
        if let Value::Object(all) = all {
            all.extend(definitions);
        }
    }
}

/// A component's schema with the tag in it, and its own definitions under names of their own.
fn component_schema(
    table: &TagTable,
    name: &str,
    definition: &str,
    source: &SchemaSource,
) -> (Value, Map<String, Value>) {
    let mut component = source.root.clone();
    each_schema_mut(&mut component, &mut |schema| rename(schema, definition));
    let inner = match component.as_object_mut() {
        Some(keywords) => {
            keywords.remove("$schema");
            keywords.remove("$defs")
        }
        None => None,
    };
    let mut definitions = Map::new();
    if let Some(Value::Object(inner)) = inner {
        for (key, schema) in inner {
            definitions.insert(format!("{definition}.{key}"), schema);
        }
    }
    if component.get("$ref").is_some() {
        component = source.resolve(&source.root).clone();
        each_schema_mut(&mut component, &mut |schema| rename(schema, definition));
    }
    add_tag(&mut component, &definitions, &table.tag, name);
    (component, definitions)
}

/// `#/$defs/Format` -> `#/$defs/source.jsonl.Format`, `#` -> `#/$defs/source.jsonl`
fn rename(schema: &mut Value, definition: &str) {
    let Some(Value::String(reference)) = schema.get_mut("$ref") else {
        return;
    };
    let definition = escaped(definition);
    if let Some(rest) = reference.strip_prefix("#/$defs/") {
        *reference = format!("#/$defs/{definition}.{rest}");
    } else if let Some(rest) = reference.strip_prefix('#') {
        *reference = format!("#/$defs/{definition}{rest}");
    }
}

/// Lets the tag stand beside the component's keys wherever those are closed.
fn add_tag(schema: &mut Value, definitions: &Map<String, Value>, tag: &str, name: &str) {
    let referred = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| reference.strip_prefix("#/$defs/"))
        .and_then(|key| definitions.get(key));
    if let Some(referred) = referred {
        // The definition may serve elsewhere without the tag, so that it is copied.
        let notes = schema.get("description").cloned();
        *schema = referred.clone();
        if let (Some(keywords), Some(notes)) = (schema.as_object_mut(), notes) {
            keywords.insert("description".to_owned(), notes);
        }
        add_tag(schema, definitions, tag, name);
        return;
    }
    let Value::Object(keywords) = schema else {
        return;
    };
    for keyword in ["allOf", "anyOf", "oneOf"] {
        if let Some(Value::Array(branches)) = keywords.get_mut(keyword) {
            for branch in branches {
                add_tag(branch, definitions, tag, name);
            }
        }
    }
    let is_closed = [
        "additionalProperties",
        "unevaluatedProperties",
        "properties",
    ]
    .iter()
    .any(|keyword| keywords.contains_key(*keyword));
    if is_closed {
        let properties = keywords.entry("properties").or_insert_with(|| json!({}));
        if let Value::Object(properties) = properties {
            properties
                .entry(tag)
                .or_insert_with(|| json!({"const": name, "type": "string"}));
        }
    }
}
