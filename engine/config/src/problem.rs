//! What is wrong with a configuration, where, and what would be right: for people and for tools.
//!
//! Invariant: a report is sorted by place in the file, holds no problem twice, and is bounded.

use crate::path::Path;
use serde::{Serialize, Serializer};
use std::fmt;

/// Shorter values of variables (a port, a count) are no secrets, and striking them out would make
/// nonsense of messages.
const SECRET_BYTES_MIN: usize = 4;

/// A report of hundreds of problems helps nobody, and a hostile file could cause one per byte.
const PROBLEMS_MAX: usize = 200;

/// A place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Position {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
}

impl Position {
    /// The first character of the file.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "line {}, column {}", self.line, self.column)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// Where in the file.
    #[serde(flatten)]
    pub position: Position,
    /// Which value it is about.
    #[serde(serialize_with = "path_as_text")]
    pub path: Path,
    /// What is wrong, in one line.
    pub fact: String,
    /// What would be accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
    /// The most likely way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A problem at a place; inside a document use [`Document::problem`](crate::Document::problem),
    /// which knows the place.
    #[must_use]
    pub fn new(path: Path, position: Position, fact: impl Into<String>) -> Self {
        Self {
            position,
            path,
            fact: fact.into(),
            allowed: None,
            hint: None,
        }
    }

    /// Says what would be accepted. Empty text says nothing.
    #[must_use]
    pub fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into()).filter(|text| !text.is_empty());
        self
    }

    /// Says what to do. Empty text says nothing.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into()).filter(|text| !text.is_empty());
        self
    }

    /// Suggests the nearest of the known names, if there is one.
    #[must_use]
    pub(crate) fn suggest(self, nearest: Option<&str>) -> Self {
        match nearest {
            Some(name) => self.hint(format!("did you mean `{name}`?")),
            None => self,
        }
    }
}

/// One line without the file's name: `line 3, column 5: server.listen: the text is empty`.
impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: ", self.position)?;
        if !self.path.segments().is_empty() {
            write!(out, "{}: ", self.path)?;
        }
        out.write_str(&self.fact)
    }
}

impl std::error::Error for Problem {}

fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

/// All problems of one file. Prints as plain text, serialises for tools:
/// `{"file": …, "problems": [{"line", "column", "path", "fact", "allowed"?, "hint"?}], "omitted": 0}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    file: String,
    problems: Vec<Problem>,
    omitted: usize,
    #[serde(skip)]
    secrets: Secrets,
}

/// Texts that came from variables. They are struck out of problems that others report.
#[derive(Clone, Default, PartialEq, Eq)]
struct Secrets(Vec<String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} secrets", self.0.len())
    }
}

impl Secrets {
    fn strike(&self, text: &mut String) {
        for secret in &self.0 {
            if text.contains(secret.as_str()) {
                *text = text.replace(secret.as_str(), "***");
            }
        }
    }
}

impl Report {
    /// An empty report on `file`.
    #[must_use]
    pub fn new(file: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            problems: Vec::new(),
            omitted: 0,
            secrets: Secrets::default(),
        }
    }

    /// From now on `secrets` are struck out of what [`Report::push`] adds.
    pub(crate) fn guard(&mut self, secrets: impl IntoIterator<Item = String>) {
        let kept = secrets
            .into_iter()
            .filter(|text| text.len() >= SECRET_BYTES_MIN);
        self.secrets.0.extend(kept);
        // The longest first: one secret may be a part of another.
        self.secrets
            .0
            .sort_by_key(|text| std::cmp::Reverse(text.len()));
        self.secrets.0.dedup();
    }

    /// Adds a problem in its place; one that is there already is not added again. Values of
    /// variables (of at least four bytes) that it shows by mistake are replaced by `***`.
    pub fn push(&mut self, mut problem: Problem) {
        let texts = [problem.allowed.as_mut(), problem.hint.as_mut()];
        for text in texts.into_iter().flatten().chain([&mut problem.fact]) {
            self.secrets.strike(text);
        }
        self.insert(problem);
    }

    /// Adds a problem of this crate's own, which never shows a secret.
    pub(crate) fn insert(&mut self, mut problem: Problem) {
        let texts = [problem.allowed.as_mut(), problem.hint.as_mut()];
        for text in texts.into_iter().flatten().chain([&mut problem.fact]) {
            // A name or message from a file must neither break a line nor steer a terminal.
            if text.contains(char::is_control) {
                *text = text.replace(char::is_control, "\u{fffd}");
            }
        }
        if let Err(place) = self.problems.binary_search(&problem) {
            self.problems.insert(place, problem);
        }
        if self.problems.len() > PROBLEMS_MAX {
            self.problems.pop();
            self.omitted += 1;
        }
    }

    /// Whether there is nothing wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The problems, by place in the file. At most 200 are kept; [`Report::omitted`] counts the
    /// others.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many problems were left out because there are too many.
    #[must_use]
    pub fn omitted(&self) -> usize {
        self.omitted
    }

    /// The file's name as it was given.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Whether something at or inside `path` is wrong: then later checks of it would only repeat
    /// that.
    #[must_use]
    pub fn has_problem_within(&self, path: impl Into<Path>) -> bool {
        let path = path.into();
        self.omitted > 0
            || self
                .problems
                .iter()
                .any(|problem| problem.path.is_within(&path))
    }
}

impl Extend<Problem> for Report {
    fn extend<T: IntoIterator<Item = Problem>>(&mut self, problems: T) {
        for problem in problems {
            self.push(problem);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            let Position { line, column } = problem.position;
            write!(out, "{}:{line}:{column}: error: ", self.file)?;
            if !problem.path.segments().is_empty() {
                write!(out, "{}: ", problem.path)?;
            }
            writeln!(out, "{}", problem.fact)?;
            if let Some(allowed) = &problem.allowed {
                writeln!(out, "  allowed: {allowed}")?;
            }
            if let Some(hint) = &problem.hint {
                writeln!(out, "  hint: {hint}")?;
            }
        }
        if self.omitted > 0 {
            writeln!(out, "{}: {} more problems", self.file, self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, fact: &str) -> Problem {
        Problem::new(Path::from("a.b"), Position { line, column: 3 }, fact)
    }

    #[test]
    fn is_sorted_and_holds_nothing_twice() {
        let mut report = Report::new("x.yaml");
        report.extend([
            at(9, "late"),
            at(2, "early").allowed("1 | 2").hint("try 1"),
            at(9, "late"),
        ]);
        assert_eq!(
            report.to_string(),
            "x.yaml:2:3: error: a.b: early\n  allowed: 1 | 2\n  hint: try 1\n\
             x.yaml:9:3: error: a.b: late\n"
        );
        assert!(report.has_problem_within("a"));
        assert!(!report.has_problem_within("a.b.c"));
    }

    #[test]
    fn is_bounded_and_says_so() {
        let mut report = Report::new("x.yaml");
        report.extend((0..1000).map(|line| at(1000 - line, "wrong")));
        assert_eq!(report.problems().len(), PROBLEMS_MAX);
        assert_eq!(report.omitted(), 1000 - PROBLEMS_MAX);
        assert!(report.to_string().ends_with("x.yaml: 800 more problems\n"));
    }

    #[test]
    fn serialises_for_tools() {
        let mut report = Report::new("x.yaml");
        report.push(at(2, "early").hint("try 1"));
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({"file": "x.yaml", "omitted": 0, "problems": [
                {"line": 2, "column": 3, "path": "a.b", "fact": "early", "hint": "try 1"}]})
        );
    }
}
