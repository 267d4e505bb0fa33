//! The stream: connecting, following, connecting again.
//!
//! ```text
//! connect -> check slot and tables -> START_REPLICATION -> follow -+-> caught up, stopped: end
//!    ^                                                             |
//!    +------------- wait, longer each time ------------------------+ the connection broke
//! ```
//!
//! Invariant: every connection begins at the place before which everything was put into batches.

use super::apply::Applier;
use super::catalog::{identify, show_lsn};
use super::connection::{Connection, Purpose};
use super::errors::{End, PgError};
use super::feed::{Feed, Settled};
use super::pgoutput::Lsn;
use super::session::Session;
use super::snapshot::BACKOFF;
use super::tables::{TIMELINE, WAL};
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};
use vectide_model::SourceSink;

/// Longest wait for messages before the stop signal is asked.
const IDLE_WAIT: Duration = Duration::from_millis(50);

/// How often an idle source says that it has moved over changes of other tables: the server may then
/// remove its log.
const POSITIONS_INTERVAL: Duration = Duration::from_secs(2);

/// A connection that lived so long was a good one: the next failure begins with a short wait.
const GOOD_CONNECTION: Duration = Duration::from_secs(30);

/// Follows the stream until stopped, or until caught up where that is asked for. A trial hands over
/// the connection that has its slot.
pub(crate) fn follow(
    session: &mut Session<'_>,
    sink: &mut dyn SourceSink,
    mut trial: Option<Connection>,
) -> Result<(), End> {
    let start = session.start;
    let is_until_caught_up = session.is_until_caught_up();
    let mut follower = Follower {
        applier: Applier::new(session, sink),
        target: None,
        is_caught_up: false,
        is_until_caught_up,
        noted_at: Instant::now(),
        noted: 0,
    };
    let mut tries = 0;
    loop {
        let began_at = Instant::now();
        let ended = follower.follow_connection(trial.take());
        match ended {
            Err(End::Broken(error)) if !start.is_trial => {
                if began_at.elapsed() >= GOOD_CONNECTION {
                    tries = 0;
                }
                let wait = BACKOFF[tries.min(BACKOFF.len() - 1)];
                tries += 1;
                tracing::warn!(
                    source = &*start.name, %error, wait_ms = wait.as_millis(),
                    at = show_lsn(follower.applier.session.position),
                    "the stream broke; it goes on where it stands"
                );
                metrics::counter!(
                    "vectide_postgres_reconnects_total", "source" => start.name.to_string()
                )
                .increment(1);
                if start.stop.wait(wait) {
                    return Err(End::Stopped);
                }
            }
            ended => return ended,
        }
    }
}

struct Follower<'a, 'b> {
    applier: Applier<'a, 'b>,
    /// Where the log ended at the start.
    target: Option<Lsn>,
    is_caught_up: bool,
    is_until_caught_up: bool,
    noted_at: Instant,
    /// The last position that a batch was given.
    noted: Lsn,
}

impl Follower<'_, '_> {
    fn follow_connection(&mut self, trial: Option<Connection>) -> Result<(), End> {
        self.applier.begin_connection();
        let mut connection = match trial {
            Some(connection) => connection,
            None => self.connect()?,
        };
        if self.target.is_none() {
            self.target = Some(self.applier.current_lsn()?);
        }
        let session = &*self.applier.session;
        let started = connection.start_copy_both(&format!(
            "START_REPLICATION SLOT \"{}\" LOGICAL {} (proto_version '1', publication_names {})",
            session.slot,
            show_lsn(session.position),
            quote_publication(&session.publication),
        ));
        started.map_err(|error| lost_or(error, &session.slot))?;
        tracing::info!(
            source = &*session.start.name,
            slot = &*session.slot,
            at = show_lsn(session.position),
            "following the stream"
        );
        let settled = match session.start.is_trial {
            true => Settled::HandedOn(session.handed_on.clone()),
            false => Settled::Durable(session.start.held.clone()),
        };
        let feed = Feed::start(connection, settled)?;
        self.follow_feed(&feed)
    }

    fn connect(&mut self) -> Result<Connection, End> {
        let session = &*self.applier.session;
        let mut connection = session.connector.connect(Purpose::Replication)?;
        let (system, timeline) = identify(&mut connection)?;
        if (system, timeline) != (session.system, session.timeline) {
            return Err(End::PositionLost(format!(
                "the server is another one now: cluster {system} and {TIMELINE} {timeline}, not {} and {}",
                session.system, session.timeline
            )));
        }
        session.check_slot()?;
        session.check_tables()?;
        Ok(connection)
    }

    fn follow_feed(&mut self, feed: &Feed) -> Result<(), End> {
        let Some(parcels) = &feed.parcels else {
            return Ok(());
        };
        let stop = self.applier.session.start.stop.clone();
        while !stop.is_stopped() {
            let parcel = match parcels.try_recv() {
                Ok(parcel) => parcel,
                Err(TryRecvError::Disconnected) => return Err(ended_early()),
                Err(TryRecvError::Empty) => {
                    if self.applier.session.pending.records() > 0 {
                        self.send()?;
                    }
                    match parcels.recv_timeout(IDLE_WAIT) {
                        Ok(parcel) => parcel,
                        Err(RecvTimeoutError::Disconnected) => return Err(ended_early()),
                        Err(RecvTimeoutError::Timeout) => {
                            self.rest()?;
                            continue;
                        }
                    }
                }
            };
            for item in parcel.map_err(|error| self.end_of(error))? {
                self.applier.take(item)?;
            }
            self.rest()?;
            if self.is_caught_up && self.is_until_caught_up {
                return Ok(());
            }
        }
        Err(End::Stopped)
    }

    fn end_of(&self, error: PgError) -> End {
        lost_or(error, &self.applier.session.slot)
    }

    /// Between parcels: a difference of the tables, positions that moved over nothing of ours, and the
    /// moment of being caught up.
    fn rest(&mut self) -> Result<(), End> {
        let session = &*self.applier.session;
        if let Some(end) = session.difference.take() {
            return Err(end);
        }
        let position = session.position;
        let is_first_time = !self.is_caught_up
            && self.target.is_some_and(|target| position >= target)
            && self.applier.is_between_transactions();
        let has_moved = position > self.noted;
        if is_first_time || (has_moved && self.noted_at.elapsed() >= POSITIONS_INTERVAL) {
            self.send()?;
            metrics::gauge!(
                "vectide_source_position",
                "source" => self.applier.session.start.name.to_string(), "partition" => WAL
            )
            .set(position as f64);
        }
        if is_first_time {
            self.is_caught_up = true;
            self.applier.sink.caught_up();
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), End> {
        self.applier.note_position();
        self.noted = self.applier.session.position;
        self.noted_at = Instant::now();
        self.applier.send()
    }
}

fn ended_early() -> End {
    PgError::Connection("the stream ended".to_owned()).into()
}

/// Errors of the stream that mean that the slot has not what is asked of it.
fn lost_or(error: PgError, slot: &str) -> End {
    match error.code() {
        // undefined_object, object_not_in_prerequisite_state.
        // The publication may be what is undefined.
        "42704" | "55000" if error.to_string().contains(slot) => {
            End::PositionLost(format!("replication slot `{slot}`: {error}"))
        }
        _ => error.into(),
    }
}

/// A name in the list of publications: an identifier in a string, in a grammar that knows no E''.
fn quote_publication(name: &str) -> String {
    let identifier = super::connection::quote_name(name);
    format!("'{}'", identifier.replace('\'', "''"))
}
