//! Looks at the manifests of the store's trees before they are opened.
//!
//! lsm-tree does not compare a manifest with the checksum that it wrote beside its number, and asserts what
//! two bytes of it are while it holds locks: a flipped bit there ends the process in the middle of a panic
//! instead of by an error. A manifest that `current` does not name is none yet: the power failed before it
//! was whole.
//!
//! Invariant: what is refused here is not what lsm-tree wrote; what it can't read at all is left to its own
//! errors.

use super::failure::{DAMAGED_HINT, explain};
use std::fs;
use std::io;
use std::path::Path;
use vectide_model::StoreError;

/// Layout of `current` in lsm-tree 3: the number of the manifest, XXH3-128 of its bytes, both little-endian,
/// and 0 for XXH3.
const CURRENT_BYTES: usize = 8 + 16 + 1;

/// Refuses a store with a tree whose manifest is not the one that was written.
pub(super) fn refuse_damaged(store: &Path) -> Result<(), StoreError> {
    let trees = store.join("keyspaces");
    if !trees.exists() {
        return Ok(());
    }
    let unreadable = |error: io::Error| StoreError::Refused(explain(&error));
    for tree in fs::read_dir(trees).map_err(unreadable)? {
        let tree = tree.map_err(unreadable)?.path();
        if tree.is_dir() {
            refuse_damaged_tree(&tree)?;
        }
    }
    Ok(())
}

fn refuse_damaged_tree(tree: &Path) -> Result<(), StoreError> {
    let Ok(current) = fs::read(tree.join("current")) else {
        return Ok(());
    };
    let Some((number, checksum)) = named(&current) else {
        return Ok(());
    };
    let path = tree.join(format!("v{number}"));
    let Ok(manifest) = fs::read(&path) else {
        return Ok(());
    };
    if xxhash_rust::xxh3::xxh3_128(&manifest) == checksum {
        return Ok(());
    }
    Err(StoreError::Refused(format!(
        "`{}` is damaged: it fails its checksum\nhint: {DAMAGED_HINT}",
        path.display()
    )))
}

/// The manifest that `current` names, and its checksum.
fn named(current: &[u8]) -> Option<(u64, u128)> {
    let current: &[u8; CURRENT_BYTES] = current.try_into().ok()?;
    let (number, rest) = current.split_first_chunk()?;
    let (checksum, kind) = rest.split_first_chunk()?;
    let number = u64::from_le_bytes(*number);
    (kind == [0]).then(|| (number, u128::from_le_bytes(*checksum)))
}
