//! Giving back the room of what is gone: `vectide compact`.
//!
//! The store writes its levels anew by itself, bit by bit; this does all of it at once, for the time
//! after a large part of the documents has gone.
//!
//! Invariant: what a query finds is the same before, meanwhile and afterwards.

use crate::state::{StateError, open_at_rest};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::Path;
use vectide_model::{Store, StoreError};

/// What a compaction gave. The store's journal, which is some 64 MiB long, is
/// not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactReport {
    /// Bytes of tables and segments before.
    pub bytes_before: u64,
    /// Bytes of them afterwards.
    pub bytes_after: u64,
}

/// Compacts a state that no process uses.
///
/// # Errors
/// When there is no state, it is in use, or the store fails.
pub fn compact_state(state_directory: &Path) -> Result<CompactReport, StateError> {
    let (_lock, store) = open_at_rest(state_directory)?;
    // A table that was replaced goes when the store is closed.
    measured(state_directory, move || store.compact())
}

/// Compacts by `compact`.
pub(crate) fn measured(
    state_directory: &Path,
    compact: impl FnOnce() -> Result<(), StoreError>,
) -> Result<CompactReport, StateError> {
    let bytes = || {
        let tables = folder_bytes(&state_directory.join("store/keyspaces"));
        tables + folder_bytes(&state_directory.join("segments"))
    };
    let bytes_before = bytes();
    compact()?;
    Ok(CompactReport {
        bytes_before,
        bytes_after: bytes(),
    })
}

/// Bytes that a folder's files take up on the disk, a file of several names once. What goes meanwhile counts
/// nothing.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let mut linked = HashSet::new();
    bytes_under(folder, &mut linked)
}

fn bytes_under(folder: &Path, linked: &mut HashSet<(u64, u64)>) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let mut bytes = 0;
    for entry in entries.flatten() {
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_under(&entry.path(), linked),
            Ok(metadata)
                if metadata.nlink() > 1 && !linked.insert((metadata.dev(), metadata.ino())) =>
            {
                0
            }
            // Blocks are counted in 512 bytes whatever the file system's are. A journal that is laid out
            // ahead counts with what it takes, not with its length.
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        };
    }
    bytes
}
