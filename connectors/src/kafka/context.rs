//! What the Kafka client says about itself: into the log, and the last error kept for messages.
//!
//! Invariant: nothing the client says here ends the process; what ends it is told by the reader.

use super::telemetry;
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After this long without one, refusals are over: the client tries again at least every 10 s.
const REFUSAL_MEMORY: Duration = Duration::from_secs(30);

/// What is known of the client's troubles.
#[derive(Default)]
struct Troubles {
    last_error: Option<String>,
    refusals: Option<Refusals>,
    commit: Option<KafkaResult<()>>,
}

/// A row of refusals.
struct Refusals {
    first: Instant,
    last: Instant,
    reason: String,
}

/// Log lines of the client under the name of their source.
pub(crate) struct LogContext {
    source: String,
    troubles: Mutex<Troubles>,
}

impl LogContext {
    pub(crate) fn new(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            troubles: Mutex::new(Troubles::default()),
        }
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client's last complaint.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.troubles().last_error.clone()
    }

    /// Why the brokers refuse this client, if they have done so for longer than `grace`: a broker
    /// that starts may not know its users yet, and the place where tokens come from may be away.
    pub(crate) fn refused_for(&self, grace: Duration) -> Option<String> {
        let troubles = self.troubles();
        let refusals = troubles.refusals.as_ref()?;
        let is_over = refusals.last.elapsed() > REFUSAL_MEMORY;
        (!is_over && refusals.first.elapsed() >= grace).then(|| refusals.reason.clone())
    }

    /// What came of the last commit of offsets.
    pub(crate) fn take_commit(&self) -> Option<KafkaResult<()>> {
        self.troubles().commit.take()
    }
}

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let source = &self.source;
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(source, facility, "{message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(source, facility, "{message}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(source, facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        tracing::warn!(source = self.source, "{error}: {reason}");
        let is_refusal = matches!(
            code,
            Some(
                RDKafkaErrorCode::Authentication
                    | RDKafkaErrorCode::SaslAuthenticationFailed
                    | RDKafkaErrorCode::SSL
            )
        );
        let kind = if is_refusal { "refused" } else { "connection" };
        telemetry::count_error(&self.source, kind);
        let mut troubles = self.troubles();
        // A refused connection is followed by "all brokers are down", which tells less.
        if is_refusal || troubles.refusals.is_none() {
            troubles.last_error = Some(reason.to_owned());
        }
        if is_refusal {
            let now = Instant::now();
            let before = troubles.refusals.take();
            let before = before.filter(|before| before.last.elapsed() <= REFUSAL_MEMORY);
            troubles.refusals = Some(Refusals {
                first: before.map_or(now, |before| before.first),
                last: now,
                reason: reason.to_owned(),
            });
        }
    }
}

impl ConsumerContext for LogContext {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        self.troubles().commit = Some(result);
    }
}
