//! Recall is kept: an index whose searches miss too much looks at more, by itself, in an epoch of its own, and
//! goes on with that after a restart.
//!
//! The index is the real one, but for a reader that leaves out true hits until a search's effort is large
//! enough.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vectide_engine::{Pipeline, Plan};
use vectide_model::{
    Answer, ChunkId, ClosedShard, Effort, Embedding, Found, IndexError, IndexRow, Query,
    QueryInput, QueryService, ReadMode, Search, ShardState, Term, TermMatches, VectorIndex,
    VectorIndexFactory, VectorIndexRead,
};
use vectide_tests::{Script, ScriptedPipeline};

/// Steps above the nominal effort from which on nothing is missed.
const STEPS: u8 = 5;
/// Hits of a query, and those that are missed of them.
const K: usize = 10;
const MISSED: usize = 2;

/// Around a factory, a shard or its reader.
struct Lossy<T> {
    inner: T,
    renewals: Arc<AtomicUsize>,
}

impl<T> Lossy<T> {
    fn around<U>(&self, inner: U) -> Lossy<U> {
        let renewals = self.renewals.clone();
        Lossy { inner, renewals }
    }
}

impl VectorIndexFactory for Lossy<Arc<dyn VectorIndexFactory>> {
    fn open(
        &self,
        directory: &Path,
        dimension: usize,
        state: ShardState,
    ) -> Result<Box<dyn VectorIndex>, IndexError> {
        let shard = self.inner.open(directory, dimension, state)?;
        Ok(Box::new(self.around(shard)))
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

impl VectorIndex for Lossy<Box<dyn VectorIndex>> {
    fn remove(&mut self, chunk: &ChunkId) {
        self.inner.remove(chunk);
    }

    fn insert(&mut self, row: IndexRow) {
        self.inner.insert(row);
    }

    fn close_epoch(&mut self) -> Result<ClosedShard, IndexError> {
        let ClosedShard { read, commit } = self.inner.close_epoch()?;
        let read = Arc::new(self.around(read));
        Ok(ClosedShard { read, commit })
    }

    fn has_news(&self) -> bool {
        self.inner.has_news()
    }
}

impl VectorIndexRead for Lossy<Arc<dyn VectorIndexRead>> {
    fn rows(&self) -> usize {
        self.inner.rows()
    }

    fn segments(&self) -> usize {
        self.inner.segments()
    }

    fn segment_bytes(&self) -> u64 {
        self.inner.segment_bytes()
    }

    fn search_all(&self, queries: &[&[f32]], search: &Search) -> Vec<Found> {
        let mut found = self.inner.search_all(queries, search);
        let enough = Effort::NOMINAL.step() + STEPS;
        if search.effort.is_some_and(|effort| effort.step() < enough) {
            found
                .iter_mut()
                .for_each(|it| drop(it.hits.drain(..MISSED)));
        }
        found
    }

    fn matches(&self, terms: &[Term]) -> Box<dyn TermMatches + '_> {
        self.inner.matches(terms)
    }

    fn vector(&self, chunk: &ChunkId) -> Option<Embedding> {
        self.inner.vector(chunk)
    }

    fn score(&self, query: &[f32], chunk: &ChunkId) -> Option<f32> {
        self.inner.score(query, chunk)
    }

    fn renew(&self) {
        self.renewals.fetch_add(1, Ordering::Relaxed);
        self.inner.renew();
    }

    fn has_news(&self) -> bool {
        self.inner.has_news()
    }
}

fn script() -> Script {
    let page = |at: usize| {
        (
            at.to_string(),
            Some(format!("page {at} of topic {}", at % 37)),
        )
    };
    Script {
        batches: vec![((0..500).map(page).collect(), Duration::ZERO)],
    }
}

fn plan(state: &Path, renewals: &Arc<AtomicUsize>, recall: f64) -> Plan {
    let pipeline = ScriptedPipeline {
        recall,
        ..ScriptedPipeline::default()
    };
    let mut plan = pipeline.plan(state, vec![("pages", Box::new(script()))]);
    let renewals = renewals.clone();
    let index = &mut plan.indexes[0];
    let inner = index.factory.clone();
    index.factory = Arc::new(Lossy { inner, renewals });
    plan
}

fn ask(service: &dyn QueryService, exact: bool) -> Answer {
    let input = QueryInput::Text("a page of topic 5".into());
    let query = Query {
        exact,
        ..Query::new("pages", input, K)
    };
    service.query(&query).unwrap()
}

fn end(pipeline: Pipeline) {
    pipeline.stop_signal().stop();
    pipeline.join().unwrap();
}

#[test]
fn searches_look_at_more_until_they_miss_no_more_than_they_may() {
    let directory = tempfile::tempdir().unwrap();
    let renewals = Arc::default();
    let plan_of = |recall| plan(directory.path(), &renewals, recall);
    let pipeline = Pipeline::start(plan_of(0.98), ReadMode::Follow).unwrap();
    let service = pipeline.service();
    let end_at = Instant::now() + Duration::from_secs(120);
    while !service.readiness().caught_up {
        std::thread::sleep(Duration::from_millis(5));
    }
    let first = ask(&*service, false);
    assert_eq!(first.hits.len(), K - MISSED, "it misses some");
    assert_eq!(
        ask(&*service, true).hits.len(),
        K,
        "but not where all is looked at"
    );
    while ask(&*service, false).hits.len() < K {
        assert!(Instant::now() < end_at, "{}", service.metrics());
        std::thread::sleep(Duration::from_micros(100));
    }
    let steered = ask(&*service, false);
    assert!(
        steered.as_of.epoch >= first.as_of.epoch + u64::from(STEPS),
        "each step is an epoch, though nothing has changed"
    );
    assert_eq!(steered.as_of.positions, first.as_of.positions);
    assert_eq!(
        renewals.load(Ordering::Relaxed),
        1,
        "what leads to the rows was made anew once"
    );
    let metrics = service.metrics();
    let effort = format!(
        "vectide_search_effort{{index=\"pages\"}} {}",
        Effort::NOMINAL.step()
    );
    assert!(
        metrics.contains("vectide_recall{index=\"pages\"} 0.8"),
        "{metrics}"
    );
    assert!(
        metrics.contains("vectide_shadow_queries_total"),
        "{metrics}"
    );
    assert!(!metrics.contains(&effort), "{metrics}");
    drop(service);
    end(pipeline);

    // What was found out is kept with the epoch.
    let pipeline = Pipeline::start(plan_of(0.98), ReadMode::Follow).unwrap();
    let again = ask(&*pipeline.service(), false);
    assert_eq!(again.hits.len(), K);
    assert_eq!(again.as_of.epoch, steered.as_of.epoch);
    end(pipeline);

    // Where all is promised, all is looked at.
    let pipeline = Pipeline::start(plan_of(1.0), ReadMode::Follow).unwrap();
    assert_eq!(ask(&*pipeline.service(), false).hits.len(), K);
    end(pipeline);
}
