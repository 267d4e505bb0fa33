//! The metrics of a service that embeds.

use metrics::{counter, describe_counter, describe_gauge, gauge};
use std::sync::Once;

/// Says what the metrics mean, once there is somebody who wants to know: models are opened before the
/// recorder is there.
fn describe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        describe_gauge!(
            "vectide_embedding_service_up",
            "0 while the service is taken for away and little is sent to it, by model"
        );
        describe_counter!(
            "vectide_embedding_requests_total",
            "Requests to the service, by model and outcome"
        );
    });
}

/// Tells whether the service is there.
pub(super) fn set_up(model: &str, is_up: bool) {
    describe();
    let value = if is_up { 1.0 } else { 0.0 };
    gauge!("vectide_embedding_service_up", "model" => model.to_owned()).set(value);
}

/// Counts a request.
pub(super) fn count(model: &str, outcome: &'static str) {
    describe();
    counter!("vectide_embedding_requests_total", "model" => model.to_owned(), "outcome" => outcome)
        .increment(1);
}
