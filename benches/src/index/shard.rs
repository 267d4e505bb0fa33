//! A shard as the engine uses it, without store and dataflow: epochs are closed, files that a commit gives
//! up are removed, and what queries read is published.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vectide_faiss::{FaissFactory, FaissOptions};
use vectide_model::{
    ChunkId, ContentHash, Embedding, IndexRow, RowFields, SegmentId, SegmentManifest, ShardCommit,
    ShardState, VectorIndex, VectorIndexFactory, VectorIndexRead,
};

use crate::index::vectors::DIMENSION;

/// Nothing is built any more when for so long no segment came or went and the builder did nothing.
const QUIET: Duration = Duration::from_secs(1);

/// What queries read.
pub(crate) type Published = Mutex<Option<Arc<dyn VectorIndexRead>>>;

/// The newest epoch.
pub(crate) fn newest(published: &Published) -> Option<Arc<dyn VectorIndexRead>> {
    published
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// The chunk of a row.
pub(crate) fn chunk(number: u64) -> ChunkId {
    ChunkId::new(&number.to_string(), "bench", ContentHash([0; 16]), 0)
}

/// The write half, and how it went.
pub(crate) struct Shard {
    directory: tempfile::TempDir,
    write: Box<dyn VectorIndex>,
    /// For queries.
    pub(crate) published: Arc<Published>,
    /// How long closing an epoch took.
    pub(crate) pauses: Vec<Duration>,
    options: FaissOptions,
    /// What the store would hold.
    committed: Committed,
}

/// The committed state of a shard.
#[derive(Default)]
struct Committed {
    head: HashMap<ChunkId, IndexRow>,
    segments: HashMap<SegmentId, SegmentManifest>,
    tombstones: Vec<(SegmentId, u32)>,
}

impl Committed {
    fn apply(&mut self, commit: ShardCommit) {
        for chunk in &commit.head_removed {
            self.head.remove(chunk);
        }
        let added = commit.head_added.into_iter();
        self.head.extend(added.map(|row| (row.chunk, row)));
        self.tombstones.extend(commit.tombstones);
        for manifest in commit.segments_added {
            self.segments.insert(manifest.id, manifest);
        }
        for manifest in &commit.segments_removed {
            self.segments.remove(&manifest.id);
        }
        if !commit.segments_removed.is_empty() {
            self.tombstones
                .retain(|(id, _)| self.segments.contains_key(id));
        }
    }

    fn state(&self) -> ShardState {
        ShardState {
            head: self.head.values().cloned().collect(),
            segments: self.segments.values().cloned().collect(),
            tombstones: self.tombstones.clone(),
        }
    }
}

/// A shard that no process has open.
pub(crate) struct Closed {
    directory: tempfile::TempDir,
    options: FaissOptions,
    state: ShardState,
}

impl Closed {
    /// Opens it for reading: every file is verified.
    pub(crate) fn open(&self) -> Arc<dyn VectorIndexRead> {
        let factory = FaissFactory::new(self.options);
        let read = factory.read(self.directory.path(), DIMENSION, self.state.clone());
        read.unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Shard {
    /// An empty one.
    pub(crate) fn new(options: FaissOptions) -> Self {
        let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let factory = FaissFactory::new(options);
        let write = factory.open(directory.path(), DIMENSION, ShardState::default());
        Self {
            directory,
            write: write.unwrap_or_else(|error| panic!("{error}")),
            published: Arc::default(),
            pauses: Vec::new(),
            options,
            committed: Committed::default(),
        }
    }

    /// Ends the writer.
    pub(crate) fn end(self) -> Closed {
        Closed {
            state: self.committed.state(),
            directory: self.directory,
            options: self.options,
        }
    }

    /// Inserts a row, or another vector for it.
    pub(crate) fn insert(&mut self, number: u64, vector: Embedding) {
        self.insert_with(number, vector, RowFields::default());
    }

    /// The same of a row that is found by more than its vector.
    pub(crate) fn insert_with(&mut self, number: u64, vector: Embedding, fields: RowFields) {
        let chunk = chunk(number);
        self.write.insert(IndexRow {
            chunk,
            vector,
            fields,
        });
    }

    /// Removes a row.
    pub(crate) fn remove(&mut self, number: u64) {
        self.write.remove(&chunk(number));
    }

    /// Closes an epoch and publishes it.
    pub(crate) fn close(&mut self) {
        let start = Instant::now();
        let closed = self
            .write
            .close_epoch()
            .unwrap_or_else(|error| panic!("{error}"));
        self.pauses.push(start.elapsed());
        remove_files(self.directory.path(), &closed.commit);
        self.committed.apply(closed.commit);
        let mut published = self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = published.replace(closed.read);
        drop(published);
        drop(before);
    }

    /// Closes epochs until nothing is built any more; how long that took.
    pub(crate) fn settle(&mut self) -> Duration {
        let start = Instant::now();
        let mut since = start;
        while since.elapsed() < QUIET {
            let before = (self.segments(), builder_ticks());
            self.close();
            std::thread::sleep(Duration::from_millis(50));
            if (self.segments(), builder_ticks()) != before {
                since = Instant::now();
            }
        }
        start.elapsed().saturating_sub(QUIET)
    }

    /// Sealed segments.
    pub(crate) fn segments(&self) -> usize {
        newest(&self.published).map_or(0, |read| read.segments())
    }

    /// Bytes of the files that commits name, each counted once however many names it has.
    pub(crate) fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let manifests = self.committed.segments.values();
        let names = manifests.flat_map(|manifest| &manifest.files);
        let files = names.map(|(name, ..)| self.directory.path().join(name));
        let found = files.filter_map(|path| path.metadata().ok());
        let files: HashMap<u64, u64> = found.map(|file| (file.ino(), file.len())).collect();
        files.values().sum()
    }
}

/// Processor time of the threads that build segments, in ticks: training writes no file for seconds.
fn builder_ticks() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let ticks = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once(") ")?;
        let is_builder = name.ends_with("vectide-seal") || name.ends_with("vectide-merge");
        let mut times = rest.split(' ').skip(11).take(2);
        let user: u64 = times.next()?.parse().ok()?;
        let system: u64 = times.next()?.parse().ok()?;
        is_builder.then_some(user + system)
    });
    ticks.sum()
}

fn remove_files(folder: &Path, commit: &ShardCommit) {
    let removed = commit.segments_removed.iter();
    for (name, _, _) in removed.flat_map(|manifest| &manifest.files) {
        std::fs::remove_file(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
