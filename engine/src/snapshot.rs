//! What queries read: the published, immutable state at one epoch.
//!
//! Snapshots that answers came from are kept for a while, so that a query can be put to the same epoch
//! again. One that nobody has seen is gone with the next. They hold files of segments that are merged by
//! now, so they go in time also where nothing new is published.
//!
//! Invariant: a published snapshot never changes, and its shards, its store and its positions are of
//! the same committed epoch. One that was shown is either the newest or among the earlier ones, at any
//! moment. Publishing swaps a pointer; readers of the newest take no lock and wait for nobody.

use crate::state::{IndexCounts, State};
use arc_swap::ArcSwapOption;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use vectide_model::{AsOf, Effort, Epoch, Positions, StoreRead, VectorIndexRead};
use vectide_operators::{CommittedState, PlanIndex};

/// The state at an epoch.
pub(crate) struct Published {
    pub(crate) epoch: Epoch,
    pub(crate) positions: Arc<Positions>,
    pub(crate) published_at: SystemTime,
    pub(crate) store: Arc<dyn StoreRead>,
    pub(crate) indexes: Vec<PublishedIndex>,
    pub(crate) freshness: Option<Duration>,
    /// Whether an answer came from it.
    is_shown: AtomicBool,
}

/// An index at an epoch.
#[derive(Clone)]
pub(crate) struct PublishedIndex {
    pub(crate) counts: IndexCounts,
    pub(crate) shards: Vec<Arc<dyn VectorIndexRead>>,
    /// How much searches look at; `None`: everything.
    pub(crate) effort: Option<Effort>,
}

impl Published {
    /// The first snapshot after opening a state.
    pub(crate) fn first(state: &State, shards: Vec<Vec<Arc<dyn VectorIndexRead>>>) -> Self {
        let index = |shards| PublishedIndex {
            counts: IndexCounts::default(),
            shards,
            effort: None,
        };
        Self::of(state, shards.into_iter().map(index).collect(), None)
    }

    /// The snapshot after a commit that changed some shards. Only the commit's thread calls it, so
    /// the store's newest state is that of the commit.
    pub(crate) fn next(
        before: Option<&Self>,
        state: &State,
        changed: Vec<(PlanIndex, u32, Arc<dyn VectorIndexRead>)>,
        newest_change: Option<SystemTime>,
    ) -> Self {
        let mut indexes = before
            .map(|before| before.indexes.clone())
            .unwrap_or_default();
        for (index, shard, read) in changed {
            indexes[usize::from(index)].shards[shard as usize] = read;
        }
        let freshness = newest_change.and_then(|changed_at| changed_at.elapsed().ok());
        Self::of(
            state,
            indexes,
            freshness.or(before.and_then(|before| before.freshness)),
        )
    }

    fn of(state: &State, mut indexes: Vec<PublishedIndex>, freshness: Option<Duration>) -> Self {
        let record = state.record();
        for (index, name) in indexes.iter_mut().zip(&state.names().indexes) {
            index.counts = record.indexes.get(&**name).copied().unwrap_or_default();
            index.effort = state.effort(name);
        }
        Self {
            epoch: state.epoch(),
            positions: Arc::new(record.positions.clone()),
            published_at: SystemTime::now(),
            store: state.snapshot(),
            indexes,
            freshness,
            is_shown: AtomicBool::new(false),
        }
    }

    pub(crate) fn as_of(&self) -> AsOf {
        AsOf {
            epoch: self.epoch,
            positions: self.positions.clone(),
            published_at: self.published_at,
        }
    }
}

/// Earlier epochs that are kept at most: with some 64 KiB of rows and bits that only one epoch has, 64 MiB.
const EARLIER_MAX: usize = 1_000;

/// Where the newest snapshot hangs, and those that answers came from.
#[derive(Default)]
pub(crate) struct Publisher {
    current: ArcSwapOption<Published>,
    /// How long earlier ones are kept.
    history: Duration,
    /// Oldest first, with the times at which they were replaced.
    earlier: Mutex<VecDeque<(Instant, Arc<Published>)>>,
}

impl Publisher {
    pub(crate) fn new(history: Duration) -> Self {
        Self {
            history,
            ..Self::default()
        }
    }

    pub(crate) fn publish(&self, published: Published) {
        // Locked before the swap: who looks for the one before meanwhile waits until it is among the earlier.
        let mut earlier = self.lock_earlier();
        let before = self.current.swap(Some(Arc::new(published)));
        // Sequentially consistent with `shown`: either a reader's mark is seen here, or the reader sees
        // that another one has taken its place.
        let before = before.filter(|it| it.is_shown.load(Ordering::SeqCst));
        if let (Some(before), false) = (before, self.history.is_zero()) {
            earlier.push_back((Instant::now(), before));
        }
        let old = self.take_old(&mut earlier);
        drop(earlier);
        drop(old);
    }

    /// Lets go of those that are kept no longer.
    pub(crate) fn forget_old(&self) {
        let old = self.take_old(&mut self.lock_earlier());
        drop(old);
    }

    /// They are let go of without the lock: files are unmapped with them.
    fn take_old(&self, earlier: &mut VecDeque<(Instant, Arc<Published>)>) -> Vec<Arc<Published>> {
        let mut old = Vec::new();
        let is_old = |at: &Instant| at.elapsed() > self.history;
        while earlier.len() > EARLIER_MAX || earlier.front().is_some_and(|(at, _)| is_old(at)) {
            old.extend(earlier.pop_front().map(|(_, published)| published));
        }
        old
    }

    fn lock_earlier(&self) -> MutexGuard<'_, VecDeque<(Instant, Arc<Published>)>> {
        self.earlier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn current(&self) -> Option<Arc<Published>> {
        self.current.load_full()
    }

    /// The newest snapshot, which an answer will come from.
    pub(crate) fn shown(&self) -> Option<Arc<Published>> {
        loop {
            let current = self.current()?;
            current.is_shown.store(true, Ordering::SeqCst);
            let now = self.current();
            if now.is_some_and(|now| Arc::ptr_eq(&now, &current)) {
                return Some(current);
            }
        }
    }

    /// The snapshot of an epoch, if it is the newest or was shown lately.
    pub(crate) fn at(&self, epoch: Epoch) -> Option<Arc<Published>> {
        let newest = self.shown().filter(|it| it.epoch == epoch);
        newest.or_else(|| {
            let earlier = self.lock_earlier();
            let at = earlier.binary_search_by_key(&epoch, |(_, it)| it.epoch);
            at.ok().map(|at| earlier[at].1.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vectide_model::{Entry, StoreError, Table};

    struct NoStore;

    impl StoreRead for NoStore {
        fn get(&self, _: Table, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(None)
        }
        fn scan<'a>(
            &'a self,
            _: Table,
            _: &[u8],
        ) -> Box<dyn Iterator<Item = Result<Entry, StoreError>> + 'a> {
            Box::new(std::iter::empty())
        }
    }

    fn published(epoch: Epoch) -> Published {
        Published {
            epoch,
            positions: Arc::default(),
            published_at: SystemTime::now(),
            store: Arc::new(NoStore),
            indexes: Vec::new(),
            freshness: None,
            is_shown: AtomicBool::new(false),
        }
    }

    /// While nothing was published the earlier ones, with files that are no more in their folder, stayed.
    #[test]
    fn earlier_epochs_go_in_time_also_where_nothing_is_published() {
        let history = Duration::from_millis(50);
        let publisher = Publisher::new(history);
        publisher.publish(published(1));
        let first = Arc::downgrade(&publisher.shown().unwrap());
        publisher.publish(published(2));
        publisher.forget_old();
        assert!(publisher.at(1).is_some() || first.upgrade().is_none());
        std::thread::sleep(2 * history);
        publisher.forget_old();
        assert!(first.upgrade().is_none() && publisher.at(1).is_none());
        assert_eq!(publisher.at(2).map(|it| it.epoch), Some(2));
    }

    /// Between the swap and the entry into the history an epoch that had just been shown was in neither.
    #[test]
    fn an_epoch_that_was_shown_is_never_in_neither_place() {
        let publisher = Publisher::new(Duration::from_secs(60));
        publisher.publish(published(1));
        publisher.shown().unwrap();
        std::thread::scope(|scope| {
            // As long as it can't go to the earlier ones it stays the newest.
            let earlier = publisher.lock_earlier();
            scope.spawn(|| publisher.publish(published(2)));
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(publisher.current().map(|it| it.epoch), Some(1));
            drop(earlier);
        });
        for epoch in [1, 2] {
            assert_eq!(publisher.at(epoch).map(|it| it.epoch), Some(epoch));
        }
    }
}
