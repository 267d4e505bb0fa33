//! Checks the keys of a map: unknown, missing, of the wrong form.
//!
//! Invariant: a mistyped key gives one problem: where an unknown key is near a missing one, the
//! missing one is not reported as well.

use super::check::{Checker, Place};
use super::describe::{describe, list_names};
use super::hints::repaired;
use super::source::SchemaSource;
use crate::nearest::nearest;
use crate::node::{Entry, Kind, Node, Scalar, shortened};
use crate::path::Segment;
use crate::problem::Problem;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Beyond these a mistyped key may be reported as missing too; keeps the search for one short.
const MISTYPED_MAX: usize = 256;

impl<'a> Checker<'a> {
    pub(super) fn check_map(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        schema: &'a Value,
    ) {
        let Value::Object(keywords) = schema else {
            return;
        };
        let keys = Keys::of(keywords);
        let mut unknown = Vec::new();
        for entry in place.node.entries() {
            let known = self.check_entry(place, entry, source, &keys);
            if let Some(names) = keywords.get("propertyNames") {
                self.check_name(entry, source, names);
            }
            if !known {
                unknown.push(entry);
            }
        }
        if keys.additional == Some(&Value::Bool(false)) && !unknown.is_empty() {
            let names = Names::new(place, keys.names());
            for entry in unknown {
                self.unknown_key(entry, source, &keys, &names);
            }
        } else if keywords.get("unevaluatedProperties") == Some(&Value::Bool(false)) {
            self.check_unevaluated(place, unknown, source, schema);
        }
        self.check_required(place, source, keywords);
        self.check_size(place, keywords);
    }

    /// Checks a value by every schema for its key; `false` if there is none.
    fn check_entry(
        &mut self,
        place: Place<'_>,
        entry: &Entry,
        source: &'a SchemaSource,
        keys: &Keys<'a>,
    ) -> bool {
        let child = Place::of_entry(entry);
        let own = keys.properties.and_then(|map| map.get(&entry.key));
        let by_pattern = keys.patterns.into_iter().flatten();
        let by_pattern = by_pattern
            .filter(|(pattern, _)| source.matches(pattern, &entry.key))
            .map(|(_, schema)| schema);
        let schemas: Vec<&'a Value> = own.into_iter().chain(by_pattern).collect();
        for schema in &schemas {
            self.check_child(Segment::Key(entry.key.clone()), child, source, schema);
        }
        if !schemas.is_empty() || place.tag.given == Some(&entry.key) {
            return true;
        }
        match keys.additional {
            None | Some(Value::Bool(false)) => false,
            Some(schema) => {
                self.check_child(Segment::Key(entry.key.clone()), child, source, schema);
                true
            }
        }
    }

    /// Reports a key that the schema does not have.
    fn unknown_key(
        &mut self,
        entry: &Entry,
        source: &'a SchemaSource,
        keys: &Keys<'a>,
        names: &Names<'a>,
    ) {
        if let (true, Some(patterns)) = (names.all.is_empty(), keys.patterns) {
            let forms: Vec<&str> = patterns.keys().map(String::as_str).collect();
            let fits = |name: &str| forms.iter().any(|form| source.matches(form, name));
            let suggestion = repaired(&entry.key, fits);
            let allowed = format!("names that match `{}`", forms.join("` or `"));
            self.bad_name(entry, allowed, suggestion);
            // What it names may be wrong too, and is wanted in the same report.
            for schema in patterns.values().take(1) {
                let child = Place::of_entry(entry);
                self.check_child(Segment::Key(entry.key.clone()), child, source, schema);
            }
            return;
        }
        self.report_unknown_key(entry, names);
    }

    fn report_unknown_key(&mut self, entry: &Entry, names: &Names<'a>) {
        let suggestion = nearest(&entry.key, names.free.iter().copied());
        let allowed = match names.all[..] {
            [] => "no keys".to_owned(),
            _ => list_names(names.all.iter().map(|name| (*name).to_owned())),
        };
        let fact = format!("unknown key `{}`", shortened(&entry.key));
        let problem = self
            .problem_at_key(entry, fact)
            .allowed(allowed)
            .suggest(suggestion);
        self.found.problems.push(problem);
        if let Some(name) = suggestion
            && self.found.mistyped.len() < MISTYPED_MAX
        {
            let mistyped = (self.path.clone(), name.to_owned());
            self.found.mistyped.push(mistyped);
        }
    }

    /// Whether a key of the map at hand was reported as mistyped: then it is not missing too.
    fn is_mistyped(&self, name: &str) -> bool {
        let mut mistyped = self.found.mistyped.iter();
        mistyped.any(|(path, key)| key == name && *path == self.path)
    }

    /// `propertyNames`: the key itself is the value.
    fn check_name(&mut self, entry: &Entry, source: &'a SchemaSource, schema: &'a Value) {
        let scalar = Scalar {
            value: entry.key.clone().into(),
            secret: None,
        };
        let name = Node {
            kind: Kind::Scalar(scalar),
            position: entry.key_position,
        };
        if self
            .trial(Place::root(&name), source, schema)
            .problems
            .is_empty()
        {
            return;
        }
        let pattern = source
            .resolve(schema)
            .get("pattern")
            .and_then(Value::as_str);
        let suggestion =
            pattern.and_then(|pattern| repaired(&entry.key, |name| source.matches(pattern, name)));
        self.bad_name(entry, describe(source, schema), suggestion);
    }

    fn bad_name(&mut self, entry: &Entry, allowed: String, suggestion: Option<String>) {
        let fact = format!(
            "the name `{}` does not have the right form",
            shortened(&entry.key)
        );
        let problem = self
            .problem_at_key(entry, fact)
            .allowed(allowed)
            .suggest(suggestion.as_deref());
        self.found.problems.push(problem);
    }

    pub(super) fn problem_at_key(&self, entry: &Entry, fact: String) -> Problem {
        Problem::new(self.path.key(&entry.key), entry.key_position, fact)
    }

    fn check_required(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        keywords: &'a Map<String, Value>,
    ) {
        let properties = keywords.get("properties");
        let mut wanted: Vec<&'a str> = names_in(keywords.get("required")).collect();
        if let Some(Value::Object(dependent)) = keywords.get("dependentRequired") {
            for (key, names) in dependent {
                if place.node.get(key).is_some() {
                    wanted.extend(names_in(Some(names)));
                }
            }
        }
        for name in wanted {
            let is_given = place.node.get(name).is_some() || place.tag.meant == Some(name);
            if is_given || self.is_mistyped(name) {
                continue;
            }
            let schema = properties.and_then(|map| map.get(name));
            let allowed = schema.map(|schema| describe(source, schema));
            let problem = self
                .problem(place, format!("the key `{name}` is missing"))
                .allowed(allowed.unwrap_or_default());
            self.found.problems.push(problem);
        }
    }

    fn check_size(&mut self, place: Place<'_>, keywords: &'a Map<String, Value>) {
        let limit = |keyword: &str| keywords.get(keyword).and_then(Value::as_u64);
        let length = place.node.entries().len() as u64;
        if let Some(least) = limit("minProperties").filter(|least| length < *least) {
            self.add(
                place,
                format!("the map has {length} entries, at least {least} are needed"),
            );
        }
        if let Some(most) = limit("maxProperties").filter(|most| length > *most) {
            self.add(
                place,
                format!("the map has {length} entries, at most {most} are allowed"),
            );
        }
    }

    /// `unevaluatedProperties: false`: a key is known if any schema that applies here knows it.
    fn check_unevaluated(
        &mut self,
        place: Place<'_>,
        unknown: Vec<&Entry>,
        source: &'a SchemaSource,
        schema: &'a Value,
    ) {
        if unknown.is_empty() {
            return;
        }
        let mut known = Known::default();
        self.collect_known(place, source, schema, &mut known);
        let names = Names::new(place, known.names.iter().copied().collect());
        for entry in unknown {
            let by_pattern = |pattern: &&str| source.matches(pattern, &entry.key);
            let is_known = known.takes_any
                || known.names.contains(entry.key.as_str())
                || known.patterns.iter().any(by_pattern);
            if !is_known {
                self.report_unknown_key(entry, &names);
            }
        }
    }

    fn collect_known(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        schema: &'a Value,
        known: &mut Known<'a>,
    ) {
        let Value::Object(keywords) = schema else {
            return;
        };
        let keys = Keys::of(keywords);
        known.names.extend(keys.names());
        known.patterns.extend(
            keys.patterns
                .into_iter()
                .flatten()
                .map(|(key, _)| key.as_str()),
        );
        known.takes_any |= keys
            .additional
            .is_some_and(|schema| *schema != Value::Bool(false));
        if let Some(referred) = source.referred(schema) {
            self.collect_known(place, source, referred, known);
        }
        for branch in keywords
            .get("allOf")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            self.collect_known(place, source, branch, known);
        }
        for keyword in ["oneOf", "anyOf"] {
            let branches = keywords.get(keyword).and_then(Value::as_array);
            let branches: Vec<&'a Value> = branches.into_iter().flatten().collect();
            for branch in self.branches_that_apply(place, source, branches) {
                self.collect_known(place, source, branch, known);
            }
        }
        if let Some(condition) = keywords.get("if") {
            let holds = self.trial(place, source, condition).problems.is_empty();
            if holds {
                self.collect_known(place, source, condition, known);
            }
            if let Some(branch) = keywords.get(if holds { "then" } else { "else" }) {
                self.collect_known(place, source, branch, known);
            }
        }
    }

    /// The branches that accept the value; if none does, that of its tag, or all.
    fn branches_that_apply(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        branches: Vec<&'a Value>,
    ) -> Vec<&'a Value> {
        let mut accepting = Vec::new();
        for branch in &branches {
            if self.trial(place, source, branch).problems.is_empty() {
                accepting.push(*branch);
            }
        }
        if !accepting.is_empty() {
            return accepting;
        }
        match super::union::branch_of_tag(place.node, source, &branches) {
            Some(branch) => vec![branch],
            None => branches,
        }
    }
}

/// What a schema says of keys.
struct Keys<'a> {
    properties: Option<&'a Map<String, Value>>,
    patterns: Option<&'a Map<String, Value>>,
    additional: Option<&'a Value>,
}

impl<'a> Keys<'a> {
    fn of(keywords: &'a Map<String, Value>) -> Self {
        let map = |keyword: &str| keywords.get(keyword).and_then(Value::as_object);
        Self {
            properties: map("properties"),
            patterns: map("patternProperties"),
            additional: keywords.get("additionalProperties"),
        }
    }

    fn names(&self) -> Vec<&'a str> {
        let names = self.properties.into_iter().flatten();
        names.map(|(name, _)| name.as_str()).collect()
    }
}

/// The known keys of a map; `free` are those that are not given yet.
struct Names<'a> {
    all: Vec<&'a str>,
    free: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn new(place: Place<'_>, all: Vec<&'a str>) -> Self {
        let is_free = |name: &&str| place.node.get(name).is_none();
        let free = all.iter().copied().filter(is_free).collect();
        Self { all, free }
    }
}

/// The keys that the schemas of one map know together.
#[derive(Default)]
struct Known<'a> {
    names: BTreeSet<&'a str>,
    patterns: Vec<&'a str>,
    takes_any: bool,
}

fn names_in(list: Option<&Value>) -> impl Iterator<Item = &str> {
    let names = list.and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str)
}
