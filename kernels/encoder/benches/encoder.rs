//! How fast text becomes vectors here: tokens a second, the latency of a query beside bulk work, and
//! how much of the processor's arithmetic the products use.
//!
//! `cargo bench -p vectide-encoder --bench encoder`, for some arithmetic only with a part of its name behind
//! it: `-- bf16`. Throughput and shares are also given by the threads' own time,
//! which other programs do not disturb; latencies mean something on a quiet machine only.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vectide_encoder::hashing::Hashing;
use vectide_encoder::measure::{peak_flops, thread_time};
use vectide_encoder::minilm::{self, MiniLmConfig};
use vectide_encoder::{Backend, Products, SentenceEncoder};
use vectide_model::{Embedder, Lane, OpenContext, Precision};

/// Floating-point operations of the products for one token, without attention: 6 layers of
/// 2 * 384 * (1152 + 384 + 1536 + 1536).
const PRODUCT_FLOPS_A_TOKEN: f64 = 6.0 * 2.0 * 384.0 * 4608.0;
/// Of attention for one token and one token of its text: 6 layers, scores and mixture.
const ATTENTION_FLOPS_A_PAIR: f64 = 6.0 * 4.0 * 384.0;

const WORDS: [&str; 24] = [
    "the",
    "engine",
    "keeps",
    "an",
    "index",
    "of",
    "vectors",
    "true",
    "to",
    "its",
    "sources",
    "while",
    "they",
    "change",
    "and",
    "answers",
    "queries",
    "from",
    "latency",
    "Kubernetes",
    "observability",
    "don't",
    "(2024)",
    "re-embedding",
];

/// A made-up text of about `words` words; the same for the same seed.
fn text(seed: u64, words: usize) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut text = String::new();
    for _ in 0..words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(WORDS[(state % WORDS.len() as u64) as usize]);
        text.push(' ');
    }
    text
}

fn texts(count: usize, words: usize) -> Vec<String> {
    (0..count as u64)
        .map(|seed| text(seed + 1, words))
        .collect()
}

fn main() {
    // cargo adds flags of its own.
    let only = std::env::args().skip(1).find(|it| !it.starts_with('-'));
    let is_wanted = |device: &str| only.as_deref().is_none_or(|only| device.contains(only));
    for backend in Backend::available() {
        let is_best = backend == Backend::best();
        for (products, precision) in [
            (Products::F32, Precision::F32),
            (Products::Bf16, Precision::Bf16),
        ] {
            if products.are_available(backend) {
                let model = open(backend, precision);
                let device = &model.identity().device;
                if !is_wanted(device) {
                    continue;
                }
                println!("== {device} ==");
                bulk(&model, (backend, products), if is_best { 4 } else { 1 });
                if is_best {
                    query_latency(&model);
                }
            }
        }
    }
    if is_wanted("hashing") {
        hashing();
    }
}

fn open(backend: Backend, precision: Precision) -> SentenceEncoder {
    let config = MiniLmConfig {
        precision,
        ..MiniLmConfig::default()
    };
    let context = OpenContext::in_folder(".");
    let model = minilm::open_on(&config, &context, backend);
    model.unwrap_or_else(|error| panic!("{error}; {}", error.hint))
}

fn bulk(model: &SentenceEncoder, arithmetic: (Backend, Products), rounds: usize) {
    let corpus = texts(24, 112);
    let texts: Vec<&str> = corpus.iter().map(String::as_str).collect();
    let lengths = texts
        .iter()
        .map(|text| model.tokenizer().encode(text).len());
    let lengths: Vec<usize> = lengths.collect();
    let tokens: usize = lengths.iter().sum();
    let pairs: usize = lengths.iter().map(|length| length * length).sum();
    let flops = tokens as f64 * PRODUCT_FLOPS_A_TOKEN + pairs as f64 * ATTENTION_FLOPS_A_PAIR;
    let mean = tokens / texts.len();
    for threads in [1, 2] {
        // The best of several rounds: what the code can do when the machine lets it.
        let (mut wall_seconds, mut seconds) = (f64::INFINITY, f64::INFINITY);
        let mut peak = 0.0_f64;
        for _ in 0..rounds {
            peak = peak.max(peak_flops(arithmetic.0, arithmetic.1).unwrap_or(0.0));
            let start = Instant::now();
            // Threads of normal priority: bulk ones would give way to other programs.
            let embed = || thread_time(|| model.embed(Lane::Query, &texts));
            let spent = std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads).map(|_| scope.spawn(embed)).collect();
                let spent = running
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or(f64::NAN));
                spent.sum::<f64>() / threads as f64
            });
            wall_seconds = wall_seconds.min(start.elapsed().as_secs_f64());
            seconds = seconds.min(spent);
        }
        let share = if peak > 0.0 {
            let share = flops / seconds / peak * 100.0;
            format!(", {share:.0} % of the measured peak of {:.1}", peak / 1e9)
        } else {
            String::new()
        };
        println!(
            "texts of {mean} tokens, {threads} thread(s): {:.0} tokens/s; a thread's second: {:.0} \
             tokens, {:.1} GFLOP{share}",
            threads as f64 * tokens as f64 / wall_seconds,
            tokens as f64 / seconds,
            flops / seconds / 1e9,
        );
    }
}

fn query_latency(model: &SentenceEncoder) {
    let query = "how do I restart the index after a crash";
    let tokens = model.tokenizer().encode(query).len();
    let measure = || {
        let mut latencies: Vec<Duration> = (0..200)
            .map(|_| {
                let start = Instant::now();
                black_box(model.embed(Lane::Query, &[query])).ok();
                let latency = start.elapsed();
                std::thread::sleep(Duration::from_millis(5));
                latency
            })
            .collect();
        latencies.sort();
        let at = |share: usize| latencies[latencies.len() * share / 100].as_secs_f64() * 1e3;
        let most = latencies[latencies.len() - 1].as_secs_f64() * 1e3;
        format!(
            "p50 {:.1} ms, p99 {:.1} ms, most {most:.1} ms",
            at(50),
            at(99)
        )
    };
    println!("query of {tokens} tokens, alone: {}", measure());
    let stop = AtomicBool::new(false);
    let corpus = texts(24, 112);
    let texts: Vec<&str> = corpus.iter().map(String::as_str).collect();
    let threads = model.bulk_threads();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    black_box(model.embed(Lane::Bulk, &texts)).ok();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(200));
        println!("beside {threads} bulk thread(s): {}", measure());
        stop.store(true, Ordering::Relaxed);
    });
}

fn hashing() {
    let Ok(model) = Hashing::new(384) else { return };
    let corpus = texts(20_000, 60);
    let texts: Vec<&str> = corpus.iter().map(String::as_str).collect();
    let mut seconds = f64::INFINITY;
    for _ in 0..5 {
        let spent = thread_time(|| {
            for batch in texts.chunks(100) {
                black_box(model.embed(Lane::Bulk, batch)).ok();
            }
        });
        seconds = seconds.min(spent);
    }
    println!(
        "== hashing ==\ntexts of 60 words: {:.0} a thread's second",
        texts.len() as f64 / seconds
    );
}
