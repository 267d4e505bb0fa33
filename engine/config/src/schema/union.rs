//! Checks `oneOf` and `anyOf` the way people think of them: as one choice, then its consequences.
//!
//! serde's enums become unions of several shapes: constants, maps with a tag, maps of one key, or
//! plain alternatives. Invariant: once it is clear which branch was meant, only that branch's
//! problems are reported; when it is not, the choice itself is the problem.

use super::check::{Checker, Place, as_text, has_type};
use super::describe::{constants, describe_branches, list_names, type_in_words, types};
use super::source::SchemaSource;
use crate::nearest::nearest;
use crate::node::{Kind, Node};
use serde_json::Value;
use std::collections::HashSet;

impl<'a> Checker<'a> {
    /// `keyword` is `oneOf` or `anyOf`.
    pub(super) fn check_union(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        branches: &'a [Value],
        keyword: &str,
    ) {
        let mut all = Vec::new();
        flatten(source, branches, &mut all);
        let fitting = by_type(place.node, &all);
        let is_scalar = place.node.scalar().is_some();
        if fitting.is_empty() || (is_scalar && are_distinct_constants(source, &all)) {
            self.check_alternatives(place, source, &all);
            return;
        }
        if let [only] = fitting[..] {
            self.check(place, source, only);
            return;
        }
        if let Kind::Mapping(_) = place.node.kind {
            if let Some(tag) = tag_of(source, &fitting) {
                self.check_by_tag(place, source, &fitting, tag);
                return;
            }
            if let Some(keys) = keys_of(&fitting) {
                self.check_by_key(place, source, &fitting, &keys);
                return;
            }
        } else if are_distinct_constants(source, &fitting) {
            self.check_alternatives(place, source, &fitting);
            return;
        }
        self.check_trials(place, source, branches, keyword == "oneOf");
    }

    /// The value is a constant or should be, or no branch has its type.
    fn check_alternatives(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        branches: &[&'a Value],
    ) {
        let values: Vec<&Value> = branches
            .iter()
            .filter_map(|branch| constants(source, branch))
            .flatten()
            .collect();
        let can_be_constant = place.node.as_str().is_some() || as_text(place.node).is_some();
        if can_be_constant && values.iter().any(|value| !value.is_null()) {
            self.check_choice(place, &values);
            return;
        }
        if place
            .node
            .scalar()
            .is_some_and(|scalar| values.contains(&&scalar.value))
        {
            return;
        }
        let parts = describe_branches(source, branches);
        let mut wanted: Vec<&str> = Vec::new();
        for name in branches.iter().flat_map(|branch| types(branch)) {
            let words = type_in_words(name);
            if name != "null" && !wanted.contains(&words) {
                wanted.push(words);
            }
        }
        let shown = place.node.shown();
        let fact = match wanted[..] {
            [] => format!("{shown} can't be here"),
            _ => format!("expected {}, found {shown}", wanted.join(" or ")),
        };
        let hint = match (place.node.as_str(), tag_of(source, &maps_of(branches))) {
            (Some(text), Some(tag)) if place.node.secret().is_none() => {
                let names = names_of_tag(source, &maps_of(branches));
                let is_name = names.is_some_and(|(_, names)| names.contains(&text));
                is_name.then(|| format!("write `{{{tag}: {text}, …}}`"))
            }
            _ => None,
        };
        let mut problem = self.problem(place, fact).hint(hint.unwrap_or_default());
        if parts != wanted {
            problem = problem.allowed(parts.join(", or "));
        }
        self.found.problems.push(problem);
    }

    /// Every branch is a map in which `tag` has its own constant.
    fn check_by_tag(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        branches: &[&'a Value],
        tag: &'a str,
    ) {
        let names: Vec<&'a str> = branches
            .iter()
            .filter_map(|branch| tag_value(source, branch, tag))
            .collect();
        let Some((index, chosen)) = self.choose(place, tag, &names, "value") else {
            return;
        };
        if let Some(branch) = branches.get(index) {
            // A mistyped tag is reported: the branch is checked as if it were right.
            let is_mistyped = chosen.given != chosen.meant;
            let tag = if is_mistyped { chosen } else { place.tag };
            self.check(Place { tag, ..place }, source, branch);
        }
    }

    /// Every branch is a map of exactly one key.
    fn check_by_key(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        branches: &[&'a Value],
        keys: &[&'a str],
    ) {
        let names = list_names(keys.iter().map(|key| (*key).to_owned()));
        let entries = place.node.entries();
        let [entry] = entries else {
            let fact = format!("exactly one key is needed here, not {}", entries.len());
            let problem = self.problem(place, fact).allowed(names);
            self.found.problems.push(problem);
            return;
        };
        match keys.iter().position(|key| *key == entry.key) {
            Some(index) => self.check(place, source, branches[index]),
            None => {
                let fact = format!("unknown key `{}`", crate::node::shortened(&entry.key));
                let problem = self
                    .problem_at_key(entry, fact)
                    .allowed(names)
                    .suggest(nearest(&entry.key, keys.iter().copied()));
                self.found.problems.push(problem);
            }
        }
    }

    /// Nothing tells the branches apart: the one that comes nearest is taken as meant.
    fn check_trials(
        &mut self,
        place: Place<'_>,
        source: &'a SchemaSource,
        branches: &'a [Value],
        is_exclusive: bool,
    ) {
        let mut accepted = 0;
        let mut best = None;
        for branch in branches {
            let findings = self.trial(place, source, branch);
            accepted += usize::from(findings.problems.is_empty());
            let is_better = best.as_ref().is_none_or(|kept: &super::check::Findings| {
                findings.problems.len() < kept.problems.len()
            });
            if is_better {
                best = Some(findings);
            }
        }
        if is_exclusive && accepted > 1 {
            self.add(place, "the value can be read in more than one way");
        }
        if let Some(findings) = best {
            self.adopt(findings);
        }
    }
}

/// The branch that the value's tag names, if the branches have one.
pub(super) fn branch_of_tag<'a>(
    node: &Node,
    source: &'a SchemaSource,
    branches: &[&'a Value],
) -> Option<&'a Value> {
    let resolved: Vec<&Value> = branches
        .iter()
        .map(|branch| source.resolve(branch))
        .collect();
    let tag = tag_of(source, &resolved)?;
    let given = node.get(tag)?.node.as_str()?;
    resolved
        .into_iter()
        .find(|branch| tag_value(source, branch, tag) == Some(given))
}

/// Unions inside unions are one: `anyOf: [{$ref: Format}, null]` where Format is a `oneOf`. What
/// cannot be told apart by type, tag or key is left to trials of the branches as they were.
fn flatten<'a>(source: &'a SchemaSource, branches: &'a [Value], flat: &mut Vec<&'a Value>) {
    for branch in branches {
        let resolved = source.resolve(branch);
        let inner = resolved.get("anyOf").or_else(|| resolved.get("oneOf"));
        match inner.and_then(Value::as_array) {
            Some(inner) if is_bare(resolved) => flatten(source, inner, flat),
            _ if is_bare_reference(branch) => flat.push(resolved),
            _ => flat.push(branch),
        }
    }
}

/// Whether a union has nothing beside it that constrains values.
fn is_bare(schema: &Value) -> bool {
    const NOTES: [&str; 8] = [
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "$comment",
        "oneOf",
        "anyOf",
    ];
    schema.as_object().is_some_and(|keywords| {
        keywords
            .keys()
            .all(|keyword| NOTES.contains(&keyword.as_str()))
            && keywords.contains_key("oneOf") != keywords.contains_key("anyOf")
    })
}

fn is_bare_reference(schema: &Value) -> bool {
    const NOTES: [&str; 6] = [
        "$ref",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
    ];
    schema.as_object().is_some_and(|keywords| {
        keywords.contains_key("$ref")
            && keywords
                .keys()
                .all(|keyword| NOTES.contains(&keyword.as_str()))
    })
}

fn by_type<'a>(node: &Node, branches: &[&'a Value]) -> Vec<&'a Value> {
    let fits = |node: &Node, branch: &Value| {
        let types = types(branch);
        types.is_empty() || types.iter().any(|name| has_type(node, name))
    };
    let fitting: Vec<&Value> = branches
        .iter()
        .copied()
        .filter(|branch| fits(node, branch))
        .collect();
    match (fitting.is_empty(), as_text(node)) {
        (true, Some(text)) => branches
            .iter()
            .copied()
            .filter(|branch| fits(&text, branch))
            .collect(),
        _ => fitting,
    }
}

/// Whether every branch is a choice of constants, and no constant is in two of them.
fn are_distinct_constants(source: &SchemaSource, branches: &[&Value]) -> bool {
    let mut all: Vec<&Value> = Vec::new();
    for branch in branches {
        let Some(values) = constants(source, branch) else {
            return false;
        };
        let is_usual = |value: &&Value| !value.is_object() && !all.contains(value);
        if !values.iter().all(is_usual) {
            return false;
        }
        all.extend(values);
    }
    true
}

fn maps_of<'a>(branches: &[&'a Value]) -> Vec<&'a Value> {
    let is_map = |branch: &&&Value| types(branch) == ["object"];
    branches.iter().filter(is_map).copied().collect()
}

/// The tag of these maps, and the name of each.
pub(super) fn names_of_tag<'a>(
    source: &'a SchemaSource,
    branches: &[&'a Value],
) -> Option<(&'a str, Vec<&'a str>)> {
    let tag = tag_of(source, branches)?;
    let values = branches
        .iter()
        .filter_map(|branch| tag_value(source, branch, tag));
    Some((tag, values.collect()))
}

/// The key that is required in every branch, with one constant text in each.
fn tag_of<'a>(source: &'a SchemaSource, branches: &[&'a Value]) -> Option<&'a str> {
    let first = branches.first()?.get("properties")?.as_object()?;
    first.keys().map(String::as_str).find(|tag| {
        let mut values: Vec<&str> = branches
            .iter()
            .filter_map(|branch| tag_value(source, branch, tag))
            .collect();
        values.sort_unstable();
        values.dedup();
        values.len() == branches.len()
    })
}

fn tag_value<'a>(source: &'a SchemaSource, branch: &'a Value, tag: &str) -> Option<&'a str> {
    let required = branch.get("required")?.as_array()?;
    if !required.iter().any(|name| name.as_str() == Some(tag)) {
        return None;
    }
    match constants(source, branch.get("properties")?.get(tag)?)?[..] {
        [value] => value.as_str(),
        _ => None,
    }
}

/// The key of each branch, if every branch is a map of exactly one.
fn keys_of<'a>(branches: &[&'a Value]) -> Option<Vec<&'a str>> {
    let key_of = |branch: &'a Value| {
        let properties = branch.get("properties")?.as_object()?;
        let required = branch.get("required")?.as_array()?;
        let is_closed = branch.get("additionalProperties") == Some(&Value::Bool(false));
        match (properties.len(), &required[..]) {
            (1, [Value::String(name)]) if is_closed => Some(name.as_str()),
            _ => None,
        }
    };
    let keys: Vec<&str> = branches
        .iter()
        .map(|branch| key_of(branch))
        .collect::<Option<_>>()?;
    let distinct: HashSet<&str> = keys.iter().copied().collect();
    (distinct.len() == keys.len()).then_some(keys)
}
