//! Texts of all workers and of all queries to one embedder: which of them go into a call together, and
//! whose turn it is.
//!
//! There are two lanes. Chunks of documents wait in [`bulk`] for the embedder's own threads, which fill
//! calls up to a number of tokens. Queries are embedded by the threads that ask ([`query`]): at once where
//! the embedder is free for them, else together with the others that wait. Neither lane waits for the
//! other: how a device gives queries the right of way is the embedder's matter.
//!
//! Invariant: every text is answered exactly once, but for those that are given up when the pipeline ends
//! while its embedder is away ([`outage`]); a text that several ask for at once is computed once,
//! and one that can't be embedded fails no other.

mod bulk;
mod outage;
mod query;
mod report;
#[cfg(test)]
mod tests;

pub(crate) use bulk::{Reply, ReplyTo, Ticket};
pub use outage::Outage;
pub use report::{BatchObserver, BatchReport};

use bulk::BulkLane;
use query::QueryLane;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vectide_model::{Caller, EmbedError, Embedder, Embedding, Lane, TokenCounter, quantize};

/// Tokens that may wait for an embedder or be computed before no more epochs are begun: a second of a fast
/// device, and some megabytes of text.
const WAITING_TOKENS_MAX: usize = 1 << 20;

/// Bytes of a text that are looked at to know its tokens, for each token that the model takes: hardly any
/// word piece is longer, and a text beyond is cut anyway.
const BYTES_PER_TOKEN_MAX: usize = 32;

/// How long the end waits for calls: one to a service that hangs ends by its own time limit, and whatever
/// it brings is wanted by nobody any more.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// An embedder with its two lanes, and the threads of one of them. Dropping it ends them after the call they
/// are in.
pub struct Batcher {
    lanes: Arc<Lanes>,
    threads: Vec<JoinHandle<()>>,
}

struct Lanes {
    embedder: Arc<dyn Embedder>,
    counter: Arc<dyn TokenCounter>,
    observer: Box<dyn BatchObserver>,
    outage: Outage,
    bulk: BulkLane,
    query: QueryLane,
}

impl Batcher {
    /// Starts as many threads as the embedder wants.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn start(
        embedder: &Arc<dyn Embedder>,
        outage: &Outage,
        observer: Box<dyn BatchObserver>,
    ) -> std::io::Result<Self> {
        let calls = embedder.bulk_threads().max(1);
        let lanes = Arc::new(Lanes {
            counter: embedder.token_counter(),
            observer,
            outage: outage.clone(),
            bulk: BulkLane::new(embedder.batch_limits(Lane::Bulk), calls),
            query: QueryLane::new(embedder.batch_limits(Lane::Query), calls),
            embedder: embedder.clone(),
        });
        let threads = (0..calls)
            .map(|number| {
                let lanes = lanes.clone();
                std::thread::Builder::new()
                    .name(format!("vectide-embed-{number}"))
                    .spawn(move || lanes.bulk.serve(&lanes))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { lanes, threads })
    }

    /// A handle for those who ask.
    pub fn handle(&self) -> BatcherHandle {
        BatcherHandle(self.lanes.clone())
    }

    /// Ends several as dropping each would, but in the time of one: embedders that hang are waited for together.
    pub fn end_together(batchers: Vec<Self>) {
        batchers.iter().for_each(Self::close);
        let end = Instant::now() + END_PATIENCE;
        for mut batcher in batchers {
            batcher.wait(end);
        }
    }

    /// Lets no thread begin another call.
    fn close(&self) {
        self.lanes.bulk.close();
        self.lanes.outage.give_up();
    }

    /// Waits for the calls that threads are in; those that take longer are left to themselves.
    fn wait(&mut self, end: Instant) {
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !thread.is_finished() {
                continue;
            }
            // A panicking embedder thread has already ended the process by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.close();
        self.wait(Instant::now() + END_PATIENCE);
    }
}

/// Asks for vectors.
#[derive(Clone)]
pub struct BatcherHandle(Arc<Lanes>);

impl BatcherHandle {
    /// The embedder.
    pub fn embedder(&self) -> &dyn Embedder {
        &*self.0.embedder
    }

    /// Embeds texts of a query; the thread that calls may compute those of others, too.
    ///
    /// # Errors
    /// When one of them can't be embedded, or the caller leaves before its turn.
    pub fn embed_query(
        &self,
        texts: &[&str],
        caller: &Caller<'_>,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.0.query.embed(&self.0, texts, caller)
    }

    /// Whether the bulk lane can take the texts of another epoch.
    pub fn has_room(&self) -> bool {
        self.0.bulk.waiting_tokens() < WAITING_TOKENS_MAX
    }

    /// Hands a chunk's text to the bulk lane; never blocks.
    pub(crate) fn send(&self, ticket: Ticket) {
        let tokens = self.0.tokens(ticket.text.as_str());
        if !self.0.bulk.push(ticket, tokens) {
            self.0.observer.shared();
        }
        self.0.bulk.tell(&*self.0.observer);
    }

    /// Stands for the vector of a text that can't be embedded: similar to nothing.
    pub(crate) fn nothing(&self) -> Embedding {
        quantize(&vec![0.0; self.0.embedder.identity().dimension])
    }
}

impl Lanes {
    /// Tokens of a text as the model takes them, special ones included.
    fn tokens(&self, text: &str) -> usize {
        let tokens_max = self.embedder.identity().tokens_max;
        let bytes = tokens_max.saturating_mul(BYTES_PER_TOKEN_MAX);
        let mut end = bytes.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let seen = &text[..end];
        (self.counter.count(seen) + 2).min(tokens_max.max(1))
    }

    /// Embeds a batch in one call.
    fn call(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let vectors = self.embedder.embed(lane, texts)?;
        if vectors.len() == texts.len() {
            return Ok(vectors);
        }
        let (made, asked) = (vectors.len(), texts.len());
        let fact = format!("the embedder returned {made} vectors for {asked} texts");
        Err(EmbedError::Texts(fact))
    }
}

/// A text's share of a call's time, by its tokens.
fn share(took: Duration, tokens: usize, of: usize) -> Duration {
    took.mul_f64(tokens as f64 / of.max(1) as f64)
}

/// What a batch is known by while it is put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct BatchSize {
    texts: usize,
    tokens: usize,
    /// Tokens of its longest text.
    longest: usize,
}

impl BatchSize {
    fn with(self, tokens: usize) -> Self {
        Self {
            texts: self.texts + 1,
            tokens: self.tokens + tokens,
            longest: self.longest.max(tokens),
        }
    }

    /// Tokens that are computed.
    fn computed_tokens(self, is_padded: bool) -> usize {
        if is_padded {
            self.texts * self.longest
        } else {
            self.tokens
        }
    }
}
