//! bfloat16 beside 32-bit floats on real texts: what `precision: auto` may choose.
//!
//! A hundred texts; `VECTIDE_TORTURE=1` makes it a thousand.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/corpora.rs"]
mod corpora;

use std::sync::LazyLock;
use vectide_encoder::minilm::{self, MiniLmConfig};
use vectide_encoder::{Backend, Products, SentenceEncoder};
use vectide_model::{Embedder, Lane, OpenContext, Precision, embedder_contract};

/// The least cosine that counts as the same vector.
const COSINE_MIN: f64 = 0.9999;
/// Characters of the longest text: English ones fill the model's 512 positions with fewer.
const CHARACTERS_MAX: usize = 2800;

/// What is compared: abstracts, paragraphs, documents with markup, Japanese, questions.
const CORPORA: [corpora::Corpus; 5] = [
    corpora::SCIFACT,
    corpora::SQUAD,
    corpora::OTEL,
    corpora::JAQUAD,
    corpora::QUESTIONS,
];

static EXACT: LazyLock<SentenceEncoder> = LazyLock::new(|| open(Precision::F32));
/// In bfloat16 where the processor has it.
static CHOSEN: LazyLock<SentenceEncoder> = LazyLock::new(|| open(Precision::Auto));

fn open(precision: Precision) -> SentenceEncoder {
    let config = MiniLmConfig {
        precision,
        // All positions that the model has.
        max_tokens: Some(512),
        ..MiniLmConfig::default()
    };
    let context = OpenContext::in_folder(".");
    minilm::open_on(&config, &context, Backend::best()).unwrap()
}

fn is_skipped(test: &str) -> bool {
    let is_available = Products::Bf16.are_available(Backend::best());
    if !is_available {
        println!("skipped: {test}: this processor has no products of bfloat16");
    }
    !is_available
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y));
        products.sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Texts that are compared when all corpora are there.
fn texts_wanted() -> usize {
    let is_long_run = std::env::var("VECTIDE_TORTURE").is_ok_and(|value| value == "1");
    if is_long_run { 1000 } else { 100 }
}

/// As many of each corpus, from one character to whole texts: Japanese has no spaces to cut at.
fn real_texts(test: &str) -> Vec<String> {
    let wanted = texts_wanted();
    let share = wanted / CORPORA.len();
    let mut texts = Vec::with_capacity(wanted);
    let mut missing = 0;
    for corpus in &CORPORA {
        let Some(all) = corpus.texts(test) else {
            missing += 1;
            continue;
        };
        let chosen = all.iter().step_by((all.len() / share).max(1)).take(share);
        for (number, text) in chosen.enumerate() {
            let characters = 1 + number * CHARACTERS_MAX / share;
            texts.push(text.chars().take(characters).collect());
        }
    }
    match missing {
        0 => assert_eq!(texts.len(), wanted),
        _ => println!(
            "skipped: {test}: {} of {wanted} texts",
            wanted - texts.len()
        ),
    }
    texts
}

#[test]
fn bfloat16_is_near_enough_on_real_texts() {
    let test = "bfloat16_is_near_enough_on_real_texts";
    if is_skipped(test) {
        return;
    }
    let texts = real_texts(test);
    if texts.is_empty() {
        return;
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let exact = EXACT.embed(Lane::Bulk, &texts).unwrap();
    let near = CHOSEN.embed(Lane::Bulk, &texts).unwrap();
    let mut cosines: Vec<f64> = exact.iter().zip(&near).map(|(x, y)| cosine(x, y)).collect();
    cosines.sort_by(f64::total_cmp);
    let tokens = texts
        .iter()
        .map(|text| EXACT.tokenizer().encode(text).len());
    println!(
        "{} texts of up to {:?} tokens: least cosine {:.6}, first percentile {:.6}, median {:.6}",
        cosines.len(),
        tokens.max(),
        cosines[0],
        cosines[cosines.len() / 100],
        cosines[cosines.len() / 2],
    );
    assert!(cosines[0] >= COSINE_MIN, "{}", cosines[0]);
}

#[test]
fn it_keeps_the_contract_and_its_bits() {
    if is_skipped("it_keeps_the_contract_and_its_bits") {
        return;
    }
    let model = &*CHOSEN;
    assert!(model.identity().device.ends_with("bf16)"));
    embedder_contract(model);
    let texts = ["one", "a longer text than that", "", "third"].map(|text| text.repeat(9));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = model.embed(Lane::Bulk, &texts).unwrap();
    for (text, vector) in texts.iter().zip(&together) {
        assert!(model.embed(Lane::Query, &[text]).unwrap()[0] == *vector);
    }
    // Of this model it is known what bfloat16 costs, so a state is the same with it and without.
    assert_eq!(model.identity().fingerprint, EXACT.identity().fingerprint);
}

#[test]
fn a_processor_without_it_is_told() {
    let config = MiniLmConfig {
        precision: Precision::Bf16,
        ..MiniLmConfig::default()
    };
    let context = OpenContext::in_folder(".");
    let opened = minilm::open_on(&config, &context, Backend::Portable);
    let error = opened.err().unwrap();
    assert_eq!(error.field, "precision");
    assert!(error.hint.contains("auto"), "{}", error.hint);
}
