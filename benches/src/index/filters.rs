//! Queries of which few or many rows pass the filter: recall and latency beside those without one.
//!
//! Rows have a number of a thousand. It is drawn by lot, or follows the vectors: then the rows that pass lie
//! together, far from most queries, which is the harder case for lists of near rows.

use crate::index::measure::{K, Measured, Truth, ask_for, machine, truth};
use crate::index::shard::{Shard, chunk, newest};
use crate::index::vectors::Base;
use crate::index::{LOAD_EPOCH_ROWS, Row, generate, rows_wanted};
use std::sync::Arc;
use std::time::Instant;
use vectide_faiss::FaissOptions;
use vectide_model::{Attributes, Filter, RowFields, Search, VectorIndexRead};

/// Rows of a thousand that pass.
const PERMILLES: [u64; 5] = [1, 10, 100, 500, 1000];
/// Queries of each measurement.
const QUERIES: usize = 500;

/// How the numbers of rows are chosen.
const KINDS: [&str; 2] = ["lot", "place"];

pub(crate) fn run() {
    let Some(base) = Base::open() else {
        return;
    };
    let count = rows_wanted();
    println!("machine: {}", machine());
    let queries = base.queries.iter().step_by(5).take(QUERIES);
    let queries: Vec<Vec<f32>> = queries.cloned().collect();
    let rows = generate(&base, 0..count);
    let numbers = [by_lot(count), by_place(&rows)];
    let mut shard = Shard::new(FaissOptions::default());
    let start = Instant::now();
    for epoch in rows.chunks(LOAD_EPOCH_ROWS) {
        for (number, vector) in epoch {
            let of = |kind: &Vec<u64>| kind[*number as usize];
            shard.insert_with(*number, vector.clone(), fields(numbers.each_ref().map(of)));
        }
        shard.close();
    }
    shard.settle();
    println!(
        "{count} rows with two attributes: {:.0} rows/s sealed and merged, {:.0} bytes a row on disk, {} \
         segments",
        count as f64 / start.elapsed().as_secs_f64(),
        shard.disk_bytes() as f64 / count as f64,
        shard.segments()
    );
    let Some(read) = newest(&shard.published) else {
        return;
    };
    let plain = measure(&*read, &queries, &truth(&rows, &queries), None);
    let (plain_50, plain_99) = (plain.at(0.5), plain.at(0.99));
    println!(
        "no filter: recall@10 {:.4}, p50 {plain_50:.3} ms, p99 {plain_99:.3} ms",
        plain.recall
    );
    for (kind, numbers) in KINDS.iter().zip(&numbers) {
        for permille in PERMILLES {
            let passing = rows
                .iter()
                .filter(|(at, _)| numbers[*at as usize] < permille);
            let passing: Vec<Row> = passing.cloned().collect();
            let wanted = truth(&passing, &queries);
            let filter = serde_json::json!({*kind: {"$lt": permille}});
            let filter = Filter::parse(&filter).unwrap_or_else(|error| panic!("{error}"));
            let measured = measure(&*read, &queries, &wanted, Some(Arc::new(filter)));
            let (p50, p99) = (measured.at(0.5), measured.at(0.99));
            println!(
                "{kind}, {:.1} % pass: recall@10 {:.4}, p50 {p50:.3} ms ({:.2} x), p99 {p99:.3} ms ({:.2} x)",
                permille as f64 / 10.0,
                measured.recall,
                p50 / plain_50,
                p99 / plain_99,
            );
        }
    }
}

fn fields(numbers: [u64; 2]) -> RowFields {
    let metadata = format!(r#"{{"lot": {}, "place": {}}}"#, numbers[0], numbers[1]);
    RowFields {
        attributes: Attributes::of(&metadata, &KINDS.map(Arc::from)),
        ..RowFields::default()
    }
}

fn by_lot(rows: u64) -> Vec<u64> {
    let mut random = vectide_tests::Random::new(17);
    (0..rows).map(|_| random.below(1000)).collect()
}

/// By the first component of the vectors: their order cut into a thousand.
fn by_place(rows: &[Row]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let first = |row: &usize| rows[*row].1.0[0].to_f32();
    order.sort_unstable_by(|a, b| first(a).total_cmp(&first(b)));
    let mut numbers = vec![0; rows.len()];
    for (at, row) in order.iter().enumerate() {
        numbers[*row] = (at * 1000 / rows.len()) as u64;
    }
    numbers
}

fn measure(
    read: &dyn VectorIndexRead,
    queries: &[Vec<f32>],
    wanted: &Truth,
    filter: Option<Arc<Filter>>,
) -> Measured {
    let search = Search {
        filter,
        ..Search::best(K)
    };
    ask_for(read, &search, queries, wanted, chunk)
}
