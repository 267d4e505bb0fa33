//! Writes committed dead letters to the place that the configuration names besides the state.
//!
//! Letters are taken from the state, after their commit, so none can be lost: what is not known to
//! be durable in the other place is written again, at the latest by the next start. It may be there
//! twice then. The commit record says how far it came; that is told with the next commit, and once
//! more at the end.
//!
//! A place that fails is tried again, ever more seldom. The letters wait in the state meanwhile, but
//! not without end: with more of them waiting than the state should keep, the pipeline ends with
//! the error of the place.
//!
//! Invariant: letters are written in the order of their numbers, and no number is passed over but
//! those of letters that a replay has settled.

use crate::commit::LetterPolicy;
use crate::plan::PlannedDeadLetters;
use crate::state::{State, dead_letter_key, kept_letter};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use vectide_model::{
    DeadLetterSink, DeadLetterSinkError, KeptLetter, StopSignal, StoreError, Table,
};

/// Letters written with one call: a call syncs, and a letter has at most some 130 KiB.
const LETTERS_PER_CALL: u64 = 256;

/// How often the thread looks for new letters. They are for people.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The first wait after a failure, and the longest.
const RETRY_WAIT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Why letters are not written any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportEnd {
    #[error("{error}\n{waiting} letters wait in the state, which keeps {keep} (dead_letters.keep)")]
    TooManyWaiting {
        error: DeadLetterSinkError,
        waiting: u64,
        keep: u64,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The thread that writes letters.
pub(crate) struct LetterExport {
    exported: Arc<AtomicU64>,
    finish: StopSignal,
    thread: JoinHandle<Result<(), ExportEnd>>,
}

struct Exporter {
    state: Arc<State>,
    sink: Box<dyn DeadLetterSink>,
    keep: u64,
    exported: Arc<AtomicU64>,
    finish: StopSignal,
}

/// What the commit has to know, and the thread where letters are written to another place.
pub(crate) fn start(
    planned: PlannedDeadLetters,
    state: &Arc<State>,
    stop: &StopSignal,
) -> io::Result<(LetterPolicy, Option<LetterExport>)> {
    let keep = planned.keep.get();
    let start = |sink| LetterExport::start(state, sink, keep, stop.clone());
    let export = planned.sink.map(start).transpose()?;
    let exported = export.as_ref().map(|export| export.exported.clone());
    Ok((LetterPolicy { keep, exported }, export))
}

impl LetterExport {
    /// Starts it where the commit record says. `stop` is set when it can't go on.
    fn start(
        state: &Arc<State>,
        sink: Box<dyn DeadLetterSink>,
        keep: u64,
        stop: StopSignal,
    ) -> io::Result<Self> {
        let exported = Arc::new(AtomicU64::new(state.record().letters.exported));
        let finish = StopSignal::new();
        let exporter = Exporter {
            state: state.clone(),
            sink,
            keep,
            exported: exported.clone(),
            finish: finish.clone(),
        };
        let thread = crate::pipeline::spawn("dead-letters", move || {
            let result = exporter.run();
            if result.is_err() {
                stop.stop();
            }
            result
        })?;
        Ok(Self {
            exported,
            finish,
            thread,
        })
    }

    /// Writes what is committed by now, tries once where the place fails, and notes how far it came.
    pub(crate) fn finish(self, state: &State) -> Result<(), ExportEnd> {
        self.finish.stop();
        let result = crate::pipeline::join(self.thread);
        let exported = self.exported.load(Ordering::Acquire);
        if exported != state.record().letters.exported {
            state.commit_exported(exported)?;
        }
        result
    }
}

impl Exporter {
    fn run(mut self) -> Result<(), ExportEnd> {
        let mut retry_wait = RETRY_WAIT.0;
        loop {
            let is_last = self.finish.is_stopped();
            let next = self.exported.load(Ordering::Acquire);
            let written = self.state.record().letters.written;
            if next == written {
                if is_last {
                    return Ok(());
                }
                self.finish.wait(LOOK_INTERVAL);
                continue;
            }
            let (letters, end) = self.read(next, written)?;
            let Err(error) = self.write(&letters) else {
                self.exported.store(end, Ordering::Release);
                retry_wait = RETRY_WAIT.0;
                continue;
            };
            let waiting = written - next;
            tracing::warn!(waiting, "{error}");
            if is_last {
                return Ok(());
            }
            let keep = self.keep;
            if waiting > keep {
                return Err(ExportEnd::TooManyWaiting {
                    error,
                    waiting,
                    keep,
                });
            }
            self.finish.wait(retry_wait);
            retry_wait = (retry_wait * 2).min(RETRY_WAIT.1);
        }
    }

    fn write(&mut self, letters: &[KeptLetter]) -> Result<(), DeadLetterSinkError> {
        if letters.is_empty() {
            return Ok(());
        }
        self.sink.write(letters)
    }

    /// The next letters, and the number that comes after them.
    fn read(&self, next: u64, written: u64) -> Result<(Vec<KeptLetter>, u64), StoreError> {
        let read = self.state.snapshot();
        let end = written.min(next + LETTERS_PER_CALL);
        let mut letters = Vec::new();
        for id in next..end {
            let key = dead_letter_key(id);
            if let Some(value) = read.get(Table::DeadLetters, &key)? {
                letters.push(kept_letter(&key, &value)?);
            }
        }
        Ok((letters, end))
    }
}
