//! A shard as the engine uses it, without store and dataflow: epochs are closed, files that a commit gives
//! up are removed, and what queries read is published.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vectide_faiss::{FaissFactory, FaissOptions};
use vectide_model::{
    ChunkId, ContentHash, Embedding, ShardCommit, ShardState, VectorIndex, VectorIndexFactory,
    VectorIndexRead,
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
    /// What would be committed, so that it can be opened again.
    files: HashSet<String>,
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
            files: HashSet::new(),
        }
    }

    /// Inserts a row, or another vector for it.
    pub(crate) fn insert(&mut self, number: u64, vector: Embedding) {
        self.write.insert(chunk(number), vector);
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
        for manifest in &closed.commit.segments_added {
            self.files
                .extend(manifest.files.iter().map(|file| file.0.clone()));
        }
        for manifest in &closed.commit.segments_removed {
            for (name, _, _) in &manifest.files {
                self.files.remove(name);
            }
        }
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
        let files = self
            .files
            .iter()
            .map(|name| self.directory.path().join(name));
        let found = files.filter_map(|path| path.metadata().ok());
        let files: std::collections::HashMap<u64, u64> =
            found.map(|file| (file.ino(), file.len())).collect();
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
