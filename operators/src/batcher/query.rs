//! The query lane: queries are embedded by the threads that ask, so that one alone is handed to nobody.
//!
//! At most `turns_max` calls are made at once. Who comes when all turns are taken waits; a thread whose call
//! has ended gives its turn to the one that has waited longest, which takes along others that wait, as
//! many as make a short call. So a thread computes at most one call for others besides its own texts (more
//! only where one of them can't be embedded), and the more queries come at once, the less each costs.
//!
//! Invariant: nobody waits for a turn without one of the threads having it; a query whose caller leaves is
//! out of the queue; no call is so long that the next query notices.

use super::{BatchReport, Lanes};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vectide_model::{BatchLimits, Caller, EmbedError, Lane};

/// How often one that waits looks whether its caller is still there.
const CALLER_CHECK: Duration = Duration::from_millis(5);

type Vectors = Result<Vec<Vec<f32>>, EmbedError>;

pub(super) struct QueryLane {
    turns: Mutex<Turns>,
    limits: BatchLimits,
    turns_max: usize,
}

#[derive(Default)]
struct Turns {
    taken: usize,
    waiting: VecDeque<Arc<Request>>,
}

/// Texts that wait for another thread, or for their own's turn.
struct Request {
    texts: Vec<String>,
    tokens: usize,
    since: Instant,
    stage: Mutex<Stage>,
    changed: Condvar,
}

enum Stage {
    Waiting,
    /// Its thread has the turn, and computes these besides its own.
    Leads(Vec<Arc<Request>>),
    Done(Vectors),
}

impl QueryLane {
    pub(super) fn new(limits: BatchLimits, turns_max: usize) -> Self {
        Self {
            turns: Mutex::default(),
            limits,
            turns_max,
        }
    }

    /// Embeds texts in calls that are short enough.
    pub(super) fn embed(&self, lanes: &Lanes, texts: &[&str], caller: &Caller<'_>) -> Vectors {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            if caller.has_left() {
                lanes.observer.abandoned();
                return Err(caller_left());
            }
            let (piece, tokens) = piece(lanes, rest, self.limits);
            vectors.append(&mut self.embed_piece(lanes, &rest[..piece], tokens, caller)?);
            rest = &rest[piece..];
        }
        Ok(vectors)
    }

    fn embed_piece(
        &self,
        lanes: &Lanes,
        texts: &[&str],
        tokens: usize,
        caller: &Caller<'_>,
    ) -> Vectors {
        match self.take_turn(texts, tokens) {
            Ok(turn) => {
                let vectors = call(lanes, texts, (tokens, Duration::ZERO));
                drop(turn);
                vectors
            }
            Err(request) => self.wait(lanes, &request, caller),
        }
    }

    /// A turn, or a place in the queue for one.
    fn take_turn(&self, texts: &[&str], tokens: usize) -> Result<Turn<'_>, Arc<Request>> {
        let mut turns = lock(&self.turns);
        if turns.taken < self.turns_max {
            turns.taken += 1;
            let others = Vec::new();
            return Ok(Turn { lane: self, others });
        }
        let request = Arc::new(Request {
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
            tokens,
            since: Instant::now(),
            stage: Mutex::new(Stage::Waiting),
            changed: Condvar::new(),
        });
        turns.waiting.push_back(request.clone());
        Err(request)
    }

    /// Waits until another thread has computed the request, or its own may.
    fn wait(&self, lanes: &Lanes, request: &Arc<Request>, caller: &Caller<'_>) -> Vectors {
        loop {
            match request.next_stage() {
                Stage::Done(vectors) => return vectors,
                Stage::Leads(others) => {
                    let turn = Turn { lane: self, others };
                    return turn.lead(lanes, request);
                }
                Stage::Waiting if caller.has_left() && self.leave(request) => {
                    lanes.observer.abandoned();
                    return Err(caller_left());
                }
                Stage::Waiting => {}
            }
        }
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        lock(&self.turns).waiting.len()
    }

    /// Takes a request out of the queue; false where it is in it no more.
    fn leave(&self, request: &Arc<Request>) -> bool {
        let mut turns = lock(&self.turns);
        let before = turns.waiting.len();
        turns.waiting.retain(|other| !Arc::ptr_eq(other, request));
        turns.waiting.len() < before
    }
}

/// The right to call the embedder, and the requests that are computed with it. It goes to the next that
/// waits when it is dropped, also by a panic.
struct Turn<'a> {
    lane: &'a QueryLane,
    others: Vec<Arc<Request>>,
}

impl Turn<'_> {
    /// Computes a request and the others of the turn; gives the result of the first.
    fn lead(mut self, lanes: &Lanes, own: &Arc<Request>) -> Vectors {
        let waited = own.since.elapsed();
        if self.others.is_empty() {
            return call(lanes, &own.texts(), (own.tokens, waited));
        }
        let all: Vec<&Arc<Request>> = std::iter::once(own).chain(&self.others).collect();
        let texts: Vec<&str> = all.iter().flat_map(|it| it.texts()).collect();
        let tokens = all.iter().map(|it| it.tokens).sum();
        let mut vectors = match call(lanes, &texts, (tokens, waited)) {
            Ok(vectors) => vectors.into_iter(),
            Err(away @ EmbedError::Unavailable(_)) => {
                for other in std::mem::take(&mut self.others) {
                    other.finish(Err(away.clone()));
                }
                return Err(away);
            }
            // One of the texts is at fault, and fails no other's.
            Err(EmbedError::Texts(_)) => {
                // Each stays the turn's until it is answered, lest a panic forget it.
                while let Some(other) = self.others.last() {
                    other.finish(call(lanes, &other.texts(), (other.tokens, waited)));
                    self.others.pop();
                }
                return call(lanes, &own.texts(), (own.tokens, waited));
            }
        };
        let first = vectors.by_ref().take(own.texts.len()).collect();
        let others = std::mem::take(&mut self.others);
        // The next may begin before the results are given out.
        drop(self);
        for other in others {
            other.finish(Ok(vectors.by_ref().take(other.texts.len()).collect()));
        }
        Ok(first)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = lock(&self.lane.turns);
        match turns.waiting.pop_front() {
            Some(next) => {
                let others = turns.along_with(&next, self.lane.limits);
                next.enter(Stage::Leads(others));
            }
            None => turns.taken -= 1,
        }
        drop(turns);
        // Only a panic leaves some.
        for other in self.others.drain(..) {
            let fact = "the embedder panicked on a query that was computed with this one";
            other.finish(Err(EmbedError::Unavailable(fact.into())));
        }
    }
}

impl Turns {
    /// Takes out of the queue what makes one call with a request.
    fn along_with(&mut self, first: &Request, limits: BatchLimits) -> Vec<Arc<Request>> {
        let (mut texts, mut tokens) = (first.texts.len(), first.tokens);
        let mut others = Vec::new();
        while let Some(next) = self.waiting.front() {
            (texts, tokens) = (texts + next.texts.len(), tokens + next.tokens);
            if texts > limits.texts || tokens > limits.tokens {
                break;
            }
            others.extend(self.waiting.pop_front());
        }
        others
    }
}

impl Request {
    fn texts(&self) -> Vec<&str> {
        self.texts.iter().map(String::as_str).collect()
    }

    fn enter(&self, stage: Stage) {
        *lock(&self.stage) = stage;
        self.changed.notify_one();
    }

    fn finish(&self, vectors: Vectors) {
        self.enter(Stage::Done(vectors));
    }

    /// Waits for a while for another stage than waiting, and takes it.
    fn next_stage(&self) -> Stage {
        let mut stage = lock(&self.stage);
        if matches!(*stage, Stage::Waiting) {
            let waited = self.changed.wait_timeout(stage, CALLER_CHECK);
            stage = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::replace(&mut *stage, Stage::Waiting)
    }
}

/// Stages are replaced whole, so that a panic elsewhere leaves them sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many of the texts make a call, at least one, and their tokens.
fn piece(lanes: &Lanes, texts: &[&str], limits: BatchLimits) -> (usize, usize) {
    let mut tokens = lanes.tokens(texts[0]);
    let mut count = 1;
    for text in &texts[1..] {
        let more = lanes.tokens(text);
        if count == limits.texts || tokens + more > limits.tokens {
            break;
        }
        (tokens, count) = (tokens + more, count + 1);
    }
    (count, tokens)
}

fn caller_left() -> EmbedError {
    EmbedError::Unavailable("the caller left before its turn".into())
}

fn call(lanes: &Lanes, texts: &[&str], (tokens, waited): (usize, Duration)) -> Vectors {
    let start = Instant::now();
    let vectors = lanes.call(Lane::Query, texts);
    lanes.observer.batch(&BatchReport {
        lane: Lane::Query,
        texts: texts.len(),
        tokens,
        padding_tokens: 0,
        waited,
        took: start.elapsed(),
        has_failed: vectors.is_err(),
    });
    vectors
}
