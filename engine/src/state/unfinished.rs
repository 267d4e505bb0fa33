//! Folders that are made beside their place and moved there whole.
//!
//! Invariant: a folder under its own name is complete and durable. Until then its name ends in
//! `.unfinished`, and what a crash left under that name is removed by the next try.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Where a folder is made, with nothing left there of an earlier try.
pub(crate) fn begin(target: &Path) -> io::Result<PathBuf> {
    // Without the slash that a shell's completion leaves at the end.
    let target: PathBuf = target.components().collect();
    let mut name = target.into_os_string();
    name.push(".unfinished");
    let unfinished = PathBuf::from(name);
    remove_if_there(&unfinished)?;
    Ok(unfinished)
}

/// Removes a folder with all that is in it.
pub(crate) fn remove_if_there(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives a folder that is complete its name, durably.
pub(crate) fn publish(unfinished: &Path, target: &Path) -> io::Result<()> {
    File::open(unfinished)?.sync_all()?;
    fs::rename(unfinished, target)?;
    let parent = target.parent().filter(|it| !it.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
