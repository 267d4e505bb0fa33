//! What remembers the last commit outside of the store.
//!
//! A store takes a damaged record in its journal for one that a crash tore, and forgets it with all that
//! follow: after a flipped bit it would open, without a word, as it was some epochs ago. So each commit
//! is noted in a file of its own once it is durable. The note is not synced: it costs a copy into the
//! page cache, outlives the process however that ends, and after a power failure it is at worst too old,
//! which is no reason to complain.
//!
//! Invariant: a valid note is never ahead of what was durable when it was written.

use super::{CommitRecord, StateError};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vectide_model::stable_hash;

/// Incarnation, epoch, checksum of both: little-endian.
const NOTE_BYTES: usize = 24;

/// The file, open for writing.
pub(super) struct Witness {
    file: File,
}

fn path(directory: &Path) -> PathBuf {
    directory.join("last-commit")
}

impl Witness {
    /// Opens the file in a state's folder, making it when it is missing.
    pub(super) fn open(directory: &Path) -> Result<Self, StateError> {
        let path = path(directory);
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = opened.map_err(|error| StateError::Unusable {
            directory: directory.display().to_string(),
            fact: format!("`{}` can't be written: {error}", path.display()),
            hint: "check that this user may write it, and the disk".into(),
        })?;
        Ok(Self { file })
    }

    /// Notes a commit that is durable.
    pub(super) fn note(&self, record: &CommitRecord) {
        let mut note = [0; NOTE_BYTES];
        note[..8].copy_from_slice(&record.incarnation.to_le_bytes());
        note[8..16].copy_from_slice(&record.epoch.to_le_bytes());
        let checksum = stable_hash(&note[..16]);
        note[16..].copy_from_slice(&checksum.to_le_bytes());
        if let Err(error) = self.file.write_all_at(&note, 0) {
            // The commit itself is durable; only its witness is missing.
            tracing::warn!(%error, "the note of the last commit can't be written");
        }
    }
}

/// Refuses a store that has lost commits which it once had.
pub(crate) fn refuse_lost_commits(
    directory: &Path,
    record: &CommitRecord,
) -> Result<(), StateError> {
    let Some((incarnation, epoch)) = read(&path(directory)) else {
        return Ok(());
    };
    if (incarnation, epoch) <= (record.incarnation, record.epoch) {
        return Ok(());
    }
    Err(StateError::Unusable {
        directory: directory.display().to_string(),
        fact: format!(
            "epoch {epoch} was committed, but the store ends with epoch {}: its files are damaged, \
             or older than the rest of the folder",
            record.epoch
        ),
        hint: format!(
            "restore the whole folder from a copy; or remove `{}` to go on from epoch {}, from \
             where the sources are read again",
            path(directory).display(),
            record.epoch
        ),
    })
}

/// Removes the note: the commits that it tells of are meant to be gone.
pub(crate) fn forget(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(path(directory)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Incarnation and epoch of a valid note.
fn read(path: &Path) -> Option<(u64, u64)> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, "the note of the last commit can't be read");
            return None;
        }
    };
    let number = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let is_valid = number(16)? == stable_hash(&bytes[..16]);
    if !is_valid {
        tracing::warn!("the note of the last commit is damaged: it is made anew");
        return None;
    }
    Some((number(0)?, number(8)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(incarnation: u64, epoch: u64) -> CommitRecord {
        CommitRecord {
            incarnation,
            epoch,
            ..CommitRecord::default()
        }
    }

    #[test]
    fn what_was_lost_is_refused_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let refused = |record: &CommitRecord| {
            refuse_lost_commits(directory.path(), record)
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(refused(&record(1, 0)), None, "no note yet");
        let witness = Witness::open(directory.path()).unwrap();
        assert_eq!(refused(&record(1, 0)), None, "an empty file");
        witness.note(&record(2, 11));
        assert_eq!(refused(&record(2, 11)), None);
        assert_eq!(refused(&record(3, 11)), None);
        assert_eq!(refused(&record(2, 12)), None);
        let told = refused(&record(2, 7)).unwrap();
        assert!(
            told.contains("epoch 11 was committed") && told.contains("epoch 7"),
            "{told}"
        );
        assert!(
            refused(&record(1, 11)).is_some(),
            "an opening that was lost"
        );

        let file = directory.path().join("last-commit");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[9] ^= 4;
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(refused(&record(2, 7)), None, "a damaged note says nothing");
        witness.note(&record(4, 12));
        assert!(refused(&record(4, 11)).is_some(), "and is made anew");
    }
}
