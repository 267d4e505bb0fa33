//! A worker's memory of what it changed but nobody committed yet.
//!
//! Invariant: an entry stays until its epoch is committed, so that asking here first and the
//! committed state second gives the newest value. Its size is bounded by the epochs in flight.

use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::hash::Hash;
use vectide_model::Epoch;

/// Values by key, each with the epoch that wrote it last.
pub(crate) struct Pending<K, V> {
    values: FxHashMap<K, (Epoch, V)>,
    written: VecDeque<(Epoch, Vec<K>)>,
}

impl<K: Hash + Eq + Clone, V> Pending<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            values: FxHashMap::default(),
            written: VecDeque::new(),
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.values.get(key).map(|(_, value)| value)
    }

    /// Remembers a value; epochs come in ascending order.
    pub(crate) fn insert(&mut self, epoch: Epoch, key: K, value: V) {
        match self.written.back_mut() {
            Some((last, keys)) if *last == epoch => keys.push(key.clone()),
            _ => self.written.push_back((epoch, vec![key.clone()])),
        }
        self.values.insert(key, (epoch, value));
    }

    /// Forgets what the committed state holds by now.
    pub(crate) fn forget_committed(&mut self, committed: Epoch) {
        while self
            .written
            .front()
            .is_some_and(|(epoch, _)| *epoch <= committed)
        {
            let Some((epoch, keys)) = self.written.pop_front() else {
                return;
            };
            for key in keys {
                if self
                    .values
                    .get(&key)
                    .is_some_and(|(newest, _)| *newest == epoch)
                {
                    self.values.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stays_until_its_newest_epoch_is_committed() {
        let mut pending = Pending::new();
        pending.insert(1, "a", 1);
        pending.insert(1, "b", 2);
        pending.insert(2, "a", 3);
        pending.forget_committed(1);
        assert_eq!((pending.get(&"a"), pending.get(&"b")), (Some(&3), None));
        pending.forget_committed(2);
        assert_eq!(pending.get(&"a"), None);
    }
}
