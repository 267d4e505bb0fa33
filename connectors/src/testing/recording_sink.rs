//! Runs a source in a test: on its own thread, with everything it sends kept in memory.
//!
//! Invariant: what a test reads from [`RecordedRun`] was accepted by the sink, in that order.

use super::model_state::completed;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vectide_model::{
    Change, DeadLetter, HeldRows, Key, Partition, ReadMode, Row, Source, SourceBatch, SourceError,
    SourceSink, SourceStart, StopSignal, Stopped,
};

/// Held rows in a map, all of them written by a partition that [`HeldRows::keys_from`] accepts, and
/// positions that a test calls durable.
#[derive(Clone, Debug, Default)]
pub struct HeldMap {
    /// The rows.
    pub rows: BTreeMap<Key, Row>,
    /// What is durable; a test may move it while the source runs.
    pub durable: Arc<Mutex<BTreeMap<Partition, u64>>>,
}

impl HeldMap {
    /// Rows, with nothing durable yet.
    pub fn of(rows: BTreeMap<Key, Row>) -> Self {
        Self {
            rows,
            ..Self::default()
        }
    }
}

impl HeldRows for HeldMap {
    fn row(&self, key: &str) -> Result<Option<Row>, SourceError> {
        Ok(self.rows.get(key).cloned())
    }

    fn keys(&self) -> Result<Vec<Key>, SourceError> {
        Ok(self.rows.keys().cloned().collect())
    }

    fn keys_from(&self, _: &dyn Fn(&str) -> bool) -> Result<Vec<Key>, SourceError> {
        self.keys()
    }

    fn durable_positions(&self) -> BTreeMap<Partition, u64> {
        let durable = self.durable.lock();
        durable.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Default)]
struct Recorded {
    batches: Vec<SourceBatch>,
    times_caught_up: usize,
}

/// A sink that keeps everything.
#[derive(Clone, Default)]
pub struct RecordingSink {
    recorded: Arc<Mutex<Recorded>>,
    /// Answer [`Stopped`] after so many batches.
    batches_max: Option<usize>,
}

impl RecordingSink {
    /// A sink that takes `batches_max` batches and then says that the pipeline is stopping.
    pub fn stopping_after(batches_max: usize) -> Self {
        Self {
            batches_max: Some(batches_max),
            ..Self::default()
        }
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SourceSink for RecordingSink {
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped> {
        let mut recorded = self.recorded();
        if self
            .batches_max
            .is_some_and(|max| recorded.batches.len() >= max)
        {
            return Err(Stopped);
        }
        recorded.batches.push(batch);
        Ok(())
    }

    fn caught_up(&mut self) {
        self.recorded().times_caught_up += 1;
    }
}

/// Where a source resumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// The next offset of each partition.
    pub positions: BTreeMap<Partition, u64>,
    /// What tells the source from another one.
    pub fingerprints: BTreeMap<Partition, u64>,
}

impl From<BTreeMap<Partition, u64>> for Resume {
    fn from(positions: BTreeMap<Partition, u64>) -> Self {
        Self {
            positions,
            fingerprints: BTreeMap::new(),
        }
    }
}

/// A source that runs on its own thread.
pub struct RecordedRun {
    sink: RecordingSink,
    stop: StopSignal,
    thread: Option<JoinHandle<Result<(), SourceError>>>,
}

/// Starts a source under the name `source`.
pub fn run_source(
    source: Box<dyn Source>,
    from: impl Into<Resume>,
    held: HeldMap,
    mode: ReadMode,
    sink: RecordingSink,
) -> RecordedRun {
    let stop = StopSignal::new();
    let Resume {
        positions,
        fingerprints,
    } = from.into();
    let start = SourceStart {
        name: "source".into(),
        positions,
        fingerprints,
        held: Arc::new(held),
        mode,
        is_trial: false,
        stop: stop.clone(),
    };
    let mut thread_sink = sink.clone();
    let thread = std::thread::spawn(move || source.run(start, &mut thread_sink));
    RecordedRun {
        sink,
        stop,
        thread: Some(thread),
    }
}

impl RecordedRun {
    /// A source that a test runs on a thread of its own, with a sink of its own that hands on to
    /// `sink`.
    pub fn of(
        sink: RecordingSink,
        stop: StopSignal,
        thread: JoinHandle<Result<(), SourceError>>,
    ) -> Self {
        Self {
            sink,
            stop,
            thread: Some(thread),
        }
    }

    /// Whether the source's thread has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The batches so far.
    pub fn batches(&self) -> Vec<SourceBatch> {
        self.sink.recorded().batches.clone()
    }

    /// All changes so far, in order.
    pub fn changes(&self) -> Vec<Change> {
        let batches = self.batches();
        batches
            .into_iter()
            .flat_map(|batch| batch.changes)
            .collect()
    }

    /// All dead letters so far, in order.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        let batches = self.batches();
        batches
            .into_iter()
            .flat_map(|batch| batch.dead_letters)
            .collect()
    }

    /// The positions after all batches so far, on top of `before`.
    pub fn positions(&self, mut before: BTreeMap<Partition, u64>) -> BTreeMap<Partition, u64> {
        for batch in self.batches() {
            before.extend(batch.positions);
        }
        before
    }

    /// Where to resume after all batches so far, on top of `before`.
    pub fn resume(&self, mut before: Resume) -> Resume {
        for batch in self.batches() {
            before.positions.extend(batch.positions);
            before.fingerprints.extend(batch.fingerprints);
        }
        before
    }

    /// The rows after all changes so far, on top of `before`. A change that leaves out what did not
    /// change is completed from the row before it.
    ///
    /// # Panics
    /// When there is no row before it that has what it leaves out.
    pub fn fold(&self, before: HeldMap) -> HeldMap {
        let mut rows = before.rows;
        for change in self.changes() {
            match change.row {
                Some(row) => {
                    let fields = &change.unchanged_fields;
                    let whole = completed(&row, fields, rows.get(&change.key));
                    let whole = whole.expect("a row before it that has the fields");
                    rows.insert(change.key, whole);
                }
                None => drop(rows.remove(&change.key)),
            }
        }
        HeldMap::of(rows)
    }

    /// How often the source said that it has caught up.
    pub fn times_caught_up(&self) -> usize {
        self.sink.recorded().times_caught_up
    }

    /// Waits until a condition holds.
    ///
    /// # Panics
    /// When it does not within 60 seconds, or when the source ended with an error before it did.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let began_at = Instant::now();
        while !condition(self) {
            assert!(
                began_at.elapsed() < Duration::from_secs(60),
                "timed out waiting until {what}; batches so far: {:#?}",
                self.batches()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the source's own end.
    ///
    /// # Errors
    /// The source's.
    ///
    /// # Panics
    /// When the source's thread did.
    pub fn join(&mut self) -> Result<(), SourceError> {
        match self.thread.take() {
            Some(thread) => thread.join().expect("the source panicked"),
            None => Ok(()),
        }
    }

    /// Stops the source and waits for its end.
    ///
    /// # Errors
    /// The source's.
    pub fn stop(&mut self) -> Result<(), SourceError> {
        self.stop.stop();
        self.join()
    }
}

impl Drop for RecordedRun {
    fn drop(&mut self) {
        self.stop.stop();
    }
}
