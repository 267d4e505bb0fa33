//! The batcher with threads, against an embedder that a test holds back, counts and lets fail.

use super::bulk::{Reply, ReplyTo, Ticket};
use super::{BatchObserver, BatchReport, Batcher, END_PATIENCE, Outage};
use crate::chunks::TextSlice;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vectide_model::{
    BatchLimits, Caller, ContentHash, EmbedError, Embedder, Lane, ModelIdentity, TokenCounter,
};

/// Far more than anything here takes.
const SOON: Duration = Duration::from_secs(30);
const BAD: &str = "bad";
const PANICS: &str = "panics";
/// Fails beside others, and panics when it is tried alone.
const PANICS_ALONE: &str = "panics alone";

/// A token a byte.
struct Bytes;

impl TokenCounter for Bytes {
    fn count(&self, text: &str) -> usize {
        text.len()
    }
}

/// Makes a vector of a text's length, tells each call, and begins none before it is let.
struct Held {
    identity: ModelIdentity,
    limits: BatchLimits,
    threads: usize,
    calls: Mutex<Vec<(Lane, Vec<String>)>>,
    begun: Sender<()>,
    may_go: Receiver<()>,
}

impl Embedder for Held {
    fn identity(&self) -> &ModelIdentity {
        &self.identity
    }
    fn embed(&self, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let owned = texts.iter().map(|text| (*text).to_owned()).collect();
        self.calls.lock().unwrap().push((lane, owned));
        self.begun.send(()).unwrap();
        self.may_go.recv_timeout(SOON).unwrap();
        assert!(!texts.contains(&PANICS), "on purpose");
        assert!(texts != [PANICS_ALONE], "on purpose");
        if texts.contains(&BAD) || texts.contains(&PANICS_ALONE) {
            return Err(EmbedError::Texts("on purpose".into()));
        }
        Ok(texts.iter().map(|text| vec![text.len() as f32]).collect())
    }
    fn token_counter(&self) -> Arc<dyn TokenCounter> {
        Arc::new(Bytes)
    }
    fn bulk_threads(&self) -> usize {
        self.threads
    }
    fn batch_limits(&self, lane: Lane) -> BatchLimits {
        match lane {
            Lane::Bulk => self.limits,
            Lane::Query => BatchLimits::of_a_core(lane),
        }
    }
    fn worth_remembering(&self) -> bool {
        true
    }
}

/// What was counted.
#[derive(Default)]
struct Counts {
    batches: Mutex<Vec<BatchReport>>,
    shared: AtomicUsize,
    abandoned: AtomicUsize,
}

impl BatchObserver for Arc<Counts> {
    fn batch(&self, batch: &BatchReport) {
        self.batches.lock().unwrap().push(*batch);
    }
    fn waiting(&self, _: usize) {}
    fn shared(&self) {
        self.shared.fetch_add(1, Ordering::Relaxed);
    }
    fn abandoned(&self) {
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }
}

/// A batcher, and the ends by which a test moves its embedder.
struct Bench {
    embedder: Arc<Held>,
    batcher: Batcher,
    counts: Arc<Counts>,
    begun: Receiver<()>,
    go: Sender<()>,
    replies: Receiver<Reply>,
    reply_to: ReplyTo,
}

impl Bench {
    fn new(limits: BatchLimits, threads: usize) -> Self {
        let (begun_sender, begun) = unbounded();
        let (go, may_go) = unbounded();
        let (sender, replies) = unbounded();
        let embedder = Arc::new(Held {
            identity: ModelIdentity {
                name: "held".into(),
                fingerprint: String::new(),
                dimension: 1,
                tokens_max: 1_000,
                device: "cpu".into(),
            },
            limits,
            threads,
            calls: Mutex::default(),
            begun: begun_sender,
            may_go,
        });
        let counts = Arc::new(Counts::default());
        let shared: Arc<dyn Embedder> = embedder.clone();
        let batcher =
            Batcher::start(&shared, &Outage::default(), Box::new(counts.clone())).unwrap();
        let wake = Arc::new(|| ());
        Self {
            embedder,
            batcher,
            counts,
            begun,
            go,
            replies,
            reply_to: ReplyTo { sender, wake },
        }
    }

    fn send(&self, text: &str) {
        let slice: TextSlice = serde_json::from_value(text.into()).unwrap();
        self.batcher.handle().send(Ticket {
            content: ContentHash::of(text),
            text: slice,
            reply_to: self.reply_to.clone(),
        });
    }

    fn call_begins(&self) {
        self.begun.recv_timeout(SOON).expect("a call");
    }

    fn let_go(&self, calls: usize) {
        (0..calls).for_each(|_| self.go.send(()).unwrap());
    }

    fn calls(&self) -> Vec<Vec<String>> {
        let calls = self.embedder.calls.lock().unwrap();
        calls.iter().map(|(_, texts)| texts.clone()).collect()
    }

    /// The next replies, by their contents: the vector, or nothing where there was an error.
    fn replies(&self, count: usize) -> BTreeMap<ContentHash, Option<f32>> {
        let reply = |_| self.replies.recv_timeout(SOON).expect("a reply");
        let replies = (0..count).map(reply).map(
            |Reply {
                 content, vector, ..
             }| {
                let value = vector.ok().map(|vector| vector.to_f32()[0]);
                (content, value)
            },
        );
        replies.collect()
    }
}

fn limits(tokens: usize, texts: usize, is_padded: bool) -> BatchLimits {
    BatchLimits {
        tokens,
        texts,
        is_padded,
    }
}

/// A text of that many bytes.
fn long(letter: &str, bytes: usize) -> String {
    letter.repeat(bytes)
}

#[test]
fn while_a_call_runs_the_next_one_fills_up_to_its_tokens() {
    let bench = Bench::new(limits(100, 64, false), 1);
    bench.send("first");
    bench.call_begins();
    let texts: Vec<String> = "abcdef"
        .chars()
        .map(|it| long(&it.to_string(), 38))
        .collect();
    texts.iter().for_each(|text| bench.send(text));
    bench.let_go(4);
    assert_eq!(bench.replies(7).len(), 7);
    let calls = bench.calls();
    assert_eq!(calls[0], ["first"]);
    // 40 tokens each, with the special ones.
    assert_eq!(calls[1..], [&texts[..2], &texts[2..4], &texts[4..]]);
    let batches = bench.counts.batches.lock().unwrap();
    assert_eq!((batches[1].texts, batches[1].tokens), (2, 80));
    assert!(batches[1].waited <= SOON && batches[1].padding_tokens == 0);
}

#[test]
fn a_small_epoch_is_shared_by_the_threads() {
    let bench = Bench::new(limits(10_000, 64, false), 2);
    let texts: Vec<String> = "abcdefgh"
        .chars()
        .map(|it| long(&it.to_string(), 98))
        .collect();
    // Both threads are busy, so that the texts wait together.
    bench.send("x");
    bench.call_begins();
    bench.send("y");
    bench.call_begins();
    texts.iter().for_each(|text| bench.send(text));
    bench.let_go(2);
    bench.call_begins();
    bench.call_begins();
    let sizes: Vec<usize> = bench.calls()[2..].iter().map(Vec::len).collect();
    assert_eq!(sizes, [4, 2]);
    bench.let_go(10);
    assert_eq!(bench.replies(10).len(), 10);
}

#[test]
fn padded_calls_hold_near_lengths_and_always_the_oldest() {
    let bench = Bench::new(limits(400, 4, true), 1);
    bench.send("first");
    bench.call_begins();
    for (letter, bytes) in [
        ("a", 18),
        ("b", 300),
        ("c", 20),
        ("d", 16),
        ("e", 290),
        ("f", 19),
    ] {
        bench.send(&long(letter, bytes));
    }
    bench.let_go(10);
    assert_eq!(bench.replies(7).len(), 7);
    let letters = |call: &Vec<String>| -> String { call.iter().map(|text| &text[..1]).collect() };
    let calls: Vec<String> = bench.calls()[1..].iter().map(letters).collect();
    assert_eq!(calls, ["acdf", "b", "e"]);
    let batches = bench.counts.batches.lock().unwrap();
    let padding = 4 * 22 - (20 + 22 + 18 + 21);
    assert_eq!(batches[1].padding_tokens, padding);
}

#[test]
fn equal_texts_are_computed_once_and_answered_to_all() {
    let bench = Bench::new(limits(100, 64, false), 1);
    bench.send("first");
    bench.call_begins();
    // One is being computed, the other two wait.
    bench.send("first");
    bench.send("second");
    bench.send("second");
    bench.let_go(2);
    let replies: Vec<Reply> = (0..4)
        .map(|_| bench.replies.recv_timeout(SOON).unwrap())
        .collect();
    assert_eq!(bench.calls(), [["first"], ["second"]]);
    assert_eq!(bench.counts.shared.load(Ordering::Relaxed), 2);
    // What the call took is counted once.
    let paid = |content| {
        let of = replies.iter().filter(move |it| it.content == content);
        of.filter(|it| !it.busy.is_zero()).count()
    };
    assert_eq!(paid(ContentHash::of("first")), 1);
    assert_eq!(paid(ContentHash::of("second")), 1);
    // Asked for once more it is computed once more: remembering is others' matter.
    bench.send("first");
    bench.let_go(1);
    assert_eq!(bench.replies(1).len(), 1);
    assert_eq!(bench.calls().len(), 3);
}

#[test]
fn a_text_that_cannot_be_embedded_fails_alone() {
    let bench = Bench::new(limits(1_000, 64, false), 1);
    bench.send("first");
    bench.call_begins();
    ["a", "bb", BAD, "dddd", "eeeee"]
        .iter()
        .for_each(|text| bench.send(text));
    bench.let_go(100);
    let replies = bench.replies(6);
    assert_eq!(replies[&ContentHash::of(BAD)], None);
    assert_eq!(replies[&ContentHash::of("eeeee")], Some(5.0));
    assert_eq!(replies.values().flatten().count(), 5);
    let failed = bench.counts.batches.lock().unwrap();
    assert!(failed.iter().any(|batch| batch.has_failed));
}

#[test]
fn dropping_it_ends_the_threads_after_their_call() {
    let bench = Bench::new(limits(1, 1, false), 1);
    bench.send("first");
    bench.call_begins();
    bench.send("second");
    let (handle, go) = (bench.batcher.handle(), bench.go.clone());
    let Bench {
        batcher, embedder, ..
    } = bench;
    let end = std::thread::spawn(move || drop(batcher));
    while !handle.0.bulk.is_closed() {
        std::thread::yield_now();
    }
    go.send(()).unwrap();
    end.join().unwrap();
    drop(handle);
    assert_eq!(Arc::strong_count(&embedder), 1);
}

/// Each is waited for as long as one alone is.
#[test]
fn several_that_hang_end_together() {
    let benches = [(); 3].map(|()| Bench::new(limits(1, 1, false), 2));
    for bench in &benches {
        bench.send("first");
        bench.call_begins();
    }
    let gos: Vec<_> = benches.iter().map(|bench| bench.go.clone()).collect();
    let start = Instant::now();
    let batchers = benches.into_iter().map(|bench| bench.batcher);
    Batcher::end_together(batchers.collect());
    let took = start.elapsed();
    assert!(
        took >= END_PATIENCE && took < END_PATIENCE * 3 / 2,
        "{took:?}"
    );
    gos.iter().for_each(|go| go.send(()).unwrap());
}

/// Runs queries on threads of their own.
struct Queries<'scope, 'env> {
    scope: &'scope std::thread::Scope<'scope, 'env>,
    bench: &'env Bench,
}

impl<'scope> Queries<'scope, '_> {
    /// Asks, and waits until the query is computed or stands in the queue.
    fn ask(
        &self,
        text: &'static str,
        has_left: &'scope AtomicBool,
    ) -> std::thread::ScopedJoinHandle<'scope, Result<Vec<Vec<f32>>, EmbedError>> {
        let handle = self.bench.batcher.handle();
        let before = handle.0.query.waiting() + self.bench.calls().len();
        let asked = handle.clone();
        let thread = self.scope.spawn(move || {
            let left = || has_left.load(Ordering::Relaxed);
            asked.embed_query(&[text], &Caller::new(&left))
        });
        let end = Instant::now() + SOON;
        while handle.0.query.waiting() + self.bench.calls().len() == before {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
        thread
    }
}

#[test]
fn queries_that_wait_are_computed_together_in_their_order() {
    let bench = Bench::new(limits(100, 64, false), 1);
    let stays = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let queries = Queries {
            scope,
            bench: &bench,
        };
        let asked =
            ["one", "three", "seven", "eleven"].map(|text| (text, queries.ask(text, &stays)));
        bench.let_go(2);
        for (text, thread) in asked {
            assert_eq!(thread.join().unwrap().unwrap(), [[text.len() as f32]]);
        }
    });
    assert_eq!(bench.calls()[0], ["one"]);
    assert_eq!(bench.calls()[1], ["three", "seven", "eleven"]);
    let batches = bench.counts.batches.lock().unwrap();
    assert!(batches.iter().all(|batch| batch.lane == Lane::Query));
    assert_eq!(batches[1].texts, 3);
}

#[test]
fn many_texts_of_one_caller_let_other_queries_in_between() {
    let bench = Bench::new(limits(100, 64, false), 1);
    let stays = AtomicBool::new(false);
    let texts: Vec<String> = (0..4).map(|at| long(&at.to_string(), 200)).collect();
    let handle = bench.batcher.handle();
    std::thread::scope(|scope| {
        let many = scope.spawn(|| {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            handle.embed_query(&texts, &Caller::STAYS)
        });
        bench.call_begins();
        let query = Queries {
            scope,
            bench: &bench,
        }
        .ask("short", &stays);
        bench.let_go(5);
        assert_eq!(query.join().unwrap().unwrap(), [[5.0]]);
        assert_eq!(many.join().unwrap().unwrap().len(), 4);
    });
    assert_eq!(bench.calls()[1], ["short"]);
    assert_eq!(bench.calls().len(), 5);
}

#[test]
fn a_query_whose_caller_leaves_is_out_of_the_queue() {
    let bench = Bench::new(limits(100, 64, false), 1);
    let (stays, leaves) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let queries = Queries {
            scope,
            bench: &bench,
        };
        let first = queries.ask("first", &stays);
        let second = queries.ask("second", &leaves);
        let third = queries.ask("third", &stays);
        leaves.store(true, Ordering::Relaxed);
        assert!(second.join().unwrap().is_err());
        bench.let_go(2);
        assert!(first.join().unwrap().is_ok() && third.join().unwrap().is_ok());
    });
    assert_eq!(bench.calls(), [["first"], ["third"]]);
    assert_eq!(bench.counts.abandoned.load(Ordering::Relaxed), 1);
}

#[test]
fn a_bad_query_fails_no_other_and_a_panic_leaves_nobody_waiting() {
    let bench = Bench::new(limits(100, 64, false), 1);
    let stays = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let queries = Queries {
            scope,
            bench: &bench,
        };
        let first = queries.ask("first", &stays);
        let second = queries.ask("second", &stays);
        let bad = queries.ask(BAD, &stays);
        bench.let_go(4);
        assert!(first.join().unwrap().is_ok() && second.join().unwrap().is_ok());
        assert!(bad.join().unwrap().is_err());

        let first = queries.ask("first", &stays);
        let panics = queries.ask(PANICS, &stays);
        let along = queries.ask("along", &stays);
        bench.let_go(2);
        assert!(first.join().unwrap().is_ok());
        assert!(panics.join().is_err());
        assert!(along.join().unwrap().is_err());
        bench.let_go(1);
        assert!(queries.ask("last", &stays).join().unwrap().is_ok());
    });
}

#[test]
fn a_panic_while_each_is_tried_alone_leaves_nobody_waiting() {
    let bench = Bench::new(limits(100, 64, false), 1);
    let stays = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let queries = Queries {
            scope,
            bench: &bench,
        };
        let first = queries.ask("first", &stays);
        let others = ["leads", "a", PANICS_ALONE, "b"].map(|text| queries.ask(text, &stays));
        bench.let_go(10);
        assert!(first.join().unwrap().is_ok());
        let answers = others.map(|thread| thread.join().is_ok_and(|answer| answer.is_ok()));
        // The last is tried first; who leads is hit by the panic, and nobody knows of the others' texts.
        assert_eq!(answers, [false, false, false, true]);
        assert!(queries.ask("last", &stays).join().unwrap().is_ok());
    });
}

#[test]
fn a_caller_that_leaves_has_no_more_of_its_texts_embedded() {
    let bench = Bench::new(limits(100, 64, false), 1);
    let texts: Vec<String> = (0..4).map(|at| long(&at.to_string(), 200)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let (handle, has_left) = (bench.batcher.handle(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let left = || has_left.load(Ordering::Relaxed);
        let asked = scope.spawn(move || handle.embed_query(&texts, &Caller::new(&left)));
        bench.call_begins();
        has_left.store(true, Ordering::Relaxed);
        bench.let_go(4);
        assert!(asked.join().unwrap().is_err());
    });
    assert_eq!(bench.calls().len(), 1);
    assert_eq!(bench.counts.abandoned.load(Ordering::Relaxed), 1);
}
