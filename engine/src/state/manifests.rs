//! Looks at the manifests of the store's trees before they are opened.
//!
//! lsm-tree asserts what two bytes of a manifest are, while it holds locks, so that a flipped bit in
//! them ends the process in the middle of a panic instead of by an error.
//!
//! Invariant: what is refused here could not have been opened; everything else is left to lsm-tree,
//! which has checksums or errors for it.

use super::failure::{DAMAGED_HINT, explain};
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use vectide_model::StoreError;

/// Sections of a manifest that have one content only, as lsm-tree 3 writes them: 7 levels, and XXH3.
const CONSTANT_SECTIONS: [(&str, u8); 2] = [("level_count", 7), ("filter_hash_type", 0)];

/// Refuses a store with a manifest that lsm-tree would stumble over.
pub(super) fn refuse_damaged(store: &Path) -> Result<(), StoreError> {
    let trees = store.join("keyspaces");
    if !trees.exists() {
        return Ok(());
    }
    let unreadable = |error: io::Error| StoreError::Refused(explain(&error));
    for tree in fs::read_dir(trees).map_err(unreadable)? {
        let tree = tree.map_err(unreadable)?.path();
        if !tree.is_dir() {
            continue;
        }
        for file in fs::read_dir(tree).map_err(unreadable)? {
            let file = file.map_err(unreadable)?;
            if file.file_name().to_string_lossy().starts_with('v') {
                refuse_damaged_manifest(&file.path())?;
            }
        }
    }
    Ok(())
}

fn refuse_damaged_manifest(path: &Path) -> Result<(), StoreError> {
    // An archive that can't be read at all is an error there, too.
    let Ok(archive) = sfa::Reader::new(path) else {
        return Ok(());
    };
    for (name, expected) in CONSTANT_SECTIONS {
        let Some(section) = archive.toc().section(name.as_bytes()) else {
            continue;
        };
        let mut content = Vec::new();
        let read = section.buf_reader(path);
        let read = read.and_then(|mut reader| reader.read_to_end(&mut content));
        if read.is_ok() && content != [expected] {
            return Err(StoreError::Refused(format!(
                "`{}` is damaged: `{name}` is {content:?}\nhint: {DAMAGED_HINT}",
                path.display()
            )));
        }
    }
    Ok(())
}
