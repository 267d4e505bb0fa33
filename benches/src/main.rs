//! Benchmarks of the whole system through the real binary, its configuration and its endpoint.
//!
//! `cargo run --release -p vectide-benches -- [ingest] [queries] [freshness] [bulk] [retrieval]
//! [chunk-quality] [restart] [index] [filters] [embed] [peers]`;
//! without a name all of them. Each prints what it did, what it measured and the limit beside it.
//! The machine may be shared and noisy: compare within one run.

mod bulk;
mod chunk_quality;
mod embed;
mod freshness;
mod index;
mod ingest;
mod load;
mod model;
mod peers;
mod queries;
mod restart;
mod retrieval;

/// A benchmark, by its name on the command line.
type Benchmark = (&'static str, fn());

const BENCHMARKS: [Benchmark; 11] = [
    ("ingest", ingest::run),
    ("queries", queries::run),
    ("freshness", freshness::run),
    ("bulk", bulk::run),
    ("retrieval", retrieval::run),
    ("chunk-quality", chunk_quality::run),
    ("restart", restart::run),
    ("index", index::run),
    ("filters", index::filters::run),
    ("embed", embed::run),
    ("peers", peers::run),
];

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| !it.starts_with('-'))
        .collect();
    for (name, run) in BENCHMARKS {
        if wanted.is_empty() || wanted.iter().any(|it| it == name) {
            println!("\n## {name}");
            run();
        }
    }
}
