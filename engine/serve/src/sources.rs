//! `GET /v1/sources/{source}/position`: where a source ends now, for reading one's own writes.

use crate::endpoint::{Endpoint, PathParts, path_parts};
use crate::problem::{Problem, Refusal};
use crate::state::Positions;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// Where a source ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PositionResponse {
    /// Source -> partition -> next offset: as `at_least` of a query it asks for an answer that holds
    /// everything which was written before.
    #[schema(value_type = BTreeMap<String, BTreeMap<String, u64>>)]
    pub positions: Positions,
}

/// Asks a source where it ends now.
///
/// The source itself is asked (the ends of Kafka's partitions, the end of Postgres's log), so this
/// costs a connection to it: an application that knows the position of its own write sends that.
#[utoipa::path(
    get,
    path = "/v1/sources/{source}/position",
    operation_id = "get_source_position",
    tag = "sources",
    params(("source" = String, Path, description = "Name of the source")),
    responses(
        (status = 200, description = "Where it ends", body = PositionResponse),
        (status = "default", description = "Why there is no answer", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn position(
    State(endpoint): State<Endpoint>,
    source: PathParts<String>,
) -> Result<Response, Refusal> {
    let source = path_parts(source)?;
    // A source that does not answer must not hold the threads that queries need.
    let _turn = endpoint.turn(&endpoint.source_turns).await?;
    endpoint
        .answer(move |service, _| {
            let positions = Arc::new(service.end_of(&source)?);
            Ok(PositionResponse { positions })
        })
        .await
}
