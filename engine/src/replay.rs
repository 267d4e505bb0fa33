//! Dead letters once more through the dataflow: `vectide dlq replay`.
//!
//! Each letter's record is decoded again by its source's decoder, and what comes out goes its usual
//! way under the source's name, at its old position. No source is read meanwhile.
//!
//! Invariant: a letter leaves the state in the commit that holds what its record did, so a process
//! that ends in between neither loses nor repeats one; and each letter is tried once a replay.

use crate::dead_letters::{LetterSelection, letters};
use crate::ingest::{Delivery, SettledLetters, SourceEvent};
use crate::pipeline::{Pipeline, PipelineError, spawn};
use crate::plan::Plan;
use crate::registry::AnySourceConfig;
use crate::sources::{ChannelSink, FeedEnd};
use crate::start::StartOptions;
use crate::state::State;
use crossbeam_channel::Receiver;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vectide_model::{ComponentError, KeptLetter, OpenContext, Redecoder, StopSignal};

/// Letters of one source that go into one epoch: at most some 130 KiB each are held.
const LETTERS_PER_BATCH: usize = 64;

/// Refusals that are told one by one; the others are counted.
const REFUSALS_TOLD_MAX: usize = 100;

/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// Makes decoders for the letters of configured sources.
pub struct Redecoders {
    pub(crate) sources: BTreeMap<String, Box<dyn AnySourceConfig>>,
    pub(crate) context: OpenContext,
}

impl Redecoders {
    fn open(&self, source: &str) -> Result<Box<dyn Redecoder>, ComponentError> {
        match self.sources.get(source) {
            Some(config) => config.redecoder(&self.context),
            None => Err(ComponentError::new(
                "",
                format!("the source `{source}` is not configured"),
                "replay with a configuration that has it",
            )),
        }
    }
}

/// A letter that stays, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its number.
    pub id: u64,
    /// Its reason now.
    pub reason: &'static str,
    /// What is wrong.
    pub detail: String,
    /// The way out; may be empty.
    pub hint: String,
}

/// What a replay did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// Letters whose records were decoded and went through the pipeline; they left the state.
    pub replayed: u64,
    /// Letters that were tried and stay.
    pub refused: u64,
    /// Letters in the state now, with those that replayed records gave anew.
    pub remaining: u64,
    /// The first letters that stay; they are no part of the summary.
    #[serde(skip)]
    pub refusals: Vec<Refusal>,
}

impl ReplayReport {
    fn refuse(&mut self, kept: &KeptLetter, detail: &str, hint: &str) {
        self.refused += 1;
        if self.refusals.len() < REFUSALS_TOLD_MAX {
            self.refusals.push(Refusal {
                id: kept.id,
                reason: kept.letter.reason.as_str(),
                detail: detail.to_owned(),
                hint: hint.to_owned(),
            });
        }
    }
}

/// Replays letters of a pipeline that does not run.
///
/// # Errors
/// When the state can't be had or written.
pub fn replay(
    plan: Plan,
    redecoders: Redecoders,
    selection: LetterSelection,
) -> Result<ReplayReport, PipelineError> {
    let report = Arc::new(Mutex::new(ReplayReport::default()));
    let replay = Replay {
        redecoders,
        selection,
        report: report.clone(),
    };
    let pipeline = Pipeline::start_with(plan, StartOptions::replay(replay))?;
    let state = pipeline.state();
    while !pipeline.is_finished() {
        std::thread::sleep(LOOK);
    }
    pipeline.join()?;
    let mut report = report
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    report.remaining = state.record().letters.held;
    Ok(report)
}

/// A replay that is to be started.
pub(crate) struct Replay {
    redecoders: Redecoders,
    selection: LetterSelection,
    report: Arc<Mutex<ReplayReport>>,
}

type Lane = (Arc<str>, Receiver<SourceEvent>);

impl Replay {
    /// Starts the one thread that stands in for all sources.
    pub(crate) fn start(
        self,
        names: &[Arc<str>],
        state: &Arc<State>,
        stop: &StopSignal,
    ) -> io::Result<(Vec<Lane>, JoinHandle<()>)> {
        let (mut lanes, mut sinks) = (Vec::new(), BTreeMap::new());
        for name in names {
            let (sink, events) = ChannelSink::new(stop);
            sinks.insert(name.clone(), sink);
            lanes.push((name.clone(), events));
        }
        let state = state.clone();
        let thread = spawn("replay", move || {
            let mut run = Run {
                redecoders: self.redecoders,
                opened: BTreeMap::new(),
                batches: BTreeMap::new(),
                report: ReplayReport::default(),
                sinks,
            };
            let result = run.replay(&state, &self.selection);
            *self.report.lock().unwrap_or_else(PoisonError::into_inner) = run.report;
            for (name, sink) in &run.sinks {
                sink.end(match &result {
                    Ok(()) => Ok(()),
                    Err(end) => end.of_source(name, "its dead letters"),
                });
            }
        })?;
        Ok((lanes, thread))
    }
}

struct Run {
    redecoders: Redecoders,
    opened: BTreeMap<Arc<str>, Result<Box<dyn Redecoder>, ComponentError>>,
    /// By source, what is to be delivered.
    batches: BTreeMap<Arc<str>, Delivery>,
    report: ReplayReport,
    sinks: BTreeMap<Arc<str>, ChannelSink>,
}

impl Run {
    fn replay(&mut self, state: &State, selection: &LetterSelection) -> Result<(), FeedEnd> {
        let mut missing: BTreeSet<u64> = selection.ids.iter().copied().collect();
        // One snapshot: letters that the replay itself gives are not in it.
        let read = state.snapshot();
        for kept in letters(&*read) {
            let kept = kept?;
            if selection.accepts(&kept) {
                missing.remove(&kept.id);
                self.take(kept)?;
            }
        }
        for id in missing {
            tracing::warn!(
                id,
                "there is no such dead letter, or the filters leave it out"
            );
        }
        let sources: Vec<Arc<str>> = self.batches.keys().cloned().collect();
        sources.iter().try_for_each(|source| self.deliver(source))
    }

    fn take(&mut self, mut kept: KeptLetter) -> Result<(), FeedEnd> {
        let source = kept.letter.position.source.clone();
        if !kept.letter.reason.is_of_record() {
            let hint = "it is about a row or a document, not a record: correct the row in its \
                        source, and that change tries again; a corrected template or another model \
                        needs a state of its own";
            self.report.refuse(&kept, &kept.letter.detail, hint);
            return Ok(());
        }
        let redecoders = &self.redecoders;
        let opened = self.opened.entry(source.clone());
        let decoded = match opened.or_insert_with(|| redecoders.open(&source)) {
            Ok(redecoder) => redecoder.decode_again(&kept.letter),
            Err(error) => {
                self.report.refuse(&kept, &error.fact, &error.hint);
                return Ok(());
            }
        };
        let delivery = self.batches.entry(source.clone()).or_default();
        let SettledLetters { gone, rewritten } = &mut delivery.settled;
        match decoded {
            Ok(changes) => {
                delivery.batch.changes.extend(changes);
                gone.push(kept.id);
                self.report.replayed += 1;
            }
            Err(refused) => {
                kept.letter = refused.letter;
                self.report
                    .refuse(&kept, &kept.letter.detail, &refused.hint);
                rewritten.push(kept);
            }
        }
        if gone.len() + rewritten.len() >= LETTERS_PER_BATCH {
            self.deliver(&source)?;
        }
        Ok(())
    }

    fn deliver(&mut self, source: &Arc<str>) -> Result<(), FeedEnd> {
        let Some(mut delivery) = self.batches.remove(source) else {
            return Ok(());
        };
        // The letters go in the epoch that holds all their changes.
        delivery.batch.divisible = false;
        delivery.keeps_positions = true;
        match self.sinks.get(source) {
            Some(sink) => Ok(sink.deliver(delivery)?),
            // A source that is not configured has no decoder, so nothing of it came here.
            None => Ok(()),
        }
    }
}
