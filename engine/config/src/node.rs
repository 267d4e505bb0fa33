//! A parsed value that knows where it stands in the file and what came from a variable.
//!
//! Invariants: keys of a map are unique; the text of a secret is reachable only through
//! [`Node::to_json`] and typed parsing, never through `Debug` or a message.

use crate::path::{Path, Segment};
use crate::problem::Position;
use serde_json::Value;
use std::fmt;

/// One value with its place.
#[derive(Clone)]
pub struct Node {
    pub(crate) kind: Kind,
    /// Where the value begins.
    pub(crate) position: Position,
}

#[derive(Clone)]
pub(crate) enum Kind {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
    /// A value whose fault is reported already: every check passes over it.
    Broken,
}

/// One key of a map with its value.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_position: Position,
    pub(crate) node: Node,
}

/// A value without parts.
#[derive(Clone)]
pub(crate) struct Scalar {
    /// Null, a boolean, a number or a text.
    pub(crate) value: Value,
    /// Set for what came from variables.
    pub(crate) secret: Option<Secret>,
}

/// Where a secret came from.
#[derive(Clone)]
pub(crate) struct Secret {
    /// The names of the variables: may be shown (defaults may not).
    pub(crate) variables: Vec<String>,
    /// The expanded text, before it was read as a number or a boolean: a password of digits is
    /// a text where a text is wanted. Never shown.
    pub(crate) text: String,
}

impl Secret {
    /// `${USER}`, `${PASSWORD}`
    pub(crate) fn shown(&self) -> String {
        const VARIABLES_SHOWN_MAX: usize = 4;
        let shown = self.variables.iter().take(VARIABLES_SHOWN_MAX);
        let names: Vec<String> = shown.map(|name| format!("`${{{name}}}`")).collect();
        names.join(", ")
    }
}

impl Node {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Mapping(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn items(&self) -> &[Self] {
        match &self.kind {
            Kind::Sequence(items) => items,
            _ => &[],
        }
    }

    pub(crate) fn scalar(&self) -> Option<&Scalar> {
        match &self.kind {
            Kind::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    pub(crate) fn secret(&self) -> Option<&Secret> {
        self.scalar().and_then(|scalar| scalar.secret.as_ref())
    }

    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.kind, Kind::Broken)
    }

    pub(crate) fn is_null(&self) -> bool {
        self.scalar().is_some_and(|scalar| scalar.value.is_null())
    }

    pub(crate) fn child(&self, segment: &Segment) -> Option<&Self> {
        match segment {
            Segment::Key(name) => self.get(name).map(|entry| &entry.node),
            Segment::Index(position) => self.items().get(*position),
        }
    }

    pub(crate) fn at_mut(&mut self, path: &Path) -> Option<&mut Self> {
        let mut node = self;
        for segment in path.segments() {
            node = match (segment, &mut node.kind) {
                (Segment::Key(name), Kind::Mapping(entries)) => {
                    let entry = entries.iter_mut().find(|entry| entry.key == *name)?;
                    &mut entry.node
                }
                (Segment::Index(position), Kind::Sequence(items)) => items.get_mut(*position)?,
                _ => return None,
            };
        }
        Some(node)
    }

    /// The text of a scalar that is one (a number or a map is not).
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        self.scalar().and_then(|scalar| scalar.value.as_str())
    }

    /// The keys of a map, in the order of the file; none for anything else.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries().iter().map(|entry| entry.key.as_str())
    }

    /// Where the value begins. For a map or list in block style that is its first key or dash.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// The plain value, secrets included: not for printing. A value whose fault is reported is
    /// null.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Scalar(scalar) => scalar.value.clone(),
            Kind::Sequence(items) => items.iter().map(Self::to_json).collect(),
            Kind::Mapping(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.node.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            Kind::Broken => Value::Null,
        }
    }

    /// The plain value with stand-ins for secrets: the variable's name for a text, 0 for a number.
    pub(crate) fn to_json_without_secrets(&self) -> Value {
        match &self.kind {
            Kind::Scalar(Scalar {
                secret: Some(secret),
                value,
            }) => match value {
                Value::Number(_) => 0.into(),
                Value::Bool(_) => false.into(),
                Value::Null => Value::Null,
                _ => secret.shown().into(),
            },
            Kind::Scalar(scalar) => scalar.value.clone(),
            Kind::Sequence(items) => items.iter().map(Self::to_json_without_secrets).collect(),
            Kind::Mapping(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.node.to_json_without_secrets()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            Kind::Broken => Value::Null,
        }
    }

    /// How a message may show this value: short, and never a secret.
    pub(crate) fn shown(&self) -> String {
        match &self.kind {
            Kind::Broken => "a broken value".to_owned(),
            Kind::Mapping(_) => "a map".to_owned(),
            Kind::Sequence(_) => "a list".to_owned(),
            Kind::Scalar(Scalar {
                secret: Some(secret),
                value,
            }) => format!("the {} of {}", type_of(value), secret.shown()),
            Kind::Scalar(Scalar { value, .. }) => match value {
                Value::Null => "nothing".to_owned(),
                Value::String(text) => format!("the text `{}`", shortened(text)),
                Value::Bool(flag) => format!("the boolean `{flag}`"),
                other => format!("the number `{other}`"),
            },
        }
    }

    pub(crate) fn holds_secret(&self) -> bool {
        match &self.kind {
            Kind::Scalar(scalar) => scalar.secret.is_some(),
            Kind::Sequence(items) => items.iter().any(Self::holds_secret),
            Kind::Mapping(entries) => entries.iter().any(|entry| entry.node.holds_secret()),
            Kind::Broken => false,
        }
    }

    /// Calls `visit` with every secret inside.
    pub(crate) fn each_secret<'a>(&'a self, visit: &mut dyn FnMut(&'a Secret)) {
        match &self.kind {
            Kind::Scalar(scalar) => scalar.secret.iter().for_each(visit),
            Kind::Sequence(items) => items.iter().for_each(|item| item.each_secret(visit)),
            Kind::Mapping(entries) => {
                for entry in entries {
                    entry.node.each_secret(visit);
                }
            }
            Kind::Broken => {}
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Mapping(entries) => out
                .debug_map()
                .entries(entries.iter().map(|entry| (&entry.key, &entry.node)))
                .finish(),
            Kind::Sequence(items) => out.debug_list().entries(items).finish(),
            _ => out.write_str(&self.shown()),
        }
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty value",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        _ => "text",
    }
}

/// Long texts would bury the fact; 60 characters are enough to recognise one.
pub(crate) fn shortened(text: &str) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 60;
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARACTERS_MAX)
        .map(|character| match character {
            '\n' | '\r' | '\t' => ' ',
            other if other.is_control() => '\u{fffd}',
            other => other,
        })
        .collect();
    if text.chars().nth(SHOWN_CHARACTERS_MAX).is_some() {
        shown.push('…');
    }
    shown
}
