//! What is seen of each request from outside: its id, its count, the time its query took.
//!
//! Invariant: every request that was routed is counted once under its route's pattern (never under
//! its path: labels stay few), also one that panicked.

use crate::problem::Refusal;
use axum::extract::{MatchedPath, Request};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::Instrument;
use vectide_model::{QueryInput, Timings};

const REQUEST_ID: &str = "x-request-id";

/// Longest request id that is taken over from a client: a UUID has 36 characters, and it goes into
/// logs.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Registers help texts and units of this crate's metrics; call it once the recorder is installed.
pub fn describe_metrics() {
    describe_counter!(
        "vectide_http_requests_total",
        "Requests answered, by route and status"
    );
    describe_counter!(
        "vectide_http_panics_total",
        "Panics that were answered with status 500"
    );
    describe_histogram!(
        "vectide_query_duration_seconds",
        Unit::Seconds,
        "Time of queries by stage: embed, search, total"
    );
}

/// Records where the time of a query went.
pub(crate) fn record_query(input: &QueryInput, took: &Timings) {
    const NAME: &str = "vectide_query_duration_seconds";
    if matches!(input, QueryInput::Text(_)) {
        histogram!(NAME, "stage" => "embed").record(took.embed);
    }
    histogram!(NAME, "stage" => "search").record(took.search);
    histogram!(NAME, "stage" => "total").record(took.total);
}

/// Gives the request its id, answers panics, and counts.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .filter(|id| is_usable(id))
        .cloned();
    let id = id.unwrap_or_else(new_request_id);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let span = tracing::error_span!("request", id = id.to_str().unwrap_or_default());
    let handled = AssertUnwindSafe(next.run(request).instrument(span)).catch_unwind();
    let mut response = handled.await.unwrap_or_else(|_| {
        counter!("vectide_http_panics_total").increment(1);
        Refusal::internal("a handler panicked").into_response()
    });
    let route = route
        .as_ref()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let status = response.status().as_u16().to_string();
    counter!("vectide_http_requests_total", "route" => route, "status" => status).increment(1);
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn is_usable(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

/// An id that no other request of this process has, and hardly one of another process.
fn new_request_id() -> HeaderValue {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(|| RandomState::new().hash_one(std::process::id()));
    let id = format!(
        "{process:016x}-{:08x}",
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("none"))
}
