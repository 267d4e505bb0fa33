//! How much of its log the server keeps for the slot, in metrics and in the log before it is too late; and
//! whether the tables are still those that the source began with.
//!
//! Invariant: a failure to look is never one of the source; a difference that is found is.

use super::altered::Watched;
use super::catalog::{self, Slot};
use super::connection::{Connection, Connector, Purpose};
use super::errors::{End, PgError};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often slot and tables are looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// The states of a slot's log, as `wal_status` names them.
const STATES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// A difference of the tables that ends the source.
#[derive(Clone, Default)]
pub(crate) struct Difference(Arc<Mutex<Option<End>>>);

impl Difference {
    fn set(&self, end: End) {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.get_or_insert(end);
    }

    /// The end, once.
    pub(crate) fn take(&self) -> Option<End> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.take()
    }
}

/// Ends the thread when it is dropped.
pub(crate) struct Monitor {
    _closing: Sender<()>,
}

impl Monitor {
    /// Watches a slot and tables until dropped.
    pub(crate) fn start(
        connector: Connector,
        slot: String,
        source: String,
        watched: Watched,
        difference: Difference,
    ) -> Self {
        let (closing, closed) = channel::<()>();
        let watch = move || {
            let mut connection = None;
            loop {
                match look(&connector, &mut connection, &slot, &watched) {
                    Ok((found, differs)) => {
                        found.iter().for_each(|found| tell(&source, &slot, found));
                        differs.into_iter().for_each(|end| difference.set(end));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "slot and tables can't be looked at");
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
    watched: &Watched,
) -> Result<(Option<Slot>, Option<End>), PgError> {
    let open = match connection {
        Some(open) => open,
        none => none.insert(connector.connect(Purpose::Queries)?),
    };
    Ok((catalog::slot(open, slot)?, watched.difference(open)?))
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
