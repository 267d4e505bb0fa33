//! One process a state folder.
//!
//! Invariant: while a process holds the lock no other can take it, and it falls with the process
//! however that ends, since the operating system holds it.

use super::StateError;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

/// Holds the lock until dropped.
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Makes the folder when it is missing and takes its lock.
    pub(crate) fn take(directory: &Path) -> Result<Self, StateError> {
        let unusable = |fact: String, hint: &str| StateError::Unusable {
            directory: directory.display().to_string(),
            fact,
            hint: hint.into(),
        };
        let path = directory.join("lock");
        let file = std::fs::create_dir_all(directory)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&path))
            .map_err(|error| {
                let hint = "check state.dir in the configuration, and that this user may write it";
                unusable(error.to_string(), hint)
            })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse {
                directory: directory.display().to_string(),
            }),
            Err(TryLockError::Error(error)) => Err(unusable(
                format!("it can't be locked: {error}"),
                "use a file system that supports locks",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(directory.path()).unwrap();
        let error = DirectoryLock::take(directory.path())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("another process uses it"), "{error}");
        drop(first);
        DirectoryLock::take(directory.path()).unwrap();
    }
}
