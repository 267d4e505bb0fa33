//! The first reading of a directory and what follows it.
//!
//! ```text
//! first reading --> waiting for files that are being written --> caught up --> watching
//! ```
//!
//! Invariant: `known` holds, for every file told, what it looked like then, and the hash of the row
//! that is held for it.

use super::content::{Reading, read};
use super::settle::{Settled, Unsettled};
use super::tree::{Entry, FileStamp, Listing, is_within};
use super::watch::Watch;
use super::{End, FilesSource};
use crate::batch::{PendingBatch, Unity};
use crate::envelope::Rejected;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use vectide_model::{
    Change, DeadLetter, Key, Partition, Position, ReadMode, Row, SourceError, SourceSink,
    SourceStart,
};
use xxhash_rust::xxh3::xxh3_128;

/// The only partition.
const PARTITION: &str = "observations";

/// A batch of the first reading: large enough to be cheap, small enough to be seen soon.
const FIRST_READING: BatchLimit = BatchLimit {
    records: 256,
    bytes: 4 * 1024 * 1024,
};

/// What became known at one moment while watching: the files of a folder that was renamed.
const WATCHING: BatchLimit = BatchLimit {
    records: 10_000,
    bytes: 64 * 1024 * 1024,
};

/// A rename of so many changes becomes visible as a whole; with more the pipeline may cut, so that
/// others need not wait for all its embedding.
const RENAME_FILES_MAX: usize = 512;

/// Longest sleep: the stop signal is seen this often.
const IDLE_WAIT: Duration = Duration::from_millis(50);

/// The directory is read anew this often, should an event have been lost.
const RESCAN_INTERVAL: Duration = Duration::from_secs(60);

/// The same where the operating system can't watch it.
const RESCAN_INTERVAL_UNWATCHED: Duration = Duration::from_secs(5);

struct BatchLimit {
    records: usize,
    bytes: usize,
}

/// What is known of a file.
#[derive(Clone, Copy, Default)]
struct Known {
    /// What it looked like when it was read last.
    stamp: Option<FileStamp>,
    /// Hash of the row that is held.
    row: Option<u128>,
}

pub(crate) struct Run<'a> {
    source: &'a FilesSource,
    start: &'a SourceStart,
    sink: &'a mut dyn SourceSink,
    partition: Partition,
    next_offset: u64,
    known: BTreeMap<String, Known>,
    unsettled: Unsettled,
    pending: PendingBatch,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        source: &'a FilesSource,
        start: &'a SourceStart,
        sink: &'a mut dyn SourceSink,
    ) -> Self {
        let partition = Partition::from(PARTITION);
        Self {
            source,
            start,
            sink,
            next_offset: start.positions.get(&partition).copied().unwrap_or(0),
            partition,
            known: BTreeMap::new(),
            unsettled: Unsettled::new(source.settle),
            pending: PendingBatch::default(),
        }
    }

    /// Reads until stopped; until caught up where the directory is not watched.
    pub(crate) fn read(mut self) -> Result<(), End> {
        let is_watched = self.source.is_watched && self.start.mode == ReadMode::Follow;
        // Before the first reading, so that nothing can happen between the two.
        let watch = if is_watched { self.watch() } else { None };
        self.first_reading()?;
        while !self.unsettled.is_empty() {
            self.wait_for_events(watch.as_ref())?;
            self.take_settled()?;
        }
        self.sink.caught_up();
        if !is_watched {
            return Ok(());
        }
        let interval = match watch {
            Some(_) => RESCAN_INTERVAL,
            None => RESCAN_INTERVAL_UNWATCHED,
        };
        let mut scanned_at = Instant::now();
        loop {
            self.wait_for_events(watch.as_ref())?;
            let has_lost_events = watch.as_ref().is_some_and(Watch::take_needs_rescan);
            if has_lost_events || scanned_at.elapsed() >= interval {
                self.rescan()?;
                scanned_at = Instant::now();
            }
            self.take_settled()?;
        }
    }

    fn watch(&self) -> Option<Watch> {
        match Watch::new(self.source.tree.root()) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(
                    source = &*self.start.name,
                    "the folder can't be watched: {error}; it is read anew every {} s instead",
                    RESCAN_INTERVAL_UNWATCHED.as_secs()
                );
                None
            }
        }
    }

    fn first_reading(&mut self) -> Result<(), End> {
        let listing = self.list()?;
        let held = self.start.held.clone();
        let held_keys = held.keys()?;
        let mut keys: BTreeSet<&str> = listing.files.keys().map(String::as_str).collect();
        keys.extend(held_keys.iter().map(|key| &**key));
        let began_at = SystemTime::now();
        for key in keys {
            if self.start.stop.is_stopped() {
                return Err(End::Stopped);
            }
            let row = held.row(key)?.map(|row| xxh3_128(row.as_bytes()));
            self.known
                .insert(key.to_owned(), Known { stamp: None, row });
            match listing.files.get(key) {
                Some(stamp) if self.is_fresh(*stamp, began_at) => {
                    self.unsettled.touch(key.to_owned(), Instant::now());
                }
                Some(stamp) => self.observe(key, *stamp, SystemTime::now()),
                None if listing.may_hide(key) => {}
                None => self.forget(key, SystemTime::now()),
            }
            self.send_above(&FIRST_READING)?;
        }
        self.send(Unity::Changes)
    }

    /// Whether a file may still be in the making.
    fn is_fresh(&self, stamp: FileStamp, now: SystemTime) -> bool {
        now.duration_since(stamp.modified_at)
            .is_ok_and(|age| age < self.source.settle)
    }

    fn list(&self) -> Result<Listing, End> {
        self.source.tree.list("").map_err(|error| {
            End::Failed(SourceError::Failed {
                source_name: self.start.name.to_string(),
                detail: format!("can't read {}: {error}", self.source.tree.root().display()),
                hint: "bring the folder back (is it mounted?); its rows are kept until then".into(),
            })
        })
    }

    /// Notes what differs from what is known.
    fn rescan(&mut self) -> Result<(), End> {
        let listing = self.list()?;
        self.touch_differences("", &listing);
        Ok(())
    }

    fn touch_differences(&mut self, directory: &str, listing: &Listing) {
        let now = Instant::now();
        for (key, stamp) in &listing.files {
            if self.known.get(key).and_then(|known| known.stamp) != Some(*stamp) {
                self.unsettled.touch(key.clone(), now);
            }
        }
        for key in self.known_within(directory) {
            if !listing.files.contains_key(&key) && !listing.may_hide(&key) {
                self.unsettled.touch(key, now);
            }
        }
    }

    fn known_within(&self, directory: &str) -> Vec<String> {
        self.known
            .range(directory.to_owned()..)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(directory))
            .filter(|key| is_within(key, directory))
            .cloned()
            .collect()
    }

    /// Sleeps until something happens or is due, and notes what happened.
    fn wait_for_events(&mut self, watch: Option<&Watch>) -> Result<(), End> {
        let wait = if self.unsettled.is_empty() {
            IDLE_WAIT
        } else {
            (self.source.settle / 8).clamp(Duration::from_millis(1), IDLE_WAIT)
        };
        match watch {
            Some(watch) => {
                let mut next = watch.next(wait);
                while let Some(paths) = next {
                    // One moment for all paths of an event: a rename has two.
                    let now = Instant::now();
                    for path in paths {
                        self.touch_path(&path, now);
                    }
                    if self.start.stop.is_stopped() {
                        break;
                    }
                    next = watch.next(Duration::ZERO);
                }
            }
            None => drop(self.start.stop.wait(wait)),
        }
        if self.start.stop.is_stopped() {
            return Err(End::Stopped);
        }
        Ok(())
    }

    fn touch_path(&mut self, path: &Path, now: Instant) {
        let Some(key) = self.source.tree.key_of(path) else {
            return;
        };
        let is_document = self.source.tree.accept_file(&key) || self.known.contains_key(&key);
        let is_directory = self.source.tree.look_at(&key) == Entry::Directory;
        if is_directory {
            self.touch_directory(&key);
        } else {
            for key in self.known_within(&key) {
                self.unsettled.touch(key, now);
            }
        }
        // A folder is looked at once more when it has settled: by then it is watched itself.
        if is_document || is_directory {
            self.unsettled.touch(key, now);
        }
    }

    fn touch_directory(&mut self, directory: &str) {
        match self.source.tree.list(directory) {
            Ok(listing) => self.touch_differences(directory, &listing),
            Err(error) => tracing::debug!(directory, "a folder went while it was read: {error}"),
        }
    }

    /// Tells the changes of what has come to rest, in one batch.
    fn take_settled(&mut self) -> Result<(), End> {
        let tree = &self.source.tree;
        let settled = self
            .unsettled
            .take_settled(Instant::now(), |key| tree.look_at(key));
        for Settled {
            key,
            entry,
            noticed_at,
        } in settled
        {
            match entry {
                Entry::File(stamp) => {
                    let known = self.known.get(&key).and_then(|known| known.stamp);
                    if known != Some(stamp) {
                        self.observe(&key, stamp, noticed_at);
                    }
                }
                Entry::Absent => self.forget(&key, noticed_at),
                Entry::Directory => self.touch_directory(&key),
                Entry::Unreadable => {
                    tracing::warn!(key, "the file can't be looked at; its row stays");
                }
            }
            self.send_above(&WATCHING)?;
        }
        self.send(self.unity_of_moment())
    }

    /// Reads a file and tells it if its row differs from the one held.
    fn observe(&mut self, key: &str, stamp: FileStamp, noticed_at: SystemTime) {
        let held = self.known.get(key).and_then(|known| known.row);
        let row = match read(&self.source.tree, key, stamp, self.source.file_bytes_max) {
            Reading::Row(row) => {
                let hash = xxh3_128(row.as_bytes());
                if held != Some(hash) {
                    self.push_change(key, Some(row), noticed_at);
                }
                Some(hash)
            }
            Reading::Rejected(rejected, bytes) => {
                self.push_dead_letter(key, rejected, &bytes);
                held
            }
            Reading::Absent => return self.forget(key, noticed_at),
            Reading::Unsettled => {
                return self.unsettled.touch(key.to_owned(), Instant::now());
            }
        };
        let stamp = Some(stamp);
        self.known.insert(key.to_owned(), Known { stamp, row });
    }

    /// Tells that a file is gone, if it had a row.
    fn forget(&mut self, key: &str, noticed_at: SystemTime) {
        if let Some(Known { row: Some(_), .. }) = self.known.remove(key) {
            self.push_change(key, None, noticed_at);
        }
    }

    fn push_change(&mut self, key: &str, row: Option<Row>, changed_at: SystemTime) {
        let change = Change {
            key: Key::from(key),
            row,
            unchanged_fields: Vec::new(),
            position: self.next_position(),
            changed_at,
        };
        self.pending.push_change(change);
        self.pending.set_position(&self.partition, self.next_offset);
    }

    fn push_dead_letter(&mut self, key: &str, rejected: Rejected, bytes: &[u8]) {
        let key = Some(Key::from(key));
        let position = self.next_position();
        let letter = DeadLetter::new(rejected.reason, position, key, rejected.detail, bytes);
        self.pending.push_dead_letter(letter);
        self.pending.set_position(&self.partition, self.next_offset);
    }

    fn next_position(&mut self) -> Position {
        let offset = self.next_offset;
        self.next_offset += 1;
        Position {
            source: Arc::clone(&self.start.name),
            partition: self.partition.clone(),
            offset,
        }
    }

    fn send_above(&mut self, limit: &BatchLimit) -> Result<(), End> {
        if self.pending.records() >= limit.records || self.pending.bytes() >= limit.bytes {
            self.send(Unity::Changes)?;
        }
        Ok(())
    }

    fn send(&mut self, unity: Unity) -> Result<(), End> {
        if !self.pending.is_empty() {
            self.sink.send(self.pending.take(unity))?;
        }
        Ok(())
    }

    /// Where files came and others went at one moment, it may be a rename, which is seen as a whole.
    fn unity_of_moment(&self) -> Unity {
        if self.pending.has_upserts_and_deletes() && self.pending.records() <= RENAME_FILES_MAX {
            return Unity::Transaction;
        }
        Unity::Changes
    }
}
