//! `GET /v1/indexes/{index}/documents/{id}`: a document as the index holds it.
//!
//! Ids are paths as often as not: the rest of the URL's path is the id, percent-decoded once, so
//! `documents/docs/a.md` and `documents/docs%2Fa.md` are the same document.

use crate::endpoint::{Endpoint, PathParts, path_parts};
use crate::problem::{Problem, Refusal};
use crate::state::{AsOfView, PositionView, SpanView};
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::ToSchema;
use vectide_model::{DocumentChunk, DocumentView};

/// A document as the index holds it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DocumentResponse {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Arc<str>,
    /// Its text.
    pub text: String,
    /// Its metadata.
    #[schema(value_type = Object)]
    pub metadata: Box<RawValue>,
    /// The source's last change to it.
    pub position: PositionView,
    /// Its chunks in the order of the text.
    pub chunks: Vec<ChunkView>,
    /// The state it is from.
    pub as_of: AsOfView,
}

/// A chunk of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Chunk)]
pub struct ChunkView {
    /// Its id: 32 hex digits.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub id: String,
    /// Where it stands in the text.
    pub span: SpanView,
}

impl From<DocumentChunk> for ChunkView {
    fn from(chunk: DocumentChunk) -> Self {
        Self {
            id: chunk.id.to_string(),
            span: chunk.span.into(),
        }
    }
}

impl From<DocumentView> for DocumentResponse {
    fn from(document: DocumentView) -> Self {
        Self {
            id: document.id,
            text: document.text,
            metadata: document.metadata,
            position: document.position.into(),
            chunks: document.chunks.into_iter().map(ChunkView::from).collect(),
            as_of: document.as_of.into(),
        }
    }
}

/// Gives one document. Slashes in its id may stand as they are or percent-encoded.
#[utoipa::path(
    get,
    path = "/v1/indexes/{index}/documents/{id}",
    operation_id = "get_document",
    tag = "indexes",
    params(
        ("index" = String, Path, description = "Name of the index"),
        ("id" = String, Path, description = "The document's id; slashes may stand as they are"),
    ),
    responses(
        (status = 200, description = "The document", body = DocumentResponse),
        (status = "default", description = "Why there is no answer", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get(
    State(endpoint): State<Endpoint>,
    parts: PathParts<(String, String)>,
) -> Result<Response, Refusal> {
    let (index, id) = path_parts(parts)?;
    endpoint
        .answer(move |service, _| Ok(DocumentResponse::from(service.document(&index, &id)?)))
        .await
}
