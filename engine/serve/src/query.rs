//! `POST /v1/indexes/{index}/query`: its wire types and its handler.
//!
//! Invariant: a request that reaches the service names exactly one finite, non-empty thing to search
//! for and a `k` within [`Query::K_MAX`].

use crate::at_least::{self, AtLeast, OffsetView, OnTimeout, Wanted, duration_fault};
use crate::body::JsonRequest;
use crate::endpoint::{Endpoint, PathParts, path_parts};
use crate::mode::{self, FusionField, ModeField, ScoresView};
use crate::observe::record_query;
use crate::problem::{Problem, Refusal, listed, nearest};
use crate::state::{AsOfView, PositionView, SpanView};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;
use vectide_model::{Answer, Hit, HumanDuration, Include, Query, QueryInput, Timings};

/// A search: exactly one of `text` and `vector`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryRequest {
    /// A text, embedded with the index's model; not empty, at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_length = 1)]
    pub text: Option<String>,
    /// A vector of the index's dimension; it need not have length 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_items = 1)]
    pub vector: Option<Vec<f32>>,
    /// What hits are found by; words are those of `text`, in an index that keeps `keywords`.
    #[serde(default, skip_serializing_if = "ModeField::is_vector")]
    pub mode: ModeField,
    /// How the two rankings of `hybrid` become one; `rrf` if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub fusion: Option<FusionField>,
    /// With `rrf`: how little the first places count for more than the next; 60 if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 0, maximum = 10_000)]
    pub rrf_k: Option<f32>,
    /// With `weighted`: how much vectors count, words for the rest; 0.5 if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 0, maximum = 1)]
    pub vector_weight: Option<f32>,
    /// Conditions on the document's metadata, `{"lang": "en", "year": {"$gte": 2020}}`: of fields that the
    /// index has as `filterable`. Operators: `$eq`, `$ne`, `$in`, `$nin`, `$gt`, `$gte`, `$lt`, `$lte`,
    /// `$prefix`, `$exists`, `$not`, `$and`, `$or`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    pub filter: Option<Value>,
    /// How many hits.
    #[serde(default = "default_k")]
    #[schema(minimum = 1, maximum = 10_000, default = 10)]
    pub k: usize,
    /// What hits carry beside document, chunk, score, span and position.
    #[serde(default = "default_include")]
    #[schema(default = json!(["text", "metadata"]))]
    pub include: Vec<IncludeField>,
    /// Makes `k` a number of documents: the hits are those of the `k` documents with the best chunks, each
    /// document's together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub group_by: Option<GroupBy>,
    /// Best chunks of each document, with `group_by`; 1 if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 100)]
    pub group_size: Option<usize>,
    /// Looks at every row, so that the hits are the true ones, instead of as many as the index's `recall`
    /// takes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
    /// The epoch to answer from: one that an answer came from within `state.history`. The same query at the
    /// same epoch has the same answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub as_of: Option<u64>,
    /// How long it may search, `5ms`: what was found by then is the answer, marked as `partial`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub budget: Option<HumanDuration>,
    /// Positions that the answer has to cover, source -> partition -> next offset, as
    /// `as_of.positions` has them: the query waits for them.
    #[serde(default, skip_serializing_if = "Wanted::is_empty")]
    #[schema(value_type = BTreeMap<String, BTreeMap<String, OffsetView>>)]
    pub at_least: Wanted,
    /// How long it waits for them, `500ms` or `2s`; 2 s if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub timeout: Option<HumanDuration>,
    /// What happens then.
    #[serde(default)]
    pub on_timeout: OnTimeout,
}

/// What hits stand together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GroupBy {
    /// The document they are of.
    Document,
}

/// Hits of a query whose `k` is not given.
const K_DEFAULT: usize = 10;

fn default_k() -> usize {
    K_DEFAULT
}

fn default_include() -> Vec<IncludeField> {
    vec![IncludeField::Text, IncludeField::Metadata]
}

/// An optional part of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum IncludeField {
    /// The chunk's text.
    Text,
    /// The document's metadata.
    Metadata,
    /// The chunk's vector.
    Vector,
}

const INCLUDE_NAMES: [&str; 3] = ["text", "metadata", "vector"];

/// The answer to a query.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QueryResponse {
    /// Best first.
    pub hits: Vec<HitView>,
    /// The state it is from.
    pub as_of: AsOfView,
    /// True when the answer does not cover `at_least`, which `on_timeout: serve` allows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
    /// True when the query's `budget` was used up before all was looked at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Where the time went.
    pub took_ms: TookMs,
}

/// A chunk that was found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Hit)]
pub struct HitView {
    /// The document's id.
    #[schema(value_type = String)]
    pub document: Arc<str>,
    /// The chunk's id: 32 hex digits.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub chunk: String,
    /// What it is ranked by: the inner product of the vectors, 1 at best, or BM25 of the words, or what both
    /// come to.
    pub score: f32,
    /// What that is made of, in `hybrid` queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub scores: Option<ScoresView>,
    /// The chunk's text, if included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub text: Option<String>,
    /// Where in the document the chunk stands.
    pub span: SpanView,
    /// The document's metadata, if included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    pub metadata: Option<Box<RawValue>>,
    /// The chunk's vector, if included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub vector: Option<Vec<f32>>,
    /// The source's last change to the document.
    pub position: PositionView,
}

/// Milliseconds with three decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TookMs {
    /// Embedding the text; 0 for a vector.
    pub embed: f64,
    /// Searching and fetching the hits.
    pub search: f64,
    /// All of it.
    pub total: f64,
}

impl From<Timings> for TookMs {
    fn from(took: Timings) -> Self {
        let milliseconds = |duration: Duration| duration.as_micros() as f64 / 1000.0;
        Self {
            embed: milliseconds(took.embed),
            search: milliseconds(took.search),
            total: milliseconds(took.total),
        }
    }
}

impl From<Hit> for HitView {
    fn from(hit: Hit) -> Self {
        Self {
            document: hit.document,
            chunk: hit.chunk.to_string(),
            score: hit.score,
            scores: hit.scores.map(ScoresView::from),
            text: hit.text,
            span: hit.span.into(),
            metadata: hit.metadata,
            vector: hit.vector,
            position: hit.position.into(),
        }
    }
}

impl From<Answer> for QueryResponse {
    fn from(answer: Answer) -> Self {
        Self {
            hits: answer.hits.into_iter().map(HitView::from).collect(),
            as_of: answer.as_of.into(),
            stale: false,
            partial: answer.is_partial,
            took_ms: answer.took.into(),
        }
    }
}

impl QueryRequest {
    /// A query for a text with the default parts of hits.
    pub fn text(text: impl Into<String>, k: usize) -> Self {
        Self {
            text: Some(text.into()),
            ..Self::empty(k)
        }
    }

    /// A query for a vector with the default parts of hits.
    pub fn vector(vector: Vec<f32>, k: usize) -> Self {
        Self {
            vector: Some(vector),
            ..Self::empty(k)
        }
    }

    fn empty(k: usize) -> Self {
        Self {
            text: None,
            vector: None,
            mode: ModeField::Vector,
            fusion: None,
            rrf_k: None,
            vector_weight: None,
            filter: None,
            k,
            include: default_include(),
            group_by: None,
            group_size: None,
            exact: false,
            as_of: None,
            budget: None,
            at_least: Wanted::new(),
            timeout: None,
            on_timeout: OnTimeout::default(),
        }
    }

    pub(crate) fn into_query(self, index: String) -> Result<Query, Refusal> {
        if !(1..=Query::K_MAX).contains(&self.k) {
            let (fact, hint) = k_fault(&self.k);
            return Err(Refusal::invalid("k", fact, hint));
        }
        let has = |field| self.include.contains(&field);
        let include = Include {
            text: has(IncludeField::Text),
            metadata: has(IncludeField::Metadata),
            vector: has(IncludeField::Vector),
        };
        let input = match (self.text, self.vector) {
            (Some(text), None) => QueryInput::Text(checked_text(text)?),
            (None, Some(vector)) => QueryInput::Vector(checked_vector(vector)?),
            (None, None) => return Err(wrong_inputs("missing_field", "neither")),
            (Some(_), Some(_)) => return Err(wrong_inputs("conflicting_fields", "both")),
        };
        let filter = mode::filter(self.filter.as_ref())?;
        let mode = mode::mode(self.mode, self.fusion, self.rrf_k, self.vector_weight)?;
        let group_by_document = group_size(self.group_by, self.group_size)?;
        Ok(Query {
            mode,
            filter,
            include,
            group_by_document,
            exact: self.exact,
            as_of: self.as_of,
            budget: self.budget.map(HumanDuration::as_duration),
            ..Query::new(index, input, self.k)
        })
    }
}

/// The size of groups, where there are some.
fn group_size(by: Option<GroupBy>, size: Option<usize>) -> Result<Option<usize>, Refusal> {
    match (by, size) {
        (None, Some(_)) => {
            let hint = "send `\"group_by\": \"document\"` with it, or leave it out";
            let fact = "`group_size` stands without `group_by`";
            Err(Refusal::invalid("group_size", fact, hint))
        }
        (Some(GroupBy::Document), Some(size)) if !(1..=Query::GROUP_MAX).contains(&size) => {
            let (fact, hint) = group_size_fault(&size);
            Err(Refusal::invalid("group_size", fact, hint))
        }
        (by, size) => Ok(by.map(|GroupBy::Document| size.unwrap_or(1))),
    }
}

fn group_size_fault(size: &dyn std::fmt::Display) -> (String, String) {
    let hint = format!("send a whole number from 1 to {}", Query::GROUP_MAX);
    (format!("`group_size` is {size}"), hint)
}

fn wrong_inputs(code: &'static str, which: &str) -> Refusal {
    let fact = format!("the request has {which} of `text` and `vector`");
    Refusal::new(StatusCode::BAD_REQUEST, code, fact)
        .hint("send exactly one of `text` and `vector`")
        .field("text")
}

fn checked_text(text: String) -> Result<String, Refusal> {
    if text.trim().is_empty() {
        let fact = "`text` is empty or only white space";
        return Err(Refusal::invalid("text", fact, "send what to search for"));
    }
    if text.len() > Query::TEXT_BYTES_MAX {
        let fact = format!("`text` has {} bytes", text.len());
        let hint = format!("send at most {} bytes", Query::TEXT_BYTES_MAX);
        return Err(Refusal::invalid("text", fact, hint));
    }
    Ok(text)
}

fn checked_vector(vector: Vec<f32>) -> Result<Vec<f32>, Refusal> {
    if vector.is_empty() {
        let hint = "send as many numbers as the index's model has dimensions";
        return Err(Refusal::invalid("vector", "`vector` is empty", hint));
    }
    // Whether the parser refuses such a number or makes it infinite depends on its features.
    if let Some(at) = vector.iter().position(|x| !x.is_finite()) {
        let (fact, hint) = overflow(at);
        return Err(Refusal::invalid("vector", fact, hint));
    }
    Ok(vector)
}

fn k_fault(k: &dyn std::fmt::Display) -> (String, String) {
    (
        format!("`k` is {k}"),
        format!("send a whole number from 1 to {}", Query::K_MAX),
    )
}

impl JsonRequest for QueryRequest {
    const FIELDS: &'static [&'static str] = &[
        "text",
        "vector",
        "mode",
        "fusion",
        "rrf_k",
        "vector_weight",
        "filter",
        "k",
        "include",
        "group_by",
        "group_size",
        "exact",
        "as_of",
        "budget",
        "at_least",
        "timeout",
        "on_timeout",
    ];
    const REQUIRED: &'static [&'static str] = &[];

    fn fault(field: &str, value: &Value) -> Option<(String, String)> {
        match field {
            "text" if !value.is_string() && !value.is_null() => {
                Some(("`text` is not a string".into(), "send a string".into()))
            }
            "vector" => vector_fault(value),
            "k" => {
                let whole = value.as_u64().and_then(|k| usize::try_from(k).ok());
                let good = whole.is_some_and(|k| (1..=Query::K_MAX).contains(&k));
                (!good).then(|| k_fault(value))
            }
            "include" => include_fault(value),
            "group_by" if value != "document" => {
                let fact = format!("`group_by` can't be {value}");
                Some((fact, "send \"document\", or leave it out".into()))
            }
            "group_size" => {
                let whole = value.as_u64().and_then(|size| usize::try_from(size).ok());
                let good = whole.is_some_and(|size| (1..=Query::GROUP_MAX).contains(&size));
                (!good).then(|| group_size_fault(value))
            }
            "exact" if !value.is_boolean() => {
                let fact = "`exact` is not a boolean";
                Some((fact.into(), "send true or false".into()))
            }
            "as_of" if !value.is_u64() => {
                let hint = "send the `as_of.epoch` of an answer";
                Some(("`as_of` is no epoch".into(), hint.into()))
            }
            "budget" => duration_fault("budget", value),
            _ => mode::fault(field, value).or_else(|| at_least::fault(field, value)),
        }
    }
}

fn vector_fault(value: &Value) -> Option<(String, String)> {
    let Value::Array(items) = value else {
        let hint = "send an array of finite numbers";
        return (!value.is_null()).then(|| ("`vector` is not an array".into(), hint.into()));
    };
    items
        .iter()
        .enumerate()
        .find_map(|(at, item)| match item.as_f64() {
            None => Some((
                format!("`vector[{at}]` is not a number"),
                "send finite numbers".into(),
            )),
            Some(number) if !(number as f32).is_finite() => Some(overflow(at)),
            Some(_) => None,
        })
}

/// A number that a 64-bit float holds and a 32-bit one does not.
fn overflow(at: usize) -> (String, String) {
    let fact = format!("`vector[{at}]` does not fit into a 32-bit float");
    (fact, "send finite numbers below 3.4e38".into())
}

fn include_fault(value: &Value) -> Option<(String, String)> {
    let allowed = || format!("send an array of any of {}", listed(&INCLUDE_NAMES));
    let Value::Array(items) = value else {
        return Some(("`include` is not an array".into(), allowed()));
    };
    let known = |item: &&Value| {
        item.as_str()
            .is_some_and(|name| INCLUDE_NAMES.contains(&name))
    };
    let unknown = items.iter().find(|item| !known(item))?;
    let near = unknown
        .as_str()
        .and_then(|name| nearest(name, &INCLUDE_NAMES));
    let hint = near.map_or_else(allowed, |name| format!("did you mean `{name}`?"));
    Some((format!("`include` can't have {unknown}"), hint))
}

/// Searches an index.
#[utoipa::path(
    post,
    path = "/v1/indexes/{index}/query",
    operation_id = "query",
    tag = "indexes",
    params(("index" = String, Path, description = "Name of the index")),
    request_body = QueryRequest,
    responses(
        (status = 200, description = "The hits, best first", body = QueryResponse),
        (status = "default", description = "Why there is no answer", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn query(
    State(endpoint): State<Endpoint>,
    index: PathParts<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let index = path_parts(index)?;
    let request: QueryRequest = endpoint.read_json(request).await?;
    let at_least = AtLeast::new(
        &request.at_least,
        request.timeout,
        request.on_timeout,
        endpoint.timeout,
    )?;
    let query = request.into_query(index)?;
    let is_covered = at_least.wait(&endpoint).await?;
    endpoint
        .answer(move |service, caller| {
            let answer = service.query_for(&query, caller)?;
            record_query(&query.input, &answer.took);
            Ok(QueryResponse {
                stale: !is_covered,
                ..QueryResponse::from(answer)
            })
        })
        .await
}
