//! Turns a YAML file into checked, typed values, with every error at once.
//!
//! A configuration is wrong in several ways at a time, and whoever wrote it wants to see all of
//! them with line, column, what is allowed and the nearest known name. This crate is the machinery
//! for that; it knows nothing of sources or indexes. It works in three steps:
//!
//! 1. [`Document::parse`]: bytes to a tree that knows the place of every key and value; `${VAR}`,
//!    `${VAR:-default}`, `${VAR:?message}` and `$$` are expanded in values.
//! 2. [`Document::check`]: against a [`ConfigSchema`], made from the schemas of the types
//!    (`schemars`) and from tables of components that a `type:` chooses among ([`TagTable`]).
//! 3. [`Document::parse_at`] and [`Document::parse_section`]: to the types themselves (`serde`).
//!
//! Invariants: every problem has a place; one cause gives one problem; the value of a variable
//! appears in no report; whatever the bytes are, nothing panics and everything stays bounded.
//!
//! ```
//! use schemars::{JsonSchema, schema_for};
//! use serde::Deserialize;
//! use std::collections::BTreeMap;
//! use vectide_config::{ConfigSchema, Document, Name, TagTable};
//! use vectide_model::HumanDuration;
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Root {
//!     /// The root leaves the sections open: the table below describes them.
//!     inputs: BTreeMap<Name, serde_json::Value>,
//!     #[serde(default)]
//!     workers: Option<u8>,
//! }
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Poll {
//!     url: String,
//!     every: HumanDuration,
//! }
//!
//! let inputs = TagTable::new("input").with("poll", schema_for!(Poll))?;
//! let schema = ConfigSchema::new(schema_for!(Root))?.tagged("inputs.*", inputs)?;
//!
//! let text = "inputs:\n  news: {type: pol, url: 'http://a/', every: 5m}\nworkres: 2\n";
//! let mut document = Document::parse("my.yaml", text.as_bytes(), &|_| None)?;
//! assert_eq!(
//!     document.check(&schema).to_string(),
//!     "my.yaml:2:16: error: inputs.news.type: the text `pol` is not a known input type\n  \
//!        allowed: poll\n  \
//!        hint: did you mean `poll`?\n\
//!      my.yaml:3:1: error: workres: unknown key `workres`\n  \
//!        allowed: inputs | workers\n  \
//!        hint: did you mean `workers`?\n"
//! );
//!
//! let text = "inputs:\n  news: {type: poll, url: '${URL}', every: 5m}\n";
//! let lookup = |name: &str| (name == "URL").then(|| "http://a/".to_owned());
//! let mut document = Document::parse("my.yaml", text.as_bytes(), &lookup)?;
//! assert!(document.check(&schema).is_empty());
//! let news: Poll = document.parse_section("inputs.news", "type")?;
//! assert_eq!((news.url.as_str(), news.every.as_milliseconds()), ("http://a/", 300_000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod decode;
mod document;
mod loader;
mod name;
mod nearest;
mod node;
mod path;
mod problem;
mod scalar;
mod schema;
mod size;
mod syntax;
mod variables;

pub use document::Document;
pub use name::{Name, NameError};
pub use nearest::nearest;
pub use node::Node;
pub use path::{Path, Segment};
pub use problem::{Position, Problem, Report};
pub use schema::{ConfigSchema, SchemaError, SchemaHead, TagTable};
pub use variables::{Lookup, process_environment};
