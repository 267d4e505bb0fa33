//! The bulk lane: tickets of all workers in, vectors back to the worker that asked.
//!
//! Threads take what there is as soon as they are free and never wait for a call to become full: while the
//! embedder is busy the queue fills by itself. Where all texts of a call are made equally long, those of
//! near lengths are taken from a bounded window of the queue's front, and always the oldest with them, so
//! none waits for longer than the texts before it take.
//!
//! A batch that fails is halved until the texts that can't be embedded stand alone, and those are answered
//! with the error.
//!
//! Invariant: every ticket is answered once or given up with the pipeline, and a content is in the queue or computed at most once at a
//! time. The queue has no limit of its own, since a worker must never block on it while it holds other
//! work: the epochs in flight bound it, and none is begun while it is long.

use super::{BatchObserver, BatchReport, BatchSize, Lanes, share};
use crate::chunks::TextSlice;
use crossbeam_channel::Sender;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vectide_model::{BatchLimits, ContentHash, EmbedError, Embedding, Lane, quantize};

/// Calls whose texts are looked through for such of near lengths.
const WINDOW_CALLS: usize = 8;
/// A call of fewer tokens costs more than sharing the queue among the threads gains.
const TOKENS_PER_CALL_MIN: usize = 64;

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
    pub(crate) wake: Arc<dyn Fn() + Send + Sync>,
}

/// An embedded text.
pub(crate) struct Reply {
    pub(crate) content: ContentHash,
    pub(crate) vector: Result<Embedding, EmbedError>,
    /// This text's share of the call's time.
    pub(crate) busy: Duration,
}

/// A text in the queue or in a call.
struct Queued {
    content: ContentHash,
    text: TextSlice,
    tokens: usize,
    since: Instant,
}

/// The queue, and what its calls may hold.
pub(super) struct BulkLane {
    queue: Mutex<Queue>,
    arrived: Condvar,
    limits: BatchLimits,
    threads: usize,
}

#[derive(Default)]
struct Queue {
    /// In the order in which they came.
    waiting: VecDeque<Queued>,
    waiting_tokens: usize,
    computing_tokens: usize,
    /// Who waits for each content that is in the queue or in a call.
    askers: FxHashMap<ContentHash, Vec<ReplyTo>>,
    is_closed: bool,
}

impl BulkLane {
    pub(super) fn new(limits: BatchLimits, threads: usize) -> Self {
        Self {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            limits,
            threads,
        }
    }

    /// A panic in the embedder ends the process, so that nothing half-changed is seen.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens that wait or are being computed.
    pub(super) fn waiting_tokens(&self) -> usize {
        let queue = self.lock();
        queue.waiting_tokens + queue.computing_tokens
    }

    /// Says how many, under the lock, so that an older number never comes after a newer one.
    pub(super) fn tell(&self, observer: &dyn BatchObserver) {
        let queue = self.lock();
        observer.waiting(queue.waiting_tokens + queue.computing_tokens);
    }

    /// Ends the threads after the calls they are in; whoever waited is gone.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_all();
    }

    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Takes a ticket; says whether its text has to be computed for it.
    pub(super) fn push(&self, ticket: Ticket, tokens: usize) -> bool {
        let is_new = self.lock().push(ticket, tokens);
        if is_new {
            self.arrived.notify_one();
        }
        is_new
    }

    /// Computes until the lane is closed.
    pub(super) fn serve(&self, lanes: &Lanes) {
        while let Some(batch) = self.take() {
            self.embed(lanes, batch);
            self.tell(&*lanes.observer);
        }
    }

    /// Waits for texts and takes as many as a call should have.
    fn take(&self) -> Option<Vec<Queued>> {
        let mut queue = self.lock();
        while queue.waiting.is_empty() && !queue.is_closed {
            queue = self
                .arrived
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if queue.is_closed {
            return None;
        }
        let batch = queue.take(self.limits, self.threads);
        if !queue.waiting.is_empty() {
            self.arrived.notify_one();
        }
        Some(batch)
    }

    fn embed(&self, lanes: &Lanes, mut batch: Vec<Queued>) {
        let size = size_of(&batch);
        let texts: Vec<&str> = batch.iter().map(|it| it.text.as_str()).collect();
        let oldest = batch.iter().map(|it| it.since).min();
        let call = || {
            let start = Instant::now();
            let outcome = lanes.call(Lane::Bulk, &texts);
            lanes.observer.batch(&BatchReport {
                lane: Lane::Bulk,
                texts: size.texts,
                tokens: size.tokens,
                padding_tokens: size.computed_tokens(self.limits.is_padded) - size.tokens,
                waited: oldest.map_or(Duration::ZERO, |oldest| start.duration_since(oldest)),
                took: start.elapsed(),
                has_failed: outcome.is_err(),
            });
            outcome
        };
        let Some((outcome, took)) = lanes.outage.wait_out(call) else {
            return;
        };
        match outcome {
            Ok(vectors) => {
                for (queued, vector) in batch.into_iter().zip(vectors) {
                    let busy = share(took, queued.tokens, size.tokens);
                    self.answer(&queued, &Ok(quantize(&vector)), busy);
                }
            }
            Err(_) if batch.len() > 1 => {
                let half = batch.split_off(batch.len() / 2);
                self.embed(lanes, batch);
                self.embed(lanes, half);
            }
            Err(error) => {
                for queued in batch {
                    self.answer(&queued, &Err(error.clone()), took);
                }
            }
        }
    }

    fn answer(&self, queued: &Queued, vector: &Result<Embedding, EmbedError>, busy: Duration) {
        let content = queued.content;
        let askers = {
            let mut queue = self.lock();
            queue.computing_tokens -= queued.tokens;
            queue.askers.remove(&content).unwrap_or_default()
        };
        // The first one's epoch has paid for it.
        let busy_of = std::iter::once(busy).chain(std::iter::repeat(Duration::ZERO));
        for (reply_to, busy) in askers.into_iter().zip(busy_of) {
            let vector = vector.clone();
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
                (reply_to.wake)();
            }
        }
    }
}

impl Queue {
    fn push(&mut self, ticket: Ticket, tokens: usize) -> bool {
        let Ticket {
            content,
            text,
            reply_to,
        } = ticket;
        let askers = self.askers.entry(content).or_default();
        askers.push(reply_to);
        let is_new = askers.len() == 1;
        if is_new {
            self.waiting_tokens += tokens;
            self.waiting.push_back(Queued {
                content,
                text,
                tokens,
                since: Instant::now(),
            });
        }
        is_new
    }

    /// Takes the texts of a call from the front, where something waits: of the tokens that wait no more than
    /// a thread's share, so that all threads share a small epoch.
    fn take(&mut self, limits: BatchLimits, threads: usize) -> Vec<Queued> {
        let share = self.waiting_tokens.div_ceil(threads);
        let limits = BatchLimits {
            tokens: share.max(TOKENS_PER_CALL_MIN).min(limits.tokens),
            ..limits
        };
        let lengths = self.waiting.iter().map(|it| it.tokens);
        let mut places = if limits.is_padded {
            of_near_lengths(lengths, limits)
        } else {
            first(lengths, limits)
        };
        places.sort_unstable();
        let mut batch: Vec<Queued> = Vec::with_capacity(places.len());
        // From the back, so that places stay what they are.
        for place in places.into_iter().rev() {
            batch.extend(self.waiting.remove(place));
        }
        batch.reverse();
        let tokens = size_of(&batch).tokens;
        self.waiting_tokens -= tokens;
        self.computing_tokens += tokens;
        batch
    }
}

fn size_of(batch: &[Queued]) -> BatchSize {
    let lengths = batch.iter().map(|it| it.tokens);
    lengths.fold(BatchSize::default(), BatchSize::with)
}

/// Whether a call can have that size; one of a single text always can.
fn fits(size: BatchSize, limits: BatchLimits) -> bool {
    let computed = size.computed_tokens(limits.is_padded);
    size.texts <= 1 || (size.texts <= limits.texts && computed <= limits.tokens)
}

/// As many as fit, in their order.
fn first(lengths: impl Iterator<Item = usize>, limits: BatchLimits) -> Vec<usize> {
    let mut size = BatchSize::default();
    let taken = lengths.take_while(|tokens| {
        size = size.with(*tokens);
        fits(size, limits)
    });
    (0..taken.count()).collect()
}

/// The places of the oldest and of those whose lengths are nearest to its, from the window.
fn of_near_lengths(lengths: impl Iterator<Item = usize>, limits: BatchLimits) -> Vec<usize> {
    let mut tokens_seen = 0;
    let window = lengths
        .take(limits.texts.saturating_mul(WINDOW_CALLS))
        .take_while(|tokens| {
            let is_inside = tokens_seen < limits.tokens.saturating_mul(WINDOW_CALLS);
            tokens_seen += tokens;
            is_inside
        });
    let mut sorted: Vec<(usize, usize)> = window
        .enumerate()
        .map(|(place, tokens)| (tokens, place))
        .collect();
    let Some((oldest_tokens, _)) = sorted.first().copied() else {
        return Vec::new();
    };
    sorted.sort_unstable();
    let at = sorted.binary_search(&(oldest_tokens, 0)).unwrap_or(0);
    let (mut shorter, mut longer) = (
        sorted[..at].iter().rev().peekable(),
        sorted[at + 1..].iter().peekable(),
    );
    let mut size = BatchSize::default().with(oldest_tokens);
    let mut places = vec![0];
    loop {
        let down = shorter.peek().map(|(tokens, _)| oldest_tokens - tokens);
        let up = longer.peek().map(|(tokens, _)| tokens - oldest_tokens);
        let goes_up = match (down, up) {
            (Some(down), Some(up)) => up <= down,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (None, None) => break,
        };
        let next = if goes_up {
            longer.next()
        } else {
            shorter.next()
        };
        let Some((tokens, place)) = next else {
            break;
        };
        size = size.with(*tokens);
        if !fits(size, limits) {
            break;
        }
        places.push(*place);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn calls_fit_hold_the_oldest_and_take_everything(
            lengths in prop::collection::vec(1_usize..600, 1..200),
            tokens in 1_usize..2_000,
            texts in 1_usize..40,
            is_padded: bool,
        ) {
            let limits = BatchLimits { tokens, texts, is_padded };
            let mut waiting: Vec<(usize, usize)> = lengths.iter().copied().enumerate().collect();
            let mut calls = 0;
            while !waiting.is_empty() {
                let lengths = waiting.iter().map(|(_, tokens)| *tokens);
                let mut places = if is_padded {
                    of_near_lengths(lengths, limits)
                } else {
                    first(lengths, limits)
                };
                places.sort_unstable();
                prop_assert_eq!(places[0], 0);
                let sizes = places.iter().map(|place| waiting[*place].1);
                let size = sizes.fold(BatchSize::default(), BatchSize::with);
                prop_assert!(fits(size, limits), "{:?}", size);
                prop_assert_eq!(size.texts, places.len());
                let before = waiting.len();
                for place in places.iter().rev() {
                    waiting.remove(*place);
                }
                prop_assert_eq!(waiting.len(), before - places.len());
                calls += 1;
            }
            prop_assert!(calls <= lengths.len());
        }
    }
}
