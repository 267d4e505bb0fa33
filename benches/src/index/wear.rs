//! What time does to a shard: many turnovers of all its rows, rows that move elsewhere, and a restart.

use crate::index::measure::{Measured, ask, truth};
use crate::index::shard::{Shard, chunk, newest};
use crate::index::vectors::Base;
use crate::index::{LOAD_EPOCH_ROWS, Row, generate};
use std::time::Instant;
use vectide_faiss::FaissOptions;
use vectide_model::Search;

/// Rows of the shard that is turned over.
const ROWS: u64 = 100_000;
/// How often every row is replaced.
const TURNOVERS: u64 = 20;

/// Replaces every row twenty times: recall, latency and bytes a row before and afterwards.
pub(crate) fn turnover(base: &Base, queries: &[Vec<f32>]) {
    let mut shard = Shard::new(FaissOptions::default());
    let report = |when: &str, shard: &Shard, rows: &[Row]| {
        let Some(read) = newest(&shard.published) else {
            return;
        };
        let measured = ask(&*read, queries, &truth(rows, queries), chunk);
        println!(
            "{when}: recall@10 {:.4}, p50 {:.3} ms, p99 {:.3} ms, {:.0} bytes a row on disk, {} segments",
            measured.recall,
            measured.at(0.5),
            measured.at(0.99),
            shard.disk_bytes() as f64 / ROWS as f64,
            shard.segments()
        );
    };
    let start = Instant::now();
    for turnover in 0..=TURNOVERS {
        // Each turnover has rows of its own under the same chunks.
        let vectors = generate(base, turnover * ROWS..(turnover + 1) * ROWS);
        let rows: Vec<Row> = vectors
            .into_iter()
            .map(|(number, vector)| (number % ROWS, vector))
            .collect();
        replace(&mut shard, &rows);
        if turnover == 0 || turnover == TURNOVERS {
            shard.settle();
            report(
                &format!("after {turnover} turnovers of {ROWS} rows"),
                &shard,
                &rows,
            );
        }
    }
    let replaced = TURNOVERS * ROWS;
    println!(
        "{replaced} rows replaced at {:.0} rows/s, making them included",
        replaced as f64 / start.elapsed().as_secs_f64()
    );
}

fn replace(shard: &mut Shard, rows: &[Row]) {
    for epoch in rows.chunks(LOAD_EPOCH_ROWS) {
        for (number, vector) in epoch {
            shard.insert(*number, vector.clone());
        }
        shard.close();
    }
}

/// Rows of one corpus, which are then replaced by those of others: recall of a search that does not try
/// harder, before, during and after the generation that takes over by itself.
pub(crate) fn drift(base: &Base, queries: &[Vec<f32>]) {
    let mut shard = Shard::new(FaissOptions::default());
    let count = (base.rows.len() / 3) as u64;
    let stored = |number: u64| (number % count, base.stored(number as usize));
    let before: Vec<Row> = (0..count).map(stored).collect();
    let last = base.rows.len() as u64 - count;
    let after: Vec<Row> = (last..last + count)
        .map(|number| (number - last, base.stored(number as usize)))
        .collect();
    let recall = |shard: &Shard, rows: &[Row]| {
        let read = newest(&shard.published);
        read.map_or(f64::NAN, |read| {
            ask(&*read, queries, &truth(rows, queries), chunk).recall
        })
    };
    replace(&mut shard, &before);
    shard.settle();
    let settled = recall(&shard, &before);
    replace(&mut shard, &after);
    let moved = recall(&shard, &after);
    let again = shard.settle();
    println!(
        "{count} rows of other corpora in the place of {count}: recall@10 {settled:.4} before, {moved:.4} at \
         once, {:.4} after {:.1} s, without more effort",
        recall(&shard, &after),
        again.as_secs_f64()
    );
}

/// Opens what was committed, as a start does, and asks.
pub(crate) fn restart(shard: Shard, queries: &[Vec<f32>], rows: u64) {
    let mut times = Vec::new();
    let closed = shard.end();
    for _ in 0..3 {
        let start = Instant::now();
        let read = closed.open();
        let hits = read.search(&queries[0], &Search::best(10)).hits.len();
        times.push(start.elapsed());
        assert_eq!(hits, 10, "the first answer");
    }
    let times = Measured::of(times);
    println!(
        "restart: {rows} rows answer {:.0} ms after the state is read, longest {:.0} ms, every file verified",
        times.at(0.5),
        times.at(1.0)
    );
}
