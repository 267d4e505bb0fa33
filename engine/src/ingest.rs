//! Sources to epochs: who is read when, and where one epoch ends and the next begins.
//!
//! Every source runs on a thread of its own behind a bounded channel. One thread takes from them in
//! turns and closes an epoch when the one before it is committed (an idle system answers at once) or
//! when it is full (a busy one groups). Where room is short it takes nothing from the sources, and goes on
//! closing epochs: what was taken is to be committed, and a shard that has merged gives room back only when
//! an epoch takes that in.
//!
//! Invariant: a transaction of a source never straddles two epochs; an epoch's positions say exactly
//! which changes are in it and the ones before it; at most [`EPOCHS_IN_FLIGHT_MAX`] are on their way.

use crate::budget::{CommitConfig, EpochBudget};
use crate::recall::Steering;
use crate::room::Room;
use crate::state::CommitRecord;
use crossbeam_channel::{Receiver, Select, Sender, TryRecvError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use timely::scheduling::SyncActivator;
use vectide_model::{
    Change, DeadLetter, Epoch, KeptLetter, Positions, ReadMode, SourceBatch, SourceError,
    StopSignal,
};
use vectide_operators::{ClosedEpoch, PlanIndex, SourcedChange};

/// Epochs between ingest and commit: one in each of reading, embedding and committing. More would
/// only make a new change wait longer.
pub(crate) const EPOCHS_IN_FLIGHT_MAX: u64 = 3;

/// Changes taken from one source before the next one's turn.
const TURN_CHANGES_MAX: usize = 64;

/// Batches that wait per source: one being taken, some at hand.
pub(crate) const SOURCE_QUEUE_BATCHES: usize = 4;

/// How often the thread looks around when nothing wakes it.
const IDLE_WAIT: Duration = Duration::from_millis(50);

/// How long there must be nothing to be done before a run that waits for nobody gives up for want of room:
/// longer than it takes until the folder is measured without the files that the last commit removed.
const SHORTAGE_PATIENCE: Duration = Duration::from_secs(3);

/// Why no more is read.
#[derive(Debug)]
pub(crate) enum IngestEnd {
    Source(SourceError),
    /// There is no room, and nobody waits for some.
    NoRoom(String),
    /// What was to be read to its end was stopped before.
    Stopped,
}

impl From<SourceError> for IngestEnd {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

/// What a source's thread says.
pub(crate) enum SourceEvent {
    Batch(Delivery),
    /// The source began anew and has stated all its rows again.
    Restated,
    CaughtUp,
    Ended(Result<(), SourceError>),
}

/// A batch with what the engine has to say about it.
#[derive(Default)]
pub(crate) struct Delivery {
    pub(crate) batch: SourceBatch,
    /// For each change, whether it is the first of its key since the source began anew; those
    /// missing at the end are not.
    pub(crate) restates: Vec<bool>,
    /// The changes were not read at their positions now, so the source's positions stay.
    pub(crate) keeps_positions: bool,
    /// Letters that the changes settle. Then the batch is not divisible.
    pub(crate) settled: SettledLetters,
}

impl From<SourceBatch> for Delivery {
    fn from(batch: SourceBatch) -> Self {
        Self {
            batch,
            ..Self::default()
        }
    }
}

/// What became of dead letters that were replayed.
#[derive(Default)]
pub(crate) struct SettledLetters {
    /// Their records could be used now.
    pub(crate) gone: Vec<u64>,
    /// Those that still can't be used, with the reason of today.
    pub(crate) rewritten: Vec<KeptLetter>,
}

impl SettledLetters {
    fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.rewritten.is_empty()
    }

    fn extend(&mut self, other: Self) {
        self.gone.extend(other.gone);
        self.rewritten.extend(other.rewritten);
    }

    fn len(&self) -> usize {
        self.gone.len() + self.rewritten.len()
    }

    fn bytes(&self) -> u64 {
        let rewritten = self.rewritten.iter().map(|kept| letter_bytes(&kept.letter));
        (self.gone.len() * size_of::<u64>()) as u64 + rewritten.sum::<u64>()
    }
}

fn letter_bytes(letter: &DeadLetter) -> u64 {
    let key = letter.key.as_ref().map_or(0, |key| key.len());
    let raw_key = letter.raw_key.as_ref().map_or(0, Vec::len);
    (key + letter.detail.len() + letter.raw.len() + raw_key) as u64
}

/// Where reading goes on.
pub(crate) struct Resumed {
    pub(crate) positions: Positions,
    pub(crate) fingerprints: Positions,
    pub(crate) resnapshots: BTreeSet<Arc<str>>,
}

impl Resumed {
    /// Where the last commit ended.
    pub(crate) fn of(record: &CommitRecord) -> Self {
        Self {
            positions: record.positions.clone(),
            fingerprints: record.fingerprints.clone(),
            resnapshots: record.resnapshots.clone(),
        }
    }
}

/// What the commit has to know of an epoch besides its effects.
pub(crate) struct EpochMeta {
    pub(crate) epoch: Epoch,
    pub(crate) positions: Positions,
    pub(crate) fingerprints: Positions,
    /// Sources that have not stated all their rows again by now.
    pub(crate) resnapshots: BTreeSet<Arc<str>>,
    pub(crate) dead_letters: Vec<DeadLetter>,
    pub(crate) settled: SettledLetters,
    pub(crate) changed_at: Vec<SystemTime>,
    pub(crate) input_bytes: u64,
    pub(crate) source_records: Vec<u64>,
}

/// The ingest thread's ends of all channels.
pub(crate) struct IngestPorts {
    pub(crate) sources: Vec<(Arc<str>, Receiver<SourceEvent>)>,
    pub(crate) epochs: Sender<ClosedEpoch>,
    pub(crate) wake: Receiver<SyncActivator>,
    pub(crate) metas: Sender<EpochMeta>,
    /// One message whenever something was committed.
    pub(crate) committed: Receiver<()>,
    pub(crate) committed_epoch: Arc<dyn Fn() -> Epoch + Send + Sync>,
    pub(crate) budget: Arc<EpochBudget>,
    pub(crate) commit: CommitConfig,
    pub(crate) room: Arc<Room>,
    /// The epoch that holds everything which was there at the start, once it is known.
    pub(crate) caught_up_at: Arc<AtomicU64>,
    /// Whether an epoch is to be closed though nothing has changed.
    pub(crate) steering: Arc<Steering>,
    /// Whether a shard has something to take in that was made in the background.
    pub(crate) have_shards_news: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether the embedders can take the texts of an epoch besides those that wait for them.
    pub(crate) have_batchers_room: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether to end with the sources, or to stay when all have ended.
    pub(crate) mode: ReadMode,
    pub(crate) stop: StopSignal,
}

/// A source as the ingest thread sees it.
struct Lane {
    source: PlanIndex,
    name: Arc<str>,
    events: Receiver<SourceEvent>,
    /// What is left of the batch being taken.
    rest: Option<Rest>,
    caught_up: bool,
    ended: bool,
    /// It ended because it was told to, for all that is known.
    is_cut_short: bool,
}

/// A batch from which changes are being taken.
struct Rest {
    changes: std::vec::IntoIter<Change>,
    restates: std::vec::IntoIter<bool>,
    /// Those that no epoch has yet.
    dead_letters: Vec<DeadLetter>,
    positions: BTreeMap<Arc<str>, u64>,
    keeps_positions: bool,
    divisible: bool,
}

impl Rest {
    /// Notes where reading goes on; says whether that is news, for a source may say again where it
    /// stands, and that alone makes no epoch.
    fn move_positions(&self, held: &mut BTreeMap<Arc<str>, u64>) -> bool {
        let mut moved = false;
        for (partition, after) in &self.positions {
            moved |= held.insert(partition.clone(), *after) != Some(*after);
        }
        // Where changes are left, their partitions resume at the first of them.
        for change in self.changes.as_slice().iter().rev() {
            held.insert(change.position.partition.clone(), change.position.offset);
        }
        moved
    }

    /// The letters that will not be read again where reading goes on: those before the first change left
    /// in their partition.
    fn take_letters(&mut self) -> Vec<DeadLetter> {
        let left = self.changes.as_slice();
        if left.is_empty() || self.dead_letters.is_empty() {
            return std::mem::take(&mut self.dead_letters);
        }
        let mut resumes_at = BTreeMap::new();
        for Change { position, .. } in left.iter().rev() {
            resumes_at.insert(&*position.partition, position.offset);
        }
        let is_read_again = |letter: &DeadLetter| {
            let resumed = resumes_at.get(&*letter.position.partition);
            resumed.is_some_and(|offset| letter.position.offset >= *offset)
        };
        let letters = std::mem::take(&mut self.dead_letters);
        let (later, now) = letters.into_iter().partition(is_read_again);
        self.dead_letters = later;
        now
    }
}

/// What an epoch may hold; a batch that is not divisible goes into one whatever it holds.
#[derive(Clone, Copy)]
struct Limits {
    /// Changes and letters.
    rows: usize,
    budget_bytes: u64,
    letter_bytes: u64,
}

/// The epoch that is being filled.
struct Open {
    changes: Vec<SourcedChange>,
    dead_letters: Vec<DeadLetter>,
    settled: SettledLetters,
    changed_at: Vec<SystemTime>,
    /// Of the changes alone: what an epoch costs is reckoned by them.
    bytes: u64,
    /// Of dead letters and settled ones, which cost memory as well.
    letter_bytes: u64,
    source_records: Vec<u64>,
    moved: bool,
}

impl Open {
    fn new(sources: usize) -> Self {
        Self {
            changes: Vec::new(),
            dead_letters: Vec::new(),
            settled: SettledLetters::default(),
            changed_at: Vec::new(),
            bytes: 0,
            letter_bytes: 0,
            source_records: vec![0; sources],
            moved: false,
        }
    }

    fn is_full(&self, limits: Limits) -> bool {
        let rows = self.changes.len() + self.dead_letters.len() + self.settled.len();
        self.bytes >= limits.budget_bytes
            || self.letter_bytes >= limits.letter_bytes
            || rows >= limits.rows
    }

    fn push_letters(&mut self, letters: impl IntoIterator<Item = DeadLetter>) {
        for letter in letters {
            self.letter_bytes += letter_bytes(&letter);
            self.dead_letters.push(letter);
            self.moved = true;
        }
    }

    fn settle(&mut self, settled: SettledLetters) {
        self.moved |= !settled.is_empty();
        self.letter_bytes += settled.bytes();
        self.settled.extend(settled);
    }

    fn push(&mut self, source: PlanIndex, change: Change, restates: bool) {
        let row_bytes = change.row.as_ref().map_or(0, |row| row.len());
        self.bytes += (row_bytes + change.key.len()) as u64;
        self.changed_at.push(change.changed_at);
        self.source_records[usize::from(source)] += 1;
        self.changes.push(SourcedChange {
            source,
            change,
            restates,
        });
        self.moved = true;
    }
}

/// Runs until all sources have ended, one fails, or the stop signal is set. Gives the epoch that has to be
/// committed for the run to have done what it was for: none where it follows its sources.
pub(crate) fn run(ports: IngestPorts, first: Epoch, resumed: Resumed) -> Result<Epoch, IngestEnd> {
    let lanes = ports
        .sources
        .iter()
        .enumerate()
        .map(|(number, (name, events))| Lane {
            source: number as PlanIndex,
            name: name.clone(),
            events: events.clone(),
            rest: None,
            caught_up: false,
            ended: false,
            is_cut_short: false,
        })
        .collect();
    let open = Open::new(ports.sources.len());
    // The source operator sends its waker when the dataflow is built; without one there is none.
    let Ok(wake) = ports.wake.recv() else {
        return Ok(0);
    };
    Ingest {
        ports,
        wake,
        lanes,
        open,
        resumed,
        next: first,
        closed_at: None,
        stuck_since: None,
        turn: 0,
    }
    .run()
}

struct Ingest {
    ports: IngestPorts,
    wake: SyncActivator,
    lanes: Vec<Lane>,
    open: Open,
    resumed: Resumed,
    /// Number of the open epoch.
    next: Epoch,
    /// When the one before it was closed.
    closed_at: Option<Instant>,
    /// Since when room is short and nothing is under way that may give some back.
    stuck_since: Option<Instant>,
    /// Whose turn it is.
    turn: usize,
}

impl Ingest {
    fn run(mut self) -> Result<Epoch, IngestEnd> {
        let result = loop {
            if self.is_over() {
                break Ok(self.next - 1);
            }
            if self.ports.stop.is_stopped() {
                break match self.ports.mode {
                    ReadMode::UntilCaughtUp => Err(IngestEnd::Stopped),
                    ReadMode::Follow => Ok(0),
                };
            }
            let shortage = self.ports.room.shortage();
            let is_short = shortage.is_some();
            if !is_short && let Err(error) = self.fill() {
                break Err(error.into());
            }
            self.open.moved |= self.ports.steering.take_due();
            self.open.moved = self.open.moved || self.have_shards_news(is_short);
            self.note_caught_up();
            if self.open.moved && self.may_close() {
                self.close();
                continue;
            }
            let is_stuck = self.is_stuck(is_short);
            if let Some(shortage) = shortage.filter(|_| is_stuck) {
                break Err(IngestEnd::NoRoom(shortage));
            }
            if !self.is_over() {
                self.wait(is_short);
            }
        };
        let wake = self.wake;
        drop(self.ports);
        // The source operator must notice that its channel has closed.
        let _ = wake.activate();
        result
    }

    /// Whether an epoch is worth closing for the shards alone. A run that ends with its sources leaves that
    /// to the next one, unless it may give room.
    fn have_shards_news(&self, is_short: bool) -> bool {
        let is_wanted = is_short || self.ports.mode != ReadMode::UntilCaughtUp;
        is_wanted && (self.ports.have_shards_news)()
    }

    /// Whether a run that waits for nobody to make room has waited for all that it can do itself.
    fn is_stuck(&mut self, is_short: bool) -> bool {
        let is_idle = is_short && !self.open.moved && self.in_flight() == 0;
        if !is_idle || self.ports.mode != ReadMode::UntilCaughtUp {
            self.stuck_since = None;
            return false;
        }
        let since = *self.stuck_since.get_or_insert_with(Instant::now);
        since.elapsed() >= SHORTAGE_PATIENCE
    }

    /// Epochs that are closed and not committed.
    fn in_flight(&self) -> u64 {
        self.next - 1 - (self.ports.committed_epoch)()
    }

    /// Whether the epochs before the open one leave room for it, and it is due.
    fn may_close(&self) -> bool {
        let in_flight = self.in_flight();
        if self.full() {
            return in_flight < EPOCHS_IN_FLIGHT_MAX && (self.ports.have_batchers_room)();
        }
        in_flight == 0 && self.until_due().is_zero()
    }

    /// How long an epoch that is not full waits for the interval to pass.
    fn until_due(&self) -> Duration {
        let interval = self.ports.commit.interval.as_duration();
        let since = self.closed_at.map(|closed_at| closed_at.elapsed());
        since.map_or(Duration::ZERO, |since| interval.saturating_sub(since))
    }

    /// Whether nothing more can come. A pipeline that follows stays to answer queries.
    fn is_over(&self) -> bool {
        self.ports.mode == ReadMode::UntilCaughtUp
            && !self.open.moved
            && self
                .lanes
                .iter()
                .all(|lane| lane.ended && !lane.is_cut_short)
    }

    fn full(&self) -> bool {
        self.open.is_full(self.limits())
    }

    fn limits(&self) -> Limits {
        Limits {
            rows: self.ports.commit.rows.get(),
            budget_bytes: self.ports.budget.bytes(),
            letter_bytes: self.ports.commit.bytes.as_bytes(),
        }
    }

    /// Takes from the sources in turns until the epoch is full or none has anything.
    fn fill(&mut self) -> Result<(), SourceError> {
        let mut idle = 0;
        while !self.full() && idle < self.lanes.len() {
            let at = self.turn % self.lanes.len();
            self.turn += 1;
            idle = if self.take_turn(at)? { 0 } else { idle + 1 };
        }
        Ok(())
    }

    /// Lets one source put changes into the open epoch; says whether it had any.
    fn take_turn(&mut self, at: usize) -> Result<bool, SourceError> {
        let lane = &mut self.lanes[at];
        if lane.rest.is_none() {
            match lane.events.try_recv() {
                Ok(SourceEvent::Batch(delivery)) => self.begin(at, delivery),
                Ok(SourceEvent::Restated) => {
                    self.open.moved |= self.resumed.resnapshots.remove(&lane.name);
                    return Ok(true);
                }
                Ok(SourceEvent::CaughtUp) => {
                    lane.caught_up = true;
                    return Ok(true);
                }
                Ok(SourceEvent::Ended(result)) => {
                    // A source that is stopped ends like one that has read everything, but says before
                    // that it did.
                    lane.is_cut_short = !lane.caught_up && self.ports.stop.is_stopped();
                    (lane.ended, lane.caught_up) = (true, true);
                    return result.map(|()| true);
                }
                Err(TryRecvError::Empty) => return Ok(false),
                Err(TryRecvError::Disconnected) => {
                    lane.is_cut_short |= !lane.ended && self.ports.stop.is_stopped();
                    lane.ended = true;
                    return Ok(false);
                }
            }
        }
        self.take_changes(at);
        Ok(true)
    }

    /// Begins to take a batch: what stands at no position belongs to the epoch that is open.
    fn begin(&mut self, at: usize, delivery: Delivery) {
        let lane = &mut self.lanes[at];
        let Delivery {
            batch,
            restates,
            keeps_positions,
            settled,
        } = delivery;
        self.open.settle(settled);
        if !batch.fingerprints.is_empty() {
            let held = self.resumed.fingerprints.entry(lane.name.clone());
            held.or_default().extend(batch.fingerprints);
        }
        lane.rest = Some(Rest {
            changes: batch.changes.into_iter(),
            restates: restates.into_iter(),
            dead_letters: batch.dead_letters,
            positions: batch.positions,
            keeps_positions,
            divisible: batch.divisible,
        });
        if batch.split_transactions > 0 {
            tracing::warn!(
                source = %lane.name, split = batch.split_transactions,
                "a transaction was longer than its limit and becomes visible in parts"
            );
        }
    }

    fn take_changes(&mut self, at: usize) {
        let limits = self.limits();
        let lane = &mut self.lanes[at];
        let Some(rest) = lane.rest.as_mut() else {
            return;
        };
        let limit = if rest.divisible {
            TURN_CHANGES_MAX
        } else {
            usize::MAX
        };
        let mut taken = 0;
        while taken < limit && !(rest.divisible && self.open.is_full(limits)) {
            let Some(change) = rest.changes.next() else {
                break;
            };
            let restates = rest.restates.next().unwrap_or(false);
            self.open.push(lane.source, change, restates);
            taken += 1;
        }
        self.open.push_letters(rest.take_letters());
        if !rest.keeps_positions {
            let positions = self.resumed.positions.entry(lane.name.clone());
            self.open.moved |= rest.move_positions(positions.or_default());
        }
        if rest.changes.as_slice().is_empty() {
            lane.rest = None;
        }
    }

    fn note_caught_up(&self) {
        let drained = |lane: &Lane| lane.caught_up && lane.rest.is_none();
        if self.ports.caught_up_at.load(Ordering::Relaxed) == Epoch::MAX
            && self.lanes.iter().all(drained)
        {
            let epoch = if self.open.moved {
                self.next
            } else {
                self.next - 1
            };
            self.ports.caught_up_at.store(epoch, Ordering::Release);
        }
    }

    fn close(&mut self) {
        let open = std::mem::replace(&mut self.open, Open::new(self.lanes.len()));
        let epoch = self.next;
        self.next += 1;
        self.closed_at = Some(Instant::now());
        let meta = EpochMeta {
            epoch,
            positions: self.resumed.positions.clone(),
            fingerprints: self.resumed.fingerprints.clone(),
            resnapshots: self.resumed.resnapshots.clone(),
            dead_letters: open.dead_letters,
            settled: open.settled,
            changed_at: open.changed_at,
            input_bytes: open.bytes,
            source_records: open.source_records,
        };
        // Both ends live as long as the pipeline; when they are gone it is ending.
        let _ = self.ports.metas.send(meta);
        let _ = self.ports.epochs.send(ClosedEpoch {
            epoch,
            changes: open.changes,
        });
        let _ = self.wake.activate();
    }

    /// Sleeps until a source has something for an epoch with room, or a commit is done. While room is short
    /// it does not matter what the sources have.
    fn wait(&self, is_short: bool) {
        let mut select = Select::new();
        select.recv(&self.ports.committed);
        if !is_short && !self.full() {
            for lane in self.lanes.iter().filter(|lane| !lane.ended) {
                select.recv(&lane.events);
            }
        }
        // An epoch that waits for its interval is not woken by anything.
        let due = Some(self.until_due()).filter(|due| self.open.moved && !due.is_zero());
        let _ = select.ready_timeout(due.unwrap_or(IDLE_WAIT).min(IDLE_WAIT));
        while self.ports.committed.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests;
