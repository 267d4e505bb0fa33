//! `POST /v1/indexes/{index}/query/batch`: many searches of an index in one request.
//!
//! Texts are embedded together and shards read once for all, so a batch costs less than its queries alone.
//!
//! Invariant: all answers of a batch are from one epoch; if one query is refused, all are, and the refusal
//! says which.

use crate::at_least::OnTimeout;
use crate::body::JsonRequest;
use crate::endpoint::{Endpoint, PathParts, path_parts};
use crate::observe::record_query;
use crate::problem::{Problem, Refusal};
use crate::query::{QueryRequest, QueryResponse};
use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use vectide_model::Query;

/// Most queries of a batch: with a search of a millisecond each it keeps one thread for a quarter of a second.
const QUERIES_MAX: usize = 256;

/// Searches of one index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryBatchRequest {
    /// The searches, 1 to 256, each as in a query of its own but for `at_least` and what goes with it; where
    /// one names an epoch (`as_of`), all name the same.
    #[schema(min_items = 1, max_items = 256)]
    pub queries: Vec<QueryRequest>,
}

/// The answers to a batch.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QueryBatchResponse {
    /// One a query, in their order.
    pub answers: Vec<QueryResponse>,
}

impl QueryBatchRequest {
    fn into_queries(self, index: &str) -> Result<Vec<Query>, Refusal> {
        if !(1..=QUERIES_MAX).contains(&self.queries.len()) {
            let fact = format!("`queries` has {} queries", self.queries.len());
            let hint = format!("send 1 to {QUERIES_MAX} queries");
            return Err(Refusal::invalid("queries", fact, hint));
        }
        let query = |(at, request): (usize, QueryRequest)| {
            let waits = !request.at_least.is_empty()
                || request.timeout.is_some()
                || request.on_timeout != OnTimeout::default();
            if waits {
                let fact = format!("query {at} of `queries` waits for positions");
                let hint = "send a query with `at_least` by itself first, then the batch with the \
                            epoch of its answer as `as_of`";
                return Err(Refusal::invalid("queries", fact, hint));
            }
            let query = request.into_query(index.to_owned());
            query.map_err(|refusal| refusal.of(&format!("query {at} of `queries`")))
        };
        self.queries.into_iter().enumerate().map(query).collect()
    }
}

impl JsonRequest for QueryBatchRequest {
    const FIELDS: &'static [&'static str] = &["queries"];
    const REQUIRED: &'static [&'static str] = &["queries"];

    fn fault(_: &str, value: &Value) -> Option<(String, String)> {
        let Value::Array(queries) = value else {
            let hint = "send an array of queries".into();
            return Some(("`queries` is not an array".into(), hint));
        };
        queries.iter().enumerate().find_map(|(at, query)| {
            let Value::Object(fields) = query else {
                let fact = format!("query {at} of `queries` is not an object");
                return Some((fact, "send objects such as {\"text\": \"...\"}".into()));
            };
            fields.iter().find_map(|(field, value)| {
                if !QueryRequest::FIELDS.contains(&field.as_str()) {
                    let fact = format!("query {at} of `queries` has the unknown field `{field}`");
                    return Some((fact, "see /openapi.json for the fields of a query".into()));
                }
                let (fact, hint) = QueryRequest::fault(field, value)?;
                Some((format!("query {at} of `queries`: {fact}"), hint))
            })
        })
    }
}

/// Searches an index for several things at once.
#[utoipa::path(
    post,
    path = "/v1/indexes/{index}/query/batch",
    operation_id = "query_batch",
    tag = "indexes",
    params(("index" = String, Path, description = "Name of the index")),
    request_body = QueryBatchRequest,
    responses(
        (status = 200, description = "The answers, in the order of the queries", body = QueryBatchResponse),
        (status = "default", description = "Why there is no answer", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn query_batch(
    State(endpoint): State<Endpoint>,
    index: PathParts<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let index = path_parts(index)?;
    let request: QueryBatchRequest = endpoint.read_json(request).await?;
    let queries = request.into_queries(&index)?;
    endpoint
        .answer(move |service, caller| {
            let answers = service.query_all(&queries, caller)?;
            if let (Some(query), Some(answer)) = (queries.first(), answers.first()) {
                record_query(&query.input, &answer.took);
            }
            let answers = answers.into_iter().map(QueryResponse::from).collect();
            Ok(QueryBatchResponse { answers })
        })
        .await
}
