//! Which path leads where, and through which layers.
//!
//! A request passes, from outside in: [`observe`] (id, count, panics), [`require_key`] (all but the
//! probes), its handler.

use crate::auth::require_key;
use crate::endpoint::Endpoint;
use crate::observe::observe;
use crate::problem::Refusal;
use crate::{documents, embeddings, health, indexes, models, openapi, query, query_batch, sources};
use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};

/// All routes over one endpoint.
pub(crate) fn router(endpoint: Endpoint) -> Router {
    let guarded = Router::new()
        .route("/v1/indexes", get(indexes::list))
        .route("/v1/indexes/{index}", get(indexes::get))
        .route("/v1/indexes/{index}/query", post(query::query))
        .route(
            "/v1/indexes/{index}/query/batch",
            post(query_batch::query_batch),
        )
        .route("/v1/indexes/{index}/documents/{*id}", get(documents::get))
        .route("/v1/sources/{source}/position", get(sources::position))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::get))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(openapi::document))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(endpoint.clone(), require_key));
    let open = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .method_not_allowed_fallback(wrong_method);
    guarded
        .merge(open)
        .layer(from_fn(observe))
        .with_state(endpoint)
}

async fn no_route(uri: Uri) -> Refusal {
    let fact = format!("there is no route `{}`", uri.path());
    Refusal::new(StatusCode::NOT_FOUND, "route_not_found", fact).hint("see /openapi.json")
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let fact = format!("`{}` can't be called with {method}", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", fact)
        .hint("use a method of the Allow header")
}
