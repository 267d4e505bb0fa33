//! Checks the places where a tag (`type:`, `model:`) chooses among registered components.
//!
//! A component's own schema knows nothing of the tag: the tag is taken out before the component
//! sees its section. Invariant: an unknown or missing tag is one problem, and nothing else in that
//! section is judged, since nobody knows by what.

use super::check::{Checker, Place, Tag};
use super::describe::list_names;
use super::source::{SchemaError, SchemaSource};
use crate::nearest::nearest;
use crate::node::{Entry, Kind};
use crate::path::Segment;
use schemars::Schema;
use std::collections::BTreeMap;

/// The components that a tag chooses among, with the schema of each one's section.
#[derive(Clone, Debug)]
pub struct TagTable {
    pub(super) what: String,
    pub(super) tag: String,
    pub(super) components: BTreeMap<String, SchemaSource>,
}

impl TagTable {
    /// An empty table with the tag `type`. `what` names its components in messages and
    /// in the schema for editors: `source`, `chunker`.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            tag: "type".to_owned(),
            components: BTreeMap::new(),
        }
    }

    /// With another tag than `type`: its key in the section.
    #[must_use]
    pub fn keyed_by(mut self, tag: impl Into<String>) -> Self {
        self.tag = tag.into();
        self
    }

    /// Adds a component: `schema` describes its section without the tag.
    ///
    /// # Errors
    /// When there is one of that name already, or the schema can't be used.
    pub fn with(mut self, name: impl Into<String>, schema: Schema) -> Result<Self, SchemaError> {
        let name = name.into();
        let source = SchemaSource::new(schema.to_value())?;
        match self.components.insert(name.clone(), source) {
            Some(_) => Err(SchemaError::Twice(name)),
            None => Ok(self),
        }
    }
}

impl<'a> Checker<'a> {
    pub(super) fn check_tagged(&mut self, place: Place<'_>, table: &'a TagTable) {
        if place.node.is_broken() {
            return;
        }
        let tag = table.tag.as_str();
        let names: Vec<&str> = table.components.keys().map(String::as_str).collect();
        let Kind::Mapping(_) = place.node.kind else {
            let fact = format!("expected a map with `{tag}`, found {}", place.node.shown());
            let allowed = format!(
                "`{tag}`: {}",
                list_names(names.iter().map(|n| (*n).to_owned()))
            );
            let hint = match place.node.as_str() {
                Some(text) if names.contains(&text) && place.node.secret().is_none() => {
                    format!("write `{{{tag}: {text}, …}}`")
                }
                _ => String::new(),
            };
            let problem = self.problem(place, fact).allowed(allowed).hint(hint);
            self.found.problems.push(problem);
            return;
        };
        let what = format!("{} {tag}", table.what);
        let Some((index, chosen)) = self.choose(place, tag, &names, &what) else {
            return;
        };
        if let Some(source) = names
            .get(index)
            .and_then(|name| table.components.get(*name))
        {
            let place = Place {
                tag: chosen,
                ..place
            };
            self.check(place, source, &source.root);
        }
    }

    /// Which of `names` the tag of a map chooses; reports what is wrong with the tag. `what` says
    /// what the tag's values are.
    pub(super) fn choose<'n>(
        &mut self,
        place: Place<'n>,
        tag: &'n str,
        names: &[&str],
        what: &str,
    ) -> Option<(usize, Tag<'n>)> {
        let known = list_names(names.iter().map(|name| (*name).to_owned()));
        let Some(entry) = self.tag_entry(place, tag, names) else {
            let fact = format!("the key `{tag}` is missing");
            let problem = self.problem(place, fact).allowed(known);
            self.found.problems.push(problem);
            return None;
        };
        let chosen = Tag {
            given: Some(&entry.key),
            meant: Some(tag),
        };
        let node = &entry.node;
        if node.is_broken() {
            return None;
        }
        let given = node.as_str();
        if let Some(index) = names.iter().position(|name| Some(*name) == given) {
            return Some((index, chosen));
        }
        let suggestion = match node.secret() {
            None => given.and_then(|given| nearest(given, names.iter().copied())),
            Some(_) => None,
        };
        let child = Place::root(node);
        self.path.push(Segment::Key(entry.key.clone()));
        let problem = self
            .problem(child, format!("{} is not a known {what}", node.shown()))
            .allowed(known)
            .suggest(suggestion);
        self.path.pop();
        self.found.problems.push(problem);
        None
    }

    /// The entry of the tag, or the one that is the tag mistyped (which is reported): its value
    /// is a known name, and its key is near.
    fn tag_entry<'n>(&mut self, place: Place<'n>, tag: &str, names: &[&str]) -> Option<&'n Entry> {
        if let Some(entry) = place.node.get(tag) {
            return Some(entry);
        }
        let entry = place.node.entries().iter().find(|entry| {
            let is_name = entry
                .node
                .as_str()
                .is_some_and(|text| names.contains(&text));
            is_name && nearest(&entry.key, [tag]).is_some()
        })?;
        let fact = format!("unknown key `{}`", crate::node::shortened(&entry.key));
        let problem = self.problem_at_key(entry, fact).suggest(Some(tag));
        self.found.problems.push(problem);
        Some(entry)
    }
}
