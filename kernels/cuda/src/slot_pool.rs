//! The slots of a lane, which callers take and give back.
//!
//! Invariant: who waits for a slot holds none of the pool, so waiting always ends.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Things that are taken by one caller at a time.
pub(crate) struct SlotPool<S> {
    idle: Mutex<Vec<S>>,
    given_back: Condvar,
}

impl<S> SlotPool<S> {
    pub(crate) fn new(slots: Vec<S>) -> Self {
        Self {
            idle: Mutex::new(slots),
            given_back: Condvar::new(),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<S>> {
        // A panic elsewhere leaves the list whole: it is only pushed to and popped from.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one.
    pub(crate) fn take(&self) -> Taken<'_, S> {
        let mut idle = self.idle();
        loop {
            if let Some(slot) = idle.pop() {
                return self.taken(slot);
            }
            let waited = self.given_back.wait(idle);
            idle = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One more, if one is idle.
    pub(crate) fn try_take(&self) -> Option<Taken<'_, S>> {
        let slot = self.idle().pop()?;
        Some(self.taken(slot))
    }

    fn taken(&self, slot: S) -> Taken<'_, S> {
        Taken {
            slot: Some(slot),
            pool: self,
        }
    }
}

/// A slot that goes back when dropped.
pub(crate) struct Taken<'a, S> {
    /// There until dropped.
    slot: Option<S>,
    pool: &'a SlotPool<S>,
}

impl<S> std::ops::Deref for Taken<'_, S> {
    type Target = S;
    fn deref(&self) -> &S {
        self.slot.as_ref().expect("a slot until dropped")
    }
}

impl<S> std::ops::DerefMut for Taken<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        self.slot.as_mut().expect("a slot until dropped")
    }
}

impl<S> Drop for Taken<'_, S> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.idle().push(slot);
            self.pool.given_back.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_one_owner_and_waiting_ends() {
        let pool = SlotPool::new(vec![0_u32, 0]);
        let first = pool.take();
        let second = pool.try_take().unwrap();
        assert!(pool.try_take().is_none());
        drop((first, second));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| *pool.take() += 1));
            }
        });
        let slots = [pool.take(), pool.take()];
        assert_eq!(*slots[0] + *slots[1], 8000);
    }
}
