//! What all handlers share: the service, the threads that call it, the limits.
//!
//! Invariant: every call of the service that may block goes through [`Endpoint::answer`], and so
//! through the bounded queue, the timeout and the conversion of errors.

use crate::auth::Keys;
use crate::config::ServerConfig;
use crate::pool::{PoolError, QueryPool};
use crate::problem::Refusal;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use axum::response::Response;
use serde::Serialize;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, SemaphorePermit};
use vectide_model::{Caller, QueryService};

/// Cheap to clone; one an endpoint.
#[derive(Clone)]
pub(crate) struct Endpoint(Arc<Shared>);

/// Behind [`Endpoint`].
pub(crate) struct Shared {
    pub(crate) service: Arc<dyn QueryService>,
    pub(crate) keys: Keys,
    pub(crate) body_bytes_max: usize,
    pub(crate) timeout: Duration,
    /// When it began: the `created` of models.
    pub(crate) started_at: SystemTime,
    /// Batches of embeddings that may run at once: half of the threads, so that queries always
    /// find one free of them.
    pub(crate) embedding_turns: Semaphore,
    /// Questions to sources that may run at once: a quarter of the threads, since a source may be
    /// slow or gone.
    pub(crate) source_turns: Semaphore,
    pool: QueryPool,
}

impl std::ops::Deref for Endpoint {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Endpoint {
    pub(crate) fn new(service: Arc<dyn QueryService>, config: &ServerConfig) -> io::Result<Self> {
        let (threads, timeout) = (config.threads(), config.request_timeout.as_duration());
        Ok(Self(Arc::new(Shared {
            service,
            keys: Keys::new(&config.api_keys),
            body_bytes_max: config.body_max.as_usize(),
            timeout,
            started_at: SystemTime::now(),
            embedding_turns: Semaphore::new(threads.div_ceil(2)),
            source_turns: Semaphore::new(threads.div_ceil(4)),
            pool: QueryPool::new(threads, config.queue_max, timeout)?,
        })))
    }

    /// Calls the service on a thread of the pool and writes its answer as JSON there too.
    pub(crate) async fn answer<W, C>(&self, call: C) -> Result<Response, Refusal>
    where
        W: Serialize,
        C: FnOnce(&dyn QueryService, &Caller<'_>) -> Result<W, Refusal> + Send + 'static,
    {
        let service = Arc::clone(&self.service);
        let work = move |caller: &Caller<'_>| {
            let wire = call(&*service, caller)?;
            serde_json::to_vec(&wire).map_err(|error| Refusal::internal(&error.to_string()))
        };
        match self.pool.run(work).await {
            Ok(outcome) => outcome.map(|body| json_response(StatusCode::OK, body)),
            Err(error) => Err(self.pool_problem(error)),
        }
    }

    /// Waits for one of the turns that a kind of request has, for as long as a request may take.
    pub(crate) async fn turn<'a>(
        &self,
        turns: &'a Semaphore,
    ) -> Result<SemaphorePermit<'a>, Refusal> {
        match tokio::time::timeout(self.timeout, turns.acquire()).await {
            // Never closed while the endpoint is there.
            Ok(turn) => turn.map_err(|error| Refusal::internal(&error.to_string())),
            Err(_) => Err(timed_out(self.timeout)),
        }
    }

    fn pool_problem(&self, error: PoolError) -> Refusal {
        match error {
            PoolError::Overloaded => Refusal::unavailable(
                "overloaded",
                "more requests are waiting than the server allows",
            ),
            PoolError::TimedOut => timed_out(self.timeout),
            PoolError::Panicked => {
                metrics::counter!("vectide_http_panics_total").increment(1);
                Refusal::internal("a call of the query service panicked")
            }
        }
    }
}

/// The problem of a request that took too long.
fn timed_out(limit: Duration) -> Refusal {
    let fact = format!("the request took longer than {} ms", limit.as_millis());
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", fact)
        .hint("ask for less at once, or raise `request_timeout` of the server")
}

/// A response with a JSON body.
pub(crate) fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What axum makes of a path's parts: percent-decoded, or refused.
pub(crate) type PathParts<T> = Result<Path<T>, PathRejection>;

/// Takes the parts of a path.
pub(crate) fn path_parts<T>(parts: PathParts<T>) -> Result<T, Refusal> {
    parts.map(|Path(parts)| parts).map_err(|_| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "invalid_path",
            "the path is not percent-encoded UTF-8",
        )
        .hint("encode names and ids as UTF-8 and then percent-encode them")
    })
}
