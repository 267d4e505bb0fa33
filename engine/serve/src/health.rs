//! `/livez`, `/readyz` and `/metrics`: for those who watch the process.
//!
//! Invariant: they answer while the query threads are busy, so they do not use them.

use crate::endpoint::{Endpoint, json_response};
use crate::problem::Refusal;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use vectide_model::{QueryService, Readiness};

/// Whether queries are answered, and how far the sources are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Readiness)]
pub struct ReadinessResponse {
    /// A state is published and queries are answered.
    pub serving: bool,
    /// All sources have sent what was there when they started, and it is published.
    pub caught_up: bool,
    /// Why no changes are taken at present: the state's disk is short of room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortage: Option<String>,
}

impl From<Readiness> for ReadinessResponse {
    fn from(readiness: Readiness) -> Self {
        Self {
            serving: readiness.serving,
            caught_up: readiness.caught_up,
            shortage: readiness.shortage,
        }
    }
}

/// Calls the service beside the query threads.
async fn aside<T: Send + 'static>(
    endpoint: &Endpoint,
    call: fn(&dyn QueryService) -> T,
) -> Result<T, Refusal> {
    let service = Arc::clone(&endpoint.service);
    let called = tokio::task::spawn_blocking(move || call(&*service)).await;
    called.map_err(|error| Refusal::internal(&error.to_string()))
}

/// Says that the process is there.
#[utoipa::path(
    get,
    path = "/livez",
    operation_id = "livez",
    tag = "health",
    security(()),
    responses((status = 200, description = "The process is there", body = String)),
)]
pub(crate) async fn livez() -> &'static str {
    "ok\n"
}

/// Says whether queries are answered.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readyz",
    tag = "health",
    security(()),
    responses(
        (status = 200, description = "Queries are answered", body = ReadinessResponse),
        (status = 503, description = "Not yet", body = ReadinessResponse),
    ),
)]
pub(crate) async fn readyz(State(endpoint): State<Endpoint>) -> Result<Response, Refusal> {
    let readiness = aside(&endpoint, |service| service.readiness()).await?;
    let status = if readiness.serving {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = serde_json::to_vec(&ReadinessResponse::from(readiness));
    let body = body.map_err(|error| Refusal::internal(&error.to_string()))?;
    Ok(json_response(status, body))
}

/// Gives the metrics in Prometheus's text format.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "health",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain")),
)]
pub(crate) async fn metrics(State(endpoint): State<Endpoint>) -> Result<Response, Refusal> {
    let mut response = aside(&endpoint, |service| service.metrics())
        .await?
        .into_response();
    let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, format);
    Ok(response)
}
