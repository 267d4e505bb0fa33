//! XLM-RoBERTa, nomic-bert and ModernBERT from folders of their files, against a public implementation.
//!
//! Their files in `data/random` were made once by PyTorch and SentencePiece;
//! `scripts/golden_other_encoders.py` says how.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/corpora.rs"]
mod corpora;
#[path = "support/random_models.rs"]
mod random_models;

use random_models::{Golden, OTHERS, golden, other_folder, small_other_folder};
use safetensors::tensor::{TensorView, serialize};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;
use vectide_encoder::bert::{self, BertConfig};
use vectide_encoder::{Backend, Products, SentenceEncoder};
use vectide_model::{
    Embedder, EmbedderConfig, Lane, OpenContext, Precision, TokenCounter, embedder_contract,
};

fn config(folder: &Path) -> BertConfig {
    BertConfig::in_folder(folder)
}

fn context() -> OpenContext {
    OpenContext::in_folder("/")
}

fn open_on(config: &BertConfig, backend: Backend) -> SentenceEncoder {
    bert::open_on(config, &context(), backend).unwrap()
}

fn prefix(name: &str, case: &Golden) -> &'static str {
    match (name, case.lane()) {
        ("xlm-roberta-384", Lane::Query) => "query: ",
        ("xlm-roberta-384", Lane::Bulk) => "passage: ",
        ("nomic-256", Lane::Query) => "search_query: ",
        ("nomic-256", Lane::Bulk) => "search_document: ",
        _ => "",
    }
}

#[test]
fn vectors_are_those_of_the_reference_on_every_instruction_set() {
    for name in OTHERS {
        let (_temporary, folder) = other_folder(name);
        config(&folder).locate(&context()).unwrap();
        for backend in Backend::available() {
            let model = open_on(&config(&folder), backend);
            let mut largest = 0.0_f32;
            for case in golden(name) {
                let vector = &model.embed(case.lane(), &[&case.text]).unwrap()[0];
                assert_eq!(vector.len(), case.vector.len());
                for (x, y) in vector.iter().zip(&case.vector) {
                    largest = largest.max((x - y).abs());
                }
            }
            println!("{name} on {backend:?}: largest difference {largest:.1e}");
            assert!(largest < 1e-5, "{name} on {backend:?}: {largest:e}");
        }
    }
}

/// Random weights lose more in bfloat16 than trained ones: enough that a wrong product would show.
#[test]
fn bfloat16_is_near() {
    if !Products::Bf16.are_available(Backend::best()) {
        println!("skipped: bfloat16_is_near: this processor has no such products");
        return;
    }
    for name in OTHERS {
        let (_temporary, folder) = other_folder(name);
        let config = BertConfig {
            precision: Precision::Bf16,
            ..config(&folder)
        };
        let model = open_on(&config, Backend::best());
        let mut least = 1.0_f32;
        for case in golden(name) {
            let vector = &model.embed(case.lane(), &[&case.text]).unwrap()[0];
            least = least.min(vector.iter().zip(&case.vector).map(|(x, y)| x * y).sum());
        }
        println!("{name} in bfloat16: least cosine {least:.6}");
        assert!(least > 0.998, "{name}: {least}");
    }
}

/// XLM-RoBERTa's are SentencePiece's own, of many scripts.
#[test]
fn ids_are_those_of_the_reference() {
    for name in OTHERS {
        let (_temporary, folder) = other_folder(name);
        let model = open_on(&config(&folder), Backend::best());
        for case in golden(name) {
            let text = format!("{}{}", prefix(name, &case), case.text);
            assert_eq!(
                model.tokenizer().encode(&text),
                case.ids,
                "{name}: {text:?}"
            );
        }
    }
}

#[test]
fn they_keep_the_contract_of_embedders() {
    for name in OTHERS {
        let (_temporary, folder) = small_other_folder(name);
        embedder_contract(&open_on(&config(&folder), Backend::best()));
        let cut = BertConfig {
            dimensions: Some(32),
            max_tokens: Some(20),
            query_prefix: Some("query: ".into()),
            ..config(&folder)
        };
        let cut = open_on(&cut, Backend::best());
        assert_eq!(cut.identity().dimension, 32);
        embedder_contract(&cut);
    }
}

#[test]
fn a_text_has_the_same_bits_in_every_batch() {
    for name in OTHERS {
        let (_temporary, folder) = small_other_folder(name);
        let cases = golden(name);
        let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
        for backend in Backend::available() {
            let model = open_on(&config(&folder), backend);
            let together = model.embed(Lane::Bulk, &texts).unwrap();
            let reversed: Vec<&str> = texts.iter().rev().copied().collect();
            let mut reversed = model.embed(Lane::Bulk, &reversed).unwrap();
            reversed.reverse();
            assert!(together == reversed, "{name} on {backend:?}");
            for (text, vector) in texts.iter().zip(&together) {
                let alone = model.embed(Lane::Bulk, &[text]).unwrap();
                assert!(alone[0] == *vector, "{name} on {backend:?}: {text:?}");
            }
        }
    }
}

/// A megabyte of each kind of text that breaks tokenizers: as many tokens as the model takes, soon.
#[test]
fn hostile_and_long_texts_are_embedded() {
    for name in OTHERS {
        let (_temporary, folder) = small_other_folder(name);
        let model = open_on(&config(&folder), Backend::best());
        let start = Instant::now();
        for unit in [
            "\0",
            " ",
            "a",
            "words and more words ",
            "\n\t\u{3000}\u{a0}",
            "مرحبا بالعالم ",
            "\u{202e}שָׁלוֹם\u{202c} ",
            "👨\u{200d}👩\u{200d}👧🇯🇵👍🏽",
            "日本語の文章。",
            "e\u{301}\u{323} ",
            "<s></s><pad><mask>[CLS][SEP]",
            "\u{fffd}\u{feff}\u{ad}\u{200b}",
        ] {
            let text = unit.repeat((1 << 20) / unit.len());
            let vectors = model.embed(Lane::Query, &[&text, unit, ""]).unwrap();
            assert!(vectors.iter().flatten().all(|value| value.is_finite()));
            let tokenizer = model.tokenizer();
            let counted = tokenizer.count(unit);
            let ids = tokenizer.encode(unit).len();
            assert!(ids == counted + 2, "{name}: {unit:?}");
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("{name}: twelve megabytes in {seconds:.1} s");
        assert!(seconds < 60.0, "{name}: {seconds}");
    }
}

/// Where a text is cut before it goes to the library must not show.
#[test]
fn long_texts_have_the_librarys_ids() {
    for name in ["xlm-roberta-384", "modernbert-192"] {
        let (_temporary, folder) = small_other_folder(name);
        let json = std::fs::read(folder.join("tokenizer.json")).unwrap();
        let tokenizer = vectide_encoder::Tokenizer::from_json(&json, usize::MAX).unwrap();
        let limited = vectide_encoder::Tokenizer::from_json(&json, 100).unwrap();
        let parts = [
            "the water ",
            "of  a   long ",
            "rivière\u{301} ",
            "日本語の 文章。 ",
            "  ",
            "\n\n",
            " <mask> ",
            "x<pad>y ",
            "Вода течёт ",
            "\u{200b} a\u{200b} ",
            "e\u{301} \u{301}",
            "मों का ",
            "[MASK] don't I'll ",
            "12 345 ",
            "\0",
            "🙂 👍🏽 ",
            "كلمة \u{64b} ",
            "ｆｕｌｌ　wide ",
        ];
        let mut state = 1_u64;
        for _ in 0..40 {
            let mut text = String::new();
            while text.len() < 30_000 {
                state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                text.push_str(parts[(state >> 33) as usize % parts.len()]);
            }
            let expected = tokenizer.encode_by_library(&text).unwrap();
            assert!(tokenizer.encode(&text) == expected, "{name}");
            assert_eq!(tokenizer.count(&text), expected.len() - 2, "{name}");
            assert_eq!(limited.encode(&text)[..99], expected[..99], "{name}");
            assert_eq!(limited.encode(&text)[99..], expected[expected.len() - 1..]);
        }
    }
}

/// A real vocabulary is too large to keep: VECTIDE_TEST_TOKENIZER names a folder with a tokenizer.json,
/// and where there is one, `ids.jsonl`, {"text", "ids"} a line, by another implementation.
#[test]
fn a_real_tokenizer_that_is_named() {
    let Some(folder) = std::env::var_os("VECTIDE_TEST_TOKENIZER") else {
        println!("skipped: a_real_tokenizer_that_is_named: VECTIDE_TEST_TOKENIZER is not set");
        return;
    };
    let folder = Path::new(&folder);
    let json = std::fs::read(folder.join("tokenizer.json")).unwrap();
    let start = Instant::now();
    let tokenizer = vectide_encoder::Tokenizer::from_json(&json, usize::MAX).unwrap();
    println!("read in {:.1} s", start.elapsed().as_secs_f64());
    let lines = std::fs::read_to_string(folder.join("ids.jsonl")).unwrap_or_default();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let ids: Vec<u32> = serde_json::from_value(line["ids"].clone()).unwrap();
        let text = line["text"].as_str().unwrap();
        assert!(tokenizer.encode(text) == ids, "{text:.80}");
    }
    println!(
        "{} texts have the other implementation's ids",
        lines.lines().count()
    );
    for corpus in &corpora::RETRIEVAL {
        let Some(texts) = corpus.texts("a_real_tokenizer_that_is_named") else {
            continue;
        };
        let start = Instant::now();
        let tokens: usize = texts.iter().map(|text| tokenizer.encode(text).len()).sum();
        let speed = tokens as f64 / start.elapsed().as_secs_f64() / 1e6;
        for text in &texts {
            let ids = tokenizer.encode_by_library(text).unwrap();
            assert!(tokenizer.encode(text) == ids, "{text:.80}");
            assert_eq!(tokenizer.count(text), ids.len() - 2, "{text:.80}");
        }
        let corpus = format!("{} {}", corpus.file, corpus.field);
        println!("{corpus}: {tokens} tokens, {speed:.2} Mtok/s");
    }
}

fn edit(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn options_that_are_not_computed_are_named() {
    let check = |name: &str, key: &str, value: Value, expected: &str| {
        let (_temporary, folder) = small_other_folder(name);
        edit(&folder, |it| it[key] = value);
        let error = config(&folder).locate(&context()).unwrap_err();
        assert!(error.fact.contains(expected), "{error}");
        assert!(!error.hint.is_empty());
    };
    let nomic = |key: &str, value: Value, fact: &str| check("nomic-256", key, value, fact);
    nomic("activation_function", json!("geglu"), "activation `geglu`");
    nomic("rotary_emb_fraction", json!(0.5), "rotary");
    nomic("rotary_scaling_factor", json!(2), "rotary");
    nomic("rotary_emb_base", json!(0), "a base of rotary");
    nomic("prenorm", json!(true), "prenorm");
    nomic("qkv_proj_bias", json!(true), "a bias");
    nomic("moe_every_n_layers", json!(2), "a mixture of experts");
    let modern = |key: &str, value: Value, fact: &str| check("modernbert-192", key, value, fact);
    modern("hidden_activation", json!("silu"), "activation `silu`");
    modern("norm_bias", json!(true), "a bias");
    modern("rope_scaling", json!({"type": "yarn"}), "scaled");
    modern("layer_types", json!(["full_attention"]), "layer_types");
    let layers = json!(["sliding_attention", "full_attention"]);
    modern("layer_types", layers, "layer_types");
    modern("global_attn_every_n_layers", json!(0), "layer_types");
    let scaled = json!({"rope_theta": 1000, "rope_type": "linear"});
    let ropes = json!({"full_attention": scaled, "sliding_attention": {}});
    modern("rope_parameters", ropes, "scaled");
    nomic("head_dim", json!(64), "head_dim");
    let partial = json!({"rope_theta": 1000, "partial_rotary_factor": 0.5});
    nomic("rope_parameters", partial.clone(), "partial");
    let ropes = json!({"full_attention": {}, "sliding_attention": partial});
    modern("rope_parameters", ropes, "partial");
    // Its own code takes them otherwise where a file says nothing.
    for key in [
        "qkv_proj_bias",
        "mlp_fc1_bias",
        "mlp_fc2_bias",
        "rotary_emb_fraction",
        "rotary_emb_base",
        "activation_function",
        "layer_norm_epsilon",
    ] {
        nomic(key, Value::Null, &format!("{key} is missing"));
    }
    check(
        "xlm-roberta-384",
        "pad_token_id",
        json!(500),
        "pad_token_id 500",
    );
    check("xlm-roberta-384", "hidden_act", json!("relu"), "`relu`");
}

#[test]
fn a_bias_that_is_not_added_is_an_error() {
    for (name, tensors) in [
        (
            "nomic-256",
            &[
                "encoder.layers.0.attn.Wqkv.bias",
                "encoder.layers.1.attn.out_proj.bias",
                "encoder.layers.0.mlp.fc11.bias",
                "encoder.layers.1.mlp.fc12.bias",
                "encoder.layers.1.mlp.fc2.bias",
            ][..],
        ),
        (
            "modernbert-192",
            &[
                "layers.0.attn.Wqkv.bias",
                "layers.1.attn.Wo.bias",
                "layers.0.mlp.Wi.bias",
                "layers.1.mlp.Wo.bias",
                "layers.1.attn_norm.bias",
                "layers.0.mlp_norm.bias",
                "embeddings.norm.bias",
                "final_norm.beta",
            ],
        ),
    ] {
        let (_temporary, folder) = small_other_folder(name);
        let path = folder.join("model.safetensors");
        let whole = std::fs::read(&path).unwrap();
        let whole = SafeTensors::deserialize(&whole).unwrap();
        for tensor in tensors {
            let mut changed = whole.tensors();
            let bias = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
            changed.push(((*tensor).to_owned(), bias));
            std::fs::write(&path, serialize(changed, None).unwrap()).unwrap();
            let error = config(&folder).open(&context()).err().unwrap();
            assert!(error.fact.contains(tensor), "{error}");
        }
    }
}

/// Newer versions of `transformers` write other names and the same model.
#[test]
fn newer_names_mean_the_same() {
    for (name, change) in [
        ("nomic-256", newer_nomic as fn(&mut Value)),
        ("modernbert-192", newer_modern),
    ] {
        let (_temporary, folder) = other_folder(name);
        let cases = golden(name);
        let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
        let embed = || {
            let model = open_on(&config(&folder), Backend::best());
            (
                model.identity().fingerprint.clone(),
                model.embed(Lane::Bulk, &texts).unwrap(),
            )
        };
        let before = embed();
        edit(&folder, change);
        assert!(embed() == before, "{name}");
    }
}

fn newer_nomic(config: &mut Value) {
    let old = config.take();
    *config = json!({
        "model_type": "nomic_bert", "hidden_act": "silu", "vocab_size": old["vocab_size"],
        "hidden_size": old["n_embd"], "num_hidden_layers": old["n_layer"],
        "num_attention_heads": old["n_head"], "intermediate_size": old["n_inner"],
        "max_position_embeddings": old["n_positions"], "type_vocab_size": old["type_vocab_size"],
        "layer_norm_eps": old["layer_norm_epsilon"], "head_dim": 64,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
    });
}

fn newer_modern(config: &mut Value) {
    let map = config.as_object_mut().unwrap();
    let rope = |theta: Option<Value>| json!({"rope_theta": theta, "rope_type": "default"});
    let ropes = json!({
        "full_attention": rope(map.remove("global_rope_theta")),
        "sliding_attention": rope(map.remove("local_rope_theta")),
    });
    map.insert("rope_parameters".into(), ropes);
    map.remove("global_attn_every_n_layers");
    let kinds = ["full", "sliding", "sliding", "full"].map(|kind| format!("{kind}_attention"));
    map.insert("layer_types".into(), json!(kinds));
}

/// The fingerprint follows what else tells architectures apart.
#[test]
fn the_fingerprint_follows_the_architecture() {
    let (_temporary, folder) = small_other_folder("modernbert-192");
    let fingerprint = || {
        let model = open_on(&config(&folder), Backend::best());
        model.identity().fingerprint.clone()
    };
    let mut seen = vec![fingerprint()];
    for (key, value) in [
        ("local_attention", json!(32)),
        ("global_rope_theta", json!(10_000)),
        ("local_rope_theta", json!(5000)),
        ("global_attn_every_n_layers", json!(2)),
    ] {
        edit(&folder, |it| it[key] = value);
        seen.push(fingerprint());
    }
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count, "{seen:?}");
}
