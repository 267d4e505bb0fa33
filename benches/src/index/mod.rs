//! What a shard of the index does at size on real embeddings: how fast rows are sealed, how fast and how
//! completely queries are answered, quiet and under changes, what that takes of memory and disk, and the same
//! for other indexes on the same vectors.
//!
//! `VECTIDE_INDEX_ROWS` sets the number of rows, 1,000,000 if nothing is said. With `VECTIDE_INDEX_PEERS=1` the
//! vectors are written for `scripts/index_peers.sh`, which asks other indexes the same.

pub(crate) mod filters;
mod measure;
mod runbook;
mod shard;
mod vectors;
mod wear;

pub(crate) use measure::machine;
use measure::{Measured, Truth, anonymous_bytes, ask, truth};
use shard::{Shard, chunk, newest};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vectide_faiss::FaissOptions;
use vectide_model::{Embedding, Search};
use vectide_tests::Random;
use vectors::Base;

const ROWS: u64 = 1_000_000;
/// Queries of each measurement.
const QUERIES: usize = 1000;
/// Rows of an epoch of the bulk load.
pub(crate) const LOAD_EPOCH_ROWS: usize = 1000;
/// How long changes and queries go on beside each other.
const CHURN: Duration = Duration::from_secs(15);
/// Epochs a second under changes.
const EPOCHS_PER_SECOND: u64 = 50;

pub(crate) fn run() {
    let Some(base) = Base::open() else {
        return;
    };
    let rows = rows_wanted();
    println!("machine: {}", machine());
    println!(
        "{rows} rows of {} dimensions, {} real ones enlarged",
        vectors::DIMENSION,
        base.rows.len()
    );
    let queries: Vec<Vec<f32>> = base
        .queries
        .iter()
        .step_by(3)
        .take(QUERIES)
        .cloned()
        .collect();
    let given = generate(&base, 0..rows);
    let wanted = truth(&given, &queries);
    if std::env::var_os("VECTIDE_INDEX_PEERS").is_some() {
        write_for_peers(&given, &queries, &wanted);
    }
    head(&given, &queries[0]);
    let before = anonymous_bytes();
    let mut shard = Shard::new(FaissOptions::default());
    load(&mut shard, &given);
    let used = anonymous_bytes().saturating_sub(before);
    println!(
        "memory {:.0} bytes a row beside the page cache, disk {:.0} bytes a row",
        used as f64 / rows as f64,
        shard.disk_bytes() as f64 / rows as f64
    );
    quiet(&shard, &queries, &wanted);
    for (updates, clients, pace) in [(2000, 1, 200), (1000, 2, 0)] {
        churn(&mut shard, &base, rows, &queries, (updates, clients, pace));
    }
    drop(given);
    wear::restart(shard, &queries, rows);
    wear::turnover(&base, &queries);
    wear::drift(&base, &queries);
    runbook::run(&base, &queries);
}

/// How many rows are indexed.
fn rows_wanted() -> u64 {
    let rows = std::env::var("VECTIDE_INDEX_ROWS").ok();
    rows.and_then(|rows| rows.parse().ok()).unwrap_or(ROWS)
}

/// Writes what `scripts/index_peers.sh` reads: the same rows, queries and true hits.
fn write_for_peers(given: &[Row], queries: &[Vec<f32>], wanted: &Truth) {
    let rows: Vec<Vec<f32>> = given.iter().map(|(_, vector)| vector.to_f32()).collect();
    vectors::write(&vectors::kept("peer-rows.f32"), &rows);
    vectors::write(&vectors::kept("peer-queries.f32"), queries);
    let numbers = wanted.iter().flatten();
    let bytes: Vec<u8> = numbers
        .flat_map(|number| (*number as u32).to_le_bytes())
        .collect();
    let path = vectors::kept("peer-truth.u32");
    std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("{path:?}: {error}"));
}

/// A row's number and vector.
pub(crate) type Row = (u64, Embedding);

/// Rows by their numbers, made on all threads.
pub(crate) fn generate(base: &Base, numbers: std::ops::Range<u64>) -> Vec<Row> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let share = (numbers.end - numbers.start).div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let parts = (0..threads).map(|part| {
            let start = (numbers.start + part * share).min(numbers.end);
            let end = (start + share).min(numbers.end);
            scope.spawn(move || -> Vec<_> {
                (start..end)
                    .map(|number| (number, base.embedding(number)))
                    .collect()
            })
        });
        let parts: Vec<_> = parts.collect();
        let parts = parts
            .into_iter()
            .map(|part| part.join().unwrap_or_default());
        parts.flatten().collect()
    })
}

/// The scan of a head beside the machine's memory: GB/s of both.
fn head(rows: &[Row], query: &[f32]) {
    const ROWS: usize = 8192;
    let mut shard = Shard::new(FaissOptions::default());
    for (number, vector) in rows.iter().take(ROWS - 1) {
        shard.insert(*number, vector.clone());
    }
    shard.close();
    let Some(read) = newest(&shard.published) else {
        return;
    };
    let bytes = ROWS * vectors::DIMENSION * 2;
    let scan = fastest(|| read.search(query, &Search::best(measure::K)).hits.len() as u64);
    let words = vec![1_u64; bytes / 8];
    let sum = fastest(|| words.iter().sum());
    println!(
        "head of {ROWS} rows: {:.3} ms, {:.1} GB/s; a plain sum of as many bytes {:.1} GB/s",
        scan.as_secs_f64() * 1e3,
        bytes as f64 / scan.as_secs_f64() / 1e9,
        bytes as f64 / sum.as_secs_f64() / 1e9
    );
}

fn fastest(mut work: impl FnMut() -> u64) -> Duration {
    let timed = (0..50).map(|_| {
        let start = Instant::now();
        std::hint::black_box(work());
        start.elapsed()
    });
    timed.min().unwrap_or_default()
}

fn load(shard: &mut Shard, rows: &[Row]) {
    let start = Instant::now();
    for epoch in rows.chunks(LOAD_EPOCH_ROWS) {
        for (number, vector) in epoch {
            shard.insert(*number, vector.clone());
        }
        shard.close();
    }
    let inserted = start.elapsed();
    shard.settle();
    let settled = start.elapsed();
    let pauses = Measured::of(std::mem::take(&mut shard.pauses));
    println!(
        "load: {:.0} rows/s inserted, {:.0} rows/s sealed and merged; {} segments; closing an epoch p50 \
         {:.2} ms, longest {:.2} ms",
        rows.len() as f64 / inserted.as_secs_f64(),
        rows.len() as f64 / settled.as_secs_f64(),
        shard.segments(),
        pauses.at(0.5),
        pauses.at(1.0)
    );
}

fn quiet(shard: &Shard, queries: &[Vec<f32>], wanted: &Truth) {
    let Some(read) = newest(&shard.published) else {
        return;
    };
    let measured = ask(&*read, queries, wanted, chunk);
    println!(
        "quiet: recall@10 {:.4}, p50 {:.3} ms, p99 {:.3} ms",
        measured.recall,
        measured.at(0.5),
        measured.at(0.99)
    );
}

/// `updates` rows a second change, one in five is deleted, while `clients` ask `pace` queries a second each,
/// or as fast as they can.
fn churn(
    shard: &mut Shard,
    base: &Base,
    rows: u64,
    queries: &[Vec<f32>],
    (updates, clients, pace): (u64, usize, u64),
) {
    let published = shard.published.clone();
    let stop = AtomicBool::new(false);
    let (mut late, mut times) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..clients)
            .map(|client| {
                let (published, stop) = (&published, &stop);
                scope.spawn(move || {
                    let mut times = Vec::new();
                    for query in queries.iter().cycle().skip(client * 7) {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let start = Instant::now();
                        let read = newest(published);
                        read.map(|read| read.search(query, &Search::best(measure::K)));
                        times.push(start.elapsed());
                        if let Some(period) = 1_000_000_u64.checked_div(pace) {
                            let period = Duration::from_micros(period);
                            std::thread::sleep(period.saturating_sub(start.elapsed()));
                        }
                    }
                    times
                })
            })
            .collect();
        late = change(shard, base, rows, updates);
        stop.store(true, Ordering::Relaxed);
        for client in asked {
            times.extend(client.join().unwrap_or_default());
        }
    });
    let answered = times.len() as f64 / CHURN.as_secs_f64();
    let (times, late) = (Measured::of(times), Measured::of(late));
    let pauses = Measured::of(std::mem::take(&mut shard.pauses));
    println!(
        "{updates} updates/s, {clients} client(s): {answered:.0} queries/s, p50 {:.3} ms, p99 {:.3} ms; applied \
         to visible p50 {:.2} ms, p99 {:.2} ms; closing an epoch longest {:.2} ms; {} segments",
        times.at(0.5),
        times.at(0.99),
        late.at(0.5),
        late.at(0.99),
        pauses.at(1.0),
        shard.segments()
    );
}

/// Changes rows for a while; how long each epoch took from its first change to being visible.
fn change(shard: &mut Shard, base: &Base, rows: u64, updates: u64) -> Vec<Duration> {
    let mut random = Random::new(updates);
    let mut late = Vec::new();
    let start = Instant::now();
    let period = Duration::from_secs(1) / EPOCHS_PER_SECOND as u32;
    for epoch in 1.. {
        let changes: Vec<(u64, Option<Embedding>)> = (0..updates / EPOCHS_PER_SECOND)
            .map(|_| {
                let number = random.below(rows);
                let is_delete = random.below(5) == 0;
                (
                    number,
                    (!is_delete).then(|| base.embedding(number + random.below(5) * rows)),
                )
            })
            .collect();
        let applied = Instant::now();
        for (number, vector) in changes {
            match vector {
                Some(vector) => shard.insert(number, vector),
                None => shard.remove(number),
            }
        }
        shard.close();
        late.push(applied.elapsed());
        if start.elapsed() > CHURN {
            break;
        }
        std::thread::sleep((period * epoch).saturating_sub(start.elapsed()));
    }
    late
}
