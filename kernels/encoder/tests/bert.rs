//! BERT encoders of other sizes from folders of their files, against a public implementation.
//!
//! `data/random` was made once by JAX; `scripts/golden_random_models.py` says how. The weights are a
//! formula ([`random_models`]), so the numbers are checked where no real weights can be kept.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/random_models.rs"]
mod random_models;

use random_models::{folder, golden, small_folder};
use safetensors::tensor::{TensorView, serialize};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::path::Path;
use vectide_encoder::bert::{self, BertConfig};
use vectide_encoder::minilm::{self, MiniLmConfig};
use vectide_encoder::{Backend, Products, SentenceEncoder, model_files};
use vectide_model::{
    ComponentError, Embedder, EmbedderConfig, Lane, OpenContext, Precision, TokenCounter,
    embedder_contract,
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

fn open(config: &BertConfig) -> SentenceEncoder {
    open_on(config, Backend::best())
}

/// Every model, on every instruction set, in both lanes.
fn check_golden(name: &str, dtype: Dtype, part: &str) {
    let (_temporary, folder) = folder(name, dtype, part);
    let config = config(&folder);
    config.locate(&context()).unwrap();
    for backend in Backend::available() {
        let model = open_on(&config, backend);
        assert_eq!(model.identity().name, name);
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
    check_bfloat16(&config, name);
}

/// Real weights: the model that is fetched by name, once more as a folder with all of its files.
#[test]
fn a_folder_gives_the_vectors_of_the_same_model_by_name() {
    let files = model_files::fetch(minilm::MODEL_NAME).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::copy(files.weights, folder.join("model.safetensors")).unwrap();
    std::fs::copy(files.tokenizer, folder.join("tokenizer.json")).unwrap();
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    for (name, contents) in [
        (
            "config.json",
            json!({"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
                "intermediate_size": 1536, "max_position_embeddings": 512, "vocab_size": 30522}),
        ),
        (
            "modules.json",
            json!([{"type": "sentence_transformers.models.Transformer", "path": ""},
                {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]),
        ),
        (
            "1_Pooling/config.json",
            json!({"pooling_mode_mean_tokens": true}),
        ),
        ("sentence_bert_config.json", json!({"max_seq_length": 256})),
    ] {
        std::fs::write(folder.join(name), contents.to_string()).unwrap();
    }
    let of_folder = open(&config(folder));
    let by_name = MiniLmConfig {
        precision: Precision::F32,
        ..MiniLmConfig::default()
    };
    let by_name = by_name.open(&context()).unwrap();
    let long = "one of many sentences about vectors. ".repeat(60);
    for lane in [Lane::Bulk, Lane::Query] {
        let texts = ["", "what is a vector?", "日本語の文", &long];
        assert!(of_folder.embed(lane, &texts).unwrap() == by_name.embed(lane, &texts).unwrap());
    }
}

/// Random weights lose more in bfloat16 than trained ones: enough that a wrong product would show.
fn check_bfloat16(config: &BertConfig, name: &str) {
    if !Products::Bf16.are_available(Backend::best()) {
        println!("skipped: {name} in bfloat16: this processor has no such products");
        return;
    }
    let model = open(&BertConfig {
        precision: Precision::Bf16,
        ..config.clone()
    });
    let mut least = 1.0_f32;
    for case in golden(name) {
        let vector = &model.embed(case.lane(), &[&case.text]).unwrap()[0];
        least = least.min(vector.iter().zip(&case.vector).map(|(x, y)| x * y).sum());
    }
    println!("{name} in bfloat16: least cosine {least:.6}");
    assert!(least > 0.999, "{name}: {least}");
}

#[test]
fn twelve_heads_of_64_and_the_first_token() {
    check_golden("cls-768", Dtype::F32, "");
}

#[test]
fn half_floats_sixteen_heads_and_the_mean() {
    check_golden("mean-1024", Dtype::F16, "bert.");
}

#[test]
fn bfloat16_and_heads_of_32() {
    check_golden("cls-384", Dtype::BF16, "");
}

#[test]
fn prefixes_and_lengths_come_from_the_files() {
    for (name, dtype, part) in [
        ("cls-768", Dtype::F32, ""),
        ("mean-1024", Dtype::F16, "bert."),
        ("cls-384", Dtype::BF16, ""),
    ] {
        let (_temporary, folder) = folder(name, dtype, part);
        let model = open(&config(&folder));
        let cases = golden(name);
        let tokens_max = cases.iter().map(|case| case.ids.len()).max().unwrap();
        for case in cases.iter().filter(|case| case.lane() == Lane::Bulk) {
            let prefix = match name {
                "cls-768" => "passage: ",
                _ => "",
            };
            let ids = model.tokenizer().encode(&format!("{prefix}{}", case.text));
            assert_eq!(ids, case.ids, "{name}: {:.40}", case.text);
            let room = tokens_max - model.tokenizer().count(prefix);
            assert_eq!(model.identity().tokens_max, room);
        }
    }
}

#[test]
fn the_configuration_goes_before_the_files() {
    let (_temporary, folder) = folder("cls-384", Dtype::BF16, "");
    let plain = open(&config(&folder));
    let cut = open(&BertConfig {
        query_prefix: Some(String::new()),
        passage_prefix: Some("the passage: ".into()),
        max_tokens: Some(16),
        dimensions: Some(128),
        ..config(&folder)
    });
    assert_eq!(cut.identity().dimension, 128);
    assert_eq!(cut.identity().tokens_max, 13);
    let text = "the water of a long river";
    let bulk = |model: &SentenceEncoder, text: &str| {
        let mut vectors = model.embed(Lane::Bulk, &[text]).unwrap();
        vectors.remove(0)
    };
    // The first dimensions, scaled to length 1 once more.
    let shorten = |vector: &[f32]| -> Vec<f32> {
        let length = vector[..128].iter().map(|x| x * x).sum::<f32>().sqrt();
        vector[..128].iter().map(|x| x / length).collect()
    };
    let near = |x: &[f32], y: &[f32]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-6);
    let with_prefix = bulk(&plain, &format!("the passage: {text}"));
    assert!(near(&bulk(&cut, text), &shorten(&with_prefix)));
    assert!(near(
        &cut.embed(Lane::Query, &[text]).unwrap()[0],
        &shorten(&bulk(&plain, text))
    ));
    // Sixteen tokens have room for eleven words beside the special ones and the prefix.
    let words = |count: usize| vec!["water"; count].join(" ");
    assert!(bulk(&cut, &words(11)) == bulk(&cut, &words(60)));
    assert!(bulk(&cut, &words(10)) != bulk(&cut, &words(60)));
    embedder_contract(&cut);
    embedder_contract(&plain);
}

#[test]
fn a_text_has_the_same_bits_in_every_batch() {
    let (_temporary, folder) = folder("cls-768", Dtype::F32, "");
    let model = open(&config(&folder));
    let cases = golden("cls-768");
    let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    let together = model.embed(Lane::Bulk, &texts).unwrap();
    for (text, vector) in texts.iter().zip(&together) {
        assert!(model.embed(Lane::Bulk, &[text]).unwrap()[0] == *vector);
    }
}

#[test]
fn the_fingerprint_follows_what_a_passage_depends_on() {
    let (_temporary, folder) = small_folder();
    let fingerprint = |config: &BertConfig| open(config).identity().fingerprint.clone();
    let plain = fingerprint(&config(&folder));
    let with = |change: fn(&mut BertConfig)| {
        let mut config = config(&folder);
        change(&mut config);
        fingerprint(&config)
    };
    assert_eq!(with(|it| it.query_prefix = Some("other: ".into())), plain);
    let mut seen = vec![
        plain.clone(),
        with(|it| it.passage_prefix = Some("other: ".into())),
        with(|it| it.max_tokens = Some(32)),
        with(|it| it.dimensions = Some(32)),
    ];
    // One bit of the weights' last value.
    let path = folder.join("model.safetensors");
    let mut weights = std::fs::read(&path).unwrap();
    let end = weights.len() - 4;
    weights[end] ^= 1;
    std::fs::write(&path, &weights).unwrap();
    seen.push(fingerprint(&config(&folder)));
    weights[end] ^= 1;
    std::fs::write(&path, weights).unwrap();
    edit(&folder, "config.json", |it| {
        it["layer_norm_eps"] = 1e-6.into()
    });
    seen.push(fingerprint(&config(&folder)));
    edit(&folder, "config.json", |it| {
        it["layer_norm_eps"] = 1e-12.into()
    });
    edit(&folder, "config.json", |it| {
        it["transformers_version"] = "9".into()
    });
    assert_eq!(fingerprint(&config(&folder)), plain);
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count, "{seen:?}");
}

fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let contents = std::fs::read(&path).unwrap_or_else(|_| b"{}".to_vec());
    let mut value = serde_json::from_slice(&contents).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// Prefixes whose tokens are not to be pooled: only a mean would have to leave them out, and only where
/// there are any once the configuration has been heard.
#[test]
fn a_mean_without_the_prefix_is_refused_where_there_is_a_prefix() {
    let (_temporary, folder) = small_folder();
    let accepted = |change: fn(&mut BertConfig)| {
        let mut config = config(&folder);
        change(&mut config);
        let located = config.locate(&context()).err();
        let opened = config.open(&context()).err();
        assert_eq!(located, opened);
        opened.map(|error| (error.field, error.fact))
    };
    let pooling = "1_Pooling/config.json";
    edit(&folder, pooling, |it| it["include_prompt"] = false.into());
    // The first token is never the prefix's.
    assert_eq!(accepted(|_| ()), None);
    edit(&folder, pooling, |it| {
        it["pooling_mode_cls_token"] = false.into();
        it["pooling_mode_mean_tokens"] = true.into();
    });
    let (field, fact) = accepted(|_| ()).unwrap();
    assert_eq!(field, "query_prefix");
    assert!(fact.contains("include_prompt"), "{fact}");
    // The files' only prefix is taken back, and another one is set.
    assert_eq!(accepted(|it| it.query_prefix = Some(String::new())), None);
    let (field, _) = accepted(|it| {
        it.query_prefix = Some(String::new());
        it.passage_prefix = Some("passage: ".into());
    })
    .unwrap();
    assert_eq!(field, "passage_prefix");
    std::fs::remove_file(folder.join("config_sentence_transformers.json")).unwrap();
    assert_eq!(accepted(|_| ()), None);
    let (field, _) = accepted(|it| it.query_prefix = Some("query: ".into())).unwrap();
    assert_eq!(field, "query_prefix");
}

/// What `vectide validate --connect` asks must be told there, not at the start.
#[test]
fn what_the_model_or_the_processor_lacks_is_told_without_reading_weights() {
    let (_temporary, folder) = small_folder();
    std::fs::write(folder.join("model.safetensors"), "").unwrap();
    let locate = |change: fn(&mut BertConfig)| {
        let mut config = config(&folder);
        change(&mut config);
        let located = bert::locate_on(&config, &context(), Backend::Portable);
        located.map_err(|error| error.field)
    };
    assert!(locate(|it| it.dimensions = Some(64)).is_ok());
    let field = |change| locate(change).unwrap_err();
    assert_eq!(field(|it| it.dimensions = Some(5000)), "dimensions");
    assert_eq!(field(|it| it.precision = Precision::Bf16), "precision");
    assert_eq!(field(|it| it.max_tokens = Some(129)), "max_tokens");
}

/// What a model other than the measured one loses in bfloat16 is not known: it is another model.
#[test]
fn the_fingerprint_follows_bfloat16() {
    let (_temporary, folder) = small_folder();
    let fingerprint = |precision| {
        let model = open(&BertConfig {
            precision,
            ..config(&folder)
        });
        model.identity().fingerprint.clone()
    };
    let plain = fingerprint(Precision::F32);
    assert_eq!(fingerprint(Precision::Auto), plain);
    if !Products::Bf16.are_available(Backend::best()) {
        println!("skipped: the_fingerprint_follows_bfloat16: this processor has no such products");
        return;
    }
    assert_eq!(fingerprint(Precision::Bf16), format!("{plain}-bf16"));
}

/// Weights that are finite but whose scores are not: no vector that looks right may come of them.
#[test]
fn scores_beyond_the_largest_float_are_an_error() {
    let (_temporary, folder) = small_folder();
    let path = folder.join("model.safetensors");
    let file = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap().tensors();
    let huge = 1e25_f32.to_le_bytes().repeat(64 * 64);
    let changed = tensors.into_iter().map(|(name, tensor)| {
        let is_huge = name.ends_with("self.query.weight") || name.ends_with("self.key.weight");
        let data = if is_huge {
            huge.as_slice()
        } else {
            tensor.data()
        };
        let tensor = TensorView::new(tensor.dtype(), tensor.shape().to_vec(), data).unwrap();
        (name, tensor)
    });
    let changed = serialize(changed, None).unwrap();
    std::fs::write(&path, changed).unwrap();
    for backend in Backend::available() {
        let model = open_on(&config(&folder), backend);
        let error = model.embed(Lane::Bulk, &["some water"]).unwrap_err();
        assert!(
            error.to_string().contains("not finite"),
            "{backend:?}: {error}"
        );
    }
}

/// What `change` makes of a model that can be opened.
fn refused(change: impl FnOnce(&Path, &mut BertConfig)) -> ComponentError {
    let (_temporary, folder) = small_folder();
    let mut config = config(&folder);
    assert!(config.open(&context()).is_ok());
    change(&folder, &mut config);
    let error = config.open(&context()).err();
    error.expect("an error")
}

fn refused_file(file: &str, change: impl FnOnce(&mut Value), fact: &str, hint: &str) {
    let error = refused(|folder, _| edit(folder, file, change));
    assert_eq!(error.field, "path");
    assert!(error.fact.contains(fact), "{error}");
    assert!(error.hint.contains(hint), "{}", error.hint);
}

#[test]
fn what_is_not_supported_is_named_with_what_is() {
    let config = |key: &'static str, value: Value, fact: &str, hint: &str| {
        refused_file("config.json", |it| it[key] = value, fact, hint);
    };
    config(
        "model_type",
        json!("t5"),
        "architecture `t5`",
        "model_type: bert",
    );
    config("hidden_act", json!("relu"), "activation `relu`", "GELU");
    config(
        "position_embedding_type",
        json!("relative_key"),
        "`relative_key`",
        "absolute positions",
    );
    config("is_decoder", json!(true), "a decoder", "sentence encoders");
    config(
        "num_attention_heads",
        json!(4),
        "hidden_size 64 in 4 heads",
        "multiples of 32",
    );
    config(
        "num_attention_heads",
        json!(3),
        "hidden_size 64 in 3 heads",
        "multiples of 32",
    );
    config(
        "intermediate_size",
        json!(100),
        "intermediate_size 100",
        "multiples of 32",
    );
    config("hidden_size", json!(1_u64 << 40), "hidden_size is", "");
    config("vocab_size", json!(10), "ids up to", "same revision");
    config("layer_norm_eps", json!(-1.0), "layer_norm_eps", "");
    let long_and_wide = |it: &mut Value| {
        it["max_position_embeddings"] = 65_536.into();
        it["intermediate_size"] = 2048.into();
    };
    refused_file(
        "config.json",
        long_and_wide,
        "max_position_embeddings times the numbers of a token",
        "",
    );
    config(
        "num_hidden_layers",
        json!(2),
        "encoder.layer.1",
        "same revision",
    );
    let pooling = "1_Pooling/config.json";
    let max = |it: &mut Value| {
        it["pooling_mode_cls_token"] = false.into();
        it["pooling_mode_max_tokens"] = true.into();
    };
    refused_file(pooling, max, "pooling `max_tokens`", "cls and mean");
    let both = |it: &mut Value| it["pooling_mode_mean_tokens"] = true.into();
    refused_file(pooling, both, "cls_token+mean_tokens", "one of them");
    let dense = |it: &mut Value| it[1]["type"] = "sentence_transformers.models.Dense".into();
    refused_file("modules.json", dense, "Transformer, Dense", "Pooling");
    let dot = |it: &mut Value| it["similarity_fn_name"] = "dot".into();
    refused_file("config_sentence_transformers.json", dot, "`dot`", "cosine");
    let long = |it: &mut Value| it["max_seq_length"] = 129.into();
    refused_file(
        "sentence_bert_config.json",
        long,
        "129 tokens",
        "max_position_embeddings",
    );
}

#[test]
fn a_tokenizer_that_is_not_berts_is_named() {
    let other = |it: &mut Value| it["model"]["type"] = "WordLevel".into();
    refused_file("tokenizer.json", other, "tokenizer.json", "");
    let tokenizer = |change: fn(&mut Value), fact: &str| {
        refused_file("tokenizer.json", change, fact, "same revision");
    };
    tokenizer(
        |it| it["normalizer"] = json!({"type": "Lowercase"}),
        "normalizer is Lowercase, only BertNormalizer",
    );
    tokenizer(
        |it| it["pre_tokenizer"] = json!({"type": "Whitespace"}),
        "pre_tokenizer is Whitespace",
    );
    tokenizer(
        |it| it["normalizer"]["clean_text"] = false.into(),
        "clean_text false, only true",
    );
    tokenizer(|it| it["post_processor"] = Value::Null, "[CLS] and [SEP]");
    tokenizer(
        |it| it["post_processor"]["single"][0]["SpecialToken"]["id"] = "missing".into(),
        "[CLS] and [SEP]",
    );
    let cased = |it: &mut Value| it["normalizer"]["lowercase"] = false.into();
    let error = refused(|folder, _| {
        edit(folder, "tokenizer.json", cased);
        edit(folder, "sentence_bert_config.json", |it| {
            it["do_lower_case"] = true.into()
        });
    });
    assert!(error.fact.contains("lower-cases"), "{error}");
}

#[test]
fn missing_files_and_settings_that_do_not_fit_are_named() {
    for file in [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "tokenizer.json",
        "model.safetensors",
    ] {
        let error = refused(|folder, _| std::fs::remove_file(folder.join(file)).unwrap());
        assert!(
            error.fact.contains(file) && !error.hint.is_empty(),
            "{error}"
        );
    }
    let field = |change: fn(&mut BertConfig)| refused(|_, config| change(config)).field;
    assert_eq!(field(|it| it.path = "/nowhere".into()), "path");
    assert_eq!(field(|it| it.dimensions = Some(65)), "dimensions");
    assert_eq!(field(|it| it.dimensions = Some(0)), "dimensions");
    assert_eq!(field(|it| it.max_tokens = Some(129)), "max_tokens");
    assert_eq!(field(|it| it.max_tokens = Some(2)), "max_tokens");
    assert_eq!(
        field(|it| it.query_prefix = Some("a ".repeat(62))),
        "query_prefix"
    );
    assert_eq!(
        field(|it| it.passage_prefix = Some("a ".repeat(62))),
        "passage_prefix"
    );
    assert_eq!(
        field(|it| it.device = vectide_model::Device::Cuda),
        "device"
    );
}
