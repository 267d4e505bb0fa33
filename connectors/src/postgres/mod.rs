//! Tables of PostgreSQL, by a snapshot and then by logical replication.
//!
//! ```text
//! session (looks at everything) -> snapshot (readers, chunks) -> stream (feed -> apply)
//! ```
//!
//! A row is the JSON object of its columns; a key is the primary key's text ([`row`]). How types
//! become JSON is in [`value`] and in the documentation. A transaction becomes visible in one epoch.
//! Large values that an update did not touch come from the row held. A truncated table is the delete
//! of every row held of it; a changed key is a delete and an upsert.
//!
//! Columns may be added, dropped and renamed while the source runs: rows written from then on have the
//! new ones, rows held keep theirs until they are written again. A column of the key that goes or becomes
//! another type, and a table that is renamed, made anew or no longer published ([`altered`]), end the
//! source by name.
//!
//! Invariant: the server is told only places before which everything is durable here, so that whatever
//! was not committed is told again; and a place that it no longer has is a named error.

mod altered;
mod apply;
mod catalog;
mod check;
#[cfg(feature = "testing")]
pub(crate) mod client;
mod config;
mod connection;
mod errors;
mod feed;
mod monitor;
pub mod pgoutput;
mod reader;
mod row;
mod session;
mod snapshot;
mod stream;
mod tables;
mod tls;
mod too_large;
mod types;
mod value;

pub use config::{PostgresConfig, Secret, SnapshotConfig, TlsConfig, TlsMode};

use connection::Connector;
use errors::End;
use monitor::Monitor;
use session::Session;
use std::path::PathBuf;
use vectide_model::{Source, SourceError, SourceSink, SourceStart};

/// Tables that are ready to be read.
struct PostgresSource {
    config: PostgresConfig,
    /// The folder of the configuration.
    folder: PathBuf,
}

impl Source for PostgresSource {
    fn run(
        self: Box<Self>,
        start: SourceStart,
        sink: &mut dyn SourceSink,
    ) -> Result<(), SourceError> {
        let source_name = start.name.to_string();
        match self.read(&start, sink) {
            Ok(()) | Err(End::Stopped) => Ok(()),
            Err(End::PositionLost(detail)) => Err(SourceError::PositionLost {
                hint: format!(
                    "read the tables anew; what did not change is not embedded again: \
                     vectide run CONFIG --resnapshot {source_name}"
                ),
                source_name,
                detail,
            }),
            Err(end) => {
                let (detail, hint) = end.fact_and_hint();
                Err(SourceError::Failed {
                    source_name,
                    detail,
                    hint,
                })
            }
        }
    }
}

impl PostgresSource {
    fn read(&self, start: &SourceStart, sink: &mut dyn SourceSink) -> Result<(), End> {
        let connector = Connector {
            config: self.config.clone(),
            folder: self.folder.clone(),
            stop: start.stop.clone(),
        };
        let mut session = Session::open(&self.config, connector.clone(), start)?;
        let exported = session.prepare_slot()?;
        session.record_tables();
        let is_watched = !start.is_trial;
        let (slot, source) = (session.slot.clone(), start.name.to_string());
        let (watched, difference) = (session.watched(), session.difference.clone());
        let _monitor =
            is_watched.then(|| Monitor::start(connector, slot, source, watched, difference));
        let last = session.read_snapshot(exported, sink)?;
        // A trial's slot lives in the connection that made it; the lasting slot has its own.
        let trial = last.filter(|_| start.is_trial);
        stream::follow(&mut session, sink, trial)
    }
}
