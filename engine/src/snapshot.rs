//! What queries read: the published, immutable state at one epoch.
//!
//! Invariant: a published snapshot never changes, and its shards, its store and its positions are of
//! the same committed epoch. Publishing swaps a pointer; readers take no lock and wait for nobody.

use crate::state::{IndexCounts, State};
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use vectide_model::{AsOf, Epoch, Positions, StoreRead, VectorIndexRead};
use vectide_operators::{CommittedState, PlanIndex};

/// The state at an epoch.
pub(crate) struct Published {
    pub(crate) epoch: Epoch,
    pub(crate) positions: Arc<Positions>,
    pub(crate) published_at: SystemTime,
    pub(crate) store: Arc<dyn StoreRead>,
    pub(crate) indexes: Vec<PublishedIndex>,
    pub(crate) freshness: Option<Duration>,
}

/// An index at an epoch.
#[derive(Clone)]
pub(crate) struct PublishedIndex {
    pub(crate) counts: IndexCounts,
    pub(crate) shards: Vec<Arc<dyn VectorIndexRead>>,
}

impl Published {
    /// The first snapshot after opening a state.
    pub(crate) fn first(state: &State, shards: Vec<Vec<Arc<dyn VectorIndexRead>>>) -> Self {
        let counts = IndexCounts::default();
        let indexes = shards
            .into_iter()
            .map(|shards| PublishedIndex { counts, shards })
            .collect::<Vec<_>>();
        Self::of(state, indexes, None)
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
        }
        Self {
            epoch: state.epoch(),
            positions: Arc::new(record.positions.clone()),
            published_at: SystemTime::now(),
            store: state.snapshot(),
            indexes,
            freshness,
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

/// Where the newest snapshot hangs.
#[derive(Default)]
pub(crate) struct Publisher {
    current: ArcSwapOption<Published>,
}

impl Publisher {
    pub(crate) fn publish(&self, published: Published) {
        self.current.store(Some(Arc::new(published)));
    }

    pub(crate) fn current(&self) -> Option<Arc<Published>> {
        self.current.load_full()
    }
}
