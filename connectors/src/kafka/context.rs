//! What the Kafka client says about itself: into the log, and the last error kept for messages.
//!
//! Invariant: nothing the client says here ends the process; what ends it is told by the reader.

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::sync::{Mutex, PoisonError};

/// Log lines of the client under the name of their source.
pub(crate) struct LogContext {
    source: String,
    last_error: Mutex<Option<String>>,
}

impl LogContext {
    pub(crate) fn new(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            last_error: Mutex::new(None),
        }
    }

    /// The client's last complaint.
    pub(crate) fn last_error(&self) -> Option<String> {
        let last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.clone()
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
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        tracing::warn!(source = self.source, "{error}: {reason}");
        let mut last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Some(reason.to_owned());
    }
}

impl ConsumerContext for LogContext {}
