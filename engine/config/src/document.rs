//! One configuration file from its bytes to typed values: parse, check, deserialise.
//!
//! Invariants: no step hides what an earlier one found (a check begins with the problems of
//! parsing); every problem points into the file; the value of a variable is seen by typed values
//! alone.

use crate::decode::FILE_BYTES_MAX;
use crate::loader::load;
use crate::nearest::nearest;
use crate::node::{Kind, Node};
use crate::path::{Path, Pattern, Segment};
use crate::problem::{Position, Problem, Report};
use crate::schema::{Checker, ConfigSchema, Findings};
use crate::variables::Lookup;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment as SerdeSegment;
use std::collections::HashSet;
use std::io::Read;

/// Read at most one byte more than is accepted: enough to know that a file is too large.
const READ_BYTES_MAX: u64 = FILE_BYTES_MAX as u64 + 1;

/// A parsed file. Problems that did not stop parsing are kept for [`Document::check`].
#[derive(Clone, Debug)]
pub struct Document {
    root: Node,
    report: Report,
}

impl Document {
    /// Parses YAML (or JSON) text. `file` is the name that reports show; `lookup` finds variables,
    /// usually [`process_environment`](crate::process_environment).
    ///
    /// # Errors
    /// When there is no tree of values: not UTF-8, not YAML, more than one document, or beyond
    /// a limit (1 MiB, 64 levels, 100,000 values). The report has whatever else was found before.
    pub fn parse(file: &str, bytes: &[u8], lookup: Lookup<'_>) -> Result<Self, Report> {
        let (root, mut report) = load(file, bytes, lookup)?;
        let mut secrets = Vec::new();
        root.each_secret(&mut |secret| secrets.push(secret.text.clone()));
        report.guard(secrets);
        Ok(Self { root, report })
    }

    /// Reads and parses a file.
    ///
    /// # Errors
    /// When it can't be read, and as [`Document::parse`].
    pub fn read(path: &std::path::Path, lookup: Lookup<'_>) -> Result<Self, Report> {
        let file = path.display().to_string();
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path)
            .and_then(|opened| opened.take(READ_BYTES_MAX).read_to_end(&mut bytes));
        match read {
            Ok(_) => Self::parse(&file, &bytes, lookup),
            Err(error) => {
                let mut report = Report::new(file);
                let fact = format!("the file can't be read: {error}");
                report.push(Problem::new(Path::root(), Position::START, fact));
                Err(report)
            }
        }
    }

    /// Everything that is wrong: the problems of parsing and those of the schema. Values of
    /// variables that look like numbers or booleans become texts where the schema wants texts
    /// (a password of digits), therefore check before deserialising.
    pub fn check(&mut self, schema: &ConfigSchema) -> Report {
        let Findings {
            problems, texts, ..
        } = Checker::new(schema).run(&self.root);
        for path in texts {
            if let Some(node) = self.root.at_mut(&path)
                && let Kind::Scalar(scalar) = &mut node.kind
                && let Some(secret) = &scalar.secret
            {
                scalar.value = secret.text.clone().into();
            }
        }
        let mut report = self.report.clone();
        for problem in problems {
            report.insert(problem);
        }
        report
    }

    /// The problems of parsing: duplicate keys, variables that are not set, …
    #[must_use]
    pub fn parse_report(&self) -> &Report {
        &self.report
    }

    /// The whole tree.
    #[must_use]
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// The value at `path`.
    #[must_use]
    pub fn value_at(&self, path: impl Into<Path>) -> Option<&Node> {
        let path = path.into();
        let mut node = &self.root;
        for segment in path.segments() {
            node = node.child(segment)?;
        }
        Some(node)
    }

    /// The paths that exist and match a pattern in which `*` stands for any key or index:
    /// `sources.*`; in the order of the file.
    #[must_use]
    pub fn paths_matching(&self, pattern: &str) -> Vec<Path> {
        let found = self.matching(pattern).into_iter();
        found.map(|(path, _)| path).collect()
    }

    fn matching(&self, pattern: &str) -> Vec<(Path, &Node)> {
        let mut found = vec![(Path::root(), &self.root)];
        for wanted in Pattern::parse(pattern).segments() {
            found = found
                .into_iter()
                .flat_map(|(path, node)| children(node, &path, wanted.as_deref()))
                .collect();
        }
        found
    }

    /// Where a problem with the value at `path` should point: at a scalar itself, at the key of a
    /// map or list, and for what is not there at the key of the nearest value around it.
    #[must_use]
    pub fn position_of(&self, path: impl Into<Path>) -> Position {
        let path = path.into();
        let mut node = &self.root;
        let mut position = node.position;
        for segment in path.segments() {
            let Some(child) = node.child(segment) else {
                return position;
            };
            let key = match segment {
                Segment::Key(name) => node.get(name).map(|entry| entry.key_position),
                Segment::Index(_) => None,
            };
            position = key.unwrap_or(child.position);
            node = child;
        }
        match node.kind {
            Kind::Scalar(_) => node.position,
            _ => position,
        }
    }

    /// A problem with the value at `path`, to be pushed to the report of [`Document::check`].
    #[must_use]
    pub fn problem(&self, path: impl Into<Path>, fact: impl Into<String>) -> Problem {
        let path = path.into();
        let position = self.position_of(&path);
        Problem::new(path, position, fact)
    }

    /// The value at `path` as a message may show it: never one that came from a variable.
    #[must_use]
    pub fn shown(&self, path: impl Into<Path>) -> String {
        match self.value_at(path) {
            Some(node) => node.shown(),
            None => "nothing".to_owned(),
        }
    }

    /// Problems of references: each text at `values` (`indexes.*.from`) must be a key of the map
    /// at `names` (`documents`). `what` says what such a key names.
    #[must_use]
    pub fn check_references(&self, values: &str, names: &str, what: &str) -> Vec<Problem> {
        let holder = self.value_at(names);
        if holder.is_some_and(|node| !matches!(node.kind, Kind::Mapping(_))) {
            return Vec::new();
        }
        let known: Vec<&str> = holder.into_iter().flat_map(Node::keys).collect();
        let set: HashSet<&str> = known.iter().copied().collect();
        self.matching(values)
            .into_iter()
            .filter_map(|(path, node)| {
                let name = node.as_str()?;
                if set.contains(name) {
                    return None;
                }
                let suggestion = match node.secret() {
                    None => nearest(name, known.iter().copied()),
                    Some(_) => None,
                };
                let allowed = crate::schema::list_names(known.iter().map(|n| (*n).to_owned()));
                let fact = format!("{} names no {what}", node.shown());
                let problem = self.problem(path, fact).allowed(allowed);
                Some(match known[..] {
                    [] => problem.hint(format!("`{names}` has no entries")),
                    _ => problem.suggest(suggestion),
                })
            })
            .collect()
    }

    /// The value at `path` as a typed one. A path that does not exist reads as null.
    ///
    /// # Errors
    /// With the place and the reason when it does not fit the type.
    pub fn parse_at<T: DeserializeOwned>(&self, path: impl Into<Path>) -> Result<T, Problem> {
        let path = path.into();
        let value = self.value_at(&path).map_or(Value::Null, Node::to_json);
        self.typed(&path, value)
    }

    /// The map at `path` without its key `tag`, as a typed value: the section of a component
    /// that was chosen by the tag.
    ///
    /// # Errors
    /// As [`Document::parse_at`].
    pub fn parse_section<T: DeserializeOwned>(
        &self,
        path: impl Into<Path>,
        tag: &str,
    ) -> Result<T, Problem> {
        let path = path.into();
        let mut value = self.value_at(&path).map_or(Value::Null, Node::to_json);
        if let Value::Object(section) = &mut value {
            section.remove(tag);
        }
        self.typed(&path, value)
    }

    fn typed<T: DeserializeOwned>(&self, path: &Path, value: Value) -> Result<T, Problem> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let at = self.deepest(path, error.path());
            let message = match self.value_at(&at) {
                Some(node) if node.holds_secret() => self.message_without_secrets::<T>(path, &at),
                _ => error.inner().to_string(),
            };
            // Types with units say what is allowed in this form.
            match message.split_once("; allowed: ") {
                Some((fact, allowed)) => self.problem(at, fact).allowed(allowed),
                None => self.problem(at, message),
            }
        })
    }

    /// A type's own message may quote the value it refuses, so that it is asked again with
    /// stand-ins for all secrets: if it refuses the same place, that message shows none.
    fn message_without_secrets<T: DeserializeOwned>(&self, path: &Path, at: &Path) -> String {
        let stand_ins = self
            .value_at(path)
            .map_or(Value::Null, Node::to_json_without_secrets);
        let again: Result<T, _> = serde_path_to_error::deserialize(stand_ins);
        match again {
            Err(error) if self.deepest(path, error.path()) == *at => error.inner().to_string(),
            _ => format!("{} does not fit here", self.shown(at)),
        }
    }

    /// The path of serde's error, as far as it exists in the file.
    fn deepest(&self, base: &Path, inner: &serde_path_to_error::Path) -> Path {
        let mut path = base.clone();
        for segment in inner.iter() {
            let next = match segment {
                SerdeSegment::Seq { index } => path.index(*index),
                SerdeSegment::Map { key } => path.key(key),
                SerdeSegment::Enum { variant } => path.key(variant),
                SerdeSegment::Unknown => break,
            };
            if self.value_at(&next).is_none() {
                break;
            }
            path = next;
        }
        path
    }
}

fn children<'a>(node: &'a Node, path: &Path, wanted: Option<&str>) -> Vec<(Path, &'a Node)> {
    let by_key = node
        .entries()
        .iter()
        .filter(|entry| wanted.is_none_or(|name| name == entry.key))
        .map(|entry| (path.key(&entry.key), &entry.node));
    let by_index = node
        .items()
        .iter()
        .enumerate()
        .filter(|_| wanted.is_none())
        .map(|(index, item)| (path.index(index), item));
    by_key.chain(by_index).collect()
}
