//! The `dead_letters:` section: how many letters the state keeps, and where each is written besides.
//!
//! The places are components of the registry. There is no tag: the field that is there (`dir`,
//! `topic`) chooses one.
//!
//! Invariant: a section that loads chooses one place or none.

use crate::config::push;
use crate::plan::PlannedDeadLetters;
use crate::registry::{AnyDeadLetterSinkConfig, Registry};
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::num::NonZeroU64;
use vectide_config::{Document, Report};
use vectide_model::{ComponentError, OpenContext};

const SECTION: &str = "dead_letters";

/// What the `dead_letters:` section says whichever place it chooses.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeadLettersConfig {
    /// How many dead letters the state keeps; the oldest above so many are removed, which is
    /// logged and counted. Where they are written to another place too, none is removed before it
    /// is there. 100000 without it.
    #[serde(default)]
    pub keep: Option<NonZeroU64>,
}

/// The `dead_letters:` section without faults.
#[derive(Default)]
pub(crate) struct LoadedDeadLetters {
    keep: Option<NonZeroU64>,
    pub(crate) sink: Option<Box<dyn AnyDeadLetterSinkConfig>>,
}

impl LoadedDeadLetters {
    /// Reads the section; its faults go into the report.
    pub(crate) fn check(document: &Document, report: &mut Report, registry: &Registry) -> Self {
        let mut loaded = Self::default();
        if document.value_at(SECTION).is_none() || report.has_problem_within(SECTION) {
            return loaded;
        }
        let mut section: Map<String, Value> = match document.parse_at(SECTION) {
            Ok(section) => section,
            Err(problem) => {
                report.push(problem);
                return loaded;
            }
        };
        let keep = section.remove("keep");
        loaded.keep = keep.and_then(|keep| serde_json::from_value(keep).ok());
        let kinds = registry.dead_letter_sinks.iter();
        let fields: Vec<&str> = kinds.clone().map(|it| it.field).collect();
        let chosen: Vec<_> = kinds.filter(|it| section.contains_key(it.field)).collect();
        let [kind] = chosen[..] else {
            if !chosen.is_empty() || !section.is_empty() {
                let fact = "exactly one field says where dead letters are written";
                let problem = document.problem(SECTION, fact);
                report.push(problem.allowed(fields.join(" | ")));
            }
            return loaded;
        };
        match (kind.parse)(Value::Object(section)) {
            Ok(config) => {
                for error in config.check() {
                    push(document, report, SECTION, &error);
                }
                loaded.sink = Some(config);
            }
            Err(fact) => report.push(document.problem(SECTION, fact)),
        }
        loaded
    }

    /// Makes the place ready.
    pub(crate) fn open(self, context: &OpenContext) -> Result<PlannedDeadLetters, ComponentError> {
        let default = PlannedDeadLetters::default();
        Ok(PlannedDeadLetters {
            keep: self.keep.unwrap_or(default.keep),
            sink: self.sink.map(|config| config.open(context)).transpose()?,
        })
    }
}

/// Puts the fields of all places for dead letters into the schema of their section: the field that
/// is there chooses the place, so there is no tag.
pub(crate) fn describe(root: &mut Value, registry: &Registry) {
    let mut section = schema_for!(DeadLettersConfig).to_value();
    for sink in &registry.dead_letter_sinks {
        let schema = (sink.schema)();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            section["properties"][name] = property.clone();
        }
        for (name, definition) in schema["$defs"].as_object().into_iter().flatten() {
            root["$defs"][name] = definition.clone();
        }
    }
    if let Value::Object(keywords) = &mut section {
        keywords.remove("$schema");
        keywords.remove("title");
    }
    let place = &mut root["properties"]["dead_letters"];
    section["description"] = place["description"].clone();
    *place = section;
}
