//! A small state in memory with upsert's rule, that is at once what a source holds: for tests in which
//! a source asks for its rows, waits for durability, or is killed.
//!
//! Within a partition the greater offset wins, between partitions the later arrival; a change that
//! leaves out what did not change is completed from the row before it, or is a dead letter.
//!
//! Invariant: rows and positions move together, as they do in a commit. A kill may cut a batch that is
//! `divisible` between any two changes; then the positions are those of such a cut.

use super::recording_sink::Resume;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vectide_model::{
    Change, DeadLetter, DeadLetterReason, HeldRows, Key, Partition, Position, ReadMode, Row,
    Source, SourceBatch, SourceError, SourceSink, SourceStart, StopSignal, Stopped,
};

/// A row with `fields` taken from the row before it; `None` where that has not all of them.
pub(crate) fn completed(row: &Row, fields: &[Arc<str>], before: Option<&Row>) -> Option<Row> {
    if fields.is_empty() {
        return Some(row.clone());
    }
    let parse = |row: &Row| -> BTreeMap<String, Box<RawValue>> {
        serde_json::from_str(row).expect("a row is an object")
    };
    let held = parse(before?);
    let mut whole = parse(row);
    for field in fields {
        whole.insert(field.to_string(), held.get(&**field)?.clone());
    }
    let text = serde_json::to_string(&whole).expect("JSON");
    Some(text.into())
}

#[derive(Default)]
struct Inner {
    rows: BTreeMap<Key, (Row, Position)>,
    resume: Resume,
    dead_letters: Vec<DeadLetter>,
    times_caught_up: usize,
    batches: u64,
    split_transactions: u64,
    /// Batches until the process is killed, and how far into the last one.
    kill: Option<(u64, f64)>,
    observed: Option<Observer>,
}

type Observer = Box<dyn FnMut(&SourceBatch) + Send>;

/// The state; clones are the same one.
#[derive(Clone, Default)]
pub struct ModelState(Arc<Mutex<Inner>>);

impl ModelState {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows.
    pub fn rows(&self) -> BTreeMap<Key, Row> {
        let inner = self.inner();
        let rows = inner.rows.iter();
        rows.map(|(key, (row, _))| (key.clone(), row.clone()))
            .collect()
    }

    /// Where a source goes on.
    pub fn resume(&self) -> Resume {
        self.inner().resume.clone()
    }

    /// Forgets where a source goes on, but not its rows: the next one reads anew.
    pub fn forget_positions(&self) {
        self.inner().resume = Resume::default();
    }

    /// The dead letters so far.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.inner().dead_letters.clone()
    }

    /// How often a source said that it has caught up.
    pub fn times_caught_up(&self) -> usize {
        self.inner().times_caught_up
    }

    /// Transactions that were split.
    pub fn split_transactions(&self) -> u64 {
        self.inner().split_transactions
    }

    /// Batches taken.
    pub fn batches(&self) -> u64 {
        self.inner().batches
    }

    /// Stops taking after so many batches more; of the last one only this share of the changes is
    /// taken, if it is divisible, and nothing if not.
    pub fn kill_after(&self, batches: u64, share: f64) {
        self.inner().kill = Some((batches, share));
    }

    /// Takes everything again, as a new process does.
    pub fn survive(&self) {
        self.inner().kill = None;
    }

    /// Shows every batch that is taken in full to a function.
    pub fn observe(&self, observer: impl FnMut(&SourceBatch) + Send + 'static) {
        self.inner().observed = Some(Box::new(observer));
    }

    /// Runs a source on a thread of its own, from where the state stands.
    pub fn run(&self, source: Box<dyn Source>, mode: ReadMode) -> ModelRun {
        let stop = StopSignal::new();
        let Resume {
            positions,
            fingerprints,
        } = self.resume();
        let start = SourceStart {
            name: "source".into(),
            positions,
            fingerprints,
            held: Arc::new(self.clone()),
            mode,
            is_trial: false,
            stop: stop.clone(),
        };
        let mut sink = self.clone();
        let thread = std::thread::spawn(move || source.run(start, &mut sink));
        ModelRun {
            stop,
            thread: Some(thread),
        }
    }

    /// Waits until a condition holds.
    ///
    /// # Panics
    /// When it does not within 60 seconds.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let began_at = Instant::now();
        while !condition(self) {
            assert!(
                began_at.elapsed() < Duration::from_secs(60),
                "timed out waiting until {what}; rows: {:#?}, dead letters: {:#?}",
                self.rows().keys().take(50).collect::<Vec<_>>(),
                self.dead_letters()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Inner {
    fn apply(&mut self, change: Change) {
        let held = self.rows.get(&change.key);
        let is_stale = held.is_some_and(|(_, at)| {
            at.partition == change.position.partition && change.position.offset < at.offset
        });
        if is_stale {
            return;
        }
        let Some(row) = change.row else {
            self.rows.remove(&change.key);
            return;
        };
        match completed(&row, &change.unchanged_fields, held.map(|(row, _)| row)) {
            Some(row) => drop(self.rows.insert(change.key, (row, change.position))),
            None => self.dead_letters.push(DeadLetter::new(
                DeadLetterReason::Incomplete,
                change.position,
                Some(change.key),
                "not held",
                row.as_bytes(),
            )),
        }
    }

    fn take(&mut self, batch: SourceBatch, changes_max: usize) {
        let rest = batch.changes.iter().skip(changes_max).rev();
        let rest: Vec<(Partition, u64)> = rest
            .map(|change| (change.position.partition.clone(), change.position.offset))
            .collect();
        for change in batch.changes.into_iter().take(changes_max) {
            self.apply(change);
        }
        self.resume.positions.extend(batch.positions);
        self.resume.positions.extend(rest);
        self.resume.fingerprints.extend(batch.fingerprints);
        self.dead_letters.extend(batch.dead_letters);
        self.split_transactions += batch.split_transactions;
        self.batches += 1;
    }
}

impl SourceSink for ModelState {
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped> {
        let mut inner = self.inner();
        if let Some((left, share)) = inner.kill {
            if left == 0 {
                if batch.divisible && share > 0.0 {
                    let changes = (batch.changes.len() as f64 * share) as usize;
                    inner.take(batch, changes);
                }
                inner.kill = Some((0, 0.0));
                return Err(Stopped);
            }
            inner.kill = Some((left - 1, share));
        }
        if let Some(observer) = &mut inner.observed {
            observer(&batch);
        }
        inner.take(batch, usize::MAX);
        Ok(())
    }

    fn caught_up(&mut self) {
        self.inner().times_caught_up += 1;
    }
}

impl HeldRows for ModelState {
    fn row(&self, key: &str) -> Result<Option<Row>, SourceError> {
        Ok(self.inner().rows.get(key).map(|(row, _)| row.clone()))
    }

    fn keys(&self) -> Result<Vec<Key>, SourceError> {
        Ok(self.inner().rows.keys().cloned().collect())
    }

    fn keys_from(&self, of: &dyn Fn(&str) -> bool) -> Result<Vec<Key>, SourceError> {
        let inner = self.inner();
        let rows = inner.rows.iter();
        let of_it = rows.filter(|(_, (_, position))| of(&position.partition));
        Ok(of_it.map(|(key, _)| key.clone()).collect())
    }

    fn durable_positions(&self) -> BTreeMap<Partition, u64> {
        self.inner().resume.positions.clone()
    }
}

/// A source that runs.
pub struct ModelRun {
    stop: StopSignal,
    thread: Option<JoinHandle<Result<(), SourceError>>>,
}

impl ModelRun {
    /// Waits for the source's own end.
    ///
    /// # Errors
    /// The source's.
    ///
    /// # Panics
    /// When the source's thread did.
    pub fn join(mut self) -> Result<(), SourceError> {
        match self.thread.take() {
            Some(thread) => thread.join().expect("the source panicked"),
            None => Ok(()),
        }
    }

    /// Whether the source has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops the source and waits for its end.
    ///
    /// # Errors
    /// The source's.
    pub fn stop(self) -> Result<(), SourceError> {
        self.stop.stop();
        self.join()
    }
}

impl Drop for ModelRun {
    fn drop(&mut self) {
        self.stop.stop();
    }
}
