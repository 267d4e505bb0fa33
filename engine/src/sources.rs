//! The threads of the sources: where each one starts reading, and its end of the channel to ingest.
//!
//! Invariant: a source's thread talks to the pipeline through its sink alone, and the last thing it
//! says is how it ended.

use crate::ingest::{Delivery, SOURCE_QUEUE_BATCHES, SourceEvent};
use crate::long_keys::refuse_long_keys;
use crate::plan::PlannedSource;
use crate::resnapshot::Restating;
use crate::state::State;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use vectide_model::{
    ReadMode, SourceBatch, SourceError, SourceSink, SourceStart, StopSignal, Stopped, StoreError,
};

/// A source's end of its channel.
pub(crate) struct ChannelSink {
    events: Sender<SourceEvent>,
    stop: StopSignal,
}

impl ChannelSink {
    pub(crate) fn new(stop: &StopSignal) -> (Self, Receiver<SourceEvent>) {
        let (events, receiver) = bounded(SOURCE_QUEUE_BATCHES);
        let stop = stop.clone();
        (Self { events, stop }, receiver)
    }

    /// Hands a batch on; blocks while the pipeline is full.
    pub(crate) fn deliver(&self, mut delivery: Delivery) -> Result<(), Stopped> {
        if self.stop.is_stopped() {
            return Err(Stopped);
        }
        refuse_long_keys(&mut delivery);
        self.events
            .send(SourceEvent::Batch(delivery))
            .map_err(|_| Stopped)
    }

    /// Says something else; nobody listens only when the pipeline is ending.
    pub(crate) fn say(&self, event: SourceEvent) {
        let _ = self.events.send(event);
    }

    pub(crate) fn end(&self, result: Result<(), SourceError>) {
        self.say(SourceEvent::Ended(result));
    }
}

/// Why a thread that feeds the pipeline from a state ended before its end.
pub(crate) enum FeedEnd {
    Stopped,
    Store(StoreError),
}

impl From<Stopped> for FeedEnd {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<StoreError> for FeedEnd {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl FeedEnd {
    /// As a source's end says it: `what` of the source could not be read. To be stopped is no fault.
    pub(crate) fn of_source(&self, source: &str, what: &str) -> Result<(), SourceError> {
        match self {
            Self::Stopped => Ok(()),
            Self::Store(error) => Err(SourceError::Failed {
                source_name: source.to_owned(),
                detail: format!("{what} can't be read: {error}"),
                hint: "check the disk that holds the state: vectide check".into(),
            }),
        }
    }
}

impl SourceSink for ChannelSink {
    fn send(&mut self, batch: SourceBatch) -> Result<(), Stopped> {
        self.deliver(batch.into())
    }

    fn caught_up(&mut self) {
        self.say(SourceEvent::CaughtUp);
    }
}

/// Starts the thread of a source where the committed state says, or from the source's beginning
/// when it has to state its rows again.
pub(crate) fn start_source(
    planned: PlannedSource,
    state: &Arc<State>,
    mode: ReadMode,
    stop: &StopSignal,
) -> io::Result<(Receiver<SourceEvent>, JoinHandle<()>)> {
    let (mut sink, events) = ChannelSink::new(stop);
    let PlannedSource { name, source, .. } = planned;
    let record = state.record();
    let mut start = SourceStart {
        name: name.clone(),
        positions: record.positions.get(&name).cloned().unwrap_or_default(),
        fingerprints: record.fingerprints.get(&name).cloned().unwrap_or_default(),
        held: state.held_rows(name.clone()),
        mode,
        is_trial: false,
        stop: stop.clone(),
    };
    let body: Box<dyn FnOnce() + Send> = if record.resnapshots.contains(&name) {
        let mut sink = Restating::new(sink, state.clone(), name.clone());
        start.held = sink.held();
        Box::new(move || {
            let result = source.run(start, &mut sink);
            sink.end(result);
        })
    } else {
        Box::new(move || {
            let result = source.run(start, &mut sink);
            sink.end(result);
        })
    };
    let thread = crate::pipeline::spawn(&format!("source-{name}"), body)?;
    Ok((events, thread))
}
