//! Files of a shard's folder: named, published whole, verified, swept.
//!
//! Invariant: a file under its final name is complete and synced; until then it has a name ending in
//! `.part`. Whatever the committed state does not name is removed when the shard opens.

use memmap2::Mmap;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use vectide_model::{IndexError, SegmentId, SegmentManifest};

/// What a damaged or missing file calls for.
const RESTORE_HINT: &str = "restore the state folder from a copy, or remove the whole state folder \
     so that the index is built anew from its sources";
/// What a failing disk or full file system calls for.
const DISK_HINT: &str = "check the disk's space, permissions and health, then start again: what was \
     committed is intact";

/// An [`IndexError`] of an operation on a file.
pub(crate) fn io_error(doing: &str, path: &Path, error: &io::Error) -> IndexError {
    IndexError {
        fact: format!("{doing} `{}` failed: {error}", path.display()),
        hint: DISK_HINT.into(),
    }
}

/// An [`IndexError`] of a file that is not what the committed state says.
pub(crate) fn damaged(path: &Path, detail: impl std::fmt::Display) -> IndexError {
    IndexError {
        fact: format!("segment file `{}` {detail}", path.display()),
        hint: RESTORE_HINT.into(),
    }
}

/// The name of a segment's rows file.
pub(crate) fn rows_name(id: SegmentId) -> String {
    format!("segment-{:016x}.rows", id.0)
}

/// The name of a segment's FAISS index.
pub(crate) fn index_name(id: SegmentId) -> String {
    format!("segment-{:016x}.faiss", id.0)
}

/// The name of a segment's codes.
pub(crate) fn codes_name(id: SegmentId) -> String {
    format!("segment-{:016x}.codes", id.0)
}

/// The name of a segment's generation.
pub(crate) fn generation_name(id: SegmentId) -> String {
    format!("segment-{:016x}.generation", id.0)
}

/// The name of the postings of a segment's attributes.
pub(crate) fn attributes_name(id: SegmentId) -> String {
    format!("segment-{:016x}.attributes", id.0)
}

/// The name of the postings of a segment's terms.
pub(crate) fn terms_name(id: SegmentId) -> String {
    format!("segment-{:016x}.terms", id.0)
}

/// A file while it is written; it is removed if it is dropped before [`Part::publish`].
pub(crate) struct Part {
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Part {
    /// For a file of this name; nothing is created yet.
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        Self {
            path: directory.join(format!("{name}.part")),
            target: directory.join(name),
            published: false,
        }
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs what was written, hashes it as it can be read back, and gives it its final name.
    pub(crate) fn publish(mut self) -> Result<(Mmap, [u8; 32]), IndexError> {
        let synced = File::open(&self.path).and_then(|file| {
            file.sync_all()?;
            Ok(file)
        });
        let file = synced.map_err(|error| io_error("syncing", &self.path, &error))?;
        let map = map(&file).map_err(|error| io_error("mapping", &self.path, &error))?;
        let checksum = *blake3::hash(&map).as_bytes();
        fs::rename(&self.path, &self.target)
            .map_err(|error| io_error("renaming", &self.path, &error))?;
        self.published = true;
        Ok((map, checksum))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: opening the shard sweeps whatever is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the renames in a folder durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), IndexError> {
    File::open(directory)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| io_error("syncing folder", directory, &error))
}

fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: files of a shard's folder are written by one process before they are mapped, never
    // changed afterwards, and removed only by unlinking, which leaves the mapping valid. That no
    // other program truncates them is the condition of use of a state folder.
    unsafe { Mmap::map(file) }
}

/// Maps a committed file after checking its length and checksum.
pub(crate) fn map_verified(
    path: &Path,
    length: u64,
    checksum: &[u8; 32],
) -> Result<Mmap, IndexError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(damaged(path, "is named by the committed state but missing"));
        }
        Err(error) => return Err(io_error("opening", path, &error)),
    };
    let found = file
        .metadata()
        .map_err(|error| io_error("reading", path, &error))?
        .len();
    if found != length {
        return Err(damaged(
            path,
            format_args!("has {found} bytes where {length} were committed"),
        ));
    }
    let map = map(&file).map_err(|error| io_error("mapping", path, &error))?;
    if blake3::hash(&map).as_bytes() != checksum {
        return Err(damaged(path, "fails its BLAKE3 checksum"));
    }
    Ok(map)
}

/// A file's length and checksum as the manifest has them; the name is checked to stay in the folder.
pub(crate) fn manifest_entry<'a>(
    directory: &Path,
    manifest: &'a SegmentManifest,
    name: &str,
) -> Result<(PathBuf, u64, &'a [u8; 32]), IndexError> {
    let path = directory.join(name);
    match manifest.files.iter().find(|file| file.0 == name) {
        Some((_, length, checksum)) => Ok((path, *length, checksum)),
        None => Err(damaged(
            &path,
            format_args!("is not in the manifest of segment {:016x}", manifest.id.0),
        )),
    }
}

/// Makes the folder if it is missing and removes every file in it that no manifest names.
pub(crate) fn sweep(directory: &Path, manifests: &[SegmentManifest]) -> Result<(), IndexError> {
    fs::create_dir_all(directory).map_err(|error| io_error("making folder", directory, &error))?;
    let names = manifests.iter().flat_map(|manifest| &manifest.files);
    let named: HashSet<&str> = names.map(|file| file.0.as_str()).collect();
    let failed = |error| io_error("listing folder", directory, &error);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_file = entry.file_type().map_err(failed)?.is_file();
        let is_named = entry
            .file_name()
            .to_str()
            .is_some_and(|name| named.contains(name));
        if is_file && !is_named {
            tracing::info!(file = %entry.path().display(), "removing a file that no commit names");
            match fs::remove_file(entry.path()) {
                // A job of a shard that was closed a moment ago removes its unfinished files too.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("removing", &entry.path(), &error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Removes the files of a segment that no commit has named.
pub(crate) fn discard(directory: &Path, manifest: &SegmentManifest) {
    for (name, _, _) in &manifest.files {
        // Best effort: opening the shard sweeps whatever is left.
        let _ = fs::remove_file(directory.join(name));
    }
}

/// Removes whatever there is of a segment that was not built.
pub(crate) fn discard_unbuilt(directory: &Path, id: SegmentId) {
    let names = [
        rows_name(id),
        index_name(id),
        codes_name(id),
        generation_name(id),
        attributes_name(id),
        terms_name(id),
    ];
    for name in names {
        // Best effort: opening the shard sweeps whatever is left.
        let _ = fs::remove_file(directory.join(&name));
        let _ = fs::remove_file(Part::new(directory, &name).path());
    }
}

/// What stays free beside files that are not needed at once: the commits and heads that are written meanwhile fit
/// into it. On a small disk it is a share of that, so that segments of few rows can be merged.
const ROOM_LEFT_BYTES: u64 = 64 << 20;
const ROOM_LEFT_SHARE: u64 = 16;

/// Why there is no room for so many bytes more, if there is none; `None` also where the file system does not tell.
pub(crate) fn shortage(directory: &Path, needed: u64) -> Option<IndexError> {
    let found = rustix::fs::statvfs(directory).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let disk = found.f_blocks.saturating_mul(found.f_frsize);
    let left = ROOM_LEFT_BYTES.min(disk / ROOM_LEFT_SHARE);
    (free < needed.saturating_add(left)).then(|| IndexError {
        fact: format!(
            "the disk of `{}` has {free} bytes free, where merging takes {needed} and {left} stay free",
            directory.display()
        ),
        hint: "make room".into(),
    })
}

/// Writes and counts, so that a layout can be checked while it is written.
pub(crate) struct Counting<W> {
    /// Where the bytes go.
    pub(crate) inner: W,
    /// Bytes so far.
    pub(crate) written: usize,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.written += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Maps a file as it is, for tests that damage it.
    pub(crate) fn map(path: &Path) -> Mmap {
        let bytes = fs::read(path).unwrap();
        let checksum = *blake3::hash(&bytes).as_bytes();
        map_verified(path, bytes.len() as u64, &checksum).unwrap()
    }
}
