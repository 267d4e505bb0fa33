//! The first reading of a directory and what follows it.
//!
//! ```text
//! first reading --> waiting for files that are being written --> caught up --> watching
//! ```
//!
//! Invariants: `known` holds, for every file told, what it looked like then, and the hash of the row
//! that is held for it; and a file counts as gone only when, after it was looked for, the directory
//! was still the one it had been in.

use super::content::{Reading, read};
use super::root::Root;
use super::settle::{Settled, Unsettled};
use super::tree::{Entry, FileStamp, Listing, Tree, is_within};
use super::watch::Watch;
use super::{End, FilesSource};
use crate::batch::{PendingBatch, Unity};
use crate::envelope::Rejected;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
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

/// It is looked this often where the configured path leads: some calls to the operating system.
const ROOT_INTERVAL: Duration = Duration::from_secs(1);

/// A directory that can't be found may be back so soon: a link that is deleted and made anew, a volume
/// that is mounted again.
const ROOT_ABSENCE_MAX: Duration = Duration::from_secs(2);

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
    /// Of the dead letter that was told: a version of a file has one, whoever may read it now.
    letter: Option<u128>,
}

/// Tells the letter of one version of a file from that of another.
fn hash_of_letter(stamp: FileStamp, rejected: &Rejected, bytes: &[u8]) -> u128 {
    let FileStamp { modified_at, .. } = stamp;
    let content = xxh3_128(bytes);
    xxh3_128(format!("{modified_at:?} {content} {}", rejected.detail).as_bytes())
}

pub(crate) struct Run<'a> {
    source: &'a FilesSource,
    start: &'a SourceStart,
    sink: &'a mut dyn SourceSink,
    root: Root,
    tree: Tree,
    watch: Option<Watch>,
    root_seen_at: Instant,
    /// Whether it was not listed yet since its path leads there.
    is_root_new: bool,
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
            root: source.root.clone(),
            tree: source.tree.clone(),
            watch: None,
            root_seen_at: Instant::now(),
            is_root_new: true,
            next_offset: start.positions.get(&partition).copied().unwrap_or(0),
            partition,
            known: BTreeMap::new(),
            unsettled: Unsettled::new(source.settle),
            pending: PendingBatch::default(),
        }
    }

    /// Reads until stopped; until caught up where the directory is not watched.
    pub(crate) fn read(mut self) -> Result<(), End> {
        // It may have been mounted since the source was opened.
        let root = Root::resolve(self.root.configured().to_owned());
        let root = root.map_err(|error| self.lost(&error.to_string()))?;
        // Before the first reading, so that nothing can happen between the two.
        self.enter(root);
        self.first_reading()?;
        while !self.unsettled.is_empty() {
            self.wait_for_events()?;
            self.take_settled()?;
        }
        self.sink.caught_up();
        if !self.is_watched() {
            return Ok(());
        }
        let mut scanned_at = Instant::now();
        loop {
            self.wait_for_events()?;
            let is_elsewhere =
                self.root_seen_at.elapsed() >= ROOT_INTERVAL && self.follow_root()?;
            let has_lost_events = self.watch.as_ref().is_some_and(Watch::take_needs_rescan);
            let interval = match self.watch {
                Some(_) => RESCAN_INTERVAL,
                None => RESCAN_INTERVAL_UNWATCHED,
            };
            if is_elsewhere || has_lost_events || scanned_at.elapsed() >= interval {
                self.rescan()?;
                scanned_at = Instant::now();
            }
            self.take_settled()?;
        }
    }

    fn is_watched(&self) -> bool {
        self.source.is_watched && self.start.mode == ReadMode::Follow
    }

    /// Goes on in the directory that the path leads to.
    fn enter(&mut self, root: Root) {
        self.tree = self.tree.at(root.path());
        self.root = root;
        self.root_seen_at = Instant::now();
        self.is_root_new = true;
        self.watch = None;
        if !self.is_watched() {
            return;
        }
        match Watch::new(self.tree.root()) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => tracing::warn!(
                source = &*self.start.name,
                "the folder can't be watched: {error}; it is read anew every {} s instead",
                RESCAN_INTERVAL_UNWATCHED.as_secs()
            ),
        }
    }

    /// Goes where the path leads now; whether that is elsewhere than before, so that what was seen is
    /// to be looked for again.
    fn follow_root(&mut self) -> Result<bool, End> {
        let began_at = Instant::now();
        let found = loop {
            match self.root.look_again() {
                Ok(found) => break found,
                Err(error) if began_at.elapsed() >= ROOT_ABSENCE_MAX => {
                    return Err(self.lost(&error.to_string()));
                }
                Err(_) if self.start.stop.wait(IDLE_WAIT) => return Err(End::Stopped),
                Err(_) => {}
            }
        };
        self.root_seen_at = Instant::now();
        let Some(root) = found else {
            return Ok(false);
        };
        tracing::info!(
            source = &*self.start.name,
            "{} leads to {} now, which is read instead",
            root.configured().display(),
            root.path().display()
        );
        self.enter(root);
        Ok(true)
    }

    fn first_reading(&mut self) -> Result<(), End> {
        let held = self.start.held.clone();
        let held_keys = held.keys()?;
        let listing = self.list(held_keys.len())?;
        let mut keys: BTreeSet<&str> = listing.files.keys().map(String::as_str).collect();
        keys.extend(held_keys.iter().map(|key| &**key));
        let began_at = SystemTime::now();
        for key in keys {
            if self.start.stop.is_stopped() {
                return Err(End::Stopped);
            }
            let row = held.row(key)?.map(|row| xxh3_128(row.as_bytes()));
            let known = Known {
                row,
                ..Known::default()
            };
            self.known.insert(key.to_owned(), known);
            match listing.files.get(key) {
                Some(stamp) if self.is_fresh(*stamp, began_at) => {
                    self.unsettled.touch(key.to_owned(), Instant::now());
                }
                Some(stamp) => self.observe(key, *stamp, SystemTime::now())?,
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

    /// What lies in the directory, of which so many rows are held.
    fn list(&mut self, rows: usize) -> Result<Listing, End> {
        // Each turn but the first is one more flip of a link.
        loop {
            let listing = self.tree.list("");
            // What a directory showed while it was exchanged says nothing.
            if self.follow_root()? {
                continue;
            }
            let listing = listing.map_err(|error| self.lost(&error.to_string()))?;
            let is_empty = listing.files.is_empty() && listing.unreadable.is_empty();
            if self.is_root_new && is_empty && rows > 0 {
                return Err(self.empty(rows));
            }
            self.is_root_new = false;
            return Ok(listing);
        }
    }

    fn lost(&self, why: &str) -> End {
        End::Failed(SourceError::Failed {
            source_name: self.start.name.to_string(),
            detail: format!("can't read {}: {why}", self.root.configured().display()),
            hint: "bring the folder back (is it mounted?); its rows are kept until then".into(),
        })
    }

    fn empty(&self, rows: usize) -> End {
        let (path, source) = (self.root.configured().display(), &self.start.name);
        End::Failed(SourceError::Failed {
            source_name: source.to_string(),
            detail: format!("{path} holds no documents, and {rows} rows of it are held"),
            hint: format!(
                "bring its files back (is it mounted?); if it is meant to be empty now: vectide run \
                 CONFIG --resnapshot {source}, which deletes the rows"
            ),
        })
    }

    /// Notes what differs from what is known.
    fn rescan(&mut self) -> Result<(), End> {
        let known = self.known.values();
        let rows = known.filter(|known| known.row.is_some()).count();
        let listing = self.list(rows)?;
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
    fn wait_for_events(&mut self) -> Result<(), End> {
        let wait = if self.unsettled.is_empty() {
            IDLE_WAIT
        } else {
            (self.source.settle / 8).clamp(Duration::from_millis(1), IDLE_WAIT)
        };
        if self.watch.is_none() {
            self.start.stop.wait(wait);
        }
        let mut next = self.next_event(wait);
        while let Some(paths) = next {
            // One moment for all paths of an event: a rename has two.
            let now = Instant::now();
            for path in paths {
                self.touch_path(&path, now);
            }
            if self.start.stop.is_stopped() {
                break;
            }
            next = self.next_event(Duration::ZERO);
        }
        if self.start.stop.is_stopped() {
            return Err(End::Stopped);
        }
        Ok(())
    }

    fn next_event(&self, wait: Duration) -> Option<Vec<PathBuf>> {
        self.watch.as_ref()?.next(wait)
    }

    fn touch_path(&mut self, path: &Path, now: Instant) {
        let Some(key) = self.tree.key_of(path) else {
            return;
        };
        let is_document = self.tree.accept_file(&key) || self.known.contains_key(&key);
        let is_directory = self.tree.look_at(&key) == Entry::Directory;
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
        match self.tree.list(directory) {
            Ok(listing) => self.touch_differences(directory, &listing),
            Err(error) => tracing::debug!(directory, "a folder went while it was read: {error}"),
        }
    }

    /// Tells the changes of what has come to rest, in one batch.
    fn take_settled(&mut self) -> Result<(), End> {
        let tree = &self.tree;
        let settled = self
            .unsettled
            .take_settled(Instant::now(), |key| tree.look_at(key));
        let mut entries = settled.iter().map(|it| &it.entry);
        if entries.any(|entry| *entry == Entry::Absent) && self.follow_root()? {
            return self.look_elsewhere(settled);
        }
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
                        self.observe(&key, stamp, noticed_at)?;
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

    /// Looks for paths again where the configured one leads now.
    fn look_elsewhere(&mut self, settled: Vec<Settled>) -> Result<(), End> {
        let now = Instant::now();
        for Settled { key, .. } in settled {
            self.unsettled.touch(key, now);
        }
        self.rescan()
    }

    /// Reads a file and tells it if its row differs from the one held.
    fn observe(&mut self, key: &str, stamp: FileStamp, noticed_at: SystemTime) -> Result<(), End> {
        let Known {
            row: held,
            letter: told,
            ..
        } = self.known.get(key).copied().unwrap_or_default();
        let (row, letter) = match read(&self.tree, key, stamp, self.source.file_bytes_max) {
            Reading::Row(row) => {
                let hash = xxh3_128(row.as_bytes());
                if held != Some(hash) {
                    self.push_change(key, Some(row), noticed_at);
                }
                (Some(hash), None)
            }
            Reading::Rejected(rejected, bytes) => {
                let letter = Some(hash_of_letter(stamp, &rejected, &bytes));
                if told != letter {
                    self.push_dead_letter(key, rejected, &bytes);
                }
                (held, letter)
            }
            Reading::Absent if self.follow_root()? => {
                self.unsettled.touch(key.to_owned(), Instant::now());
                return self.rescan();
            }
            Reading::Absent => {
                self.forget(key, noticed_at);
                return Ok(());
            }
            Reading::Unsettled => {
                self.unsettled.touch(key.to_owned(), Instant::now());
                return Ok(());
            }
        };
        let stamp = Some(stamp);
        self.known
            .insert(key.to_owned(), Known { stamp, row, letter });
        Ok(())
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
