//! An embedder that answers no more: what was committed stays there for queries, nothing that waits for it
//! is shown, and the next process goes on from the last commit.
//!
//! The test's own program is started again with an embedder that hangs, and is killed once it has told what
//! its queries saw. `VECTIDE_TORTURE=1` makes it ten times as many.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use vectide_engine::{Pipeline, Plan, check_state};
use vectide_model::{Include, Lane, Query, QueryInput, QueryService, ReadMode};
use vectide_tests::{Random, Script, ScriptedPipeline, WatchedEmbedder, is_torture, seed};

/// The call at which the child's embedder hangs, and where its state is.
const AT: &str = "VECTIDE_HANG_AT";
const STATE: &str = "VECTIDE_HANG_STATE";

/// Batches of the script, and the documents of each.
const BATCHES: usize = 40;
const DOCUMENTS: usize = 25;

/// What a child says when its embedder hangs: the epoch of its answers follows.
const TOLD: &str = "answered at epoch ";

fn script() -> Script {
    Script::rewriting(BATCHES, DOCUMENTS)
}

fn plan(state: &Path) -> Plan {
    ScriptedPipeline::default().plan(state, vec![("pages", Box::new(script()))])
}

/// Runs with an embedder that hangs, and asks for every document again and again while it does; only when
/// the test starts its program again.
#[test]
fn child() {
    let Ok(at) = std::env::var(AT) else {
        return;
    };
    let state = std::env::var(STATE).unwrap();
    let mut plan = plan(Path::new(&state));
    let (calls_left, hangs) = (AtomicU64::new(at.parse().unwrap()), Arc::default());
    let has_hung: Arc<AtomicBool> = Arc::clone(&hangs);
    let before = Box::new(move |lane: Lane, _: &[&str]| {
        if lane == Lane::Bulk && calls_left.fetch_sub(1, Ordering::Relaxed) <= 1 {
            hangs.store(true, Ordering::Release);
            loop {
                std::thread::park();
            }
        }
    });
    let inner = plan.indexes[0].embedder.clone();
    plan.indexes[0].embedder = Arc::new(WatchedEmbedder { inner, before });
    let pipeline = Pipeline::start(plan, ReadMode::Follow).unwrap();
    while !has_hung.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // What was on its way before the call that hangs becomes visible meanwhile.
    std::thread::sleep(Duration::from_millis(300));
    let service = pipeline.service();
    let mut epochs: Vec<u64> = (0..20).map(|_| answer_whole(&*service)).collect();
    epochs.dedup();
    assert_eq!(epochs.len(), 1, "nothing more becomes visible");
    assert!(!pipeline.is_finished());
    println!("{TOLD}{}", epochs[0]);
    loop {
        std::thread::park();
    }
}

/// The epoch of an answer that holds every document, each as some whole batch left it.
fn answer_whole(service: &dyn QueryService) -> u64 {
    let query = Query {
        include: Include {
            text: true,
            ..Include::default()
        },
        ..Query::new("pages", QueryInput::Text("page".into()), Query::K_MAX)
    };
    let Ok(answer) = service.query(&query) else {
        return 0;
    };
    let document = |hit: vectide_model::Hit| (hit.document.to_string(), hit.text.unwrap());
    let seen: BTreeMap<String, String> = answer.hits.into_iter().map(document).collect();
    assert!(
        (0..=BATCHES).any(|batches| seen == script().texts_after(batches)),
        "no whole number of batches: {seen:?}"
    );
    answer.as_of.epoch
}

#[test]
fn an_embedder_that_hangs_leaves_the_last_commit_to_queries_and_the_next_process() {
    let rounds = if is_torture() { 40 } else { 4 };
    let mut random = Random::new(seed());
    let mut epochs = Vec::new();
    for round in 0..rounds {
        let at = random.below(BATCHES as u64 / 2) + 1;
        let place = format!("round {round}: call {at}");
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(AT, at.to_string())
            .env(STATE, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines
            .map_while(Result::ok)
            .find_map(|line| line.split(TOLD).nth(1)?.parse::<u64>().ok());
        child.kill().unwrap();
        child.wait().unwrap();
        let epoch = told.unwrap_or_else(|| panic!("{place}: no answer"));
        if epoch > 0 {
            let report = check_state(&plan(directory.path())).unwrap();
            assert_eq!(report.faults, 0, "{place}: {report:?}");
            assert_eq!(report.epoch, epoch, "{place}");
        }
        epochs.push(epoch);
        ScriptedPipeline::default().run(directory.path(), script());
        let report = check_state(&plan(directory.path())).unwrap();
        assert_eq!(report.faults, 0, "{place}: {report:?}");
        assert!(report.epoch > epoch, "{place}: {report:?}");
        assert_eq!(
            report.documents,
            script().texts_after(BATCHES).len() as u64,
            "{place}"
        );
    }
    println!("embedders that hung left epochs {epochs:?}");
}
