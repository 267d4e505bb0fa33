//! Names a place in a configuration: `sources.history.format.key`, `list[3]`.
//!
//! Invariant: a path prints as people write it, and `Path::from` reads that form back, as long as
//! no key holds a dot, a bracket or a quote or is longer than 60 characters (such keys print in
//! quotes or cut, and are built by [`Path::key`]).

use std::fmt;

/// One step of a [`Path`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// The value under a key of a map.
    Key(String),
    /// An entry of a list, counted from 0.
    Index(usize),
}

/// The way from the root of a configuration to one value. The empty path is the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    segments: Vec<Segment>,
}

impl Path {
    /// The whole document.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// The value under `name`.
    #[must_use]
    pub fn key(&self, name: impl Into<String>) -> Self {
        self.with(Segment::Key(name.into()))
    }

    /// The entry at `position`, counted from 0.
    #[must_use]
    pub fn index(&self, position: usize) -> Self {
        self.with(Segment::Index(position))
    }

    /// This path, then `rest`.
    #[must_use]
    pub fn join(&self, rest: impl Into<Self>) -> Self {
        let mut segments = self.segments.clone();
        segments.extend(rest.into().segments);
        Self { segments }
    }

    /// The steps from the root.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The last key, if the last step is one.
    #[must_use]
    pub fn last_key(&self) -> Option<&str> {
        match self.segments.last() {
            Some(Segment::Key(name)) => Some(name),
            _ => None,
        }
    }

    /// Whether it is `other` or lies inside it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.segments.starts_with(&other.segments)
    }

    /// The path of what holds this; the root's parent is the root.
    #[must_use]
    pub fn parent(&self) -> Self {
        let kept = self.segments.len().saturating_sub(1);
        Self {
            segments: self.segments[..kept].to_vec(),
        }
    }

    pub(crate) fn push(&mut self, segment: Segment) {
        self.segments.push(segment);
    }

    pub(crate) fn pop(&mut self) {
        self.segments.pop();
    }

    fn with(&self, segment: Segment) -> Self {
        let mut segments = self.segments.clone();
        segments.push(segment);
        Self { segments }
    }
}

impl From<&Self> for Path {
    fn from(path: &Self) -> Self {
        path.clone()
    }
}

impl From<String> for Path {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

/// Reads the dotted form. Any text is some path: what is no index is a key.
impl From<&str> for Path {
    fn from(text: &str) -> Self {
        let mut path = Self::root();
        for part in text.split('.').filter(|part| !part.is_empty()) {
            let (name, indices) = split_indices(part);
            if !name.is_empty() {
                path.push(Segment::Key(name.to_owned()));
            }
            for position in indices {
                path.push(Segment::Index(position));
            }
        }
        path
    }
}

/// `name[1][2]` -> (`name`, [1, 2]).
fn split_indices(part: &str) -> (&str, Vec<usize>) {
    let mut name = part;
    let mut indices = Vec::new();
    while let Some((before, number)) = name
        .strip_suffix(']')
        .and_then(|inner| inner.rsplit_once('['))
    {
        let Ok(position) = number.parse() else { break };
        indices.insert(0, position);
        name = before;
    }
    (name, indices)
}

impl fmt::Display for Path {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (step, segment) in self.segments.iter().enumerate() {
            match segment {
                Segment::Index(position) => write!(out, "[{position}]")?,
                Segment::Key(name) => {
                    if step > 0 {
                        out.write_str(".")?;
                    }
                    let shown = crate::node::shortened(name);
                    if is_plain(&shown) {
                        out.write_str(&shown)?;
                    } else {
                        write!(out, "{shown:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|character| character.is_alphanumeric() || "_-/:$@+ …".contains(character))
}

/// A path in which `*` stands for any one key or index: `sources.*.format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    segments: Vec<Option<String>>,
}

impl Pattern {
    pub(crate) fn parse(text: &str) -> Self {
        let segments = text
            .split('.')
            .map(|part| (part != "*").then(|| part.to_owned()))
            .collect();
        Self { segments }
    }

    /// The steps; `None` is `*`.
    pub(crate) fn segments(&self) -> &[Option<String>] {
        &self.segments
    }

    pub(crate) fn matches(&self, path: &Path) -> bool {
        self.segments.len() == path.segments.len()
            && self
                .segments
                .iter()
                .zip(&path.segments)
                .all(|(wanted, given)| match (wanted, given) {
                    (None, _) => true,
                    (Some(name), Segment::Key(key)) => name == key,
                    (Some(_), Segment::Index(_)) => false,
                })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_reads_back() {
        for text in [
            "",
            "sources.history.format.key",
            "list[3].name",
            "grid[1][22]",
            "a-b.c_d",
        ] {
            assert_eq!(Path::from(text).to_string(), text);
        }
        let odd = Path::root().key("metadata").key("a.b");
        assert_eq!(odd.to_string(), "metadata.\"a.b\"");
    }

    #[test]
    fn patterns_match_whole_paths() {
        let pattern = Pattern::parse("sources.*.format");
        assert!(pattern.matches(&Path::from("sources.history.format")));
        assert!(pattern.matches(&Path::root().key("sources").key("a.b").key("format")));
        assert!(!pattern.matches(&Path::from("sources.history")));
        assert!(!pattern.matches(&Path::from("sources.history.format.key")));
        assert!(!pattern.matches(&Path::from("sinks.history.format")));
    }

    #[test]
    fn within_is_by_whole_steps() {
        assert!(Path::from("a.b.c").is_within(&Path::from("a.b")));
        assert!(Path::from("a.b").is_within(&Path::from("a.b")));
        assert!(!Path::from("a.bc").is_within(&Path::from("a.b")));
    }
}
