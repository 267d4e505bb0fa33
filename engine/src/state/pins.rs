//! When a segment file that no commit names any more is removed.
//!
//! Invariant: while somebody holds a pin, every file is there that a snapshot names which was taken
//! after the pin.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Removes files, later where they are pinned.
#[derive(Clone, Default)]
pub(crate) struct FileRemovals {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    pins: usize,
    waiting: Vec<PathBuf>,
}

/// Keeps files until it is dropped.
pub(crate) struct FilePin {
    removals: FileRemovals,
}

impl FileRemovals {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what a snapshot names that is taken from now on.
    pub(crate) fn pin(&self) -> FilePin {
        self.lock().pins += 1;
        FilePin {
            removals: self.clone(),
        }
    }

    /// Removes files that the newest commit does not name.
    pub(crate) fn remove(&self, files: Vec<PathBuf>) {
        let mut held = self.lock();
        if held.pins > 0 {
            held.waiting.extend(files);
        } else {
            remove(files);
        }
    }
}

impl Drop for FilePin {
    fn drop(&mut self) {
        let mut held = self.removals.lock();
        held.pins -= 1;
        if held.pins == 0 {
            remove(std::mem::take(&mut held.waiting));
        }
    }
}

fn remove(files: Vec<PathBuf>) {
    for file in files {
        if let Err(error) = std::fs::remove_file(&file) {
            // Not named by any commit: the next start sweeps it.
            tracing::warn!(file = %file.display(), %error, "an old segment file stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_files_go_with_the_last_pin() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        let (at_once, later) = (file("at-once"), file("later"));
        let removals = FileRemovals::default();
        removals.remove(vec![at_once.clone()]);
        assert!(!at_once.exists());
        let (first, second) = (removals.pin(), removals.pin());
        removals.remove(vec![later.clone()]);
        drop(first);
        assert!(later.exists());
        drop(second);
        assert!(!later.exists());
    }
}
