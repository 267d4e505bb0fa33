//! `GET /v1/indexes` and `GET /v1/indexes/{index}`: what the indexes hold, and how fresh it is.

use crate::endpoint::{Endpoint, PathParts, path_parts};
use crate::problem::{Problem, Refusal};
use crate::state::{Positions, rfc3339};
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vectide_model::{IndexStatus, ModelIdentity};

/// All indexes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IndexesResponse {
    /// One entry an index.
    pub indexes: Vec<IndexResponse>,
}

/// What an index holds. All numbers are of one committed epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IndexResponse {
    /// Its name.
    pub name: String,
    /// Its model.
    pub model: ModelView,
    /// Documents, those without chunks included.
    pub documents: u64,
    /// Chunks, each with one vector.
    pub chunks: u64,
    /// Live vectors in all shards.
    pub vectors: u64,
    /// Sealed segments in all shards.
    pub segments: u64,
    /// Shards.
    pub shards: usize,
    /// The epoch.
    pub epoch: u64,
    /// Source -> partition -> next offset: everything before it is in the index.
    #[schema(value_type = BTreeMap<String, BTreeMap<String, u64>>)]
    pub positions: Positions,
    /// When the epoch became visible, RFC 3339.
    #[schema(format = DateTime)]
    pub published_at: String,
    /// Seconds from the newest published change to its being visible; null before the first one.
    pub freshness: Option<f64>,
}

/// The model that makes an index's vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Model)]
pub struct ModelView {
    /// The name in the configuration, or that of the folder with the model's files.
    pub name: String,
    /// Changes whenever the same chunk of a document could get another vector, by more than a cosine
    /// of 0.9999.
    pub fingerprint: String,
    /// Dimensions of a vector.
    pub dimension: usize,
    /// Tokens of a document's chunk that the model looks at, special ones included.
    pub tokens_max: usize,
    /// Where it runs.
    pub device: String,
}

impl From<ModelIdentity> for ModelView {
    fn from(model: ModelIdentity) -> Self {
        Self {
            name: model.name,
            fingerprint: model.fingerprint,
            dimension: model.dimension,
            tokens_max: model.tokens_max,
            device: model.device,
        }
    }
}

impl From<IndexStatus> for IndexResponse {
    fn from(status: IndexStatus) -> Self {
        Self {
            name: status.name,
            model: status.model.into(),
            documents: status.documents,
            chunks: status.chunks,
            vectors: status.vectors,
            segments: status.segments,
            shards: status.shards,
            epoch: status.as_of.epoch,
            positions: status.as_of.positions,
            published_at: rfc3339(status.as_of.published_at),
            freshness: status
                .freshness
                .map(|freshness| freshness.as_micros() as f64 / 1e6),
        }
    }
}

/// Lists all indexes.
#[utoipa::path(
    get,
    path = "/v1/indexes",
    operation_id = "list_indexes",
    tag = "indexes",
    responses(
        (status = 200, description = "All indexes", body = IndexesResponse),
        (status = "default", description = "Why there is no answer", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list(State(endpoint): State<Endpoint>) -> Result<Response, Refusal> {
    endpoint
        .answer(|service, _| {
            let indexes = service
                .indexes()
                .into_iter()
                .map(IndexResponse::from)
                .collect();
            Ok(IndexesResponse { indexes })
        })
        .await
}

/// Says what one index holds.
#[utoipa::path(
    get,
    path = "/v1/indexes/{index}",
    operation_id = "get_index",
    tag = "indexes",
    params(("index" = String, Path, description = "Name of the index")),
    responses(
        (status = 200, description = "The index", body = IndexResponse),
        (status = "default", description = "Why there is no answer", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get(
    State(endpoint): State<Endpoint>,
    index: PathParts<String>,
) -> Result<Response, Refusal> {
    let index = path_parts(index)?;
    endpoint
        .answer(move |service, _| Ok(IndexResponse::from(service.index(&index)?)))
        .await
}
