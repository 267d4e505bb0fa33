//! bfloat16 beside 32-bit floats on real texts: what `precision: auto` may choose.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/corpora.rs"]
mod corpora;

use vectide_encoder::{Backend, Products, SentenceEncoder, minilm};
use vectide_model::{EmbedConfig, Embedder, Lane, OpenContext, Precision, embedder_contract};

/// The least cosine that counts as the same vector.
const COSINE_MIN: f64 = 0.9999;
/// Real texts that are compared.
const TEXTS: usize = 1000;

fn open(precision: Precision) -> SentenceEncoder {
    let config = EmbedConfig {
        precision,
        // All positions that the model has.
        max_tokens: Some(512),
        ..EmbedConfig::named(minilm::MODEL_NAME)
    };
    let context = OpenContext {
        config_dir: ".".into(),
    };
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

/// Abstracts, paragraphs, questions, documents with markup and Japanese, from one token to the limit.
fn real_texts(test: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let corpora = [
        corpora::SCIFACT,
        corpora::SQUAD,
        corpora::OTEL,
        corpora::JAQUAD,
        corpora::QUESTIONS,
    ];
    let share = TEXTS / corpora.len();
    for corpus in &corpora {
        let Some(all) = corpus.texts(test) else {
            continue;
        };
        let chosen = all.iter().step_by(all.len() / share).take(share);
        for (number, text) in chosen.enumerate() {
            // Lengths from a word to the whole text.
            let words = 1 + number * 400 / share;
            let words: Vec<&str> = text.split_whitespace().take(words).collect();
            texts.push(words.join(" "));
        }
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
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let exact = open(Precision::F32).embed(Lane::Bulk, &texts).unwrap();
    let near = open(Precision::Bf16).embed(Lane::Bulk, &texts).unwrap();
    let mut cosines: Vec<f64> = exact.iter().zip(&near).map(|(x, y)| cosine(x, y)).collect();
    cosines.sort_by(f64::total_cmp);
    if cosines.is_empty() {
        return;
    }
    let tokenizer = open(Precision::F32).tokenizer().clone();
    let longest = texts.iter().map(|text| tokenizer.encode(text).len()).max();
    println!(
        "{} texts of up to {longest:?} tokens: least cosine {:.6}, first percentile {:.6}, median {:.6}",
        cosines.len(),
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
    let model = open(Precision::Auto);
    assert!(model.identity().device.ends_with("bf16)"));
    embedder_contract(&model);
    let texts = ["one", "a longer text than that", "", "third"].map(|text| text.repeat(9));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = model.embed(Lane::Bulk, &texts).unwrap();
    for (text, vector) in texts.iter().zip(&together) {
        assert!(model.embed(Lane::Query, &[text]).unwrap()[0] == *vector);
    }
    let exact = open(Precision::F32);
    assert_eq!(model.identity().fingerprint, exact.identity().fingerprint);
}

#[test]
fn a_processor_without_it_is_told() {
    let config = EmbedConfig {
        precision: Precision::Bf16,
        ..EmbedConfig::named(minilm::MODEL_NAME)
    };
    let context = OpenContext {
        config_dir: ".".into(),
    };
    let opened = minilm::open_on(&config, &context, Backend::Portable);
    let error = opened.err().unwrap();
    assert_eq!(error.field, "precision");
    assert!(error.hint.contains("auto"), "{}", error.hint);
}
