//! The embedder's own threads: tickets in, vectors back to the worker that asked.
//!
//! Invariant: every ticket is answered exactly once. A batch that fails is halved until the texts
//! that can't be embedded stand alone, and those are answered with the error.
//!
//! The queue has no limit of its own: what can stand in it is bounded by the epochs in flight, which
//! the ingest counts, and a worker must never block on it while it holds other work.

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use timely::scheduling::SyncActivator;
use vectide_model::{ContentHash, EmbedError, Embedder, Embedding, Lane, quantize};

use crate::chunks::TextSlice;

/// Texts handed to the embedder in one call: enough to fill its batches, while the threads share a
/// small epoch evenly.
const TEXTS_PER_CALL_MAX: usize = 32;

/// A text to embed.
pub(crate) struct Ticket {
    pub(crate) content: ContentHash,
    pub(crate) text: TextSlice,
    pub(crate) reply_to: ReplyTo,
}

/// Where the answer goes; wakes the operator that waits for it.
#[derive(Clone)]
pub(crate) struct ReplyTo {
    pub(crate) sender: Sender<Reply>,
    pub(crate) activator: Arc<SyncActivator>,
}

/// An embedded text.
pub(crate) struct Reply {
    pub(crate) content: ContentHash,
    pub(crate) vector: Result<Embedding, EmbedError>,
    /// This text's share of the call's time.
    pub(crate) busy: Duration,
}

/// Threads that embed for all workers of the process. Dropping it ends them after their last call.
pub struct EmbedPool {
    tickets: Option<Sender<Ticket>>,
    dimension: usize,
    threads: Vec<JoinHandle<()>>,
}

impl EmbedPool {
    /// Starts as many threads as the embedder wants.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(embedder: &Arc<dyn Embedder>) -> std::io::Result<Self> {
        let (tickets, work) = crossbeam_channel::unbounded();
        let threads = (0..embedder.bulk_threads())
            .map(|number| {
                let (embedder, work) = (embedder.clone(), work.clone());
                std::thread::Builder::new()
                    .name(format!("vectide-embed-{number}"))
                    .spawn(move || serve(&*embedder, &work))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            tickets: Some(tickets),
            dimension: embedder.identity().dimension,
            threads,
        })
    }

    /// A handle for an operator.
    pub fn handle(&self) -> EmbedHandle {
        EmbedHandle {
            tickets: self.tickets.clone(),
            dimension: self.dimension,
        }
    }
}

impl Drop for EmbedPool {
    fn drop(&mut self) {
        self.tickets = None;
        for thread in self.threads.drain(..) {
            // A panicking embedder thread has already ended the process by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Hands tickets to the pool.
#[derive(Clone)]
pub struct EmbedHandle {
    tickets: Option<Sender<Ticket>>,
    dimension: usize,
}

impl EmbedHandle {
    /// Stands for the vector of a text that can't be embedded: similar to nothing.
    pub(crate) fn nothing(&self) -> Embedding {
        quantize(&vec![0.0; self.dimension])
    }

    pub(crate) fn send(&self, ticket: Ticket) {
        if let Some(tickets) = &self.tickets {
            // Only fails when the pool has ended, and then so does the process.
            let _ = tickets.send(ticket);
        }
    }
}

fn serve(embedder: &dyn Embedder, work: &Receiver<Ticket>) {
    while let Ok(first) = work.recv() {
        let mut batch = vec![first];
        while batch.len() < TEXTS_PER_CALL_MAX {
            match work.try_recv() {
                Ok(ticket) => batch.push(ticket),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        embed(embedder, batch);
    }
}

fn embed(embedder: &dyn Embedder, mut batch: Vec<Ticket>) {
    let start = Instant::now();
    let texts: Vec<&str> = batch.iter().map(|ticket| ticket.text.as_str()).collect();
    match embedder.embed(Lane::Bulk, &texts) {
        Ok(vectors) => {
            let busy = start.elapsed() / batch.len() as u32;
            for (ticket, vector) in batch.into_iter().zip(vectors) {
                answer(ticket, Ok(quantize(&vector)), busy);
            }
        }
        Err(_) if batch.len() > 1 => {
            let half = batch.split_off(batch.len() / 2);
            embed(embedder, batch);
            embed(embedder, half);
        }
        Err(error) => {
            let busy = start.elapsed();
            batch
                .into_iter()
                .for_each(|ticket| answer(ticket, Err(error.clone()), busy));
        }
    }
}

fn answer(ticket: Ticket, vector: Result<Embedding, EmbedError>, busy: Duration) {
    let Ticket {
        content, reply_to, ..
    } = ticket;
    // The worker is gone only when the process is ending.
    if reply_to
        .sender
        .send(Reply {
            content,
            vector,
            busy,
        })
        .is_ok()
    {
        let _ = reply_to.activator.activate();
    }
}
