//! The stream's own thread: takes messages off the connection as they come, and tells the server what
//! is durable, whatever the pipeline does.
//!
//! A server ends a connection whose client is silent for a minute, and a full pipeline may block for
//! longer.
//!
//! Invariant: the server is told only places before which everything is durable; of a trial, of which
//! nothing ever is, those before which everything was handed on.

use super::connection::{Connection, Frame};
use super::errors::PgError;
use super::pgoutput::{Lsn, Replication, replication};
use super::tables::WAL;
use bytes::Bytes;
use postgres_protocol::message::backend::{self, Message};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vectide_model::HeldRows;

/// Bytes handed over at once: enough to spread the cost of handing over.
const PARCEL_BYTES: usize = 256 * 1024;

/// Messages handed over at once.
const PARCEL_ITEMS: usize = 512;

/// Parcels at hand while one is being used.
const QUEUE_PARCELS: usize = 8;

/// How often the server is told what is durable, and asked how far it is: an idle source moves on
/// with the answer.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Every status asks for an answer; a server that gives none for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Wait between looks at a full queue.
const FULL_WAIT: Duration = Duration::from_millis(2);

/// What came off the connection.
#[derive(Debug)]
pub(crate) enum Item {
    /// A message of the plugin.
    Message(Bytes),
    /// A message above the limit: its length and beginning.
    TooLarge { bytes: usize, start: Bytes },
    /// The walsender has read to here.
    Keepalive(Lsn),
}

/// Items in their order, or why there are no more.
pub(crate) type Parcel = Result<Vec<Item>, PgError>;

/// What the server need not tell again.
pub(crate) enum Settled {
    /// What is durable.
    Durable(Arc<dyn HeldRows>),
    /// Of a trial: what was handed on. Its slot would keep the server's log for as long as it looks.
    HandedOn(Arc<AtomicU64>),
}

impl Settled {
    fn place(&self) -> Lsn {
        match self {
            Self::Durable(held) => held.durable_positions().get(WAL).copied().unwrap_or(0),
            Self::HandedOn(place) => place.load(Ordering::Relaxed),
        }
    }
}

/// The thread's handle: it ends with it.
pub(crate) struct Feed {
    pub(crate) parcels: Option<Receiver<Parcel>>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    /// Takes over a connection on which the stream has begun.
    pub(crate) fn start(connection: Connection, settled: Settled) -> Result<Self, PgError> {
        let (sender, parcels) = sync_channel(QUEUE_PARCELS);
        let closing = Arc::new(AtomicBool::new(false));
        let mut reader = FeedReader {
            connection,
            settled,
            closing: closing.clone(),
            sender,
            items: Vec::new(),
            bytes: 0,
            told_at: None,
            heard_at: Instant::now(),
            is_asked: false,
        };
        let thread = std::thread::Builder::new()
            .name("postgres-stream".to_owned())
            .spawn(move || {
                if let Err(error) = reader.run() {
                    // Nobody listens when the source ends.
                    let _ = reader.sender.send(Err(error));
                }
                reader.connection.close();
            })
            .map_err(|error| PgError::Setup(format!("a thread can't be started: {error}")))?;
        Ok(Self {
            parcels: Some(parcels),
            closing,
            thread: Some(thread),
        })
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        // A thread that waits to hand over sees that nobody takes.
        drop(self.parcels.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been told by the panic hook.
            let _ = thread.join();
        }
    }
}

struct FeedReader {
    connection: Connection,
    settled: Settled,
    closing: Arc<AtomicBool>,
    sender: SyncSender<Parcel>,
    items: Vec<Item>,
    bytes: usize,
    told_at: Option<Instant>,
    heard_at: Instant,
    is_asked: bool,
}

impl FeedReader {
    fn run(&mut self) -> Result<(), PgError> {
        while !self.closing.load(Ordering::Relaxed) {
            while self.items.len() < PARCEL_ITEMS && self.bytes < PARCEL_BYTES {
                let Some(frame) = self.connection.buffered_frame()? else {
                    break;
                };
                self.take(frame)?;
            }
            self.tell()?;
            if !self.items.is_empty() {
                self.hand_over()?;
                continue;
            }
            self.connection.fill(None)?;
            if self.heard_at.elapsed() > SILENCE_MAX {
                return Err(PgError::Connection("the server is silent".to_owned()));
            }
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame) -> Result<(), PgError> {
        self.heard_at = Instant::now();
        let item = match frame {
            Frame::Message(Message::CopyData(body)) => {
                let bytes = body.into_bytes();
                let framed = replication(&bytes);
                match framed.map_err(|error| PgError::protocol(error.to_string()))? {
                    Replication::Data { message, .. } => Item::Message(bytes.slice_ref(message)),
                    Replication::Keepalive { end, wants_reply } => {
                        self.is_asked |= wants_reply;
                        Item::Keepalive(end)
                    }
                }
            }
            Frame::TooLarge {
                tag: backend::COPY_DATA_TAG,
                bytes,
                start,
            } => Item::TooLarge { bytes, start },
            Frame::Message(Message::ErrorResponse(body)) => {
                return Err(PgError::Server(super::connection::server_error(
                    body.fields(),
                )));
            }
            Frame::Message(Message::CopyDone) => {
                return Err(PgError::Connection(
                    "the server ended the stream".to_owned(),
                ));
            }
            _ => return Ok(()),
        };
        if let Item::Message(bytes) = &item {
            self.bytes += bytes.len();
        }
        self.items.push(item);
        Ok(())
    }

    /// Tells what is settled when it is time or the server asks.
    fn tell(&mut self) -> Result<(), PgError> {
        let is_due = self
            .told_at
            .is_none_or(|at| at.elapsed() >= STATUS_INTERVAL);
        if !is_due && !self.is_asked {
            return Ok(());
        }
        self.connection.send_status(self.settled.place(), is_due)?;
        self.is_asked = false;
        if is_due {
            self.told_at = Some(Instant::now());
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<(), PgError> {
        self.bytes = 0;
        let mut parcel: Parcel = Ok(std::mem::take(&mut self.items));
        loop {
            parcel = match self.sender.try_send(parcel) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(parcel)) => parcel,
                Err(TrySendError::Disconnected(_)) => return Err(PgError::Stopped),
            };
            self.tell()?;
            // While the pipeline is full the server's answers are not read; it is not silent.
            self.heard_at = Instant::now();
            std::thread::sleep(FULL_WAIT);
        }
    }
}
