//! `/openapi.json`: the description of the endpoint, generated from its types.
//!
//! Invariant: each route of the router is described here and nowhere else; a test compares them.

use crate::{documents, embeddings, health, indexes, models, problem, query, query_batch, sources};
use axum::http::{HeaderValue, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use std::sync::LazyLock;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, OpenApi as Document, SecurityRequirement};
use utoipa::{Modify, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Vectide",
        description = "Vector indexes that stay true to their sources: search, look, embed.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        query::query,
        query_batch::query_batch,
        indexes::list,
        indexes::get,
        documents::get,
        sources::position,
        embeddings::create,
        models::list,
        models::get,
        health::livez,
        health::readyz,
        health::metrics,
        document,
    ),
    components(schemas(problem::Problem)),
    modifiers(&BearerKey),
)]
struct Description;

/// Everything but the probes wants a key, when the server has keys.
struct BearerKey;

impl Modify for BearerKey {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = document.components.take().unwrap_or_default();
        let components = ComponentsBuilder::from(components).security_scheme("bearer", scheme);
        document.components = Some(components.build());
        let requirement = SecurityRequirement::new("bearer", Vec::<String>::new());
        document.security = Some(vec![requirement, SecurityRequirement::default()]);
    }
}

/// The OpenAPI 3.1 document as JSON.
///
/// # Errors
/// When it can't be written, which would be a fault of this crate.
pub fn openapi() -> Result<String, serde_json::Error> {
    Description::openapi().to_pretty_json()
}

/// Gives this document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = "health",
    responses((status = 200, description = "This document", body = Object,
        content_type = "application/json")),
)]
pub(crate) async fn document() -> Response {
    static TEXT: LazyLock<Option<String>> = LazyLock::new(|| openapi().ok());
    let Some(text) = TEXT.as_deref() else {
        return problem::Refusal::internal("the OpenAPI document can't be written").into_response();
    };
    let mut response = text.into_response();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
