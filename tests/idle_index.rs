//! An index that stops changing: what its builders finish is taken in without a change, in epochs of its own,
//! until there is no more of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vectide_engine::{Pipeline, Plan};
use vectide_faiss::{FaissFactory, FaissOptions, Quantization};
use vectide_model::{
    Answer, ChunkId, ClosedShard, IndexError, IndexRow, Query, QueryInput, QueryService, ReadMode,
    ShardState, StopSignal, VectorIndex, VectorIndexFactory, VectorIndexRead,
};
use vectide_tests::{Script, ScriptedPipeline};

const PAGES: usize = 4_000;
/// So that many heads are sealed and merged.
const HEAD_ROWS: usize = 100;
/// Segments are left as they are where each is more than four times as large as all smaller ones together.
/// How the 39 full heads fall into merges depends on when builders are done: 1, 5 and 33 heads may stay, and
/// a fourth segment would have to have more than 156 of them.
const SEGMENTS_MAX: usize = 3;
/// How long an index without news has to stay as it is.
const QUIET: Duration = Duration::from_millis(500);

fn plan(state: &Path) -> Plan {
    let mut plan = plan_of(state, &[PAGES]);
    plan.indexes[0].factory = Arc::new(FaissFactory::new(FaissOptions {
        head_rows_max: HEAD_ROWS,
        frozen_heads_max: 2,
        flat_rows_max: 1_000,
        quantization: Quantization::default(),
    }));
    plan
}

/// Whose batches write the pages up to these.
fn plan_of(state: &Path, ends: &[usize]) -> Plan {
    let page = |at: usize| {
        let text = format!("page {at} of topic {}", at % 37);
        (at.to_string(), Some(text))
    };
    let starts = std::iter::once(&0).chain(ends);
    let batches = starts
        .zip(ends)
        .map(|(start, end)| ((*start..*end).map(page).collect(), Duration::ZERO));
    let script = Script {
        batches: batches.collect(),
    };
    ScriptedPipeline::default().plan(state, vec![("pages", Box::new(script))])
}

/// A factory whose shards have news from their opening on, as after a build that ended at once, until they are
/// closed again; counts how often they are.
struct Hasty {
    inner: Arc<dyn VectorIndexFactory>,
    closes: Arc<AtomicUsize>,
}

struct HastyShard {
    inner: Box<dyn VectorIndex>,
    closes: Arc<AtomicUsize>,
}

impl VectorIndexFactory for Hasty {
    fn open(
        &self,
        directory: &Path,
        dimension: usize,
        state: ShardState,
    ) -> Result<Box<dyn VectorIndex>, IndexError> {
        let inner = self.inner.open(directory, dimension, state)?;
        let closes = self.closes.clone();
        Ok(Box::new(HastyShard { inner, closes }))
    }

    fn read(
        &self,
        directory: &Path,
        dimension: usize,
        state: ShardState,
    ) -> Result<Arc<dyn VectorIndexRead>, IndexError> {
        self.inner.read(directory, dimension, state)
    }
}

impl VectorIndex for HastyShard {
    fn remove(&mut self, chunk: &ChunkId) {
        self.inner.remove(chunk);
    }

    fn insert(&mut self, row: IndexRow) {
        self.inner.insert(row);
    }

    fn close_epoch(&mut self) -> Result<ClosedShard, IndexError> {
        self.closes.fetch_add(1, Ordering::Relaxed);
        self.inner.close_epoch()
    }

    fn has_news(&self) -> bool {
        self.closes.load(Ordering::Relaxed) < 2
    }
}

fn ask(service: &dyn QueryService) -> Answer {
    let input = QueryInput::Text("a page of topic 5".into());
    let query = Query {
        exact: true,
        ..Query::new("pages", input, 10)
    };
    service.query(&query).expect("an answer")
}

/// Waits until all is read and merged, and no epoch is closed any more.
fn settled(service: &dyn QueryService) -> Answer {
    let end = Instant::now() + Duration::from_secs(120);
    let (mut newest, mut since) = (ask(service), Instant::now());
    // Builders have a low priority, so that nothing may happen for long before they are done.
    let is_merged = || (1..=SEGMENTS_MAX).contains(&segments(service));
    while !service.readiness().caught_up || !is_merged() || since.elapsed() < QUIET {
        assert!(Instant::now() < end, "{}", service.metrics());
        std::thread::sleep(Duration::from_millis(10));
        let answer = ask(service);
        if answer.as_of.epoch != newest.as_of.epoch {
            (newest, since) = (answer, Instant::now());
        }
    }
    newest
}

fn chunks(answer: &Answer) -> Vec<ChunkId> {
    answer.hits.iter().map(|hit| hit.chunk).collect()
}

/// As the index itself says: metrics are of all tests that run in this process.
fn segments(service: &dyn QueryService) -> usize {
    let status = service.index("pages").expect("an index");
    status.segments as usize
}

/// Ends the pipeline also where the test fails, since dropping it waits for its workers.
struct Ending(StopSignal);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[test]
fn what_is_built_when_nothing_changes_is_taken_in() {
    let directory = tempfile::tempdir().expect("a folder");
    let pipeline = Pipeline::start(plan(directory.path()), ReadMode::Follow).expect("a start");
    let ending = Ending(pipeline.stop_signal());
    let service = pipeline.service();
    let answer = settled(&*service);
    assert_eq!(answer.hits.len(), 10);
    drop((service, ending));
    pipeline.join().expect("an end");

    let pipeline = Pipeline::start(plan(directory.path()), ReadMode::Follow).expect("a start");
    let ending = Ending(pipeline.stop_signal());
    let again = settled(&*pipeline.service());
    assert_eq!(chunks(&again), chunks(&answer));
    assert_eq!(again.as_of.positions, answer.as_of.positions);
    drop(ending);
    pipeline.join().expect("an end");
}

/// What is ready before the first epoch of a process belongs to that epoch, not to the last one of the process
/// before, which is committed.
#[test]
fn news_at_the_start_are_of_the_first_epoch() {
    let directory = tempfile::tempdir().expect("a folder");
    let run = |ends: &[usize], is_hasty: bool| {
        let mut plan = plan_of(directory.path(), ends);
        let closes = Arc::new(AtomicUsize::new(0));
        if is_hasty {
            let inner = plan.indexes[0].factory.clone();
            let closes = closes.clone();
            plan.indexes[0].factory = Arc::new(Hasty { inner, closes });
        }
        let pipeline = Pipeline::start(plan, ReadMode::UntilCaughtUp).expect("a start");
        while !pipeline.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        pipeline.join().expect("an end");
        closes.load(Ordering::Relaxed)
    };
    run(&[100], false);
    // Nothing new: no epoch, and so nothing is closed but by the opening.
    assert_eq!(run(&[100], true), 1);
    assert_eq!(run(&[100, 110], true), 2);
}
