//! One transaction as far as it was read.
//!
//! A transaction of one name may come more than once, when its connector wrote it again. Each coming
//! is an instance of its own, and one is open at a time: the records of the next wait in `again`.
//!
//! Invariant: `distinct` counts each record of the transaction once, however often it was written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// What the END of a transaction says.
pub(super) struct End {
    /// Records in the partitions that are read.
    pub(super) expected: u64,
    /// Those partitions; none when their topic is still looked for.
    pub(super) partitions: BTreeSet<usize>,
}

/// The records of a transaction in one partition.
#[derive(Default)]
struct Part {
    /// The highest place in the transaction so far.
    highest: u64,
    /// Sequence number of the last record that waits.
    last: Option<u64>,
    /// Sequence numbers of records that were written again.
    again: VecDeque<u64>,
}

impl Part {
    /// Takes a record; whether it is new.
    fn add(&mut self, sequence: u64, order: u64) -> bool {
        // Places count from 1; a format that does not tell them has 0, and counts every record.
        if order != 0 && order <= self.highest {
            self.again.push_back(sequence);
            return false;
        }
        self.highest = order;
        self.last = Some(sequence);
        true
    }
}

/// One coming of a transaction.
pub(super) struct Instance {
    /// Its END, and those of its next comings.
    pub(super) ends: VecDeque<End>,
    /// Records so far, also those that were given out already.
    pub(super) distinct: u64,
    /// Changes that wait.
    pub(super) changes: usize,
    /// When the last record or END came.
    pub(super) last_arrival: Instant,
    /// Whether a part was given out.
    pub(super) is_split: bool,
    parts: BTreeMap<usize, Part>,
}

impl Instance {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            ends: VecDeque::new(),
            distinct: 0,
            changes: 0,
            last_arrival: now,
            is_split: false,
            parts: BTreeMap::new(),
        }
    }

    /// Takes a record: its sequence number, its place in the transaction, its changes.
    pub(super) fn add(&mut self, partition: usize, record: (u64, u64, usize), now: Instant) {
        self.last_arrival = now;
        let (sequence, order, changes) = record;
        if self
            .parts
            .entry(partition)
            .or_default()
            .add(sequence, order)
        {
            self.distinct += 1;
            self.changes += changes;
        }
    }

    /// Whether nothing came for the timeout.
    pub(super) fn is_overdue(&self, now: Instant, timeout: Duration) -> bool {
        now.saturating_duration_since(self.last_arrival) >= timeout
    }

    /// Whether no record of it waits.
    pub(super) fn is_without_records(&self) -> bool {
        let mut parts = self.parts.values();
        parts.all(|part| part.last.is_none() && part.again.is_empty())
    }

    /// The last record in each partition.
    pub(super) fn last_records(&self) -> impl Iterator<Item = (usize, u64)> {
        let parts = self.parts.iter();
        parts.filter_map(|(partition, part)| Some((*partition, part.last?)))
    }

    /// Forgets records that were given out.
    pub(super) fn forget_taken(&mut self, taken: impl Fn(usize) -> u64) {
        for (partition, part) in &mut self.parts {
            let first = taken(*partition);
            part.last = part.last.filter(|last| *last >= first);
            part.again.retain(|sequence| *sequence >= first);
        }
        // All that counted was taken: a cut goes to the last record in every partition.
        self.changes = 0;
    }

    /// The next coming, where records or an END of it were read.
    pub(super) fn written_again(
        self,
        place_of: impl Fn(usize, u64) -> Option<(u64, usize)>,
    ) -> Option<Self> {
        let mut next = Self::new(self.last_arrival);
        for (partition, part) in self.parts {
            for sequence in part.again {
                let (order, changes) = place_of(partition, sequence).unwrap_or_default();
                next.add(partition, (sequence, order, changes), self.last_arrival);
            }
        }
        next.ends = self.ends;
        (!next.ends.is_empty() || !next.is_without_records()).then_some(next)
    }
}
