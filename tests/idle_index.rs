//! An index that stops changing: what its builders finish is taken in without a change, in epochs of its own,
//! until there is no more of it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vectide_engine::{Pipeline, Plan};
use vectide_faiss::{FaissFactory, FaissOptions, Quantization};
use vectide_model::{Answer, ChunkId, Query, QueryInput, QueryService, ReadMode, StopSignal};
use vectide_tests::{Script, ScriptedPipeline};

const PAGES: usize = 4_000;
/// So that many heads are sealed and merged.
const HEAD_ROWS: usize = 100;
/// The 39 full heads end as one segment, beside which one much smaller may stand.
const SEGMENTS_MAX: usize = 2;
/// How long an index without news has to stay as it is.
const QUIET: Duration = Duration::from_millis(500);

fn plan(state: &Path) -> Plan {
    let page = |at: usize| {
        (
            at.to_string(),
            Some(format!("page {at} of topic {}", at % 37)),
        )
    };
    let script = Script {
        batches: vec![((0..PAGES).map(page).collect(), Duration::ZERO)],
    };
    let mut plan = ScriptedPipeline::default().plan(state, vec![("pages", Box::new(script))]);
    plan.indexes[0].factory = Arc::new(FaissFactory::new(FaissOptions {
        head_rows_max: HEAD_ROWS,
        frozen_heads_max: 2,
        flat_rows_max: 1_000,
        quantization: Quantization::default(),
    }));
    plan
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

fn segments(service: &dyn QueryService) -> usize {
    let metrics = service.metrics();
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("vectide_index_segments{index=\"pages\"} "));
    line.map_or(0, |line| line.parse().expect("a number"))
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
