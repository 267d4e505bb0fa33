//! The query endpoint: HTTP over the contract [`vectide_model::QueryService`].
//!
//! What is absent here: no index, no embedder, no store. A request is read and checked, one call of
//! the service answers it, and the answer is written in the wire's types, which live in this crate
//! alone. Invariant: whatever bytes a client sends, it gets an answer that says what was wrong, and
//! the process goes on.
//!
//! [`serve`] runs the endpoint, [`Client`] calls one, [`ServerConfig`] is the `server:` section of a
//! configuration, [`openapi`] is the document that describes it all.

#![forbid(unsafe_code)]

mod at_least;
mod auth;
mod body;
mod client;
mod config;
mod documents;
mod embeddings;
mod endpoint;
mod health;
mod indexes;
mod mode;
mod models;
mod observe;
mod openapi;
mod pool;
mod problem;
mod query;
mod query_batch;
mod router;
mod server;
mod sources;
mod state;

pub use at_least::{OffsetView, OnTimeout, Wanted};
pub use client::{Client, ClientError};
pub use config::{ApiKey, ServerConfig};
pub use documents::{ChunkView, DocumentResponse};
pub use embeddings::{
    EmbeddingData, EmbeddingObject, EmbeddingsInput, EmbeddingsRequest, EmbeddingsResponse,
    EncodingFormat, Usage,
};
pub use health::ReadinessResponse;
pub use indexes::{IndexResponse, IndexesResponse, ModelView};
pub use mode::{FusionField, ModeField, ScoresView};
pub use models::{ModelObject, ModelsResponse};
pub use observe::describe_metrics;
pub use openapi::openapi;
pub use problem::{OpenAiError, Problem};
pub use query::{GroupBy, HitView, IncludeField, QueryRequest, QueryResponse, TookMs};
pub use query_batch::{QueryBatchRequest, QueryBatchResponse};
pub use server::serve;
pub use sources::PositionResponse;
pub use state::{AsOfView, PositionView, Positions, SpanView};
