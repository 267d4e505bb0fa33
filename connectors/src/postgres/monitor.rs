//! How much of its log the server keeps for the slot, in metrics and in the log before it is too late.
//!
//! Invariant: a failure here is never one of the source.

use super::catalog::{self, Slot};
use super::connection::{Connection, Connector, Purpose};
use super::errors::PgError;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often the slot is looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// The states of a slot's log, as `wal_status` names them.
const STATES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// Ends the thread when it is dropped.
pub(crate) struct Monitor {
    _closing: Sender<()>,
}

impl Monitor {
    /// Watches a slot until dropped.
    pub(crate) fn start(connector: Connector, slot: String, source: String) -> Self {
        let (closing, closed) = channel::<()>();
        let watch = move || {
            let mut connection = None;
            loop {
                match look(&connector, &mut connection, &slot) {
                    Ok(Some(found)) => tell(&source, &slot, &found),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(%error, "the slot can't be looked at");
                        connection = None;
                    }
                }
                if closed.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let started = std::thread::Builder::new()
            .name("postgres-slot".to_owned())
            .spawn(watch);
        if let Err(error) = started {
            tracing::warn!(%error, "the slot is not watched");
        }
        Self { _closing: closing }
    }
}

fn look(
    connector: &Connector,
    connection: &mut Option<Connection>,
    slot: &str,
) -> Result<Option<Slot>, PgError> {
    let open = match connection {
        Some(open) => open,
        none => none.insert(connector.connect(Purpose::Queries)?),
    };
    catalog::slot(open, slot)
}

fn tell(source: &str, slot: &str, found: &Slot) {
    if let Some(bytes) = found.retained_bytes {
        metrics::gauge!("vectide_postgres_slot_retained_bytes", "source" => source.to_owned())
            .set(bytes);
    }
    for state in STATES {
        let is_it = f64::from(u8::from(found.wal_status == state));
        metrics::gauge!(
            "vectide_postgres_slot_state", "source" => source.to_owned(), "state" => state
        )
        .set(is_it);
    }
    if found.wal_status == "unreserved" {
        tracing::warn!(
            source,
            slot,
            "the server is about to remove log that the slot still needs (max_slot_wal_keep_size)"
        );
    }
}
