//! Models whose weights are a formula: the counterpart of `scripts/golden_random_models.py` and
//! `scripts/golden_other_encoders.py`.
//!
//! Invariant: a tensor's values follow from its name and shape, the same here and there to the bit.

// Not every test uses all of it.
#![allow(dead_code)]
// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use vectide_model::Lane;

/// The folders with the models' small files.
pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/random")
}

/// `count` numbers in [-0.5, 0.5): FNV-1a of the name, stepped and mixed as SplitMix64 does.
fn uniform(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    });
    (1..=count as u64).map(move |index| {
        let x = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) >> 40) as f64 / f64::from(1 << 24) - 0.5
    })
}

/// Names of word embeddings.
const WORDS: [&str; 2] = [
    "embeddings.word_embeddings.weight",
    "embeddings.tok_embeddings.weight",
];

fn weights(name: &str, shape: &[usize]) -> Vec<f32> {
    let values = uniform(name, shape.iter().product());
    let scaled = values.map(|value| {
        let is_of_layer = name.starts_with("encoder.") || name.starts_with("layers.");
        if shape.len() == 1 && name.ends_with(".weight") {
            1.0 + value / 2.0
        } else if WORDS.contains(&name) {
            value * 4.0
        } else if shape.len() == 2 && is_of_layer {
            value * 4.0 / (shape[1] as f64).sqrt()
        } else {
            value
        }
    });
    scaled.map(|value| value as f32).collect()
}

/// All tensors of a configuration.
fn shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    match config["model_type"].as_str() {
        Some("nomic_bert") => nomic_bert_shapes(config),
        Some("modernbert") => modern_bert_shapes(config),
        _ => bert_shapes(config),
    }
}

fn nomic_bert_shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let (width, inner) = (size("n_embd"), size("n_inner"));
    let mut shapes = vec![
        (WORDS[0].to_owned(), vec![size("vocab_size"), width]),
        (
            "embeddings.token_type_embeddings.weight".to_owned(),
            vec![size("type_vocab_size"), width],
        ),
    ];
    let mut norms = vec!["emb_ln".to_owned()];
    for layer in 0..size("n_layer") {
        let layer = format!("encoder.layers.{layer}");
        for (name, outputs, inputs) in [
            ("attn.Wqkv", 3 * width, width),
            ("attn.out_proj", width, width),
            ("mlp.fc11", inner, width),
            ("mlp.fc12", inner, width),
            ("mlp.fc2", width, inner),
        ] {
            shapes.push((format!("{layer}.{name}.weight"), vec![outputs, inputs]));
        }
        norms.extend([format!("{layer}.norm1"), format!("{layer}.norm2")]);
    }
    for norm in norms {
        shapes.push((format!("{norm}.weight"), vec![width]));
        shapes.push((format!("{norm}.bias"), vec![width]));
    }
    shapes
}

fn modern_bert_shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let (width, inner) = (size("hidden_size"), size("intermediate_size"));
    let mut shapes = vec![
        (WORDS[1].to_owned(), vec![size("vocab_size"), width]),
        ("embeddings.norm.weight".to_owned(), vec![width]),
        ("final_norm.weight".to_owned(), vec![width]),
    ];
    for layer in 0..size("num_hidden_layers") {
        if layer > 0 {
            shapes.push((format!("layers.{layer}.attn_norm.weight"), vec![width]));
        }
        for (name, shape) in [
            ("attn.Wqkv", vec![3 * width, width]),
            ("attn.Wo", vec![width, width]),
            ("mlp_norm", vec![width]),
            ("mlp.Wi", vec![2 * inner, width]),
            ("mlp.Wo", vec![width, inner]),
        ] {
            shapes.push((format!("layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes
}

fn bert_shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let (width, inner) = (size("hidden_size"), size("intermediate_size"));
    let embeddings = [
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ];
    let mut shapes: Vec<(String, Vec<usize>)> = embeddings
        .iter()
        .map(|(name, rows)| {
            let name = format!("embeddings.{name}_embeddings.weight");
            (name, vec![size(rows), width])
        })
        .collect();
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..size("num_hidden_layers") {
        let layer = format!("encoder.layer.{layer}");
        for (name, outputs, inputs) in [
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ] {
            shapes.push((format!("{layer}.{name}.weight"), vec![outputs, inputs]));
            shapes.push((format!("{layer}.{name}.bias"), vec![outputs]));
        }
        norms.push(format!("{layer}.attention.output.LayerNorm"));
        norms.push(format!("{layer}.output.LayerNorm"));
    }
    for norm in norms {
        shapes.push((format!("{norm}.weight"), vec![width]));
        shapes.push((format!("{norm}.bias"), vec![width]));
    }
    shapes
}

/// The contents of `model.safetensors`, names after `part`.
pub(crate) fn safetensors(config: &Value, dtype: Dtype, part: &str) -> Vec<u8> {
    let tensors: Vec<_> = shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let values = weights(&name, &shape).into_iter();
            let data: Vec<u8> = match dtype {
                Dtype::F16 => values
                    .flat_map(|x| f16::from_f32(x).to_le_bytes())
                    .collect(),
                Dtype::BF16 => values
                    .flat_map(|x| bf16::from_f32(x).to_le_bytes())
                    .collect(),
                _ => values.flat_map(f32::to_le_bytes).collect(),
            };
            (format!("{part}{name}"), shape, data)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(dtype, shape.clone(), data).unwrap()));
    serialize(views, None).unwrap()
}

/// One of the kept models, whole, in a folder of its own name.
pub(crate) fn folder(name: &str, dtype: Dtype, part: &str) -> (tempfile::TempDir, PathBuf) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join(name);
    copy(&data().join(name), &folder);
    let tokenizer = folder.join("tokenizer.json");
    if !tokenizer.exists() {
        std::fs::copy(data().join("tokenizer.json"), tokenizer).unwrap();
    }
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let weights = safetensors(&config, dtype, part);
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
    (temporary, folder)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// A kept model of other than plain BERT, by the type and the names that its weights were made with.
pub(crate) fn other_folder(name: &str) -> (tempfile::TempDir, PathBuf) {
    match name {
        "xlm-roberta-384" => folder(name, Dtype::F16, "roberta."),
        "modernbert-192" => folder(name, Dtype::BF16, "model."),
        _ => folder(name, Dtype::F32, ""),
    }
}

/// The models of [`other_folder`].
pub(crate) const OTHERS: [&str; 3] = ["xlm-roberta-384", "nomic-256", "modernbert-192"];

/// One of them made narrow, for tests that open it thousands of times.
pub(crate) fn small_other_folder(name: &str) -> (tempfile::TempDir, PathBuf) {
    let (temporary, folder) = other_folder(name);
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let is_nomic = name == "nomic-256";
    for (names, value) in [
        (["hidden_size", "n_embd"], 64),
        (["num_attention_heads", "n_head"], 2),
        (["num_hidden_layers", "n_layer"], 2),
        (["intermediate_size", "n_inner"], 96),
    ] {
        config[names[usize::from(is_nomic)]] = value.into();
    }
    let weights = safetensors(&config, Dtype::F32, "");
    std::fs::write(&path, config.to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
    (temporary, folder)
}

/// A model of one narrow layer, for tests that open it thousands of times.
pub(crate) fn small_folder() -> (tempfile::TempDir, PathBuf) {
    let (temporary, folder) = folder("cls-384", Dtype::F32, "");
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (name, value) in [
        ("hidden_size", 64),
        ("num_attention_heads", 2),
        ("num_hidden_layers", 1),
        ("intermediate_size", 96),
    ] {
        config[name] = value.into();
    }
    let weights = safetensors(&config, Dtype::F32, "");
    std::fs::write(&path, config.to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
    (temporary, folder)
}

/// One text with what the reference makes of it.
#[derive(Deserialize)]
pub(crate) struct Golden {
    lane: String,
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    #[serde(skip)]
    pub(crate) vector: Vec<f32>,
}

impl Golden {
    pub(crate) fn lane(&self) -> Lane {
        match self.lane.as_str() {
            "query" => Lane::Query,
            _ => Lane::Bulk,
        }
    }
}

/// All of a kept model.
pub(crate) fn golden(name: &str) -> Vec<Golden> {
    let lines = std::fs::read_to_string(data().join(name).join("golden.jsonl")).unwrap();
    let floats = std::fs::read(data().join(name).join("golden.f32")).unwrap();
    let (floats, _) = floats.as_chunks::<4>();
    let floats: Vec<f32> = floats
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    let width = floats.len() / lines.lines().count();
    let vectors = floats.chunks_exact(width);
    let golden = lines.lines().zip(vectors).map(|(line, vector)| Golden {
        vector: vector.to_vec(),
        ..serde_json::from_str(line).unwrap()
    });
    golden.collect()
}
