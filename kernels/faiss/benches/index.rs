//! What a shard does on this machine: inserts, searches, recall, pauses, and the head's scan beside
//! the memory's bandwidth. Prints one table.
//!
//! Unless others are given, the vectors are synthetic: a mixture of clusters of clusters with a decaying spectrum inside each,
//! normalised. Real embeddings are less clearly clustered, which costs recall; what is printed here
//! compares versions of the code with each other, and the peer figures with them.
//!
//! `cargo bench -p vectide-faiss -- 20000 100000` chooses the sizes; the environment variables
//! `VECTIDE_BENCH_VECTORS` and `VECTIDE_BENCH_QUERIES` name files of little-endian f32 (384 a row)
//! to be used instead.

use half::f16;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vectide_faiss::{FaissFactory, FaissOptions};
use vectide_model::{
    ChunkId, ContentHash, Embedding, ScoredChunk, ShardState, VectorIndex, VectorIndexFactory,
    VectorIndexRead, quantize,
};

const DIMENSION: usize = 384;
const EPOCH_ROWS: usize = 1000;
const QUERIES: usize = 300;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Roughly normal: the sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
        (sum as f32 / 65536.0 - 2.0) * 1.73
    }

    fn direction(&mut self) -> Vec<f32> {
        (0..DIMENSION).map(|_| self.normal()).collect()
    }
}

/// Makes vectors of one distribution.
struct Mixture {
    topics: Vec<Vec<f32>>,
    themes: Vec<Vec<f32>>,
}

impl Mixture {
    fn new() -> Self {
        let mut random = Random(42);
        Self {
            topics: (0..40).map(|_| random.direction()).collect(),
            themes: (0..2000).map(|_| random.direction()).collect(),
        }
    }

    fn vector(&self, random: &mut Random) -> Vec<f32> {
        let theme = random.next() as usize % self.themes.len();
        let parts = self.topics[theme % self.topics.len()]
            .iter()
            .zip(&self.themes[theme]);
        let raw: Vec<f32> = parts
            .enumerate()
            .map(|(at, (topic, theme))| {
                let spread = 1.6 / (1.0 + at as f32 / 48.0);
                0.5 * topic + 0.6 * theme + spread * random.normal()
            })
            .collect();
        let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
        raw.iter().map(|x| x / norm).collect()
    }
}

struct Shards {
    directory: tempfile::TempDir,
    write: Vec<Box<dyn VectorIndex>>,
    read: Vec<Arc<dyn VectorIndexRead>>,
}

impl Shards {
    fn open(factory: &FaissFactory, count: usize) -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let open = |shard: usize| {
            let folder = directory.path().join(shard.to_string());
            factory
                .open(&folder, DIMENSION, ShardState::default())
                .expect("a shard")
        };
        let write = (0..count).map(open).collect();
        Self {
            directory,
            write,
            read: Vec::new(),
        }
    }

    /// Closes an epoch on all shards, removing freed files as the engine does; the longest pause.
    fn close(&mut self) -> Duration {
        let mut longest = Duration::ZERO;
        self.read.clear();
        for (shard, write) in self.write.iter_mut().enumerate() {
            let start = Instant::now();
            let closed = write.close_epoch().expect("an epoch");
            longest = longest.max(start.elapsed());
            remove_files(
                &self.directory.path().join(shard.to_string()),
                &closed.commit,
            );
            self.read.push(closed.read);
        }
        longest
    }

    /// Closes epochs until nothing is being built: no unfinished file for a second.
    fn settle(&mut self) -> Duration {
        const QUIET: Duration = Duration::from_secs(1);
        let start = Instant::now();
        let mut since = start;
        while since.elapsed() < QUIET {
            let segments = self.segments();
            self.close();
            if self.is_building() || self.segments() != segments {
                since = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        start.elapsed() - QUIET
    }

    fn is_building(&self) -> bool {
        (0..self.write.len()).any(|shard| {
            let folder = std::fs::read_dir(self.directory.path().join(shard.to_string()));
            folder
                .expect("the shard's folder")
                .flatten()
                .any(|file| file.file_name().to_string_lossy().ends_with(".part"))
        })
    }

    fn segments(&self) -> usize {
        self.read.iter().map(|read| read.segments()).sum()
    }

    fn search(&self, query: &[f32], k: usize) -> Vec<ScoredChunk> {
        let mut hits: Vec<_> = self
            .read
            .iter()
            .flat_map(|read| read.search(query, k))
            .collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
        hits.truncate(k);
        hits
    }
}

fn remove_files(folder: &Path, commit: &vectide_model::ShardCommit) {
    for (name, _, _) in commit
        .segments_removed
        .iter()
        .flat_map(|manifest| &manifest.files)
    {
        std::fs::remove_file(folder.join(name)).expect("a file that was committed");
    }
}

fn chunk(number: usize) -> ChunkId {
    ChunkId::new(&number.to_string(), "bench", ContentHash([0; 16]), 0)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// p50 and p99 in milliseconds, and recall@10 against a scan of everything.
fn measure(shards: &Shards, exact: &Shards, queries: &[Vec<f32>]) -> (f64, f64, f64) {
    let (mut times, mut answers) = (Vec::new(), Vec::new());
    for query in queries {
        let start = Instant::now();
        answers.push(shards.search(query, 10));
        times.push(start.elapsed());
    }
    // Afterwards: the scan of everything would empty the processor's caches between queries.
    let mut found = 0;
    for (query, hits) in queries.iter().zip(answers) {
        let truth = exact.search(query, 10);
        let is_found = |wanted: &&ScoredChunk| hits.iter().any(|hit| hit.chunk == wanted.chunk);
        found += truth.iter().filter(is_found).count();
    }
    times.sort();
    let at = |share: f64| milliseconds(times[(times.len() as f64 * share) as usize]);
    (
        at(0.5),
        at(0.99),
        found as f64 / (queries.len() * 10) as f64,
    )
}

fn run(rows: &[Embedding], queries: &[Vec<f32>], count: usize) {
    let factory = FaissFactory::default();
    let mut shards = Shards::open(&factory, count);
    let (mut pauses, mut inserting) = (Vec::new(), Duration::ZERO);
    for (epoch, batch) in rows.chunks(EPOCH_ROWS).enumerate() {
        let start = Instant::now();
        for (at, vector) in batch.iter().enumerate() {
            let number = epoch * EPOCH_ROWS + at;
            shards.write[number % count].insert(chunk(number), vector.clone());
        }
        pauses.push(shards.close());
        inserting += start.elapsed();
    }
    let settling = shards.settle();
    pauses.sort();

    // Everything in heads: a scan of all is the truth.
    let flat = FaissFactory::new(FaissOptions {
        head_rows_max: 65_536,
        frozen_heads_max: 1_000_000,
        ..FaissOptions::default()
    });
    let mut exact = Shards::open(&flat, rows.len().div_ceil(60_000));
    let exact_count = exact.write.len();
    for (number, vector) in rows.iter().enumerate() {
        exact.write[number % exact_count].insert(chunk(number), vector.clone());
    }
    exact.close();
    let (p50, p99, recall) = measure(&shards, &exact, queries);
    println!(
        "| {:>7} | {count:>6} | {:>8} | {:>13.0} | {:>12.0} | {p50:>6.2} | {p99:>6.2} | {recall:>9.4} | {:>13.2} | {:>13.2} |",
        rows.len(),
        shards.segments(),
        rows.len() as f64 / inserting.as_secs_f64(),
        rows.len() as f64 / (inserting + settling).as_secs_f64(),
        milliseconds(pauses[pauses.len() / 2]),
        milliseconds(pauses[pauses.len() - 1]),
    );
}

/// The head's scan in GB/s, in cache and beyond it, beside a plain sum of as many bytes.
fn bandwidth(rows: &[Embedding], query: &[f32]) {
    for count in [8192, 65_536] {
        let factory = FaissFactory::new(FaissOptions {
            head_rows_max: 65_536,
            frozen_heads_max: 1,
            ..FaissOptions::default()
        });
        let mut shards = Shards::open(&factory, 1);
        for (number, vector) in rows.iter().cycle().take(count).enumerate() {
            shards.write[0].insert(chunk(number), vector.clone());
        }
        shards.close();
        let bytes = count * DIMENSION * size_of::<f16>();
        let scan = fastest(|| shards.search(query, 10).len() as u64);
        let words = vec![1_u64; bytes / 8];
        let sum = fastest(|| words.iter().sum());
        println!(
            "head of {count} rows ({:.1} MB): scan {:.3} ms, {:.1} GB/s; plain sum of as much {:.1} GB/s",
            bytes as f64 / 1e6,
            milliseconds(scan),
            bytes as f64 / scan.as_secs_f64() / 1e9,
            bytes as f64 / sum.as_secs_f64() / 1e9,
        );
    }
}

fn fastest(mut work: impl FnMut() -> u64) -> Duration {
    let timed = (0..30).map(|_| {
        let start = Instant::now();
        std::hint::black_box(work());
        start.elapsed()
    });
    timed.min().unwrap_or_default()
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find(|line| line.starts_with("model name"));
    let name = name
        .and_then(|line| line.split(": ").nth(1))
        .unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{name}, {cores} cores")
}

type Vectors = (Vec<Embedding>, Vec<Vec<f32>>);

fn synthetic(count: usize) -> Vectors {
    println!("vectors: clustered, synthetic");
    let (mixture, mut random) = (Mixture::new(), Random(7));
    let rows = (0..count)
        .map(|_| quantize(&mixture.vector(&mut random)))
        .collect();
    (
        rows,
        (0..QUERIES).map(|_| mixture.vector(&mut random)).collect(),
    )
}

/// Vectors from files of little-endian f32, for measuring on real embeddings.
fn given() -> Option<Vectors> {
    let path = std::env::var("VECTIDE_BENCH_VECTORS").ok()?;
    let queries = std::env::var("VECTIDE_BENCH_QUERIES").ok()?;
    println!("vectors: {path}, queries: {queries}");
    let read = |path: &str| -> Vec<Vec<f32>> {
        let bytes = std::fs::read(path).expect("a file of vectors");
        let number = |word: &[u8]| f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        let numbers: Vec<f32> = bytes.chunks_exact(4).map(number).collect();
        numbers
            .chunks_exact(DIMENSION)
            .map(<[f32]>::to_vec)
            .collect()
    };
    Some((
        read(&path).iter().map(|row| quantize(row)).collect(),
        read(&queries),
    ))
}

fn main() {
    let sizes: Vec<usize> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let sizes = if sizes.is_empty() {
        vec![20_000, 100_000]
    } else {
        sizes
    };
    println!("machine: {}", machine());
    println!(
        "{DIMENSION} dimensions, clustered synthetic unit vectors, epochs of {EPOCH_ROWS} rows"
    );
    let most = sizes.iter().copied().max().unwrap_or(0).max(20_000);
    let (rows, queries) = given().unwrap_or_else(|| synthetic(most));
    bandwidth(&rows, &queries[0]);
    println!(
        "|    rows | shards | segments | inserted/s    | settled/s    | p50 ms | p99 ms | recall@10 | close p50 ms  | close max ms  |"
    );
    println!(
        "| ------: | -----: | -------: | ------------: | -----------: | -----: | -----: | --------: | ------------: | ------------: |"
    );
    for size in sizes {
        let size = size.min(rows.len());
        for count in [1, 2] {
            run(&rows[..size], &queries, count);
        }
    }
}
