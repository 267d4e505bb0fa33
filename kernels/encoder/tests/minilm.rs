//! The sentence encoder against a public implementation, and against its own promises.
//!
//! `data/golden.jsonl` and `data/golden.f32` were made once by PyTorch; `scripts/golden_vectors.py`
//! says how. The model's files are fetched by the function that `vectide model fetch` calls.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

use serde::Deserialize;
use std::path::Path;
use std::sync::LazyLock;
use vectide_encoder::minilm::{self, MiniLmConfig};
use vectide_encoder::{Backend, SentenceEncoder, model_files};
use vectide_model::{Embedder, EmbedderConfig, Lane, OpenContext, Precision, embedder_contract};

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u32>,
    #[serde(skip)]
    vector: Vec<f32>,
}

fn golden() -> Vec<Golden> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let lines = std::fs::read_to_string(folder.join("golden.jsonl")).unwrap();
    let floats = std::fs::read(folder.join("golden.f32")).unwrap();
    let vectors = floats.chunks_exact(384 * 4).map(|bytes| {
        let floats = bytes.chunks_exact(4);
        floats
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    });
    let golden: Vec<Golden> = lines
        .lines()
        .zip(vectors)
        .map(|(line, vector)| Golden {
            vector,
            ..serde_json::from_str(line).unwrap()
        })
        .collect();
    assert!(golden.len() >= 200 && golden.len() == lines.lines().count());
    golden
}

fn open(backend: Backend) -> SentenceEncoder {
    model_files::fetch("all-MiniLM-L6-v2").unwrap();
    let config = MiniLmConfig {
        precision: Precision::F32,
        ..MiniLmConfig::default()
    };
    let context = OpenContext::in_folder(".");
    minilm::open_on(&config, &context, backend).unwrap()
}

static MODEL: LazyLock<SentenceEncoder> = LazyLock::new(|| open(Backend::best()));

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn vectors_and_ids_equal_the_reference() {
    for backend in Backend::available() {
        let model = open(backend);
        let mut golden = golden();
        if backend == Backend::Portable {
            // Slow without vector instructions: all short texts and a few of each longer length.
            let mut number = 0;
            golden.retain(|case| {
                number += 1;
                case.ids.len() <= 24 || number % 6 == 0
            });
        }
        let texts: Vec<&str> = golden.iter().map(|case| case.text.as_str()).collect();
        let vectors = model.embed(Lane::Bulk, &texts).unwrap();
        let (mut worst, mut largest) = (1.0_f64, 0.0_f32);
        for (case, vector) in golden.iter().zip(&vectors) {
            let start: String = case.text.chars().take(60).collect();
            assert_eq!(model.tokenizer().encode(&case.text), case.ids, "{start:?}");
            let cosine = cosine(vector, &case.vector);
            assert!(
                cosine >= 0.9999,
                "{backend:?}: cosine {cosine} for {start:?}"
            );
            worst = worst.min(cosine);
            for (x, y) in vector.iter().zip(&case.vector) {
                largest = largest.max((x - y).abs());
            }
        }
        println!("{backend:?}: least cosine {worst:.9}, largest difference {largest:.1e}");
        assert!(largest < 1e-5, "{backend:?}: {largest:e}");
    }
}

#[test]
fn it_keeps_the_contract() {
    embedder_contract(&*MODEL);
    assert!(MODEL.worth_remembering());
    assert_eq!(MODEL.identity().dimension, 384);
    assert_eq!(MODEL.identity().tokens_max, 256);
}

/// Bit equality is what lets a text that is embedded twice never look changed.
#[test]
fn a_text_has_the_same_bits_in_every_batch() {
    let golden = golden();
    let texts: Vec<&str> = golden.iter().map(|case| case.text.as_str()).collect();
    let together = MODEL.embed(Lane::Bulk, &texts).unwrap();
    for (text, vector) in texts.iter().zip(&together).step_by(7) {
        let alone = MODEL.embed(Lane::Query, &[text]).unwrap();
        assert!(alone[0] == *vector, "alone: {text:.60}");
    }
    let mut reversed = texts.clone();
    reversed.reverse();
    reversed.extend(&texts[..20]);
    let vectors = MODEL.embed(Lane::Bulk, &reversed).unwrap();
    for (index, vector) in vectors.iter().take(texts.len()).enumerate() {
        assert!(
            *vector == together[texts.len() - 1 - index],
            "reversed: {}",
            reversed[index]
        );
    }
    for (vector, first) in vectors[texts.len()..].iter().zip(&together) {
        assert!(vector == first, "a repeated text");
    }
}

#[test]
fn threads_share_the_model_without_disturbing_each_other() {
    let golden = golden();
    let texts: Vec<&str> = golden.iter().map(|case| case.text.as_str()).collect();
    let texts = &texts[4..60];
    let expected = MODEL.embed(Lane::Query, texts).unwrap();
    std::thread::scope(|scope| {
        for lane in [Lane::Bulk, Lane::Query, Lane::Bulk, Lane::Query] {
            let expected = &expected;
            scope.spawn(move || {
                for _ in 0..3 {
                    assert!(MODEL.embed(lane, texts).unwrap() == *expected);
                }
            });
        }
    });
}

#[test]
fn meaning_decides_what_is_near() {
    let texts = [
        "How do I restart the database server?",
        "Steps for rebooting a Postgres instance",
        "A recipe for onion soup",
    ];
    let vectors = MODEL.embed(Lane::Query, &texts).unwrap();
    assert!(cosine(&vectors[0], &vectors[1]) > cosine(&vectors[0], &vectors[2]) + 0.3);
}

#[test]
fn a_damaged_folder_is_refused() {
    let files = model_files::fetch("all-MiniLM-L6-v2").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(&files.tokenizer, folder.path().join("tokenizer.json")).unwrap();
    let weights = std::fs::read(&files.weights).unwrap();
    std::fs::write(
        folder.path().join("model.safetensors"),
        &weights[..weights.len() - 1],
    )
    .unwrap();
    let config = MiniLmConfig {
        path: Some(folder.path().file_name().unwrap().into()),
        ..MiniLmConfig::default()
    };
    let context = OpenContext::in_folder(folder.path().parent().unwrap());
    let error = config.open(&context).err().unwrap();
    assert_eq!(error.field, "path");
    assert!(error.fact.contains("is not the known file"), "{error}");
    std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    config.open(&context).unwrap();
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let error = model_files::fetch("all-minilm").err().unwrap();
    assert!(error.hint.contains("all-MiniLM-L6-v2"), "{}", error.hint);
}
