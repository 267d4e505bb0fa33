//! Checks a tree of values against a schema and finds everything that is wrong, not the first.
//!
//! A hand-written checker, since a general validator explains a failed `oneOf` by all its
//! branches and knows neither positions nor secrets. Its verdicts are compared with a general
//! validator's in the tests. Invariants: one cause gives one problem (a value of the wrong type is
//! not also out of range; a mistyped key is not also missing); a broken value gives none; work is
//! bounded.

use super::ConfigSchema;
use super::describe::{self, compare, describe, integer, list_values, type_in_words};
use super::hints::type_hint;
use super::source::SchemaSource;
use crate::nearest::nearest;
use crate::node::{Entry, Kind, Node, Scalar};
use crate::path::{Path, Segment};
use crate::problem::{Position, Problem};
use serde_json::Value;
use std::cmp::Ordering;
use std::collections::HashSet;

/// Values times schemas of a large configuration stay under 1 % of this; only a recursive union
/// of lookalikes on a hostile file reaches it.
const STEPS_MAX: usize = 5_000_000;

/// A value to check, and where to point when it lacks something.
#[derive(Clone, Copy)]
pub(crate) struct Place<'n> {
    pub(crate) node: &'n Node,
    /// Of the key that holds the value; of the value itself in lists and at the root.
    pub(crate) key_position: Position,
    /// Keys that are the tag of this map and no part of what the schema describes.
    pub(crate) tag: Tag<'n>,
}

/// The key by which a component was chosen.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tag<'n> {
    /// The key as it is in the file.
    pub(crate) given: Option<&'n str>,
    /// The key as it should be.
    pub(crate) meant: Option<&'n str>,
}

impl<'n> Place<'n> {
    pub(crate) fn root(node: &'n Node) -> Self {
        Self {
            node,
            key_position: node.position,
            tag: Tag::default(),
        }
    }

    pub(super) fn of_entry(entry: &'n Entry) -> Self {
        Self {
            node: &entry.node,
            key_position: entry.key_position,
            tag: Tag::default(),
        }
    }
}

/// What a check found.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) problems: Vec<Problem>,
    /// Values of variables that look like numbers or booleans where a text is wanted.
    pub(crate) texts: Vec<Path>,
    /// Keys that are missing, but were reported as a mistyped key of their map.
    pub(super) mistyped: Vec<(Path, String)>,
}

pub(crate) struct Checker<'a> {
    pub(super) config: &'a ConfigSchema,
    pub(super) path: Path,
    pub(super) found: Findings,
    steps: usize,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(config: &'a ConfigSchema) -> Self {
        Self {
            config,
            path: Path::root(),
            found: Findings::default(),
            steps: 0,
        }
    }

    pub(crate) fn run(mut self, root: &Node) -> Findings {
        let source = &self.config.root;
        self.check(Place::root(root), source, &source.root);
        self.found
    }

    /// Checks a part of the value: by a table of components if there is one for its path.
    pub(super) fn check_child(
        &mut self,
        segment: Segment,
        place: Place<'_>,
        source: &'a SchemaSource,
        schema: &'a Value,
    ) {
        self.path.push(segment);
        let config = self.config;
        match config.table_at(&self.path) {
            Some(table) => self.check_tagged(place, table),
            None => self.check(place, source, schema),
        }
        self.path.pop();
    }

    /// Checks a value against a schema.
    pub(super) fn check(&mut self, place: Place<'_>, source: &'a SchemaSource, schema: &'a Value) {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            if self.steps == STEPS_MAX + 1 {
                self.add(place, "the configuration is too intricate to be checked");
            }
            return;
        }
        if place.node.is_broken() || *schema == Value::Bool(true) {
            return;
        }
        if *schema == Value::Bool(false) {
            self.add(place, format!("{} can't be here", place.node.shown()));
            return;
        }
        if let Some(referred) = source.referred(schema) {
            self.check(place, source, referred);
        }
        match self.check_type(place, source, schema) {
            TypeVerdict::Fits => self.check_content(place, source, schema),
            TypeVerdict::FitsAsText(text) => {
                let place = Place {
                    node: &text,
                    ..place
                };
                self.check_content(place, source, schema);
            }
            TypeVerdict::Wrong => {}
        }
    }

    fn check_type(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        schema: &'a Value,
    ) -> TypeVerdict {
        let types = describe::types(schema);
        if types.is_empty() || types.iter().any(|name| has_type(place.node, name)) {
            return TypeVerdict::Fits;
        }
        if types.contains(&"string")
            && let Some(text) = as_text(place.node)
        {
            self.found.texts.push(self.path.clone());
            return TypeVerdict::FitsAsText(text);
        }
        self.wrong_type(place, source, schema, &types);
        TypeVerdict::Wrong
    }

    pub(super) fn wrong_type(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        schema: &'a Value,
        types: &[&str],
    ) {
        let wanted: Vec<&str> = types
            .iter()
            .filter(|name| **name != "null" || types.len() == 1)
            .map(|name| type_in_words(name))
            .collect();
        let wanted = wanted.join(" or ");
        let allowed = describe(source, schema);
        let hint = match schema.get("pattern") {
            // A number in quotes would not have the right form either.
            Some(_) => String::new(),
            None => type_hint(place.node, types),
        };
        let fact = format!("expected {wanted}, found {}", place.node.shown());
        let mut problem = self.problem(place, fact).hint(hint);
        if allowed != wanted {
            problem = problem.allowed(allowed);
        }
        self.found.problems.push(problem);
    }

    fn check_content(&mut self, place: Place<'_>, source: &'a SchemaSource, schema: &'a Value) {
        if !self.check_constants(place, schema) {
            return;
        }
        match &place.node.kind {
            Kind::Scalar(scalar) => self.check_scalar(place, scalar, source, schema),
            Kind::Sequence(items) => self.check_list(place, items, source, schema),
            Kind::Mapping(_) => self.check_map(place, source, schema),
            Kind::Broken => {}
        }
        self.check_combinations(place, source, schema);
    }

    /// `enum` and `const`.
    fn check_constants(&mut self, place: Place<'_>, schema: &'a Value) -> bool {
        for keyword in ["enum", "const"] {
            let values: Vec<&Value> = match schema.get(keyword) {
                None => continue,
                Some(Value::Array(values)) if keyword == "enum" => values.iter().collect(),
                Some(value) => vec![value],
            };
            if !self.check_choice(place, &values) {
                return false;
            }
        }
        true
    }

    /// Whether the value is one of `values`; says so if not.
    pub(super) fn check_choice(&mut self, place: Place<'_>, values: &[&Value]) -> bool {
        let given = place.node.to_json();
        if values.iter().any(|value| equal(value, &given)) {
            return true;
        }
        if let Some(text) = as_text(place.node)
            && values.iter().any(|value| value.as_str() == text.as_str())
        {
            self.found.texts.push(self.path.clone());
            return true;
        }
        let names = values.iter().filter_map(|value| value.as_str());
        let suggestion = match place.node.secret() {
            None => place.node.as_str().and_then(|text| nearest(text, names)),
            Some(_) => None,
        };
        let problem = self
            .problem(
                place,
                format!("{} is not a known value", place.node.shown()),
            )
            .allowed(list_values(values.iter().copied()))
            .suggest(suggestion);
        self.found.problems.push(problem);
        false
    }

    fn check_list(
        &mut self,
        place: Place<'_>,
        items: &[Node],
        source: &'a SchemaSource,
        schema: &'a Value,
    ) {
        let limit = |keyword| schema.get(keyword).and_then(Value::as_u64);
        let length = items.len() as u64;
        if let Some(least) = limit("minItems").filter(|least| length < *least) {
            self.add(
                place,
                format!("the list has {length} entries, at least {least} are needed"),
            );
        }
        if let Some(most) = limit("maxItems").filter(|most| length > *most) {
            self.add(
                place,
                format!("the list has {length} entries, at most {most} are allowed"),
            );
        }
        let first_schemas = schema.get("prefixItems").and_then(Value::as_array);
        let first_schemas = first_schemas.map_or(&[][..], Vec::as_slice);
        for (index, item) in items.iter().enumerate() {
            if let Some(item_schema) = first_schemas.get(index).or_else(|| schema.get("items")) {
                let place = Place::root(item);
                self.check_child(Segment::Index(index), place, source, item_schema);
            }
        }
        if schema.get("uniqueItems") == Some(&Value::Bool(true)) {
            self.check_unique(items);
        }
    }

    fn check_unique(&mut self, items: &[Node]) {
        let mut seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            if !item.is_broken() && !seen.insert(item.to_json().to_string()) {
                self.path.push(Segment::Index(index));
                let fact = format!("{} is in the list twice", item.shown());
                self.add(Place::root(item), fact);
                self.path.pop();
            }
        }
    }

    fn check_combinations(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        schema: &'a Value,
    ) {
        if let Some(Value::Array(all)) = schema.get("allOf") {
            for branch in all {
                self.check(place, source, branch);
            }
        }
        for keyword in ["oneOf", "anyOf"] {
            if let Some(Value::Array(branches)) = schema.get(keyword) {
                self.check_union(place, source, branches, keyword);
            }
        }
        if let Some(refused) = schema.get("not")
            && self.trial(place, source, refused).problems.is_empty()
        {
            self.add(place, format!("{} can't be here", place.node.shown()));
        }
        if let Some(condition) = schema.get("if") {
            let holds = self.trial(place, source, condition).problems.is_empty();
            if let Some(branch) = schema.get(if holds { "then" } else { "else" }) {
                self.check(place, source, branch);
            }
        }
    }

    /// What a check would find, without adding it.
    pub(super) fn trial(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        schema: &'a Value,
    ) -> Findings {
        let before = std::mem::take(&mut self.found);
        self.check(place, source, schema);
        std::mem::replace(&mut self.found, before)
    }

    pub(super) fn adopt(&mut self, findings: Findings) {
        self.found.problems.extend(findings.problems);
        self.found.texts.extend(findings.texts);
        self.found.mistyped.extend(findings.mistyped);
    }

    pub(super) fn problem(&self, place: Place<'_>, fact: impl Into<String>) -> Problem {
        let position = match place.node.kind {
            Kind::Mapping(_) | Kind::Sequence(_) => place.key_position,
            Kind::Scalar(_) | Kind::Broken => place.node.position,
        };
        Problem::new(self.path.clone(), position, fact)
    }

    pub(super) fn add(&mut self, place: Place<'_>, fact: impl Into<String>) {
        let problem = self.problem(place, fact);
        self.found.problems.push(problem);
    }
}

enum TypeVerdict {
    Fits,
    /// The value of a variable, taken as the text it was before it was typed.
    FitsAsText(Node),
    Wrong,
}

/// Whether the value has a type of JSON Schema. `1.0` is no integer here: serde refuses it too.
pub(super) fn has_type(node: &Node, name: &str) -> bool {
    match (&node.kind, name) {
        (Kind::Broken, _) | (Kind::Mapping(_), "object") | (Kind::Sequence(_), "array") => true,
        (Kind::Scalar(scalar), name) => match &scalar.value {
            Value::Null => name == "null",
            Value::Bool(_) => name == "boolean",
            Value::String(_) => name == "string",
            Value::Number(number) => {
                name == "number" || (name == "integer" && integer(number).is_some())
            }
            _ => false,
        },
        _ => false,
    }
}

/// The value of a variable as the text it was, if it was typed as something else.
pub(super) fn as_text(node: &Node) -> Option<Node> {
    let secret = node.secret()?;
    if node.as_str().is_some() {
        return None;
    }
    let scalar = Scalar {
        value: secret.text.clone().into(),
        secret: Some(secret.clone()),
    };
    Some(Node {
        kind: Kind::Scalar(scalar),
        position: node.position,
    })
}

fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => compare(left, right) == Ordering::Equal,
        _ => left == right,
    }
}
