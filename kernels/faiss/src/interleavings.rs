//! Seeded random changes, with the builder's jobs run at random moments, crashes and reopening at
//! random moments, compared with a model map.
//!
//! What is covered: deletes while a head is sealed or segments are merged, a chunk inserted again
//! while its old row is being built, jobs that finish in any order or never, crashes before the
//! commit that names new files, and snapshots that must not move meanwhile.

use crate::builder::{BuildError, Builder, Built, Job};
use crate::factory::{FaissOptions, Quantization, open_shard};
use crate::files;
use crate::shard::Shard;
use crate::tiers::SEGMENTS_MAX;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use vectide_model::{
    ChunkId, Embedding, IndexError, IndexRow, Search, ShardCommit, ShardState, VectorIndex,
    VectorIndexRead, quantize,
};

const DIMENSION: usize = 8;
const HEAD_ROWS: usize = 20;
type Live = BTreeMap<ChunkId, Embedding>;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }

    fn vector(&mut self) -> Vec<f32> {
        // Few distinct values, so that equal vectors and equal scores are common.
        (0..DIMENSION).map(|_| self.below(3) as f32 - 1.0).collect()
    }
}

fn chunk(number: u64) -> ChunkId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    ChunkId(id)
}

fn exact(live: &Live, query: &[f32], k: usize) -> Vec<(ChunkId, f32)> {
    // Plus zero, since a sum may be -0.0.
    let score = |vector: &Embedding| {
        let products = query.iter().zip(vector.0.iter());
        products.fold(0.0_f32, |sum, (x, y)| sum + x * y.to_f32()) + 0.0
    };
    let mut hits: Vec<_> = live
        .iter()
        .map(|(id, vector)| (*id, score(vector)))
        .collect();
    hits.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    hits.truncate(k);
    hits
}

/// All components are small integers, so scores are exact; segments this small are scanned whole.
fn check(read: &dyn VectorIndexRead, live: &Live, random: &mut Random) {
    assert_eq!(read.rows(), live.len());
    for k in [1, 7, usize::MAX] {
        let query = random.vector();
        let got: Vec<_> = read
            .search(&query, &Search::best(k))
            .hits
            .iter()
            .map(|hit| (hit.chunk, hit.score))
            .collect();
        assert_eq!(got, exact(live, &query, k));
    }
    for number in 0..200 {
        assert_eq!(
            read.vector(&chunk(number)).as_ref(),
            live.get(&chunk(number))
        );
    }
}

struct World<'a> {
    directory: &'a Path,
    random: Random,
    shard: Shard,
    seals: Receiver<Job>,
    merges: Receiver<Job>,
    committed: ShardState,
    committed_live: Live,
    live: Live,
    merged: usize,
}

fn open(directory: &Path, state: ShardState) -> (Shard, Receiver<Job>, Receiver<Job>) {
    // Lists for segments of all sizes: they are so few that all of them are probed.
    open_with(directory, state, (HEAD_ROWS, 30))
}

fn open_with(
    directory: &Path,
    state: ShardState,
    (head_rows_max, flat_rows_max): (usize, usize),
) -> (Shard, Receiver<Job>, Receiver<Job>) {
    let (builder, seals, merges) = Builder::manual();
    let options = FaissOptions {
        head_rows_max,
        frozen_heads_max: 1000,
        flat_rows_max,
        quantization: Quantization::Pq,
    };
    let shard = open_shard(directory, DIMENSION, state, options, Arc::new(builder));
    (shard.unwrap(), seals, merges)
}

impl<'a> World<'a> {
    fn new(directory: &'a Path, seed: u64) -> Self {
        let (shard, seals, merges) = open(directory, ShardState::default());
        Self {
            directory,
            random: Random(seed),
            shard,
            seals,
            merges,
            committed: ShardState::default(),
            committed_live: Live::new(),
            live: Live::new(),
            merged: 0,
        }
    }

    fn change(&mut self) {
        let id = chunk(self.random.below(200));
        if self.random.below(5) < 2 {
            self.shard.remove(&id);
            self.live.remove(&id);
        } else {
            let vector = quantize(&self.random.vector());
            self.shard.insert(IndexRow::new(id, vector.clone()));
            self.live.insert(id, vector);
        }
    }

    fn run_a_job(&mut self) {
        let queue = if self.random.below(2) == 0 {
            &self.seals
        } else {
            &self.merges
        };
        if let Ok(job) = queue.try_recv() {
            job.run();
        }
    }

    /// Closes an epoch, commits it and does what the engine does: removes the files it freed.
    fn close(&mut self) -> (Arc<dyn VectorIndexRead>, Live) {
        let closed = self.shard.close_epoch().unwrap();
        assert_commit_is_exact(&self.committed, &closed.commit);
        self.committed.apply(&closed.commit);
        self.committed_live = self.live.clone();
        for manifest in &closed.commit.segments_removed {
            self.merged += 1;
            for (name, _, _) in &manifest.files {
                fs::remove_file(self.directory.join(name)).unwrap();
            }
        }
        check(&*closed.read, &self.live, &mut self.random);
        (closed.read, self.live.clone())
    }

    /// Changes rows until segments are to be merged.
    fn first_merge(&mut self) -> Job {
        loop {
            (0..100).for_each(|_| self.change());
            self.close();
            self.seals.try_iter().for_each(Job::run);
            self.close();
            if let Ok(merge) = self.merges.try_recv() {
                return merge;
            }
        }
    }

    /// Loses everything that was not committed.
    fn crash(&mut self) {
        if self.random.below(2) == 0 {
            self.run_a_job();
        }
        fs::write(self.directory.join("segment-half.rows.part"), "half a file").unwrap();
        (self.shard, self.seals, self.merges) = open(self.directory, self.committed.clone());
        self.live = self.committed_live.clone();
        let manifests = self.committed.segments.iter();
        let named: HashSet<String> = manifests
            .flat_map(|manifest| &manifest.files)
            .map(|file| file.0.clone())
            .collect();
        let found = fs::read_dir(self.directory).unwrap();
        let found: HashSet<String> = found
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(found, named, "files after opening");
    }
}

/// A commit says nothing that is not a change, and nothing twice.
fn assert_commit_is_exact(before: &ShardState, commit: &ShardCommit) {
    let held: HashSet<ChunkId> = before.head.iter().map(|row| row.chunk).collect();
    let mut seen = HashSet::new();
    for removed in &commit.head_removed {
        assert!(
            held.contains(removed) && seen.insert(*removed),
            "{removed} removed from the head"
        );
    }
    for added in commit.head_added.iter().map(|row| &row.chunk) {
        assert!(seen.insert(*added), "{added} twice");
    }
    let mut dead: HashSet<_> = before.tombstones.iter().copied().collect();
    let segments = before.segments.iter().chain(&commit.segments_added);
    let segments: HashSet<_> = segments.map(|manifest| manifest.id).collect();
    for tombstone in &commit.tombstones {
        assert!(dead.insert(*tombstone), "{tombstone:?} died twice");
        assert!(
            segments.contains(&tombstone.0),
            "{tombstone:?} is of no segment"
        );
    }
    for removed in &commit.segments_removed {
        assert!(
            before.segments.contains(removed),
            "{removed:?} was not committed"
        );
    }
}

fn run(seed: u64, steps: usize) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path(), seed);
    let mut old = Vec::new();
    for _ in 0..steps {
        match world.random.below(100) {
            0..80 => world.change(),
            80..91 => world.run_a_job(),
            91..99 => old.push(world.close()),
            _ => world.crash(),
        }
    }
    for (read, live) in &old {
        check(&**read, live, &mut world.random);
    }
    world.close();
    world.crash();
    world.close();
    world.merged
}

#[test]
fn any_order_of_events_gives_the_model() {
    let merged: usize = (0..12).map(|seed| run(seed, 1200)).sum();
    assert!(
        merged > 50,
        "only {merged} segments were removed: the test does not reach merges"
    );
}

#[test]
fn with_all_jobs_done_few_segments_remain() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path(), 5);
    for number in 0..2000 {
        let vector = quantize(&world.random.vector());
        world
            .shard
            .insert(IndexRow::new(chunk(1000 + number), vector.clone()));
        world.live.insert(chunk(1000 + number), vector);
    }
    world.close();
    loop {
        let jobs: Vec<Job> = world
            .seals
            .try_iter()
            .chain(world.merges.try_iter())
            .collect();
        if jobs.is_empty() {
            break;
        }
        jobs.into_iter().for_each(Job::run);
        world.close();
    }
    let (read, _) = world.close();
    assert!(
        read.segments() <= SEGMENTS_MAX,
        "{} segments",
        read.segments()
    );
    assert!(world.committed.head.len() <= HEAD_ROWS);
}

/// Runs jobs until there are no more; how many trained a generation.
fn settle(shard: &mut Shard, (seals, merges): (&Receiver<Job>, &Receiver<Job>)) -> usize {
    let (mut rounds, mut trained) = (0, 0);
    loop {
        shard.close_epoch().unwrap();
        let jobs: Vec<Job> = seals.try_iter().chain(merges.try_iter()).collect();
        if jobs.is_empty() {
            return trained;
        }
        trained += jobs.iter().filter(|job| job.is_training()).count();
        jobs.into_iter().for_each(Job::run);
        rounds += 1;
        assert!(rounds < 100, "trained {trained} times");
    }
}

/// Where many rows are equal, what the centroids leave of a batch varies more than between corpora: each recoding
/// of rows that had been there in training could make a new generation due, without an end. What came later does.
#[test]
fn with_no_new_rows_training_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(3);
    // So many rows have 306 lists.
    for (distinct, copies) in [(60, 200), (320, 37), (340, 35), (400, 30)] {
        let folder = directory.path().join(distinct.to_string());
        let (mut shard, seals, merges) = open_with(&folder, ShardState::default(), (512, 400));
        let mut vectors = |scale: f32| -> Vec<Embedding> {
            let mut component = || (random.below(2001) as f32 / 1000.0 - 1.0) * scale;
            let mut vector = || std::array::from_fn::<f32, DIMENSION, _>(|_| component());
            (0..distinct).map(|_| quantize(&vector())).collect()
        };
        let (near, far) = (vectors(1.0), vectors(3.0));
        for (number, vector) in (0..).zip(near.iter().cycle().take(distinct * copies)) {
            shard.insert(IndexRow::new(chunk(number), vector.clone()));
        }
        let trained = settle(&mut shard, (&seals, &merges));
        assert_eq!(trained, 1, "{distinct} vectors");
        assert_eq!(settle(&mut shard, (&seals, &merges)), 0);
        for (number, vector) in (100_000..).zip(far.iter().cycle().take(distinct * copies / 3)) {
            shard.insert(IndexRow::new(chunk(number), vector.clone()));
        }
        let trained = settle(&mut shard, (&seals, &merges));
        assert!((1..=2).contains(&trained), "{distinct} vectors: {trained}");
    }
}

#[test]
fn a_failed_build_ends_the_next_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let (mut shard, seals, _merges) = open(directory.path(), ShardState::default());
    for number in 0..=HEAD_ROWS as u64 {
        shard.insert(IndexRow::new(chunk(number), quantize(&[1.0; DIMENSION])));
    }
    shard.close_epoch().unwrap();
    fs::remove_dir_all(directory.path()).unwrap();
    seals.try_recv().unwrap().run();
    let error = shard.close_epoch().err().unwrap();
    assert!(
        error.fact.contains("segment-") && !error.hint.is_empty(),
        "{error:?}"
    );
    assert!(shard.close_epoch().is_err(), "it stays failed");
}

/// The files of a folder, sorted.
fn names(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

/// A merge that did not fit on the disk ended the process, at every start once more, though all its inputs were
/// there. Here a folder stands where its last file has to go, when the others have their names already.
#[test]
fn a_merge_that_fails_is_put_off_and_nothing_else_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path(), 9);
    let merge = world.first_merge();
    let before = names(directory.path());
    let obstacle = directory.path().join(files::codes_name(merge.id));
    fs::create_dir(&obstacle).unwrap();
    merge.run();
    assert!(world.shard.has_news());
    fs::remove_dir(&obstacle).unwrap();
    assert_eq!(names(directory.path()), before, "what it wrote is gone");

    // Queries are answered and changes committed.
    (0..100).for_each(|_| world.change());
    let (read, _) = world.close();
    assert_eq!(read.merges_postponed(), 1);
    assert!(read.segments() > 0 && world.merged == 0);
    assert!(world.merges.try_recv().is_err(), "not at once");
    let end = Instant::now() + Duration::from_secs(60);
    let again = loop {
        assert!(Instant::now() < end, "it is never tried again");
        if world.shard.has_news() {
            world.close();
        }
        match world.merges.try_recv() {
            Ok(merge) => break merge,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    again.run();
    world.close();
    assert!(world.merged > 0);
    world.crash();
    world.close();
}

#[test]
fn what_does_not_fit_on_the_disk_is_not_begun() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(files::shortage(directory.path(), 0), None);
    let shortage = files::shortage(directory.path(), u64::MAX).unwrap();
    assert!(shortage.fact.contains("merging takes"), "{shortage:?}");
}

/// A defect is not tried again.
#[test]
fn a_merge_that_panics_ends_the_next_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path(), 9);
    let merge = world.first_merge();
    let panicked = IndexError {
        fact: "building a segment panicked".into(),
        hint: "report it".into(),
    };
    let (id, result) = (merge.id, Err(BuildError::Panicked(panicked)));
    merge.reply.send(Built { id, result }).unwrap();
    assert!(world.shard.close_epoch().is_err());
}

#[test]
fn a_vector_of_another_dimension_fails_the_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let (mut shard, ..) = open(directory.path(), ShardState::default());
    shard.insert(IndexRow::new(chunk(1), quantize(&[1.0; DIMENSION + 1])));
    assert!(
        shard
            .close_epoch()
            .err()
            .unwrap()
            .fact
            .contains("9 dimensions")
    );
}
