//! `GET /v1/models`, as OpenAI's API has it: the models that indexes use.

use crate::endpoint::{Endpoint, PathParts, path_parts};
use crate::problem::{Problem, Refusal};
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;
use utoipa::ToSchema;
use vectide_model::{ModelIdentity, QueryError};

/// A list in the shape of OpenAI's API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelsResponse {
    /// `list`.
    pub object: String,
    /// One entry a model.
    pub data: Vec<ModelObject>,
}

/// A model in the shape of OpenAI's API, with what is known of it besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelObject {
    /// The name to use in requests.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Seconds since 1970 at which the server began to offer it.
    pub created: u64,
    /// `vectide`.
    pub owned_by: String,
    /// Dimensions of a vector.
    pub dimension: usize,
    /// Tokens of a document's chunk that the model looks at, special ones included.
    pub tokens_max: usize,
    /// Changes whenever the same chunk of a document could get another vector, by more than a cosine
    /// of 0.9999.
    pub fingerprint: String,
    /// Where it runs.
    pub device: String,
}

impl ModelObject {
    fn new(model: ModelIdentity, created_at: SystemTime) -> Self {
        let since_1970 = created_at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            id: model.name,
            object: "model".into(),
            created: since_1970.as_secs(),
            owned_by: "vectide".into(),
            dimension: model.dimension,
            tokens_max: model.tokens_max,
            fingerprint: model.fingerprint,
            device: model.device,
        }
    }
}

/// Lists the models that indexes use.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "list_models",
    tag = "embeddings",
    responses(
        (status = 200, description = "The models", body = ModelsResponse),
        (status = "default", description = "Why there is no answer", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list(State(endpoint): State<Endpoint>) -> Result<Response, Refusal> {
    let created_at = endpoint.started_at;
    endpoint
        .answer(move |service, _| {
            let models = service.models().into_iter();
            let data = models
                .map(|model| ModelObject::new(model, created_at))
                .collect();
            Ok(ModelsResponse {
                object: "list".into(),
                data,
            })
        })
        .await
}

/// Describes one model.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    operation_id = "get_model",
    tag = "embeddings",
    params(("model" = String, Path, description = "Name of the model; may hold slashes")),
    responses(
        (status = 200, description = "The model", body = ModelObject),
        (status = "default", description = "Why there is no answer", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn get(
    State(endpoint): State<Endpoint>,
    name: PathParts<String>,
) -> Result<Response, Refusal> {
    let (name, created_at) = (path_parts(name)?, endpoint.started_at);
    endpoint
        .answer(move |service, _| {
            let models = service.models();
            let known = models.iter().map(|model| model.name.clone()).collect();
            let found = models.into_iter().find(|model| model.name == name);
            let model = found.ok_or(QueryError::NotFound {
                kind: "model",
                name,
                known,
            })?;
            Ok(ModelObject::new(model, created_at))
        })
        .await
}
