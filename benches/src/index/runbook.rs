//! A runbook in the manner of the streaming track of big-ann-benchmarks (NeurIPS 2023), "expiration time": rows
//! come in steps, a third of them for a short time, a third for longer and a third for good; what has expired is
//! deleted; between the steps everything is searched.
//!
//! With `VECTIDE_INDEX_PEERS=1` the steps and the true hits are written for `benches/peers/runbook.py`, which
//! does the same with other indexes.

use crate::index::measure::{Truth, ask, truth};
use crate::index::shard::{Shard, chunk, newest};
use crate::index::vectors::{Base, kept};
use crate::index::{LOAD_EPOCH_ROWS, Row, generate};
use serde_json::json;
use std::collections::BTreeMap;
use vectide_faiss::FaissOptions;
use vectide_tests::Random;

/// Rows that come in all.
const ROWS: u64 = 100_000;
/// Steps, and those after which is searched.
const STEPS: u64 = 40;
const SEARCH_EVERY: u64 = 5;
/// Steps that rows stay, but for those that stay for good.
const LIFETIMES: [u64; 2] = [4, 16];

/// Runs the steps and prints recall after each search.
pub(crate) fn run(base: &Base, queries: &[Vec<f32>]) {
    let rows = generate(base, 0..ROWS);
    let mut random = Random::new(1);
    let mut expires: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut live: BTreeMap<u64, usize> = BTreeMap::new();
    let mut shard = Shard::new(FaissOptions::default());
    let (mut steps, mut truths, mut recalls) = (Vec::new(), Truth::new(), Vec::new());
    for step in 0..STEPS {
        let deleted = expires.remove(&step).unwrap_or_default();
        for number in &deleted {
            shard.remove(*number);
            live.remove(number);
        }
        let inserted = step * ROWS / STEPS..(step + 1) * ROWS / STEPS;
        for number in inserted.clone() {
            shard.insert(number, rows[number as usize].1.clone());
            live.insert(number, number as usize);
            if number % LOAD_EPOCH_ROWS as u64 == 0 {
                shard.close();
            }
            let kind = random.below(LIFETIMES.len() as u64 + 1) as usize;
            if let Some(lifetime) = LIFETIMES.get(kind) {
                expires.entry(step + lifetime).or_default().push(number);
            }
        }
        shard.close();
        let is_search = (step + 1) % SEARCH_EVERY == 0;
        steps.push(json!({"delete": deleted, "insert": [inserted.start, inserted.end], "search": is_search}));
        let Some(read) = newest(&shard.published).filter(|_| is_search) else {
            continue;
        };
        let now: Vec<Row> = live.values().map(|at| rows[*at].clone()).collect();
        let wanted = truth(&now, queries);
        let measured = ask(&*read, queries, &wanted, chunk);
        recalls.push(format!("{:.4}", measured.recall));
        truths.extend(wanted);
    }
    println!(
        "runbook: {STEPS} steps of {} rows, {} live at the end; recall@10 after every {SEARCH_EVERY}: {}",
        ROWS / STEPS,
        live.len(),
        recalls.join(" ")
    );
    if std::env::var_os("VECTIDE_INDEX_PEERS").is_some() {
        let path = kept("runbook.json");
        let truths = json!({ "steps": steps, "truth": truths });
        std::fs::write(&path, truths.to_string())
            .unwrap_or_else(|error| panic!("{path:?}: {error}"));
    }
}
