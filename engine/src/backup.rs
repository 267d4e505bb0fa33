//! A copy of the state as of one epoch, and its way back: `vectide backup` and `vectide restore`.
//!
//! A backup is a state folder of its own: the store is written anew from one snapshot, and segment
//! files, which never change, are linked (copied where the file systems differ). It can be taken while
//! the pipeline runs; nothing waits for it.
//!
//! Invariant: a folder under the name that was asked for is whole and durable. Until then its name ends
//! in `.unfinished`, and what a crash left under that name is removed by the next try.

use crate::plan::Plan;
use crate::state::{
    DirectoryLock, FjallStore, META_COMMIT, StateError, decode, forget_witness, open_at_rest,
    read_commit, refuse_other_pipeline, segment_place, shard_directory, unfinished,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use vectide_model::{
    Batch, Epoch, Positions, SegmentManifest, Store, StoreError, StoreRead, Table,
};

/// Bytes written with one sync: large enough that syncs do not count, small enough for memory.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// What a backup holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackupReport {
    /// Its epoch.
    pub epoch: Epoch,
    /// Where its sources stood: source, partition, next offset.
    pub positions: Positions,
    /// Entries of the store.
    pub entries: u64,
    /// Their bytes.
    pub entry_bytes: u64,
    /// Segment files.
    pub segment_files: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// How many of them are links, which take no room until the state lets them go.
    pub linked_files: u64,
}

/// Backs up a state that no process uses. The folder `target` may not exist.
///
/// # Errors
/// When there is no state, it is in use or damaged, or the target can't be written.
pub fn back_up(state_directory: &Path, target: &Path) -> Result<BackupReport, StateError> {
    let (_lock, store) = open_at_rest(state_directory)?;
    write_backup(&*store.snapshot(), state_directory, target)
}

/// Writes what `read` holds, and the segment files that it names, to `target`.
pub(crate) fn write_backup(
    read: &dyn StoreRead,
    state_directory: &Path,
    target: &Path,
) -> Result<BackupReport, StateError> {
    let unwritten = |error: io::Error| StateError::Unusable {
        directory: state_directory.display().to_string(),
        fact: format!("no backup to {}: {error}", target.display()),
        hint:
            "name a folder that does not exist yet, on a disk with room, that this user may write"
                .into(),
    };
    if target.exists() {
        return Err(unwritten(io::ErrorKind::AlreadyExists.into()));
    }
    let unfinished = unfinished::begin(target).map_err(unwritten)?;
    fs::create_dir_all(&unfinished).map_err(unwritten)?;
    let mut report = BackupReport::default();
    copy_segments(read, state_directory, &unfinished, &mut report)?;
    copy_entries(read, &unfinished.join("store"), &mut report)?;
    unfinished::publish(&unfinished, target).map_err(unwritten)?;
    Ok(report)
}

/// Puts a backup where the state of a pipeline is to be, which may have none.
///
/// # Errors
/// When there is a state, a process uses it, the backup is damaged or another pipeline's, or a folder
/// can't be written.
pub fn restore(plan: &Plan, backup: &Path) -> Result<(), StateError> {
    let state_directory = &plan.state_directory;
    let _lock = DirectoryLock::take(state_directory)?;
    let store = state_directory.join("store");
    if store.exists() {
        return Err(StateError::Unusable {
            directory: state_directory.display().to_string(),
            fact: "there is a state already".into(),
            hint: "move the folder away, or name another one (state.dir)".into(),
        });
    }
    let unread = |error: io::Error| StateError::Unusable {
        directory: backup.display().to_string(),
        fact: format!("the backup can't be taken from there: {error}"),
        hint: "name the folder that `vectide backup` made, and check the disks".into(),
    };
    // Into a folder that no process takes for a store, for the backup is read by nobody yet.
    let unfinished = state_directory.join("store.restored");
    unfinished::remove_if_there(&unfinished).map_err(unread)?;
    copy_folder(&backup.join("store"), &unfinished, false).map_err(unread)?;
    refuse_unfit(&unfinished, state_directory, &plan.fingerprint()).inspect_err(|_| {
        // Best effort: the next restore removes it, too.
        let _ = fs::remove_dir_all(&unfinished);
    })?;
    let segments = state_directory.join("segments");
    unfinished::remove_if_there(&segments).map_err(unread)?;
    if backup.join("segments").exists() {
        copy_folder(&backup.join("segments"), &segments, true).map_err(unread)?;
    }
    // The commits that the state had before are meant to be gone.
    forget_witness(state_directory).map_err(unread)?;
    unfinished::publish(&unfinished, &store).map_err(unread)
}

/// Refuses a store that is not one of this pipeline.
fn refuse_unfit(
    store: &Path,
    state_directory: &Path,
    pipeline: &BTreeMap<String, String>,
) -> Result<(), StateError> {
    let store = FjallStore::open(store)?;
    let record = read_commit(&*store.snapshot())?;
    let record = record
        .ok_or_else(|| StoreError::Refused("the backup has no commit: it is not whole".into()))?;
    refuse_other_pipeline(state_directory, &record.pipeline, pipeline)
}

/// Writes all entries; the commit record is the last.
fn copy_entries(
    read: &dyn StoreRead,
    store: &Path,
    report: &mut BackupReport,
) -> Result<(), StateError> {
    let Some(record) = read_commit(read)? else {
        return Err(StoreError::Refused("the state has no commit".into()).into());
    };
    let copy = FjallStore::open(store)?;
    let (mut batch, mut bytes) = (Batch::default(), 0);
    for (table, _) in Table::ALL {
        for entry in read.scan(table, &[]) {
            let (key, value) = entry?;
            if table == Table::Meta && key == META_COMMIT {
                continue;
            }
            report.entries += 1;
            bytes += key.len() + value.len();
            report.entry_bytes += (key.len() + value.len()) as u64;
            batch.put(table, key, value);
            if bytes >= BATCH_BYTES {
                copy.commit(std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
    }
    let commit = read.get(Table::Meta, META_COMMIT)?.unwrap_or_default();
    batch.put(Table::Meta, META_COMMIT.to_vec(), commit);
    copy.commit(batch)?;
    (report.epoch, report.positions) = (record.epoch, record.positions);
    Ok(())
}

/// Links the segment files that the snapshot names.
fn copy_segments(
    read: &dyn StoreRead,
    from: &Path,
    to: &Path,
    report: &mut BackupReport,
) -> Result<(), StateError> {
    let failed = |file: &Path, error: io::Error| StateError::Unusable {
        directory: from.display().to_string(),
        fact: format!("{} can't be copied: {error}", file.display()),
        hint: "check the disks; `vectide check` tells whether the state is whole".into(),
    };
    for entry in read.scan(Table::Segments, &[]) {
        let (key, value) = entry?;
        let (index, shard) = segment_place(&key)?;
        let manifest: SegmentManifest = decode("a segment's manifest", &value)?;
        let target = shard_directory(to, index, shard);
        fs::create_dir_all(&target).map_err(|error| failed(&target, error))?;
        for (name, bytes, _) in &manifest.files {
            let file = shard_directory(from, index, shard).join(name);
            let linked = link_or_copy(&file, &target.join(name));
            report.linked_files += u64::from(linked.map_err(|error| failed(&file, error))?);
            report.segment_files += 1;
            report.segment_bytes += bytes;
        }
    }
    sync_folders(&to.join("segments")).map_err(|error| failed(to, error))
}

/// Copies a folder with all that is in it, durably; files that never change may be linked.
fn copy_folder(from: &Path, to: &Path, may_link: bool) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target, may_link)?;
        } else if may_link {
            link_or_copy(&entry.path(), &target)?;
        } else {
            copy_file(&entry.path(), &target)?;
        }
    }
    File::open(to)?.sync_all()
}

/// Says whether it is a link.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        // Another file system, or one without links.
        Err(_) => copy_file(from, to).map(|()| false),
    }
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

fn sync_folders(folder: &Path) -> io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}
