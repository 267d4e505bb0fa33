//! Freshness during a backfill: while thousands of documents wait for the real model, a change in
//! another source is visible within two seconds, and queries are answered all the while.

use std::time::{Duration, Instant};
use vectide_engine::Pipeline;
use vectide_model::{Query, QueryInput, QueryService, ReadMode};
use vectide_tests::{Script, ScriptedPipeline};

/// More than the fastest machine embeds while the live changes come; the rest is not waited for.
const BACKFILL_DOCUMENTS: usize = 20_000;
const VISIBLE_WITHIN: Duration = Duration::from_secs(2);

fn paragraph(number: usize) -> String {
    let words = [
        "engine", "vector", "stream", "index", "position", "epoch", "shard", "chunk",
    ];
    let word = |at: usize| words[(number / 3usize.pow(at as u32 % 8) + at * 7) % words.len()];
    let text: Vec<&str> = (0..60).map(word).collect();
    format!("Document {number}. {}.", text.join(" "))
}

fn shown(service: &dyn QueryService, document: &str) -> bool {
    service.document("live", document).is_ok()
}

#[test]
fn a_change_elsewhere_is_visible_within_two_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let pipeline = ScriptedPipeline::with_model("all-MiniLM-L6-v2", 1, 1);
    let backfill = (0..BACKFILL_DOCUMENTS).map(|number| {
        (
            vec![(format!("old-{number}"), Some(paragraph(number)))],
            Duration::ZERO,
        )
    });
    let live = (0..8).map(|number| {
        (
            vec![(format!("new-{number}"), Some(paragraph(number)))],
            Duration::from_millis(900),
        )
    });
    // The live source begins once the backfill is well on its way.
    let live = std::iter::once((Vec::new(), Duration::from_secs(2))).chain(live);
    let scripts: Vec<(&str, Box<dyn vectide_model::Source>)> = vec![
        (
            "backfill",
            Box::new(Script {
                batches: backfill.collect(),
            }),
        ),
        (
            "live",
            Box::new(Script {
                batches: live.collect(),
            }),
        ),
    ];
    let plan = pipeline.plan(directory.path(), scripts);
    let running = Pipeline::start(plan, ReadMode::Follow).unwrap();
    let service = running.service();
    let start = Instant::now();
    let mut slowest_query = Duration::ZERO;
    let mut seen: Vec<Duration> = Vec::new();
    while seen.len() < 8 {
        if shown(&*service, &format!("new-{}", seen.len())) {
            let sent = Duration::from_secs(2) + Duration::from_millis(900) * seen.len() as u32;
            seen.push(start.elapsed().saturating_sub(sent));
        }
        let input = QueryInput::Text("an engine with shards".into());
        let query = Query::new("live", input, 5);
        let asked = Instant::now();
        service.query(&query).unwrap();
        slowest_query = slowest_query.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(5));
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "seen so far: {seen:?}"
        );
    }
    let backfilled = service.index("backfill").unwrap().documents;
    // A failed assertion must not leave a pipeline behind that waits for its threads.
    running.stop_signal().stop();
    running.join().unwrap();
    println!(
        "visible after {seen:?}; slowest query {slowest_query:?}; {backfilled} documents of the \
         backfill were there"
    );
    assert!(
        backfilled < BACKFILL_DOCUMENTS as u64,
        "the backfill was over too early to tell"
    );
    assert!(seen.iter().all(|wait| *wait < VISIBLE_WITHIN), "{seen:?}");
}
