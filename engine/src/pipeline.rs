//! Starting, running and ending a pipeline: which threads there are and what ends them.
//!
//! ```text
//! source threads -> ingest thread -> timely workers <-> embedder threads
//!                        ^                 |
//!                        |                 v
//!                        +---------- commit thread -> published snapshot -> queries
//! ```
//!
//! Invariant: a panic in any of these threads aborts the process. timely would hang on with a dead
//! worker, and a state that nobody commits any more must not look alive; recovery is the way back.

use crate::budget::EpochBudget;
use crate::commit::{self, CommitPorts, Totals};
use crate::control::{Control, Controlled};
use crate::dataflow::{self, Parts, ShardError};
use crate::ingest::{self, IngestEnd, IngestPorts, Resumed};
use crate::letter_export::{self, ExportEnd, LetterExport};
use crate::panics::abort_on_engine_panic;
use crate::plan::{Derivation, Plan, PlannedIndex};
use crate::recall::{self, Steering};
use crate::room::Room;
use crate::service::Service;
use crate::snapshot::Publisher;
use crate::start::{Feeders, StartOptions, begin_resnapshots};
use crate::state::{Names, State, StateError};
use crate::telemetry;
use crossbeam_channel::{bounded, unbounded};
use serde::Serialize;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vectide_model::{Embedder, Epoch, QueryService, ReadMode, SourceError, StopSignal, StoreError};
use vectide_operators::{Batcher, BatcherHandle, CommittedState, Feed, Outage};

/// How often histograms are folded when nobody scrapes the metrics.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// How often the state's folder is measured, after what queries need no longer has been let go of.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

/// Why a pipeline could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A shard.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A source that is to be read anew is not there.
    #[error("there is no source `{name}`\nhint: the configuration has {known}")]
    NoSuchSource {
        /// The name.
        name: String,
        /// The sources there are.
        known: String,
    },
    /// The disk is short of room, and nothing waits for it.
    #[error("{0}")]
    NoRoom(String),
    /// It was to read until it is caught up, and was stopped before.
    #[error(
        "stopped before it was caught up\nhint: what was committed is intact: run it again, and it goes on"
    )]
    Stopped,
    /// Dead letters could not be written to the place that is configured for them.
    #[error("{0}")]
    DeadLetters(String),
    /// A thread could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(#[from] io::Error),
    /// The dataflow could not be started.
    #[error("the dataflow could not be started: {0}")]
    Dataflow(String),
}

impl From<ExportEnd> for PipelineError {
    fn from(end: ExportEnd) -> Self {
        Self::DeadLetters(end.to_string())
    }
}

impl From<IngestEnd> for PipelineError {
    fn from(end: IngestEnd) -> Self {
        match end {
            IngestEnd::Source(error) => Self::Source(error),
            IngestEnd::NoRoom(shortage) => Self::NoRoom(shortage),
            IngestEnd::Stopped => Self::Stopped,
        }
    }
}

/// What a run did, as `vectide run --until-caught-up` prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// Documents in all indexes at the end.
    pub documents: u64,
    /// Chunks in all indexes at the end.
    pub chunks: u64,
    /// Chunks embedded in this run.
    pub embedded_chunks: u64,
    /// Chunks of written documents that needed no embedding, in this run.
    pub reused_chunks: u64,
    /// Dead letters written in this run.
    pub dead_letters: u64,
    /// Epochs committed in this run.
    pub epochs: u64,
    /// Length of the run.
    pub seconds: f64,
}

/// How far a run is: for a progress bar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Changes committed in this run.
    pub changes: u64,
    /// Documents in all indexes.
    pub documents: u64,
    /// Chunks in all indexes.
    pub chunks: u64,
    /// Chunks embedded in this run.
    pub embedded_chunks: u64,
    /// Chunks of written documents that needed no embedding, in this run.
    pub reused_chunks: u64,
}

/// A pipeline that runs.
pub struct Pipeline {
    state: Arc<State>,
    service: Arc<Service>,
    totals: Arc<Totals>,
    stop: StopSignal,
    started: Instant,
    ingest: JoinHandle<Result<Epoch, IngestEnd>>,
    commit: JoinHandle<Result<(), ShardError>>,
    sources: Vec<JoinHandle<()>>,
    workers: timely::communication::WorkerGuards<()>,
    batchers: Vec<Batcher>,
    export: Option<LetterExport>,
    upkeep: (StopSignal, JoinHandle<()>),
    watch: JoinHandle<()>,
    control: Option<Control>,
}

/// Starts one of the pipeline's own threads.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(format!("vectide-{name}"))
        .spawn(body)
}

/// One batcher for each model, shared by the indexes that use it; and the handle of each index.
fn start_batchers(
    indexes: &[PlannedIndex],
    outage: &Outage,
) -> io::Result<(Vec<Batcher>, Vec<BatcherHandle>)> {
    let mut batchers: Vec<Batcher> = Vec::new();
    let mut known: Vec<&Arc<dyn Embedder>> = Vec::new();
    let mut batcher_of: Vec<usize> = Vec::new();
    for index in indexes {
        let same = |it: &&Arc<dyn Embedder>| Arc::ptr_eq(it, &index.embedder);
        match known.iter().position(same) {
            Some(at) => batcher_of.push(at),
            None => {
                batcher_of.push(batchers.len());
                let observer = telemetry::Batches::of(&index.embedder.identity().name);
                let batcher = Batcher::start(&index.embedder, outage, Box::new(observer))?;
                batchers.push(batcher);
                known.push(&index.embedder);
            }
        }
    }
    let handles = batcher_of.iter().map(|at| batchers[*at].handle());
    let handles = handles.collect();
    Ok((batchers, handles))
}

impl Pipeline {
    /// Opens the state, publishes what is in it and starts reading the sources.
    ///
    /// # Errors
    /// When the state, a shard or a thread can't be had.
    pub fn start(plan: Plan, mode: ReadMode) -> Result<Self, PipelineError> {
        Self::start_with(plan, StartOptions::of(mode))
    }

    /// Opens the state, publishes what is in it and starts reading.
    ///
    /// # Errors
    /// As [`Pipeline::start`], and when a source that is to be read anew is not there.
    pub fn start_with(mut plan: Plan, options: StartOptions) -> Result<Self, PipelineError> {
        let (stop, started) = (StopSignal::new(), Instant::now());
        abort_on_engine_panic();
        telemetry::install();
        let derivation = plan.derivation();
        let state = open_state(plan.names(), &derivation, &options.resnapshot)?;
        let caught_up_at = Arc::new(AtomicU64::new(Epoch::MAX));
        let (outage, publisher) = (Outage::new(&stop), Arc::new(Publisher::new(plan.history)));
        let (steering, watch) = start_recall(&state, &plan.indexes, &stop)?;
        let (batchers, handles) = start_batchers(&plan.indexes, &outage)?;

        let (epoch_sender, epochs) = unbounded();
        let (wake, woken) = bounded(1);
        let (progress_sender, progress) = unbounded();
        let (meta_sender, metas) = unbounded();
        let (committed_sender, committed) = bounded(1);
        let feed = Feed { epochs, wake };
        let parts = Parts::open(&plan, state.clone(), handles.clone(), feed, progress_sender)?;
        commit::publish_opened(&state, &parts.indexes, &publisher)?;

        let budget = Arc::new(EpochBudget::new(plan.commit.bytes));
        let room = Arc::new(Room::new(&plan.state_directory, plan.room));
        let totals = Arc::new(Totals::default());
        let letters = std::mem::take(&mut plan.dead_letters);
        let (letters, export) = letter_export::start(letters, &state, &stop)?;
        let commit_ports = CommitPorts {
            metas,
            progress,
            committed: committed_sender,
            workers: plan.workers,
            budget: budget.clone(),
            totals: totals.clone(),
            publisher: publisher.clone(),
            embed_threads: bulk_threads(&plan.indexes),
            letters,
            steering: steering.clone(),
        };
        let commit = start_commit(&state, commit_ports, &stop)?;
        let workers = start_workers(parts, plan.workers, outage)?;

        let service = Service::new(
            publisher.clone(),
            &plan.sources,
            (plan.indexes, handles.clone()),
            caught_up_at.clone(),
            room.clone(),
            steering.clone(),
        );
        let planned = std::mem::take(&mut plan.sources);
        let (mode, input) = (options.mode, options.input);
        let Feeders { lanes, threads } = Feeders::start(planned, &state, (mode, input), &stop)?;
        let ports = IngestPorts {
            sources: lanes,
            epochs: epoch_sender,
            wake: woken,
            metas: meta_sender,
            committed,
            committed_epoch: committed_epoch(&state),
            budget,
            commit: plan.commit,
            room: room.clone(),
            caught_up_at,
            steering: steering.clone(),
            have_shards_news: have_shards_news(&publisher),
            have_batchers_room: have_batchers_room(handles),
            mode,
            stop: stop.clone(),
        };
        Ok(Self {
            ingest: start_ingest(&state, ports)?,
            upkeep: start_upkeep(room, publisher)?,
            control: Control::start(Controlled::new(&state, derivation))?,
            state,
            service: Arc::new(service),
            totals,
            stop,
            started,
            commit,
            sources: threads,
            workers,
            batchers,
            export,
            watch,
        })
    }

    /// What answers queries.
    pub fn service(&self) -> Arc<dyn QueryService> {
        self.service.clone()
    }

    pub(crate) fn state(&self) -> Arc<State> {
        self.state.clone()
    }

    /// Set it to end the pipeline: what is read is finished and committed, nothing more is read.
    pub fn stop_signal(&self) -> StopSignal {
        self.stop.clone()
    }

    /// Whether all sources have ended, or one failed, or the pipeline was stopped.
    pub fn is_finished(&self) -> bool {
        self.ingest.is_finished() || self.commit.is_finished()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        progress(&self.state, &self.totals)
    }

    /// Waits until everything read is committed and published, and ends.
    ///
    /// # Errors
    /// What ended a source or the commit, or [`PipelineError::Stopped`].
    pub fn join(self) -> Result<RunReport, PipelineError> {
        let read = join(self.ingest);
        if read.is_err() {
            self.stop.stop();
        }
        // What was read is finished first, even if an embedder is away: only a stop from outside, or a fault,
        // gives it up.
        self.workers.join().into_iter().for_each(drop);
        let committed = join(self.commit);
        self.stop.stop();
        // The sources wait on channels that have closed, or on the stop signal.
        self.sources.into_iter().for_each(join);
        Batcher::end_together(self.batchers);
        self.upkeep.0.stop();
        join(self.upkeep.1);
        join(self.watch);
        self.control.into_iter().for_each(Control::end);
        let exported = self.export.map(|export| export.finish(&self.state));
        committed?;
        // An embedder that is away when the pipeline is stopped leaves epochs uncommitted.
        let read = read.and_then(|epoch| match self.state.epoch() {
            newest if newest < epoch => Err(IngestEnd::Stopped),
            _ => Ok(()),
        });
        match (read, exported.transpose()) {
            // What could not be written is why it was stopped.
            (Err(IngestEnd::Stopped), Err(end)) => return Err(end.into()),
            (read, exported) => {
                read?;
                exported?;
            }
        }
        let done = progress(&self.state, &self.totals);
        Ok(RunReport {
            documents: done.documents,
            chunks: done.chunks,
            embedded_chunks: done.embedded_chunks,
            reused_chunks: done.reused_chunks,
            dead_letters: self.totals.dead_letters.load(Ordering::Relaxed),
            epochs: self.totals.epochs.load(Ordering::Relaxed),
            seconds: self.started.elapsed().as_secs_f64(),
        })
    }
}

fn open_state(
    names: Names,
    derivation: &Derivation,
    resnapshot: &[String],
) -> Result<Arc<State>, PipelineError> {
    let state = State::open(&derivation.state_directory, names, &derivation.fingerprint)?;
    begin_resnapshots(&state, resnapshot)?;
    Ok(Arc::new(state))
}

fn progress(state: &State, totals: &Totals) -> Progress {
    let record = state.record();
    let load = |total: &AtomicU64| total.load(Ordering::Relaxed);
    Progress {
        changes: load(&totals.changes),
        documents: record.indexes.values().map(|it| it.documents).sum(),
        chunks: record.indexes.values().map(|it| it.chunks).sum(),
        embedded_chunks: load(&totals.embedded_chunks),
        reused_chunks: load(&totals.reused_chunks),
    }
}

/// Waits for a thread; a panic in it has aborted the process already.
pub(crate) fn join<T>(thread: JoinHandle<T>) -> T {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Threads that embed documents for the index that has most.
fn bulk_threads(indexes: &[PlannedIndex]) -> usize {
    let threads = indexes.iter().map(|index| index.embedder.bulk_threads());
    threads.max().unwrap_or(1)
}

fn committed_epoch(state: &Arc<State>) -> Arc<dyn Fn() -> Epoch + Send + Sync> {
    let state = state.clone();
    Arc::new(move || state.epoch())
}

fn have_shards_news(publisher: &Arc<Publisher>) -> Arc<dyn Fn() -> bool + Send + Sync> {
    let publisher = publisher.clone();
    Arc::new(move || {
        let published = publisher.current();
        published.is_some_and(|published| {
            let mut shards = published.indexes.iter().flat_map(|index| &index.shards);
            shards.any(|shard| shard.has_news())
        })
    })
}

fn have_batchers_room(batchers: Vec<BatcherHandle>) -> Arc<dyn Fn() -> bool + Send + Sync> {
    Arc::new(move || batchers.iter().all(BatcherHandle::has_room))
}

/// Starts what measures recall and follows it.
fn start_recall(
    state: &State,
    indexes: &[PlannedIndex],
    stop: &StopSignal,
) -> Result<(Arc<Steering>, JoinHandle<()>), PipelineError> {
    let (steering, watch) = recall::start(state, indexes, stop)?;
    Ok((steering, spawn("recall", watch)?))
}

fn start_ingest(
    state: &State,
    ports: IngestPorts,
) -> io::Result<JoinHandle<Result<Epoch, IngestEnd>>> {
    let (first, resumed) = (state.epoch() + 1, Resumed::of(&state.record()));
    spawn("ingest", move || ingest::run(ports, first, resumed))
}

/// Starts the commits. One that fails ends the pipeline: nothing that is read from then on could be
/// kept.
fn start_commit(
    state: &Arc<State>,
    ports: CommitPorts,
    stop: &StopSignal,
) -> io::Result<JoinHandle<Result<(), ShardError>>> {
    let (state, stop) = (state.clone(), stop.clone());
    spawn("commit", move || {
        commit::run(&state, ports).inspect_err(|_| stop.stop())
    })
}

/// Starts the workers. Where texts are left without vectors because the pipeline ends during an outage of
/// the embedder, a worker ends with the epochs that wait for them: they are not committed, and are read
/// again at the next start.
fn start_workers(
    parts: Parts,
    workers: usize,
    outage: Outage,
) -> Result<timely::communication::WorkerGuards<()>, PipelineError> {
    let parts = Arc::new(parts);
    timely::execute(timely::Config::process(workers), move |worker| {
        let index = worker.index();
        worker.dataflow(|scope| dataflow::build(scope, &parts, index, workers));
        while worker.has_dataflows() && !outage.is_given_up() {
            worker.step_or_park(Some(Duration::from_millis(100)));
        }
        if worker.has_dataflows() && index == 0 {
            tracing::warn!(
                "an embedder is away: what was under way is given up, and is read again at the next start"
            );
        }
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    })
    .map_err(PipelineError::Dataflow)
}

/// What has to be looked at now and then, whatever else happens.
fn start_upkeep(
    room: Arc<Room>,
    publisher: Arc<Publisher>,
) -> io::Result<(StopSignal, JoinHandle<()>)> {
    let stop = StopSignal::new();
    let stopped = stop.clone();
    let thread = spawn("upkeep", move || {
        let mut folded_at = Instant::now();
        while !stopped.wait(ROOM_INTERVAL) {
            publisher.forget_old();
            room.measure();
            if folded_at.elapsed() < METRICS_UPKEEP {
                continue;
            }
            folded_at = Instant::now();
            if let Some(handle) = telemetry::install() {
                handle.run_upkeep();
            }
        }
    })?;
    Ok((stop, thread))
}
