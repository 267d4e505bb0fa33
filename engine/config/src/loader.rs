//! Turns the bytes of a YAML file into a tree of [`Node`]s, with every problem on the way.
//!
//! The parser gives a flat stream of events, so depth costs no stack here. Invariants: the tree is
//! bounded in depth, values and text whatever the file holds (aliases are charged before they are
//! copied); variables are expanded in values only, and a value with a fault is left in the tree as
//! broken, so that the checks after this one still see the rest.

use crate::decode::decode;
use crate::node::{Entry, Kind, Node, Scalar, Secret};
use crate::path::{Path, Segment};
use crate::problem::{Position, Problem, Report};
use crate::scalar::{Plain, read_plain, read_tagged};
use crate::size::{Size, measure};
use crate::syntax::explain;
use crate::variables::{Expanded, Lookup, expand};
use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;

/// Deeper than any configuration nests, and shallow enough for every recursive walk's stack.
const DEPTH_MAX: usize = 64;

/// A file of 1 MiB with 10 bytes a value; aliases multiply values and are stopped here.
const VALUES_MAX: usize = 100_000;

/// Text of all values together: the file, its aliases and its expanded variables.
const TEXT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Reads a file. `Err` means that no tree could be made; the report then ends with the reason.
pub(crate) fn load(file: &str, bytes: &[u8], lookup: Lookup<'_>) -> Result<(Node, Report), Report> {
    let mut report = Report::new(file);
    let text = match decode(bytes) {
        Ok(text) => text,
        Err(problem) => {
            report.push(problem);
            return Err(report);
        }
    };
    let mut loader = Loader {
        lookup,
        report,
        stack: Vec::new(),
        anchors: HashMap::new(),
        root: None,
        documents: 0,
        values: 0,
        text_bytes: 0,
    };
    match loader.run(Parser::new_from_str(text)) {
        Ok(root) => Ok((root, loader.report)),
        Err(problem) => {
            loader.report.push(*problem);
            Err(loader.report)
        }
    }
}

/// A problem after which there is no tree.
type Fatal = Box<Problem>;

/// A map or list that is not closed yet.
struct Frame {
    position: Position,
    anchor: usize,
    content: Content,
}

enum Content {
    Items(Vec<Node>),
    Entries {
        entries: Vec<Entry>,
        /// Where each key was given first.
        seen: HashMap<String, Position>,
        /// The key whose value comes next.
        key: Option<PendingKey>,
    },
}

struct PendingKey {
    name: String,
    position: Position,
    /// Its value is read, for its own problems, but not kept: the key itself is a problem.
    is_refused: bool,
}

struct Anchored {
    node: Node,
    size: Size,
}

struct Loader<'a> {
    lookup: Lookup<'a>,
    report: Report,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    root: Option<Node>,
    documents: usize,
    values: usize,
    text_bytes: usize,
}

impl Loader<'_> {
    fn run(&mut self, mut parser: Parser<'_, StrInput<'_>>) -> Result<Node, Fatal> {
        while let Some(next) = parser.next_event() {
            let (event, span) = next.map_err(|error| {
                let explanation = explain(error.info());
                let marker = error.marker();
                let position = position_at(marker.line(), marker.col());
                self.fatal(position, explanation.fact, explanation.hint)
            })?;
            self.event(event, span)?;
        }
        match self.root.take() {
            Some(root) if !root.is_null() => Ok(root),
            _ => Err(self.fatal(Position::START, "the file holds no configuration", "")),
        }
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Fatal> {
        let position = position_at(span.start.line(), span.start.col());
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(self.fatal(
                        position,
                        "the file holds more than one document",
                        "remove what follows `---`, or make it a file of its own",
                    ));
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                if self.wants_key() {
                    return self.key(&text, style, position, anchor);
                }
                self.charge(
                    Size {
                        values: 1,
                        ..Size::default()
                    },
                    position,
                )?;
                let at = if span.is_empty() {
                    self.key_position()
                } else {
                    None
                };
                let node = self.scalar(&text, style, tag.as_deref(), at.unwrap_or(position))?;
                self.finish(node, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                let content = Content::Items(Vec::new());
                self.open(content, "seq", anchor, tag, position)
            }
            Event::MappingStart(anchor, tag) => {
                let content = Content::Entries {
                    entries: Vec::new(),
                    seen: HashMap::new(),
                    key: None,
                };
                self.open(content, "map", anchor, tag, position)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.alias(anchor, position),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn open(
        &mut self,
        content: Content,
        tag_wanted: &str,
        anchor: usize,
        tag: Option<Cow<'_, Tag>>,
        position: Position,
    ) -> Result<(), Fatal> {
        if self.wants_key() {
            let hint = "quote a value that begins with `{` or `[`: `\"{{ field }}\"`";
            return Err(self.fatal(position, "a key must be a text, not a map or a list", hint));
        }
        if self.stack.len() >= DEPTH_MAX {
            return Err(self.fatal(
                position,
                format!("maps and lists are nested more than {DEPTH_MAX} deep"),
                "",
            ));
        }
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && tag.suffix == tag_wanted)
        {
            self.unknown_tag(&tag, position);
        }
        self.charge(
            Size {
                values: 1,
                ..Size::default()
            },
            position,
        )?;
        self.stack.push(Frame {
            position,
            anchor,
            content,
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Fatal> {
        let Some(frame) = self.stack.pop() else {
            return Ok(());
        };
        let kind = match frame.content {
            Content::Items(items) => Kind::Sequence(items),
            Content::Entries { entries, .. } => Kind::Mapping(entries),
        };
        let node = Node {
            kind,
            position: frame.position,
        };
        self.finish(node, frame.anchor)
    }

    /// Keeps a copy under the anchor, if there is one, and hands the value to what holds it.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Fatal> {
        self.keep_anchor(&node, anchor)?;
        match self.stack.last_mut().map(|frame| &mut frame.content) {
            None => self.root = Some(node),
            Some(Content::Items(items)) => items.push(node),
            Some(Content::Entries { entries, key, .. }) => {
                if let Some(key) = key.take().filter(|key| !key.is_refused) {
                    entries.push(Entry {
                        key: key.name,
                        key_position: key.position,
                        node,
                    });
                }
            }
        }
        Ok(())
    }

    fn keep_anchor(&mut self, node: &Node, anchor: usize) -> Result<(), Fatal> {
        if anchor > 0 {
            let size = measure(node);
            self.charge(size, node.position)?;
            let node = node.clone();
            self.anchors.insert(anchor, Anchored { node, size });
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, position: Position) -> Result<(), Fatal> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Err(self.fatal(position, "the alias refers to a value that holds it", ""));
        };
        let size = anchored.size;
        if self.stack.len() + size.depth > DEPTH_MAX {
            return Err(self.fatal(
                position,
                format!("maps and lists are nested more than {DEPTH_MAX} deep"),
                "",
            ));
        }
        self.charge(size, position)?;
        let Some(mut node) = self
            .anchors
            .get(&anchor)
            .map(|anchored| anchored.node.clone())
        else {
            return Ok(());
        };
        node.position = position;
        if !self.wants_key() {
            return self.finish(node, 0);
        }
        match node.as_str().map(str::to_owned) {
            Some(name) if node.secret().is_none() => {
                self.key(&name, ScalarStyle::DoubleQuoted, position, 0)
            }
            _ => Err(self.fatal(position, "a key must be a text without variables", "")),
        }
    }

    fn key(
        &mut self,
        name: &str,
        style: ScalarStyle,
        position: Position,
        anchor: usize,
    ) -> Result<(), Fatal> {
        let name = name.to_owned();
        let size = Size {
            values: 1,
            text_bytes: name.len(),
            depth: 0,
        };
        self.charge(size, position)?;
        let anchored = Node {
            kind: Kind::Scalar(Scalar {
                value: name.clone().into(),
                secret: None,
            }),
            position,
        };
        self.keep_anchor(&anchored, anchor)?;
        let Some(Content::Entries { seen, key, .. }) =
            self.stack.last_mut().map(|frame| &mut frame.content)
        else {
            return Ok(());
        };
        let first = seen.get(&name).copied();
        let is_merge = name == "<<" && style == ScalarStyle::Plain;
        seen.entry(name.clone()).or_insert(position);
        *key = Some(PendingKey {
            name: name.clone(),
            position,
            is_refused: first.is_some() || is_merge,
        });
        if let Some(first) = first {
            let fact = format!("the key is given twice, first at {first}");
            self.problem(position, fact, "keep one of the two");
        } else if is_merge {
            let hint = "write the keys out; an alias for a whole value works";
            self.problem(position, "merge keys (`<<`) are not supported", hint);
        }
        Ok(())
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        position: Position,
    ) -> Result<Node, Fatal> {
        let kind = match expand(text, self.lookup) {
            Ok(expanded) => {
                let size = Size {
                    text_bytes: expanded.text.len(),
                    ..Size::default()
                };
                self.charge(size, position)?;
                self.typed(expanded, style, tag, position)
            }
            Err(errors) => {
                for error in errors {
                    self.problem(position, error.fact, &error.hint);
                }
                Kind::Broken
            }
        };
        Ok(Node { kind, position })
    }

    fn typed(
        &mut self,
        expanded: Expanded,
        style: ScalarStyle,
        tag: Option<&Tag>,
        position: Position,
    ) -> Kind {
        let from_variable = !expanded.variables.is_empty();
        let is_plain = style == ScalarStyle::Plain && (!from_variable || expanded.is_whole);
        let read = match tag {
            None if is_plain => read_plain(&expanded.text),
            None => Plain::Value(Value::String(expanded.text.clone())),
            Some(tag) => match read_tagged(tag, &expanded.text) {
                Some(value) => Plain::Value(value),
                None => {
                    self.unknown_tag(tag, position);
                    return Kind::Broken;
                }
            },
        };
        let value = match read {
            Plain::Value(value) => value,
            // Only what the file itself says is surely meant as a number.
            Plain::BadNumber if from_variable => expanded.text.clone().into(),
            Plain::BadNumber => {
                let fact = "the number is not finite or does not fit 64 bits";
                self.problem(position, fact, "quote it if it is a text");
                return Kind::Broken;
            }
        };
        let secret = from_variable.then_some(Secret {
            variables: expanded.variables,
            text: expanded.text,
        });
        Kind::Scalar(Scalar { value, secret })
    }

    fn unknown_tag(&mut self, tag: &Tag, position: Position) {
        let shown = if tag.is_yaml_core_schema() {
            format!("!!{}", tag.suffix)
        } else {
            tag.to_string()
        };
        let shown = crate::node::shortened(&shown);
        let fact = format!("the YAML tag `{shown}` is not known, or does not fit its value");
        self.problem(
            position,
            fact,
            "remove it; quote a value that begins with `!`",
        );
    }

    fn charge(&mut self, size: Size, position: Position) -> Result<(), Fatal> {
        self.values += size.values;
        self.text_bytes += size.text_bytes;
        if self.values > VALUES_MAX {
            return Err(self.fatal(
                position,
                format!("more than {VALUES_MAX} values, aliases counted as often as they are used"),
                "",
            ));
        }
        if self.text_bytes > TEXT_BYTES_MAX {
            return Err(self.fatal(
                position,
                "more than 8 MiB of text, aliases and variables expanded",
                "",
            ));
        }
        Ok(())
    }

    fn wants_key(&self) -> bool {
        matches!(
            self.stack.last(),
            Some(Frame {
                content: Content::Entries { key: None, .. },
                ..
            })
        )
    }

    fn key_position(&self) -> Option<Position> {
        match &self.stack.last()?.content {
            Content::Entries { key, .. } => key.as_ref().map(|key| key.position),
            Content::Items(_) => None,
        }
    }

    fn path(&self) -> Path {
        let mut path = Path::root();
        for frame in &self.stack {
            match &frame.content {
                Content::Items(items) => path.push(Segment::Index(items.len())),
                Content::Entries { key: Some(key), .. } => {
                    path.push(Segment::Key(key.name.clone()));
                }
                Content::Entries { key: None, .. } => {}
            }
        }
        path
    }

    fn problem(&mut self, position: Position, fact: impl Into<String>, hint: &str) {
        let problem = Problem::new(self.path(), position, fact).hint(hint);
        self.report.push(problem);
    }

    fn fatal(&self, position: Position, fact: impl Into<String>, hint: &str) -> Fatal {
        Box::new(Problem::new(self.path(), position, fact).hint(hint))
    }
}

/// The parser counts columns from 0.
fn position_at(line: usize, column_from_zero: usize) -> Position {
    Position {
        line: line.max(1),
        column: column_from_zero + 1,
    }
}
