//! Whether the disk of the state has room for more changes.
//!
//! Invariant: where it has not, nothing more is taken from the sources until it has; what was taken is
//! committed, and queries are answered all the time. There is a margin between stopping and going on,
//! so that the one does not follow the other with every commit.

use crate::compact::folder_bytes;
use crate::telemetry;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use vectide_model::ByteSize;

/// What has to be free for more to be taken, without being told: the epochs on their way, a segment
/// being built and a compaction of the store fit into it.
const MIN_FREE: ByteSize = ByteSize::mebibytes(256);

/// The part of a limit by which things must be better before changes are taken again.
const MARGIN: u64 = 16;

/// How much of the disk a state may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomLimits {
    /// Bytes that the state's folder may take up; without it the disk is the limit. Looked at every
    /// second.
    pub max_bytes: Option<ByteSize>,
    /// Bytes of the disk that stay free.
    pub min_free: ByteSize,
}

impl Default for RoomLimits {
    fn default() -> Self {
        Self {
            max_bytes: None,
            min_free: MIN_FREE,
        }
    }
}

/// The room of a state.
pub(crate) struct Room {
    directory: PathBuf,
    limits: RoomLimits,
    used_bytes: AtomicU64,
    shortage: Mutex<Option<String>>,
}

impl Room {
    /// Looks at a folder for the first time.
    pub(crate) fn new(directory: &Path, limits: RoomLimits) -> Self {
        let room = Self {
            directory: directory.to_owned(),
            limits,
            used_bytes: AtomicU64::new(0),
            shortage: Mutex::new(None),
        };
        room.measure();
        room
    }

    /// Measures the folder. That takes milliseconds, so it is not done with every epoch.
    pub(crate) fn measure(&self) {
        let used = folder_bytes(&self.directory);
        self.used_bytes.store(used, Ordering::Relaxed);
        telemetry::state_room(used, self.free_bytes());
    }

    /// What is short, if something is; the free room as of now.
    pub(crate) fn shortage(&self) -> Option<String> {
        let mut held = self.shortage.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.look(held.is_some());
        match (&*held, &found) {
            (None, Some(shortage)) => {
                tracing::error!("no more changes are taken, queries are answered: {shortage}");
            }
            (Some(_), None) => tracing::info!("there is room again: changes are taken"),
            _ => {}
        }
        telemetry::state_short(found.is_some());
        held.clone_from(&found);
        found
    }

    /// What was short when it was looked at last.
    pub(crate) fn known_shortage(&self) -> Option<String> {
        let held = self.shortage.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn look(&self, is_short: bool) -> Option<String> {
        let margin = |limit: u64| if is_short { limit / MARGIN } else { 0 };
        let floor = self.limits.min_free.as_bytes();
        if let Some(free) = self.free_bytes()
            && free < floor.saturating_add(margin(floor))
        {
            let free = ByteSize::from_bytes(free);
            return Some(format!(
                "the disk of {} has {free} free, and {} stay free (state.min_free)\nhint: make room, \
                 or set state.min_free",
                self.directory.display(),
                self.limits.min_free
            ));
        }
        let max = self.limits.max_bytes?;
        let used = self.used_bytes.load(Ordering::Relaxed);
        (used > max.as_bytes() - margin(max.as_bytes())).then(|| {
            let used = ByteSize::from_bytes(used);
            format!(
                "the state in {} takes up {used} of {max} (state.max_bytes)\nhint: delete \
                 documents and `vectide compact`, or set state.max_bytes",
                self.directory.display()
            )
        })
    }

    /// `None` where the file system does not tell.
    fn free_bytes(&self) -> Option<u64> {
        let found = rustix::fs::statvfs(&self.directory).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_told_until_there_is_a_margin() {
        let directory = tempfile::tempdir().unwrap();
        let limits = |max_bytes: u64, min_free: u64| RoomLimits {
            max_bytes: Some(ByteSize::from_bytes(max_bytes)),
            min_free: ByteSize::from_bytes(min_free),
        };
        let free = Room::new(directory.path(), limits(1 << 20, u64::MAX));
        assert!(free.shortage().unwrap().contains("state.min_free"));

        let room = Room::new(directory.path(), limits(1 << 20, 1));
        assert_eq!(room.shortage(), None);
        let file = directory.path().join("file");
        let fill = |bytes: usize| {
            std::fs::write(&file, vec![1; bytes]).unwrap();
            room.measure();
            room.shortage()
        };
        assert!(fill(2 << 20).unwrap().contains("state.max_bytes"));
        assert!(fill((1 << 20) - 8192).is_some(), "within the margin");
        assert_eq!(room.known_shortage(), room.shortage());
        assert_eq!(fill(1 << 19), None);
        assert_eq!(fill((1 << 20) - 8192), None, "below the limit");
    }
}
