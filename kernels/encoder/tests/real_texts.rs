//! A thousand real texts of 1 to 512 tokens against sentence-transformers: what the few made-up texts of
//! `minilm.rs` can't show, in every precision that is chosen by itself.
//!
//! `data/real.tsv` names the texts, which stay in the test data's folder, and `data/real.zst` has their vectors;
//! `scripts/golden_real_texts.py` made both and describes them. The best instruction set gets all texts, the
//! others every tenth; with `VECTIDE_TORTURE=1` all.
//!
//! Invariant: a text that is not there is told, and one that has changed is a failure.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/corpora.rs"]
mod corpora;

use corpora::Corpus;
use std::collections::HashMap;
use std::path::Path;
use vectide_encoder::minilm::{self, MiniLmConfig};
use vectide_encoder::{Backend, Products, SentenceEncoder};
use vectide_model::{Embedder, Lane, OpenContext, Precision};

const DIMENSIONS: usize = 384;
/// What rounding alone costs, here and in the kept vectors.
const F32_COSINE_MIN: f64 = 0.999_999;
/// The least cosine that counts as the same vector.
const BF16_COSINE_MIN: f64 = 0.9999;
/// The model's own limit of tokens, and all positions that it has.
const TOKENS_MAX: [usize; 2] = [256, 512];

/// A text and its vector under each limit.
struct Golden {
    text: String,
    tokens: usize,
    vectors: [Vec<f32>; 2],
}

/// Where a text stands.
struct Place {
    file: String,
    line: usize,
    characters: usize,
    tokens: usize,
}

fn places() -> Vec<Place> {
    let lines = include_str!("data/real.tsv").lines();
    let places = lines.map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let number = |at: usize| fields[at].parse().unwrap();
        Place {
            file: fields[0].into(),
            line: number(1),
            characters: number(2),
            tokens: number(3),
        }
    });
    places.collect()
}

/// The kept vectors, as the script packed them.
fn vectors() -> Vec<Vec<f32>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/real.zst");
    let bytes = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    let count = bytes.len() / (4 + 2 * DIMENSIONS);
    let (scales, integers) = bytes.split_at(4 * count);
    let (low, high) = integers.split_at(DIMENSIONS * count);
    let scales = scales.chunks_exact(4);
    let rows = low
        .chunks_exact(DIMENSIONS)
        .zip(high.chunks_exact(DIMENSIONS));
    let vectors = scales.zip(rows).map(|(scale, (low, high))| {
        let scale = f32::from_le_bytes(scale.try_into().unwrap());
        let integers = low.iter().zip(high);
        integers
            .map(|(low, high)| scale * f32::from(i16::from_le_bytes([*low, *high])))
            .collect()
    });
    vectors.collect()
}

/// All texts of each file that is there, by its name and line.
fn contents(test: &str) -> HashMap<&'static str, Vec<String>> {
    let corpora = [
        corpora::SCIFACT,
        corpora::QUESTIONS,
        corpora::JAQUAD,
        Corpus {
            file: "jaquad-dev/articles.jsonl.zst",
            field: "text",
        },
        Corpus {
            file: "squad-newwiki/corpus.jsonl.zst",
            field: "text",
        },
        corpora::OTEL,
    ];
    let there = corpora.iter().filter_map(|corpus| {
        let lines = corpus.lines(test)?;
        let texts = lines.into_iter().map(Option::unwrap_or_default);
        Some((corpus.file, texts.collect()))
    });
    there.collect()
}

/// Every text that is there.
fn golden(test: &str) -> Vec<Golden> {
    let (places, contents) = (places(), contents(test));
    let mut vectors = vectors().into_iter();
    let whole: Vec<Vec<f32>> = vectors.by_ref().take(places.len()).collect();
    let golden = places.iter().zip(whole).filter_map(|(place, whole)| {
        let cut = match place.tokens > TOKENS_MAX[0] {
            true => vectors.next().unwrap(),
            false => whole.clone(),
        };
        let text = contents.get(place.file.as_str())?.get(place.line);
        let text = text.unwrap_or_else(|| panic!("{} has no line {}", place.file, place.line));
        Some(Golden {
            text: text.chars().take(place.characters).collect(),
            tokens: place.tokens,
            vectors: [cut, whole],
        })
    });
    let golden: Vec<Golden> = golden.collect();
    assert_eq!(vectors.next(), None, "vectors of no text");
    if golden.len() < places.len() {
        let missing = places.len() - golden.len();
        println!("skipped: {test}: {missing} of {} texts", places.len());
    }
    golden
}

fn open(backend: Backend, precision: Precision, tokens_max: usize) -> SentenceEncoder {
    let config = MiniLmConfig {
        precision,
        max_tokens: Some(tokens_max),
        ..MiniLmConfig::default()
    };
    let context = OpenContext::in_folder(".");
    minilm::open_on(&config, &context, backend).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y));
        products.sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn embed(model: &SentenceEncoder, texts: &[&str]) -> Vec<Vec<f32>> {
    let share = texts.len().div_ceil(model.bulk_threads()).max(1);
    std::thread::scope(|scope| {
        let of_share = |texts| scope.spawn(move || model.embed(Lane::Bulk, texts).unwrap());
        let threads: Vec<_> = texts.chunks(share).map(of_share).collect();
        let vectors = threads.into_iter().map(|it| it.join().unwrap());
        vectors.flatten().collect()
    })
}

fn check(backend: Backend, precision: Precision, golden: &[&Golden], cosine_min: f64) {
    for (limit, tokens_max) in TOKENS_MAX.into_iter().enumerate() {
        let model = open(backend, precision, tokens_max);
        // Shorter texts have had their turn under the other limit.
        let golden = golden
            .iter()
            .filter(|it| limit == 0 || it.tokens > TOKENS_MAX[0]);
        let golden: Vec<&&Golden> = golden.collect();
        let texts: Vec<&str> = golden.iter().map(|it| it.text.as_str()).collect();
        let mut cosines = Vec::with_capacity(texts.len());
        for (case, vector) in golden.iter().zip(embed(&model, &texts)) {
            let start: String = case.text.chars().take(60).collect();
            let tokens = model.tokenizer().encode(&case.text).len();
            assert_eq!(tokens, case.tokens.min(tokens_max), "tokens of {start:?}");
            let cosine = cosine(&vector, &case.vectors[limit]);
            assert!(
                cosine >= cosine_min,
                "{backend:?} {precision:?}: cosine {cosine} for {start:?} of {tokens} tokens"
            );
            cosines.push(cosine);
        }
        cosines.sort_by(f64::total_cmp);
        println!(
            "{}, at most {tokens_max} tokens: {} texts, least cosine {:.8}, median {:.8}",
            model.identity().device,
            cosines.len(),
            cosines.first().unwrap_or(&1.0),
            cosines.get(cosines.len() / 2).unwrap_or(&1.0),
        );
    }
}

#[test]
fn real_texts_have_the_vectors_of_the_reference() {
    let golden = golden("real_texts_have_the_vectors_of_the_reference");
    if golden.is_empty() {
        return;
    }
    let is_long_run = std::env::var("VECTIDE_TORTURE").is_ok_and(|value| value == "1");
    for backend in Backend::available() {
        let is_whole = is_long_run || backend == Backend::best();
        let step = if is_whole { 1 } else { 10 };
        let golden: Vec<&Golden> = golden.iter().step_by(step).collect();
        check(backend, Precision::F32, &golden, F32_COSINE_MIN);
        if Products::Bf16.are_available(backend) {
            check(backend, Precision::Bf16, &golden, BF16_COSINE_MIN);
        } else {
            println!("skipped: bf16 on {backend:?}: this processor has no such products");
        }
    }
}

/// What was kept covers what it says: lengths to the limit, and vectors for each.
#[test]
fn the_kept_texts_are_of_every_length() {
    let places = places();
    assert_eq!(places.len(), 1000);
    let long = places.iter().filter(|it| it.tokens > TOKENS_MAX[0]).count();
    let vectors = vectors();
    assert_eq!(vectors.len(), places.len() + long);
    for vector in &vectors {
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-3, "{length}");
    }
    for (from, to) in [(3, 16), (17, 64), (65, 128), (129, 256), (257, 511)] {
        let count = places.iter().filter(|it| (from..=to).contains(&it.tokens));
        assert!(count.count() >= 50, "{from} to {to} tokens");
    }
    assert!(places.iter().any(|it| it.tokens == TOKENS_MAX[1]));
    let japanese = places.iter().filter(|it| it.file.starts_with("jaquad"));
    assert_eq!(japanese.count(), 200);
}
