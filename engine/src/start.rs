//! How a pipeline starts: what it reads, and from where.
//!
//! Invariant: that a source begins anew is in the state before its first change is read.

use crate::ingest::SourceEvent;
use crate::pipeline::PipelineError;
use crate::plan::PlannedSource;
use crate::rebuild::EarlierRows;
use crate::replay::Replay;
use crate::sources::start_source;
use crate::state::State;
use crossbeam_channel::Receiver;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use vectide_model::{ReadMode, StopSignal};

/// What a pipeline reads.
pub(crate) enum Input {
    /// Its sources.
    Sources,
    /// Dead letters of its sources.
    Replay(Replay),
    /// The rows that an earlier state holds of its sources.
    Rows(EarlierRows),
}

/// How a pipeline starts.
pub struct StartOptions {
    pub(crate) mode: ReadMode,
    pub(crate) resnapshot: Vec<String>,
    pub(crate) input: Input,
}

impl StartOptions {
    /// Goes on where the state says.
    pub fn of(mode: ReadMode) -> Self {
        Self {
            mode,
            resnapshot: Vec::new(),
            input: Input::Sources,
        }
    }

    pub(crate) fn rows(rows: EarlierRows) -> Self {
        Self {
            input: Input::Rows(rows),
            ..Self::of(ReadMode::UntilCaughtUp)
        }
    }

    pub(crate) fn replay(replay: Replay) -> Self {
        Self {
            input: Input::Replay(replay),
            ..Self::of(ReadMode::UntilCaughtUp)
        }
    }

    /// Reads these sources anew from their beginning, and removes the rows that they no longer
    /// have. What a crash interrupts begins again with the next start, without being asked for.
    pub fn resnapshot(self, sources: Vec<String>) -> Self {
        Self {
            resnapshot: sources,
            ..self
        }
    }
}

/// The threads that feed ingest, and its ends of their channels.
pub(crate) struct Feeders {
    pub(crate) lanes: Vec<(Arc<str>, Receiver<SourceEvent>)>,
    pub(crate) threads: Vec<JoinHandle<()>>,
}

impl Feeders {
    pub(crate) fn start(
        sources: Vec<PlannedSource>,
        state: &Arc<State>,
        (mode, input): (ReadMode, Input),
        stop: &StopSignal,
    ) -> io::Result<Self> {
        let names: Vec<_> = sources.iter().map(|source| source.name.clone()).collect();
        match input {
            Input::Sources => {}
            Input::Replay(replay) => {
                let (lanes, thread) = replay.start(&names, state, stop)?;
                let threads = vec![thread];
                return Ok(Self { lanes, threads });
            }
            Input::Rows(rows) => {
                let (lanes, threads) = rows.start(&names, stop)?;
                return Ok(Self { lanes, threads });
            }
        }
        let (mut lanes, mut threads) = (Vec::new(), Vec::new());
        for planned in sources {
            let name = planned.name.clone();
            let (events, thread) = start_source(planned, state, mode, stop)?;
            threads.push(thread);
            lanes.push((name, events));
        }
        Ok(Self { lanes, threads })
    }
}

/// Notes in the state which sources begin anew, before anything of them is read.
pub(crate) fn begin_resnapshots(state: &State, asked_for: &[String]) -> Result<(), PipelineError> {
    let known = &state.names().sources;
    let mut sources = Vec::new();
    for name in asked_for {
        match known.iter().find(|it| ***it == **name) {
            Some(source) => sources.push(source.clone()),
            None => {
                return Err(PipelineError::NoSuchSource {
                    name: name.clone(),
                    known: known.join(" | "),
                });
            }
        }
    }
    Ok(state.begin_resnapshots(&sources)?)
}
