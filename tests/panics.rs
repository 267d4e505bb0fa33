//! A panic in any part of the pipeline ends the process at once, and the next one goes on from the last
//! commit: a state that nobody changes any more must not look alive.
//!
//! The test's own program is started again with a part that panics at some call. `VECTIDE_TORTURE=1` makes
//! it ten times as many; the seed is printed, and `VECTIDE_SEED` repeats it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vectide_engine::{Pipeline, Plan, check_state};
use vectide_model::{
    ChunkError, ChunkId, Chunker, ClosedShard, IndexError, IndexRow, Lane, ReadMode, ShardState,
    Source, SourceError, SourceSink, SourceStart, VectorIndex, VectorIndexFactory, VectorIndexRead,
};
use vectide_tests::{Random, Script, ScriptedPipeline, WatchedEmbedder, is_torture, seed};

/// Parts that can be made to panic.
const PARTS: [&str; 4] = ["source", "chunker", "embedder", "index"];

/// Batches of the script, and the documents of each.
const BATCHES: usize = 40;
const DOCUMENTS: usize = 25;

/// Which part of the child panics, at which call, and where its state is.
const PART: &str = "VECTIDE_PANIC_PART";
const AT: &str = "VECTIDE_PANIC_AT";
const STATE: &str = "VECTIDE_PANIC_STATE";

const SIGABRT: i32 = 6;

/// Panics at a call.
struct Fuse(AtomicU64);

impl Fuse {
    fn burn(&self) {
        let left = self.0.fetch_sub(1, Ordering::Relaxed);
        assert!(left != 1, "on purpose");
    }
}

struct Panicking<T> {
    inner: T,
    fuse: Fuse,
}

impl<T> Panicking<T> {
    fn new(inner: T, at: u64) -> Self {
        let fuse = Fuse(AtomicU64::new(at));
        Self { inner, fuse }
    }
}

impl Source for Panicking<Script> {
    fn run(
        self: Box<Self>,
        start: SourceStart,
        sink: &mut dyn SourceSink,
    ) -> Result<(), SourceError> {
        let mut script = self.inner;
        let at = self.fuse.0.into_inner() as usize;
        script.batches.truncate(at % BATCHES + 1);
        Box::new(script).run(start, sink)?;
        panic!("on purpose");
    }
}

impl Chunker for Panicking<Arc<dyn Chunker>> {
    fn version(&self) -> &str {
        self.inner.version()
    }

    fn chunk(&self, text: &str) -> Result<Vec<Range<usize>>, ChunkError> {
        self.fuse.burn();
        self.inner.chunk(text)
    }
}

impl VectorIndexFactory for Panicking<Arc<dyn VectorIndexFactory>> {
    fn open(
        &self,
        directory: &Path,
        dimension: usize,
        state: ShardState,
    ) -> Result<Box<dyn VectorIndex>, IndexError> {
        let inner = self.inner.open(directory, dimension, state)?;
        let at = self.fuse.0.load(Ordering::Relaxed);
        Ok(Box::new(Panicking::new(inner, at)))
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

impl VectorIndex for Panicking<Box<dyn VectorIndex>> {
    fn remove(&mut self, chunk: &ChunkId) {
        self.inner.remove(chunk);
    }

    fn insert(&mut self, row: IndexRow) {
        self.fuse.burn();
        self.inner.insert(row);
    }

    fn close_epoch(&mut self) -> Result<ClosedShard, IndexError> {
        self.inner.close_epoch()
    }

    fn has_news(&self) -> bool {
        self.inner.has_news()
    }
}

fn script() -> Script {
    Script::rewriting(BATCHES, DOCUMENTS)
}

fn plan(state: &Path) -> Plan {
    ScriptedPipeline::default().plan(state, vec![("pages", Box::new(script()))])
}

/// The texts that the whole script comes to.
fn expected() -> BTreeMap<String, String> {
    script().texts_after(BATCHES)
}

/// Runs with a part that panics; only when the test starts its program again.
#[test]
fn child() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    let at: u64 = std::env::var(AT).unwrap().parse().unwrap();
    let state = std::env::var(STATE).unwrap();
    let mut plan = plan(Path::new(&state));
    let index = &mut plan.indexes[0];
    match &*part {
        "source" => plan.sources[0].source = Box::new(Panicking::new(script(), at)),
        "chunker" => index.chunker = Arc::new(Panicking::new(index.chunker.clone(), at)),
        "embedder" => {
            let (inner, fuse) = (index.embedder.clone(), Fuse(AtomicU64::new(at)));
            let before = Box::new(move |_: Lane, texts: &[&str]| {
                texts.iter().for_each(|_| fuse.burn());
            });
            index.embedder = Arc::new(WatchedEmbedder { inner, before });
        }
        _ => {
            let index = &mut plan.indexes[0];
            index.factory = Arc::new(Panicking::new(index.factory.clone(), at));
        }
    }
    let pipeline = Pipeline::start(plan, ReadMode::UntilCaughtUp).unwrap();
    pipeline.join().unwrap();
}

#[test]
fn a_panic_ends_the_process_and_the_next_one_goes_on() {
    let rounds = if is_torture() { 40 } else { 4 };
    let mut random = Random::new(seed());
    let changes = (BATCHES * DOCUMENTS) as u64;
    for part in PARTS {
        let (mut ended, mut epochs) = (0, Vec::new());
        for round in 0..rounds {
            let at = random.below(changes) + 1;
            let place = format!("{part}, round {round}: call {at}");
            let directory = tempfile::tempdir().unwrap();
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child", "--nocapture"])
                .envs([(PART, part), (AT, &at.to_string())])
                .env(STATE, directory.path())
                .output()
                .unwrap();
            let complaints = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                assert_eq!(
                    output.status.signal(),
                    Some(SIGABRT),
                    "{place}: {complaints}"
                );
                assert!(
                    complaints.contains("ending the process"),
                    "{place}: {complaints}"
                );
                ended += 1;
            }
            let report = check_state(&plan(directory.path()));
            let report = report.unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(report.faults, 0, "{place}: {report:?}");
            epochs.push(report.epoch);

            let pipeline = ScriptedPipeline::default();
            pipeline.run(directory.path(), script());
            let report = check_state(&plan(directory.path())).unwrap();
            assert_eq!(report.faults, 0, "{place}: {report:?}");
            assert!(
                texts(directory.path()) == expected(),
                "{place}: other texts"
            );
        }
        println!("{part}: {ended} of {rounds} processes ended, at epochs {epochs:?}");
        assert!(ended > 0, "{part}: none panicked");
    }
}

fn texts(state: &Path) -> BTreeMap<String, String> {
    let mut lines = Vec::new();
    vectide_engine::export(state, vectide_engine::ExportKind::Chunks, &mut lines).unwrap();
    let chunk = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| json[name].as_str().unwrap().to_owned();
        (field("document"), field("text"))
    };
    String::from_utf8(lines)
        .unwrap()
        .lines()
        .map(chunk)
        .collect()
}
