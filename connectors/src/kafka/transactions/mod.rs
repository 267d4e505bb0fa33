//! Puts the changes of a source's transactions together again, which lie scattered over partitions.
//!
//! Pure: no Kafka, no clock. In go records of partitions and markers of the transaction topic, in any
//! interleaving of the partitions; out come *cuts*: for each partition a prefix of what is waiting.
//!
//! **What is known.** A connector writes transactions in the order of their commits, each followed by
//! its END marker. So within a partition the records of an earlier transaction come before those of a
//! later one, and the END markers, which stand in one partition, tell the order of all. Nothing is
//! known of two partitions relative to each other. After a crash a connector writes a stretch again.
//!
//! **The algorithm.** Every partition has a queue of what was read and not given out. The first END
//! that is not done names the current transaction.
//! 1. Records that belong to no transaction are given out when they are the first of their queue.
//! 2. The current transaction is given out when all its records are there (END counts them). The cut
//!    goes, in each queue, to its last record. Another transaction with a record inside the cut is
//!    drawn in as a whole: if it has an END, that comes later, and both wait until it is complete; if
//!    it has none, its END is lost (it would have come before), and it goes as it is.
//! 3. A record is written again if its place in the transaction is not above that of the one before
//!    it in the same partition. It counts for the next transaction of that name, whose END was written
//!    again too.
//! 4. A missing record is given up when no partition that may hold it can bring it: each has a record
//!    of a later transaction waiting, or is at its end: it was read to it, and was found empty after
//!    nothing new had come for the timeout. What is polled and can't be taken yet, or lies in the
//!    client's queue while nobody reads, is no end. So it is with a missing END and the transaction
//!    topic. What there is goes.
//! 5. A transaction that is too large is given out in parts; so is, when the buffer is full, the one at
//!    the head of the longest queue.
//!
//! **Bounded, and never stuck.** A partition is read while its queue is short, or while a transaction
//! that is waited for may have more there. So a partition that runs ahead stops, and one that is
//! needed is read; a full buffer is emptied by 5, and everything else ends by 4.
//!
//! Invariant: a cut is a prefix of each queue, so positions behind it are right; it holds each
//! transaction whole, save those that are counted as split or incomplete.

mod instance;
#[cfg(test)]
mod tests;

use crate::envelope::TransactionPlace;
use instance::{End, Instance};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ends of transactions that were given up without one, to be recognised: enough for those that a
/// producer can still have in flight.
const GIVEN_UP_MAX: usize = 1_000;

/// Markers that wait: some hundred bytes each, and far more than are in flight while all goes well.
const MARKERS_MAX: usize = 10_000;

/// Bounds of what waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Changes of a transaction that wait at most; of all together there are twice as many, so that
    /// one that is not too large always finds room. The record that is taken last may exceed it.
    pub(crate) changes_max: usize,
    /// Bytes that wait at most, of all together, likewise.
    pub(crate) bytes_max: usize,
    /// How long a missing record or END is waited for.
    pub(crate) timeout: Duration,
}

/// A record that waits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Buffered<T> {
    pub(crate) offset: u64,
    pub(crate) payload: T,
    /// Its changes and bytes, for the limits.
    pub(crate) changes: usize,
    pub(crate) bytes: usize,
    /// The transaction it is of.
    pub(crate) place: Option<TransactionPlace>,
}

/// The end of a transaction, as far as it concerns what is read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TransactionEnd {
    pub(crate) id: Arc<str>,
    /// Its records in the partitions that are read.
    pub(crate) expected: u64,
    /// Those partitions.
    pub(crate) partitions: BTreeSet<usize>,
}

/// What is given out together.
#[derive(Debug, PartialEq)]
pub(crate) struct Cut<T> {
    /// Records by partition, each in the order of its offsets.
    pub(crate) records: Vec<(usize, Buffered<T>)>,
    /// The next offset of the transaction topic, where it moved.
    pub(crate) markers_next: Option<u64>,
    /// Whether the records have to become visible together.
    pub(crate) is_transaction: bool,
    /// Transactions that are split here for the first time.
    pub(crate) split: u64,
    /// Transactions that go without their END or without all their records.
    pub(crate) incomplete: Vec<Arc<str>>,
}

/// Whether a partition has more than was read.
#[derive(Clone, Copy, Default)]
struct ReadEnd {
    /// Its end was told behind the last record that was polled.
    is_told: bool,
    /// When it was last found empty since.
    empty_at: Option<Instant>,
}

impl ReadEnd {
    fn found_empty(&mut self, at: Instant) {
        if self.is_told {
            self.empty_at = Some(at);
        }
    }

    /// Whether it had no more when a transaction had missed something for the timeout.
    fn was_there(self, instance: &Instance, timeout: Duration) -> bool {
        self.empty_at
            .is_some_and(|at| instance.is_overdue(at, timeout))
    }
}

struct Queue<T> {
    records: VecDeque<Buffered<T>>,
    /// How many were taken from the front: the sequence number of the first.
    taken: u64,
    changes: usize,
    bytes: usize,
    end: ReadEnd,
    /// The transaction of the last record that has one.
    last: Option<Arc<str>>,
}

impl<T> Queue<T> {
    fn new() -> Self {
        Self {
            records: VecDeque::new(),
            taken: 0,
            changes: 0,
            bytes: 0,
            end: ReadEnd::default(),
            last: None,
        }
    }

    fn push(&mut self, record: Buffered<T>) {
        self.changes += record.changes;
        self.bytes += record.bytes;
        if let Some(place) = &record.place {
            self.last = Some(place.id.clone());
        }
        self.records.push_back(record);
    }

    fn pop(&mut self) -> Option<Buffered<T>> {
        let record = self.records.pop_front()?;
        self.taken += 1;
        self.changes -= record.changes;
        self.bytes -= record.bytes;
        if self.records.is_empty() {
            self.last = None;
        }
        Some(record)
    }

    fn at(&self, sequence: u64) -> Option<&Buffered<T>> {
        let index = usize::try_from(sequence.checked_sub(self.taken)?).ok()?;
        self.records.get(index)
    }

    fn next_sequence(&self) -> u64 {
        self.taken + self.records.len() as u64
    }
}

struct Marker {
    next: u64,
    end: Option<Arc<str>>,
}

/// A cut in the making.
#[derive(Default)]
struct Closure {
    /// For each partition the sequence number behind its last record.
    until: BTreeMap<usize, u64>,
    members: Vec<Arc<str>>,
}

/// Whose records a transaction has to wait for.
struct Awaited(Vec<Arc<str>>);

/// What waits.
pub(crate) struct TransactionBuffer<T> {
    limits: Limits,
    queues: Vec<Queue<T>>,
    instances: HashMap<Arc<str>, Instance>,
    markers: VecDeque<Marker>,
    markers_end: ReadEnd,
    /// Transactions that went without an END, which may come yet.
    given_up: VecDeque<Arc<str>>,
    /// Whose records are needed before anything of a transaction can go.
    awaited: Vec<Arc<str>>,
    /// Whether they have been for longer than the timeout.
    is_awaited_overdue: bool,
    /// A transaction whose changes have reached the limit.
    too_large: Option<Arc<str>>,
    changes: usize,
    bytes: usize,
}

impl<T> TransactionBuffer<T> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            queues: Vec::new(),
            instances: HashMap::new(),
            markers: VecDeque::new(),
            markers_end: ReadEnd::default(),
            given_up: VecDeque::new(),
            awaited: Vec::new(),
            is_awaited_overdue: false,
            too_large: None,
            changes: 0,
            bytes: 0,
        }
    }

    /// Makes room for one more partition; they are numbered from 0.
    pub(crate) fn add_partition(&mut self) {
        self.queues.push(Queue::new());
    }

    /// A record of a partition was polled, which is taken when it is decoded: that may take long.
    pub(crate) fn polled(&mut self, partition: usize) {
        self.queues[partition].end = ReadEnd::default();
    }

    /// The same for the transaction topic.
    pub(crate) fn polled_marker(&mut self) {
        self.markers_end = ReadEnd::default();
    }

    /// No end that was told counts any longer: everything is read by another client.
    pub(crate) fn forget_ends(&mut self) {
        self.polled_marker();
        (0..self.queues.len()).for_each(|partition| self.polled(partition));
    }

    /// Takes the next record of a partition.
    pub(crate) fn push(&mut self, partition: usize, record: Buffered<T>, now: Instant) {
        self.changes += record.changes;
        self.bytes += record.bytes;
        self.polled(partition);
        let queue = &mut self.queues[partition];
        if let Some(place) = &record.place {
            let instance = self.instances.entry(place.id.clone());
            let instance = instance.or_insert_with(|| Instance::new(now));
            let arrival = (queue.next_sequence(), place.total_order, record.changes);
            instance.add(partition, arrival, now);
            if instance.changes >= self.limits.changes_max {
                self.too_large = Some(place.id.clone());
            }
        }
        queue.push(record);
    }

    /// Takes a record of the transaction topic that ends no transaction.
    pub(crate) fn pass_marker(&mut self, offset: u64) {
        self.polled_marker();
        self.markers.push_back(Marker {
            next: offset + 1,
            end: None,
        });
    }

    /// Takes the END of a transaction.
    pub(crate) fn end(&mut self, offset: u64, end: TransactionEnd, now: Instant) {
        let given_up = self.given_up.iter().position(|id| *id == end.id);
        let is_open = self.instances.contains_key(&end.id);
        if let (Some(index), false) = (given_up, is_open) {
            self.given_up.remove(index);
            return self.pass_marker(offset);
        }
        self.polled_marker();
        self.markers.push_back(Marker {
            next: offset + 1,
            end: Some(end.id.clone()),
        });
        let instance = self.instances.entry(end.id);
        let instance = instance.or_insert_with(|| Instance::new(now));
        instance.ends.push_back(End {
            expected: end.expected,
            partitions: end.partitions,
        });
        instance.last_arrival = now;
    }

    /// A partition was read to its end.
    pub(crate) fn set_at_end(&mut self, partition: usize) {
        self.queues[partition].end.is_told = true;
    }

    /// The transaction topic was read to its end.
    pub(crate) fn set_markers_at_end(&mut self) {
        self.markers_end.is_told = true;
    }

    /// A partition was polled and had nothing, at that time or later.
    pub(crate) fn found_empty(&mut self, partition: usize, at: Instant) {
        self.queues[partition].end.found_empty(at);
    }

    /// The same for the transaction topic.
    pub(crate) fn found_no_marker(&mut self, at: Instant) {
        self.markers_end.found_empty(at);
    }

    /// Whether nothing waits.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.markers.is_empty() && self.queues.iter().all(|queue| queue.records.is_empty())
    }

    /// Whether the next marker is to be read.
    pub(crate) fn wants_markers(&self) -> bool {
        self.markers.len() < MARKERS_MAX
    }

    /// Whether the next record of a partition is to be read.
    pub(crate) fn wants(&self, partition: usize) -> bool {
        if self.is_full() {
            return false;
        }
        let queue = &self.queues[partition];
        // Half of the buffer is shared out, so that the other half is left for what is waited for.
        let shares = self.queues.len();
        let is_short = queue.changes < (self.limits.changes_max / shares).max(1)
            && queue.bytes < self.limits.bytes_max / (2 * shares)
            // Records without changes are bounded too.
            && queue.records.len() < self.limits.changes_max;
        if is_short {
            return true;
        }
        if self.awaited.is_empty() {
            // One large transaction, whose END is not written yet, may be all there is.
            let head = queue
                .records
                .front()
                .and_then(|record| record.place.as_ref());
            let is_one = head.map(|place| &place.id) == queue.last.as_ref();
            return is_one && self.markers_end.is_told;
        }
        self.awaited.iter().any(|id| self.may_bring(partition, id))
    }

    fn is_full(&self) -> bool {
        self.changes >= 2 * self.limits.changes_max || self.bytes >= self.limits.bytes_max
    }

    fn current(&self) -> Option<&Arc<str>> {
        self.markers.iter().find_map(|marker| marker.end.as_ref())
    }

    /// Whether a partition may hold more of a transaction that has its END, as far as is known.
    fn may_bring(&self, partition: usize, id: &Arc<str>) -> bool {
        let end = self.instances.get(id).and_then(|it| it.ends.front());
        if !end.is_some_and(|end| end.partitions.contains(&partition)) {
            return false;
        }
        match &self.queues[partition].last {
            // The marker that tells whether it is a later one comes first, unless it is lost.
            Some(last) if last != id && !self.has_end(last) => {
                (self.markers_end.is_told && self.is_awaited_overdue) || !self.wants_markers()
            }
            _ => !self.is_beyond(partition, id),
        }
    }

    fn has_end(&self, id: &Arc<str>) -> bool {
        self.instances.get(id).is_some_and(|it| !it.ends.is_empty())
    }

    /// Whether the last record that waits in a partition is of a transaction that is known to be
    /// later: its END has come, and is not the current one.
    fn is_beyond(&self, partition: usize, id: &Arc<str>) -> bool {
        let Some(last) = &self.queues[partition].last else {
            return false;
        };
        last != id && Some(last) != self.current() && self.has_end(last)
    }

    /// What can be given out now; to be asked again until there is nothing.
    pub(crate) fn release(&mut self, now: Instant) -> Option<Cut<T>> {
        if let Some(cut) = self.release_heads() {
            return Some(cut);
        }
        self.awaited.clear();
        if let Some(current) = self.current().cloned() {
            match self.close(&current, now) {
                Ok(closure) => return Some(self.take(closure, Force::Nothing)),
                Err(Awaited(ids)) => {
                    let timeout = self.limits.timeout;
                    let mut awaited = ids.iter().filter_map(|id| self.instances.get(id));
                    self.is_awaited_overdue = awaited.any(|it| it.is_overdue(now, timeout));
                    self.awaited = ids;
                }
            }
        }
        if let Some(id) = self.too_large.take() {
            let instance = self.instances.get(&id);
            if instance.is_some_and(|it| it.changes >= self.limits.changes_max) {
                return Some(self.take(self.closure(&id), Force::Split));
            }
        }
        if self.is_full() {
            return self.release_longest();
        }
        self.release_without_end(now)
    }

    /// Records at the heads of queues, and of markers, that are of no transaction.
    fn release_heads(&mut self) -> Option<Cut<T>> {
        let mut cut = Cut {
            records: Vec::new(),
            markers_next: self.pass_done_markers(),
            is_transaction: false,
            split: 0,
            incomplete: Vec::new(),
        };
        for (partition, queue) in self.queues.iter_mut().enumerate() {
            while queue
                .records
                .front()
                .is_some_and(|record| record.place.is_none())
            {
                cut.records
                    .extend(queue.pop().map(|record| (partition, record)));
            }
        }
        for (_, record) in &cut.records {
            self.changes -= record.changes;
            self.bytes -= record.bytes;
        }
        (!cut.records.is_empty() || cut.markers_next.is_some()).then_some(cut)
    }

    fn pass_done_markers(&mut self) -> Option<u64> {
        let mut next = None;
        while self
            .markers
            .front()
            .is_some_and(|marker| marker.end.is_none())
        {
            next = self.markers.pop_front().map(|marker| marker.next).or(next);
        }
        next
    }

    /// The cut that holds a transaction, if all in it can go.
    fn close(&self, root: &Arc<str>, now: Instant) -> Result<Closure, Awaited> {
        // The cheap question first: it is asked again with every turn.
        if self.waits(root, now) {
            return Err(Awaited(vec![root.clone()]));
        }
        let closure = self.closure(root);
        let waiting = closure.members.iter().filter(|id| self.waits(id, now));
        let waiting: Vec<Arc<str>> = waiting.cloned().collect();
        if waiting.is_empty() {
            return Ok(closure);
        }
        Err(Awaited(waiting))
    }

    /// Whether a transaction has an END and records are missing that may still come.
    fn waits(&self, id: &Arc<str>, now: Instant) -> bool {
        let Some(instance) = self.instances.get(id) else {
            return false;
        };
        let Some(end) = instance.ends.front() else {
            return false;
        };
        if instance.distinct >= end.expected {
            return false;
        }
        let timeout = self.limits.timeout;
        if end.partitions.is_empty() {
            // The topic is known to be wanted and not found yet.
            return !instance.is_overdue(now, timeout);
        }
        end.partitions.iter().any(|partition| {
            let read_end = self.queues[*partition].end;
            !(self.is_beyond(*partition, id) || read_end.was_there(instance, timeout))
        })
    }

    fn closure(&self, root: &Arc<str>) -> Closure {
        let mut closure = Closure::default();
        closure.members.push(root.clone());
        let mut examined = 0;
        while let Some(id) = closure.members.get(examined).cloned() {
            examined += 1;
            let Some(instance) = self.instances.get(&id) else {
                continue;
            };
            for (partition, last) in instance.last_records() {
                self.extend(&mut closure, partition, last + 1);
            }
        }
        closure
    }

    /// Moves a cut in one queue, and draws in the transactions that it meets.
    fn extend(&self, closure: &mut Closure, partition: usize, until: u64) {
        let queue = &self.queues[partition];
        let from = closure
            .until
            .get(&partition)
            .copied()
            .unwrap_or(queue.taken);
        if until <= from {
            return;
        }
        closure.until.insert(partition, until);
        for sequence in from..until {
            let place = queue.at(sequence).and_then(|record| record.place.as_ref());
            if let Some(place) = place
                && !closure.members.contains(&place.id)
            {
                closure.members.push(place.id.clone());
            }
        }
    }

    /// Makes room by the transaction at the head of the longest queue.
    fn release_longest(&mut self) -> Option<Cut<T>> {
        let queues = self.queues.iter().enumerate();
        let (index, longest) =
            queues.max_by_key(|(_, queue)| (queue.bytes, queue.records.len()))?;
        let head = longest.records.front()?.place.as_ref()?.id.clone();
        let mut closure = self.closure(&head);
        // Of one that was split, records that were written again may be all that is left.
        self.extend(&mut closure, index, longest.taken + 1);
        Some(self.take(closure, Force::Split))
    }

    /// Transactions at the heads of queues whose END is overdue.
    fn release_without_end(&mut self, now: Instant) -> Option<Cut<T>> {
        let (end, timeout) = (self.markers_end, self.limits.timeout);
        end.empty_at?;
        // One that was split, and had its END lost, leaves nothing to wait for.
        self.instances.retain(|_, it| {
            !(it.ends.is_empty() && it.is_without_records() && end.was_there(it, timeout))
        });
        let heads = self
            .queues
            .iter()
            .filter_map(|queue| queue.records.front()?.place.as_ref());
        let is_overdue = |id: &Arc<str>| {
            let instance = self.instances.get(id);
            instance.is_some_and(|it| it.ends.is_empty() && end.was_there(it, timeout))
        };
        let overdue: Vec<Arc<str>> = heads.map(|it| it.id.clone()).filter(is_overdue).collect();
        let closure = overdue.iter().find_map(|id| self.close(id, now).ok())?;
        Some(self.take(closure, Force::Nothing))
    }

    /// Takes a cut out of the queues.
    fn take(&mut self, closure: Closure, force: Force) -> Cut<T> {
        let mut cut = Cut {
            records: Vec::new(),
            markers_next: None,
            is_transaction: true,
            split: 0,
            incomplete: Vec::new(),
        };
        for (partition, until) in &closure.until {
            let queue = &mut self.queues[*partition];
            while queue.taken < *until {
                let Some(record) = queue.pop() else { break };
                self.changes -= record.changes;
                self.bytes -= record.bytes;
                cut.records.push((*partition, record));
            }
        }
        for id in closure.members {
            self.settle(id, force, &mut cut);
        }
        cut.markers_next = self.pass_done_markers();
        cut
    }

    /// Keeps book of a transaction whose records were taken.
    fn settle(&mut self, id: Arc<str>, force: Force, cut: &mut Cut<T>) {
        let Some(mut instance) = self.instances.remove(&id) else {
            return;
        };
        let queues = &self.queues;
        instance.forget_taken(|partition| queues[partition].taken);
        let end = instance.ends.front();
        let is_complete = end.is_some_and(|end| instance.distinct >= end.expected);
        if !is_complete && force == Force::Split {
            cut.split += u64::from(!std::mem::replace(&mut instance.is_split, true));
            self.instances.insert(id, instance);
            return;
        }
        if !is_complete {
            cut.incomplete.push(id.clone());
        }
        if end.is_some() {
            instance.ends.pop_front();
            let mut markers = self.markers.iter_mut();
            if let Some(done) = markers.find(|marker| marker.end.as_ref() == Some(&id)) {
                done.end = None;
            }
        } else {
            if self.given_up.len() == GIVEN_UP_MAX {
                self.given_up.pop_front();
            }
            self.given_up.push_back(id.clone());
        }
        if let Some(next) = instance.written_again(|partition, sequence| {
            let record = queues[partition].at(sequence)?;
            Some((record.place.as_ref()?.total_order, record.changes))
        }) {
            self.instances.insert(id, next);
        }
    }
}

/// Whether a cut is made although a transaction in it is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Force {
    Nothing,
    Split,
}
