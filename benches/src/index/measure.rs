//! Percentiles, recall and what the machine was.

use half::f16;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use vectide_model::{ChunkId, Embedding, Search, VectorIndexRead};

/// Hits of a query.
pub(crate) const K: usize = 10;

/// The true hits of each query, as numbers of rows.
pub(crate) type Truth = Vec<Vec<u64>>;

/// The best rows by the exact inner product with stored vectors.
pub(crate) fn truth(rows: &[(u64, Embedding)], queries: &[Vec<f32>]) -> Truth {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = queries.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let parts = queries
            .chunks(share)
            .map(|part| scope.spawn(|| exact(rows, part)));
        let parts: Vec<_> = parts.collect();
        let parts = parts
            .into_iter()
            .map(|part| part.join().unwrap_or_default());
        parts.flatten().collect()
    })
}

/// Queries that share a pass over the rows, so that memory is read less often.
const TOGETHER: usize = 16;

fn exact(rows: &[(u64, Embedding)], queries: &[Vec<f32>]) -> Truth {
    let mut hits: Vec<Vec<(f32, u64)>> = vec![Vec::new(); queries.len()];
    let mut wide = Vec::new();
    for start in (0..queries.len()).step_by(TOGETHER) {
        let end = (start + TOGETHER).min(queries.len());
        for (number, vector) in rows {
            wide.clear();
            wide.extend(vector.0.iter().map(|x: &f16| x.to_f32()));
            for (query, hits) in queries[start..end].iter().zip(&mut hits[start..end]) {
                let score = dot(query, &wide);
                if hits.len() < K || score > hits[K - 1].0 {
                    let at = hits.partition_point(|hit| hit.0 >= score);
                    hits.insert(at, (score, *number));
                    hits.truncate(K);
                }
            }
        }
    }
    let numbers = |hits: Vec<(f32, u64)>| hits.into_iter().map(|hit| hit.1).collect();
    hits.into_iter().map(numbers).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0);
    let mut sums = [0.0_f32; 16];
    for (x, y) in a.iter().zip(b) {
        for lane in 0..16 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum()
}

/// How a set of queries went.
pub(crate) struct Measured {
    /// Sorted.
    times: Vec<Duration>,
    /// The share of true hits that were found.
    pub(crate) recall: f64,
}

impl Measured {
    /// Of times alone.
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self {
            times,
            recall: f64::NAN,
        }
    }

    /// The time within which a share of the queries was answered, in milliseconds.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let at =
            ((self.times.len() as f64 * share) as usize).min(self.times.len().saturating_sub(1));
        self.times
            .get(at)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

/// Asks each query once, one after the other.
pub(crate) fn ask(
    read: &dyn VectorIndexRead,
    queries: &[Vec<f32>],
    truth: &Truth,
    chunk: impl Fn(u64) -> ChunkId,
) -> Measured {
    ask_for(read, &Search::best(K), queries, truth, chunk)
}

/// The same with a search of another kind.
pub(crate) fn ask_for(
    read: &dyn VectorIndexRead,
    search: &Search,
    queries: &[Vec<f32>],
    truth: &Truth,
    chunk: impl Fn(u64) -> ChunkId,
) -> Measured {
    let (mut times, mut found) = (Vec::new(), 0);
    let mut answers = Vec::new();
    for query in queries {
        let start = Instant::now();
        answers.push(read.search(query, search).hits);
        times.push(start.elapsed());
    }
    for (hits, wanted) in answers.iter().zip(truth) {
        let hits: HashSet<ChunkId> = hits.iter().map(|hit| hit.chunk).collect();
        found += wanted
            .iter()
            .filter(|it| hits.contains(&chunk(**it)))
            .count();
    }
    let wanted: usize = truth.iter().map(Vec::len).sum();
    Measured {
        recall: found as f64 / wanted.max(1) as f64,
        ..Measured::of(times)
    }
}

/// Memory of this process that no file holds, in bytes.
pub(crate) fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The processor, for the head of a table.
pub(crate) fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find(|line| line.starts_with("model name"));
    let name = name
        .and_then(|line| line.split(": ").nth(1))
        .unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{name}, {cores} cores")
}
