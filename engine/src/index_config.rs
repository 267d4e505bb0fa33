//! An entry of `indexes:`, and what has to fit together in it.
//!
//! Invariant: a field that can be filtered by is one that the documents' metadata has.

use crate::registry::{IndexType, Registry};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use vectide_config::{Document, Name, Problem};
use vectide_model::VectorIndexFactory;
use vectide_operators::{Analyzer, FieldPlan, Language};

/// An entry of `indexes:`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IndexConfig {
    /// The documents that are indexed.
    pub from: Name,
    /// How documents are cut.
    pub chunk: Value,
    /// Which model makes the vectors.
    pub embed: Value,
    /// Parts of the index, each owned by one worker; fixed for the life of a state.
    #[serde(default = "one_shard")]
    #[schemars(range(min = 1, max = 1024))]
    pub shards: u32,
    /// The share of the true hits that searches find, measured on queries and kept by itself; 1 looks at
    /// every row.
    #[serde(default = "default_recall")]
    #[schemars(range(min = 0.5, max = 1.0))]
    pub recall: f64,
    /// How sealed vectors are found: `pq` (product codes, 48 bytes a row), `sq8` (a byte a component, in
    /// memory), `fp16` (two bytes a component, in memory) or `flat` (every query looks at every row). May
    /// change: segments are found as they were made.
    #[serde(default)]
    pub quantization: Option<String>,
    /// Fields of the documents' metadata that queries can be filtered by: names, or paths such as
    /// `owner.team`; fixed for the life of a state.
    #[serde(default)]
    pub filterable: Vec<String>,
    /// Keeps the words of chunks for keyword and hybrid search; fixed for the life of a state.
    #[serde(default)]
    pub keywords: Option<KeywordsConfig>,
}

/// How words are found.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeywordsConfig {
    /// The language whose word forms are taken for the same; `any` takes words as they stand.
    pub language: Language,
}

fn one_shard() -> u32 {
    1
}

fn default_recall() -> f64 {
    0.98
}

impl IndexConfig {
    /// What opens its shards.
    pub(crate) fn factory(&self, registry: &Registry) -> Arc<dyn VectorIndexFactory> {
        let named = |it: &&IndexType| Some(it.name) == self.quantization.as_deref();
        let chosen = registry.indexes.iter().find(named);
        let chosen = chosen.or(registry.indexes.first());
        let chosen = chosen.unwrap_or_else(|| panic!("the registry has no index"));
        chosen.factory.clone()
    }

    /// What is kept of rows besides vectors.
    pub(crate) fn fields(&self) -> Arc<FieldPlan> {
        let filterable = self.filterable.iter().map(|field| field.as_str().into());
        Arc::new(FieldPlan {
            filterable: filterable.collect(),
            analyzer: self.keywords.map(|it| Analyzer::new(it.language)),
        })
    }
}

/// The fault in the way that an index finds vectors.
pub(crate) fn check_quantization(
    document: &Document,
    index: &Name,
    registry: &Registry,
) -> Option<Problem> {
    let path = format!("indexes.{index}.quantization");
    let name = document.value_at(path.as_str())?.as_str()?;
    let names = registry.indexes.iter().map(|it| it.name);
    if names.clone().any(|known| known == name) {
        return None;
    }
    let allowed = names.clone().collect::<Vec<_>>().join(" | ");
    let fact = format!("`{name}` is no way to find vectors");
    let problem = document.problem(path.as_str(), fact).allowed(allowed);
    Some(match vectide_config::nearest(name, names) {
        Some(nearest) => problem.hint(format!("did you mean `{nearest}`?")),
        None => problem,
    })
}

/// The faults in the fields that an index can be filtered by.
pub(crate) fn check_filterable(document: &Document, index: &Name) -> Vec<Problem> {
    let path = format!("indexes.{index}.filterable");
    let from = document.value_at(format!("indexes.{index}.from").as_str());
    let fields = document.parse_at::<Vec<String>>(path.as_str());
    let (Ok(fields), Some(from)) = (fields, from.and_then(|from| from.as_str())) else {
        // Missing, or no list of names, which is told elsewhere.
        return Vec::new();
    };
    let metadata = document.value_at(format!("documents.{from}.metadata").as_str());
    let known: Vec<&str> = metadata.iter().flat_map(|it| it.keys()).collect();
    let mut seen = Vec::new();
    let mut problems = Vec::new();
    for (at, field) in fields.iter().map(String::as_str).enumerate() {
        let place = format!("{path}[{at}]");
        let is_of = |name: &&str| {
            let rest = field.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if seen.contains(&field) {
            let fact = format!("`{field}` is named twice");
            problems.push(document.problem(place.as_str(), fact));
        } else if field.starts_with('$') || field.contains('\0') {
            let fact = format!("`{field}` can't be written in a filter");
            let problem = document.problem(place.as_str(), fact);
            problems
                .push(problem.hint("give the metadata another name: one that begins with no `$`"));
        } else if !known.iter().any(is_of) {
            let fact = format!("documents `{from}` have no metadata `{field}`");
            let mut problem = document.problem(place.as_str(), fact);
            if let Some(nearest) = vectide_config::nearest(field, known.iter().copied()) {
                problem = problem.hint(format!("did you mean `{nearest}`?"));
            } else {
                let hint = format!("name it under documents.{from}.metadata");
                problem = problem.hint(hint);
            }
            problems.push(problem);
        }
        seen.push(field);
    }
    problems
}
