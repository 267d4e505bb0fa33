//! The embedder on ONNX Runtime itself: against the golden vectors and the CPU backend with a real model that
//! others exported, and against a few lines of arithmetic with small graphs of many shapes.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/graphs.rs"]
mod graphs;
#[path = "support/runtime.rs"]
mod runtime;

use graphs::{POISONED, Variant, WIDTH};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vectide_encoder::Tokenizer;
use vectide_encoder::minilm::MiniLmConfig;
use vectide_model::{
    ComponentError, Embedder, EmbedderConfig, Lane, OpenContext, Precision, embedder_contract,
};
use vectide_onnx::onnx::Pooling;
use vectide_onnx::{OnnxConfig, locate, open};

fn context() -> OpenContext {
    OpenContext::in_folder("/")
}

fn config(folder: &Path, library: &Path) -> OnnxConfig {
    OnnxConfig {
        path: folder.into(),
        library: Some(library.into()),
        ..OnnxConfig::default()
    }
}

fn minilm_config(test: &str) -> Option<OnnxConfig> {
    let library = runtime::library(test)?;
    // Its folder has no small files: nothing says how it is pooled, nor how long a text may be.
    Some(OnnxConfig {
        pooling: Some(Pooling::Mean),
        max_tokens: Some(256),
        ..config(&runtime::minilm(test)?, &library)
    })
}

fn cpu_minilm() -> Arc<dyn Embedder> {
    let config = MiniLmConfig {
        precision: Precision::F32,
        ..MiniLmConfig::default()
    };
    config.open(&context()).unwrap()
}

/// Texts and vectors that PyTorch made once; `scripts/golden_vectors.py` says how.
fn golden() -> (Vec<String>, Vec<Vec<f32>>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../encoder/tests/data");
    let lines = std::fs::read_to_string(folder.join("golden.jsonl")).unwrap();
    let texts = lines.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["text"].as_str().unwrap().to_owned()
    });
    let floats = std::fs::read(folder.join("golden.f32")).unwrap();
    let vectors = floats.chunks_exact(384 * 4).map(|bytes| {
        let floats = bytes.chunks_exact(4);
        floats
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    });
    (texts.collect(), vectors.collect())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

#[test]
fn a_real_export_gives_the_golden_vectors_and_those_of_the_cpu_backend() {
    let Some(config) = minilm_config("a real export") else {
        return;
    };
    println!("{}", locate(&config, &context()).unwrap());
    let model = open(&config, &context()).unwrap();
    assert_eq!(model.identity().dimension, 384);
    assert_eq!(model.identity().tokens_max, 256);
    let cpu = cpu_minilm();
    let (texts, golden) = golden();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert!(texts.len() >= 200 && texts.len() == golden.len());
    for lane in [Lane::Bulk, Lane::Query] {
        let vectors = model.embed(lane, &texts).unwrap();
        for (what, others) in [
            ("golden", &golden),
            ("cpu", &cpu.embed(lane, &texts).unwrap()),
        ] {
            let (mut least, mut largest) = (1.0_f64, 0.0_f32);
            for (vector, other) in vectors.iter().zip(others) {
                least = least.min(cosine(vector, other));
                let differences = vector.iter().zip(other).map(|(x, y)| (x - y).abs());
                largest = differences.fold(largest, f32::max);
            }
            println!("{lane:?}, {what}: least cosine {least:.9}, largest difference {largest:.1e}");
            assert!(
                least >= 0.9999 && largest < 1e-5,
                "{what}: {least} {largest}"
            );
        }
    }
}

#[test]
fn a_real_export_keeps_the_contract() {
    let Some(config) = minilm_config("the contract") else {
        return;
    };
    let model = open(&config, &context()).unwrap();
    embedder_contract(&*model);
    assert!(model.worth_remembering());
    let counter = model.token_counter();
    assert_eq!(counter.count("vector database"), 2);
    // A text is the same in any order and beside any other, and equal ones get equal vectors.
    let (texts, _) = golden();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = model.embed(Lane::Bulk, &texts).unwrap();
    let mut reversed: Vec<&str> = texts.iter().rev().copied().collect();
    reversed.extend(&texts[..20]);
    let vectors = model.embed(Lane::Bulk, &reversed).unwrap();
    let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5);
    for (place, vector) in vectors.iter().take(texts.len()).enumerate() {
        assert!(same(vector, &together[texts.len() - 1 - place]));
    }
    for (place, vector) in vectors[texts.len()..].iter().enumerate() {
        assert!(*vector == vectors[texts.len() - 1 - place]);
    }
}

#[test]
fn texts_of_any_kind_get_vectors() {
    let Some(config) = minilm_config("texts of any kind") else {
        return;
    };
    let model = open(&config, &context()).unwrap();
    let words = "one of very many words ".repeat(1 << 16);
    assert!(words.len() > 1 << 20);
    let stretch = "x".repeat(1 << 20);
    let marks = "\u{300}".repeat(1 << 19);
    let zeros = "\0".repeat(1 << 20);
    let texts = [
        &words,
        &stretch,
        &marks,
        &zeros,
        "a\0b",
        "\0",
        "",
        "🙂\u{FFFD}",
    ];
    for lane in [Lane::Bulk, Lane::Query] {
        let start = Instant::now();
        let vectors = model.embed(lane, &texts).unwrap();
        println!("{lane:?}: {:?}", start.elapsed());
        for vector in &vectors {
            assert!((cosine(vector, vector) - 1.0).abs() < 1e-5);
        }
        // Control characters are no text; what is cut is not looked at.
        assert!(cosine(&vectors[3], &vectors[6]) > 0.999_999);
        let start = model.embed(lane, &[&words[..8192]]).unwrap();
        assert!(cosine(&vectors[0], &start[0]) > 0.999_999);
    }
}

/// A query waits for no bulk work, only for a core; bulk callers are many and without end.
#[test]
fn queries_go_beside_bulk_work() {
    let Some(config) = minilm_config("queries beside bulk work") else {
        return;
    };
    let model = &*open(&config, &context()).unwrap();
    let (texts, _) = golden();
    let texts: Vec<&str> = texts
        .iter()
        .skip(100)
        .take(40)
        .map(String::as_str)
        .collect();
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 * model.bulk_threads() {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    model.embed(Lane::Bulk, &texts).unwrap();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        let mut waits: Vec<Duration> = (0..20)
            .map(|_| {
                let start = Instant::now();
                model
                    .embed(Lane::Query, &["how do bees find home"])
                    .unwrap();
                start.elapsed()
            })
            .collect();
        is_over.store(true, Ordering::Relaxed);
        waits.sort_unstable();
        println!(
            "queries beside bulk work: median {:?}, longest {:?}",
            waits[10], waits[19]
        );
        // A bulk call of these texts takes that long where nothing else runs.
        assert!(waits[10] < Duration::from_millis(500), "{waits:?}");
    });
}

fn ids(text: &str, tokens_max: usize) -> Vec<u32> {
    let json = std::fs::read(graphs::tokenizer()).unwrap();
    Tokenizer::from_json(&json, tokens_max)
        .unwrap()
        .encode(text)
}

const TEXTS: [&str; 7] = [
    "",
    "water",
    "some water, and more of it",
    "a longer text that is cut at the end: a b c d e f g h i j k l m n o p q r s t u v w x y z 1 2 3 4 5 6 7",
    "日本語",
    "water",
    "x y z",
];

/// Compares a variant with the arithmetic in its support file, in both lanes.
fn check(
    variant: &Variant,
    library: &Path,
    change: impl Fn(&Path, &mut OnnxConfig),
    position: usize,
) {
    let folder = graphs::folder(variant);
    let mut config = config(folder.path(), library);
    change(folder.path(), &mut config);
    let model = open(&config, &context()).unwrap();
    assert_eq!(model.identity().dimension, WIDTH);
    let is_first = config.pooling == Some(Pooling::Cls);
    for lane in [Lane::Bulk, Lane::Query] {
        let vectors = model.embed(lane, &TEXTS).unwrap();
        for (text, vector) in TEXTS.iter().zip(&vectors) {
            let expected = graphs::expected(variant, &ids(text, 60), is_first, position);
            let pairs = vector.iter().zip(&expected);
            let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let most = if variant.is_half { 1e-3 } else { 1e-5 };
            assert!(largest < most, "{variant:?}, {text:?}: {largest:e}");
        }
    }
    if !variant.is_half {
        embedder_contract(&*model);
    }
}

#[test]
fn graphs_of_many_shapes_are_fed_what_they_ask_for() {
    let Some(library) = runtime::library("graphs of many shapes") else {
        return;
    };
    let all = vec![
        "position_ids",
        "token_type_ids",
        "attention_mask",
        "input_ids",
    ];
    let nothing = |_: &Path, _: &mut OnnxConfig| {};
    let cls = |_: &Path, config: &mut OnnxConfig| config.pooling = Some(Pooling::Cls);
    let as_is = Variant::default();
    let of = |inputs: &[&'static str]| Variant {
        inputs: inputs.to_vec(),
        ..as_is.clone()
    };
    check(&as_is, &library, nothing, 0);
    check(&as_is, &library, cls, 0);
    check(
        &of(&["input_ids", "attention_mask", "token_type_ids"]),
        &library,
        nothing,
        0,
    );
    check(&of(&all), &library, nothing, 0);
    check(&of(&all), &library, cls, 0);
    let roberta = |folder: &Path, _: &mut OnnxConfig| {
        let config =
            json!({"model_type": "xlm-roberta", "pad_token_id": 1, "max_position_embeddings": 66});
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    };
    check(&of(&all), &library, roberta, 2);
    let sentences = Variant {
        output: "sentence_embedding",
        is_sentences: true,
        ..as_is.clone()
    };
    // No pooling is needed, and none that is not supported is in the way.
    let dense = |folder: &Path, _: &mut OnnxConfig| {
        let modules =
            json!([{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "1"}]);
        std::fs::write(folder.join("modules.json"), modules.to_string()).unwrap();
    };
    check(&sentences, &library, dense, 0);
    for output in ["token_embeddings", "anything"] {
        check(
            &Variant {
                output,
                ..as_is.clone()
            },
            &library,
            nothing,
            0,
        );
    }
    let half = Variant {
        is_half: true,
        ..as_is.clone()
    };
    check(&half, &library, nothing, 0);
    let outside = Variant {
        outside: Some("model.onnx_data"),
        ..as_is.clone()
    };
    check(&outside, &library, nothing, 0);
    // Without a mask, filling would change vectors.
    check(&of(&["input_ids"]), &library, nothing, 0);
    let elsewhere = |folder: &Path, config: &mut OnnxConfig| {
        std::fs::create_dir(folder.join("onnx")).unwrap();
        std::fs::rename(folder.join("model.onnx"), folder.join("onnx/model.onnx")).unwrap();
        config.threads = Some(3);
    };
    check(&as_is, &library, elsewhere, 0);
    let named = |folder: &Path, config: &mut OnnxConfig| {
        std::fs::rename(folder.join("model.onnx"), folder.join("other.onnx")).unwrap();
        config.file = Some("other.onnx".into());
        config.threads = Some(1);
    };
    check(&as_is, &library, named, 0);
}

/// RoBERTa's way: pieces with scores, two special tokens of other names, positions from behind that of padding.
#[test]
fn tokenizers_of_other_kinds_are_read_as_far_as_the_encoder_knows_them() {
    check_pieces_with_scores(Value::Null);
}

/// The encoder refuses this normaliser, which changes nothing of the texts here.
#[test]
fn tokenizers_that_the_encoder_refuses_go_to_the_library() {
    check_pieces_with_scores(json!({"type": "NFD"}));
}

fn check_pieces_with_scores(normalizer: Value) {
    let Some(library) = runtime::library("tokenizers of other kinds") else {
        return;
    };
    let variant = Variant {
        inputs: vec!["input_ids", "attention_mask", "position_ids"],
        ..Variant::default()
    };
    let folder = graphs::folder(&variant);
    let write = |name: &str, contents: Value| {
        std::fs::write(folder.path().join(name), contents.to_string()).unwrap();
    };
    let mut tokenizer = graphs::unigram_tokenizer();
    tokenizer["normalizer"] = normalizer;
    write("tokenizer.json", tokenizer);
    write(
        "config.json",
        json!({"model_type": "xlm-roberta", "pad_token_id": 1}),
    );
    let model = open(&config(folder.path(), &library), &context()).unwrap();
    embedder_contract(&*model);
    assert_eq!(model.token_counter().count("water waters"), 3);
    let long = "water ".repeat(1 << 18);
    let mut cut = vec![7; 60];
    (cut[0], cut[59]) = (0, 2);
    let cases: [(&str, &[u32]); 4] = [
        ("water waters", &[0, 7, 7, 8, 2]),
        ("", &[0, 2]),
        ("x", &[0, 4, 3, 2]),
        (&long, &cut),
    ];
    let vectors = model
        .embed(Lane::Bulk, &cases.map(|(text, _)| text))
        .unwrap();
    for ((text, ids), vector) in cases.iter().zip(&vectors) {
        let expected = graphs::expected(&variant, ids, false, 2);
        assert!(cosine(vector, &expected) > 0.999_999, "{text:.20}");
    }
}

/// No special tokens, so an empty text has none at all.
#[test]
fn a_text_without_any_token_has_zeros() {
    let Some(library) = runtime::library("texts without tokens") else {
        return;
    };
    let folder = graphs::folder(&Variant::default());
    let tokenizer = graphs::unframed(graphs::unigram_tokenizer());
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let model = open(&config(folder.path(), &library), &context()).unwrap();
    embedder_contract(&*model);
    for lane in [Lane::Bulk, Lane::Query] {
        let vectors = model.embed(lane, &["water", "", "s"]).unwrap();
        assert!(vectors[1].iter().all(|value| *value == 0.0));
        assert!(cosine(&vectors[0], &vectors[0]) > 0.999);
    }
}

/// Longer than a micro-batch, and than what is tried when a model is opened.
#[test]
fn long_texts_are_micro_batches_of_their_own() {
    let Some(library) = runtime::library("long texts") else {
        return;
    };
    let variant = Variant::default();
    let folder = graphs::folder(&variant);
    let config = OnnxConfig {
        max_tokens: Some(3000),
        ..config(folder.path(), &library)
    };
    let model = open(&config, &context()).unwrap();
    let texts = [
        "some water ".repeat(700),
        "water ".repeat(5000),
        "water".into(),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for lane in [Lane::Bulk, Lane::Query] {
        let vectors = model.embed(lane, &texts).unwrap();
        for (text, vector) in texts.iter().zip(&vectors) {
            let expected = graphs::expected(&variant, &ids(text, 3000), false, 0);
            assert!(cosine(vector, &expected) > 0.999_999, "{text:.20}");
        }
    }
}

/// Computes without end and ends the process in the middle of it.
#[test]
#[ignore = "run by the test below"]
fn child() {
    let Some(config) = minilm_config("the end of a process") else {
        return;
    };
    let model = open(&config, &context()).unwrap();
    for lane in [Lane::Bulk, Lane::Query, Lane::Bulk] {
        let model = model.clone();
        std::thread::spawn(move || {
            loop {
                let _ = model.embed(lane, &["some water ", "more water and more of it"]);
            }
        });
    }
    std::thread::sleep(Duration::from_millis(100));
    std::process::exit(0);
}

/// ONNX Runtime takes its own things apart when a process ends, while threads may still compute with them.
#[test]
fn a_process_may_end_while_texts_are_computed() {
    for _ in 0..5 {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command
            .args(["--exact", "child", "--ignored"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

/// A real model that is quantised as it runs, with one scale for all of a batch.
#[test]
fn a_quantized_export_keeps_the_contract() {
    let test = "a quantised export";
    let (Some(folder), Some(config)) = (runtime::quantized_minilm(test), minilm_config(test))
    else {
        return;
    };
    let model = open(
        &OnnxConfig {
            path: folder,
            ..config
        },
        &context(),
    )
    .unwrap();
    embedder_contract(&*model);
    let (texts, golden) = golden();
    let texts: Vec<&str> = texts.iter().map(String::as_str).step_by(10).collect();
    let vectors = model.embed(Lane::Query, &texts).unwrap();
    let cosines = vectors.iter().zip(golden.iter().step_by(10));
    let least = cosines.map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
    println!("least cosine to the float32 model: {least:.4}");
    assert!(least > 0.9);
}

/// As in a model that is quantised as it runs: a batch would have another scale.
#[test]
fn texts_that_would_change_each_other_are_computed_one_by_one() {
    let Some(library) = runtime::library("vectors that depend on the batch") else {
        return;
    };
    let variant = Variant {
        depends_on_batch: true,
        ..Variant::default()
    };
    let folder = graphs::folder(&variant);
    embedder_contract(&*open(&config(folder.path(), &library), &context()).unwrap());
}

#[test]
fn the_configuration_changes_what_the_files_say() {
    let Some(library) = runtime::library("the configuration") else {
        return;
    };
    let folder = graphs::folder(&Variant::default());
    let write = |name: &str, contents: Value| {
        std::fs::write(folder.path().join(name), contents.to_string()).unwrap();
    };
    write(
        "config_sentence_transformers.json",
        json!({"prompts": {"query": "q: ", "document": "d: "}}),
    );
    let plain = config(folder.path(), &library);
    let embed = |config: &OnnxConfig, lane, text: &str| {
        let model = open(config, &context()).unwrap();
        model.embed(lane, &[text]).unwrap().remove(0)
    };
    let none = OnnxConfig {
        query_prefix: Some(String::new()),
        passage_prefix: Some(String::new()),
        ..plain.clone()
    };
    assert_eq!(
        embed(&plain, Lane::Query, "water"),
        embed(&none, Lane::Query, "q: water")
    );
    assert_eq!(
        embed(&plain, Lane::Bulk, "water"),
        embed(&none, Lane::Bulk, "d: water")
    );
    let short = OnnxConfig {
        max_tokens: Some(5),
        ..none.clone()
    };
    assert_eq!(
        embed(&short, Lane::Bulk, "a b c d e f"),
        embed(&none, Lane::Bulk, "a b c")
    );
    let narrow = OnnxConfig {
        dimensions: Some(5),
        ..none.clone()
    };
    let (cut, whole) = (
        embed(&narrow, Lane::Bulk, "water"),
        embed(&none, Lane::Bulk, "water"),
    );
    assert_eq!(cut.len(), 5);
    let norm = cosine(&whole[..5], &whole[..5]).sqrt();
    assert!((cosine(&cut, &whole[..5]) / norm - 1.0).abs() < 1e-5);
    // What a passage's vector depends on is in the fingerprint, what it does not is not.
    let fingerprint = |config: &OnnxConfig| {
        open(config, &context())
            .unwrap()
            .identity()
            .fingerprint
            .clone()
    };
    let of_plain = fingerprint(&plain);
    let cls = OnnxConfig {
        pooling: Some(Pooling::Cls),
        ..plain.clone()
    };
    for other in [&none, &short, &narrow, &cls] {
        assert_ne!(fingerprint(other), of_plain);
    }
    let query = OnnxConfig {
        query_prefix: Some("? ".into()),
        ..plain.clone()
    };
    assert_eq!(fingerprint(&query), of_plain);
    let threads = OnnxConfig {
        threads: Some(2),
        ..plain.clone()
    };
    assert_eq!(fingerprint(&threads), of_plain);
    assert_eq!(
        open(&plain, &context()).unwrap().identity().tokens_max,
        60 - ids("d: ", 60).len() + 2
    );
}

#[test]
fn the_fingerprint_follows_weights_outside_the_graph() {
    let Some(library) = runtime::library("weights outside the graph") else {
        return;
    };
    let variant = Variant {
        outside: Some("weights.bin"),
        ..Variant::default()
    };
    let folder = graphs::folder(&variant);
    let config = config(folder.path(), &library);
    let fingerprint = || {
        open(&config, &context())
            .unwrap()
            .identity()
            .fingerprint
            .clone()
    };
    let before = fingerprint();
    assert_eq!(fingerprint(), before);
    let path = folder.path().join("weights.bin");
    let mut weights = std::fs::read(&path).unwrap();
    weights[999] ^= 1;
    std::fs::write(&path, weights).unwrap();
    assert_ne!(fingerprint(), before);
}

fn fault(
    variant: &Variant,
    library: &Path,
    change: impl Fn(&Path, &mut OnnxConfig),
) -> ComponentError {
    let folder = graphs::folder(variant);
    let mut config = config(folder.path(), library);
    change(folder.path(), &mut config);
    let error = open(&config, &context()).err().unwrap();
    println!("{}: {}; {}", error.field, error.fact, error.hint);
    error
}

#[test]
fn what_cannot_be_fed_or_gives_no_vectors_is_told_at_the_start() {
    let Some(library) = runtime::library("faults of models") else {
        return;
    };
    let nothing = |_: &Path, _: &mut OnnxConfig| {};
    let as_is = Variant::default();
    let told = |variant: Variant, field: &str, words: &str| {
        let error = fault(&variant, &library, nothing);
        assert!(
            error.field == field && error.fact.contains(words),
            "{error:?}"
        );
        assert!(!error.hint.is_empty(), "{error:?}");
    };
    let unknown = Variant {
        inputs: vec!["input_ids", "pixel_values"],
        ..as_is.clone()
    };
    told(unknown, "path", "input `pixel_values` is not known");
    let missing = Variant {
        inputs: vec!["attention_mask"],
        ..as_is.clone()
    };
    let error = fault(&missing, &library, nothing);
    assert_eq!(error.field, "path");
    told(
        Variant {
            sizes: [1, 32],
            ..as_is.clone()
        },
        "path",
        "not an int64 of any batch and any sequence",
    );
    told(
        Variant {
            sizes: [-1, 32],
            ..as_is.clone()
        },
        "path",
        "not an int64 of any batch",
    );
    told(
        Variant {
            input_type: 6,
            ..as_is.clone()
        },
        "path",
        "not an int64",
    );
    let named = Variant {
        output: "sentence_embedding",
        ..as_is.clone()
    };
    told(named, "path", "gives no vectors");
    let error = fault(&as_is, &library, |folder, _| {
        std::fs::remove_dir_all(folder.join("1_Pooling")).unwrap();
    });
    assert!(
        error.field == "pooling" && error.hint.contains("mean"),
        "{error:?}"
    );
    let sentences = Variant {
        output: "sentence_embedding",
        is_sentences: true,
        ..as_is.clone()
    };
    let error = fault(&sentences, &library, |_, config| {
        config.pooling = Some(Pooling::Mean)
    });
    assert_eq!(error.field, "pooling");
    // There are 66 positions.
    let positions = Variant {
        inputs: vec!["input_ids", "attention_mask", "position_ids"],
        ..as_is.clone()
    };
    let error = fault(&positions, &library, |_, config| {
        config.max_tokens = Some(100)
    });
    assert!(
        error.field == "max_tokens" && error.fact.contains("100 tokens"),
        "{error:?}"
    );
}

#[test]
fn configurations_that_do_not_fit_are_told() {
    let Some(library) = runtime::library("faults of configurations") else {
        return;
    };
    let as_is = Variant::default();
    let told = |field: &str, change: &dyn Fn(&Path, &mut OnnxConfig)| {
        let error = fault(&as_is, &library, change);
        assert!(error.field == field && !error.fact.is_empty(), "{error:?}");
    };
    told("dimensions", &|_, config| {
        config.dimensions = Some(WIDTH + 1)
    });
    told("dimensions", &|_, config| config.dimensions = Some(0));
    told("threads", &|_, config| config.threads = Some(0));
    told("max_tokens", &|_, config| config.max_tokens = Some(2));
    told("max_tokens", &|_, config| config.max_tokens = Some(1 << 40));
    told("path", &|_, config| config.path = "".into());
    told("path", &|_, config| config.path = "/nowhere".into());
    told("file", &|_, config| {
        config.file = Some("nothing.onnx".into())
    });
    told("query_prefix", &|_, config| {
        config.query_prefix = Some("long ".repeat(99))
    });
    told("passage_prefix", &|_, config| {
        config.passage_prefix = Some("long ".repeat(99))
    });
    told("path", &|folder, _| {
        std::fs::remove_file(folder.join("model.onnx")).unwrap()
    });
    told("path", &|folder, _| {
        std::fs::remove_file(folder.join("tokenizer.json")).unwrap()
    });
    told("passage_prefix", &|folder, config| {
        let pooling = json!({"pooling_mode_mean_tokens": true, "include_prompt": false});
        std::fs::write(folder.join("1_Pooling/config.json"), pooling.to_string()).unwrap();
        config.passage_prefix = Some("p: ".into());
    });
    let text = r#"{"path": "a", "threads": 2, "pooling": "cls", "max_tokens": 9}"#;
    let config: OnnxConfig = serde_json::from_str(text).unwrap();
    assert!(config.check().is_empty());
    assert!(serde_json::from_str::<OnnxConfig>(r#"{"path": "a", "device": "cpu"}"#).is_err());
    let config: OnnxConfig =
        serde_json::from_str(r#"{"path": "", "threads": 0, "max_tokens": 1}"#).unwrap();
    assert_eq!(config.check().len(), 3);
}

/// A number that is not finite spoils its own text's call and is told with the text; others are not touched.
#[test]
fn vectors_that_are_not_finite_are_errors() {
    let Some(library) = runtime::library("numbers that are not finite") else {
        return;
    };
    for poison in [f32::NAN, f32::INFINITY] {
        let variant = Variant {
            poison: Some(poison),
            ..Variant::default()
        };
        let folder = graphs::folder(&variant);
        let model = open(&config(folder.path(), &library), &context()).unwrap();
        let json = std::fs::read(graphs::tokenizer()).unwrap();
        let file: Value = serde_json::from_slice(&json).unwrap();
        let vocabulary = file["model"]["vocab"].as_object().unwrap();
        let (piece, _) = vocabulary.iter().find(|(_, id)| **id == POISONED).unwrap();
        assert!(model.embed(Lane::Bulk, &["fine"]).is_ok());
        let error = model.embed(Lane::Bulk, &["fine", piece]).unwrap_err();
        assert!(
            error.to_string().contains("not finite") && error.to_string().contains(piece),
            "{error}"
        );
        assert!(model.embed(Lane::Query, &["fine"]).is_ok());
    }
}

/// The calling thread's time on a core, which other programs disturb less than the clock's.
fn thread_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = text.split_whitespace().next().unwrap();
    nanoseconds.parse::<f64>().unwrap() / 1e9
}

/// How fast one thread is here beside the CPU backend in f32; run by name.
#[test]
#[ignore = "a measurement"]
fn speed_beside_the_cpu_backend() {
    let Some(config) = minilm_config("the measurement") else {
        return;
    };
    let config = OnnxConfig {
        threads: Some(1),
        ..config
    };
    let model = open(&config, &context()).unwrap();
    let cpu = cpu_minilm();
    let words = "the engine keeps an index of vectors true to its sources while they change ";
    for (what, repeats, count) in [("long texts", 8, 24), ("a query", 1, 1)] {
        let texts = (0..count).map(|number| format!("{number} {}", words.repeat(repeats)));
        let texts: Vec<String> = texts.collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let counter = model.token_counter();
        let tokens: usize = texts.iter().map(|text| counter.count(text) + 2).sum();
        let mut best = [f64::INFINITY; 2];
        for _ in 0..7 {
            for (best, model) in best.iter_mut().zip([&model, &cpu]) {
                let (start, calls) = (thread_seconds(), 48 / count);
                for _ in 0..calls {
                    model.embed(Lane::Query, &texts).unwrap();
                }
                *best = best.min((thread_seconds() - start) / calls as f64);
            }
        }
        let [onnx, own] = best.map(|seconds| tokens as f64 / seconds);
        println!(
            "{what}, {tokens} tokens: onnx {onnx:.0} tokens/s, {} {own:.0}",
            cpu.identity().device
        );
    }
}
