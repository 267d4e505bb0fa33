//! Damaged model files: whatever bytes they have, opening ends with an embedder or an error.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/graphs.rs"]
mod graphs;
#[path = "support/runtime.rs"]
mod runtime;

use graphs::Variant;
use proptest::prelude::*;
use serde_json::json;
use std::path::Path;
use vectide_model::{ComponentError, Lane, OpenContext};
use vectide_onnx::{OnnxConfig, open};

const FILES: [&str; 5] = [
    "model.onnx",
    "model.onnx_data",
    "tokenizer.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
];

fn variant() -> Variant {
    Variant {
        inputs: vec![
            "input_ids",
            "attention_mask",
            "token_type_ids",
            "position_ids",
        ],
        outside: Some("model.onnx_data"),
        ..Variant::default()
    }
}

/// Opens a folder; an error must name its field and fact.
fn open_folder(folder: &Path, library: &Path) -> Result<(), ComponentError> {
    let config = OnnxConfig {
        path: folder.into(),
        library: Some(library.into()),
        threads: Some(1),
        ..OnnxConfig::default()
    };
    let context = OpenContext::in_folder("/");
    match open(&config, &context) {
        Ok(model) => {
            // Vectors of changed weights may be anything finite; others are an error.
            if let Ok(vectors) = model.embed(Lane::Bulk, &["some water", ""]) {
                assert!(vectors.iter().flatten().all(|value| value.is_finite()));
            }
            Ok(())
        }
        Err(error) => {
            let fields = [
                "path",
                "max_tokens",
                "pooling",
                "passage_prefix",
                "query_prefix",
            ];
            let is_told = fields.contains(&error.field.as_str());
            assert!(is_told && !error.fact.is_empty(), "{error:?}");
            Err(error)
        }
    }
}

#[test]
fn truncated_files_are_errors() {
    let Some(library) = runtime::library("truncated files") else {
        return;
    };
    let folder = graphs::folder(&variant());
    open_folder(folder.path(), &library).unwrap();
    for name in FILES {
        let path = folder.path().join(name);
        let contents = std::fs::read(&path).unwrap();
        let step = (contents.len() / 100).max(1);
        for length in (0..contents.len()).step_by(step) {
            std::fs::write(&path, &contents[..length]).unwrap();
            let opened = open_folder(folder.path(), &library);
            assert!(opened.is_err(), "{name} {length}");
        }
        std::fs::write(&path, contents).unwrap();
    }
    open_folder(folder.path(), &library).unwrap();
}

#[test]
fn a_truncated_real_model_is_an_error() {
    let test = "a truncated real model";
    let (Some(library), Some(whole)) = (runtime::library(test), runtime::minilm(test)) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let model = std::fs::read(whole.join("onnx/model.onnx")).unwrap();
    std::fs::copy(
        whole.join("tokenizer.json"),
        folder.path().join("tokenizer.json"),
    )
    .unwrap();
    for length in [0, 1, 1000, model.len() / 2, model.len() - 1] {
        std::fs::write(folder.path().join("model.onnx"), &model[..length]).unwrap();
        let error = open_folder(folder.path(), &library).unwrap_err();
        assert!(error.fact.contains("model.onnx"), "{error:?}");
    }
}

#[test]
fn weights_outside_are_looked_for_and_nowhere_else() {
    let Some(library) = runtime::library("weights outside the graph") else {
        return;
    };
    let folder = graphs::folder(&variant());
    std::fs::remove_file(folder.path().join("model.onnx_data")).unwrap();
    let error = open_folder(folder.path(), &library).unwrap_err();
    assert!(error.fact.contains("model.onnx_data"), "{error:?}");
    std::fs::create_dir(folder.path().join("model.onnx_data")).unwrap();
    let error = open_folder(folder.path(), &library).unwrap_err();
    assert!(error.fact.contains("no file"), "{error:?}");
    for outside in ["../weights", "/etc/passwd"] {
        let mut variant = variant();
        variant.outside = Some(outside);
        std::fs::write(folder.path().join("model.onnx"), graphs::model(&variant)).unwrap();
        let error = open_folder(folder.path(), &library).unwrap_err();
        assert!(error.fact.contains("not in its folder"), "{error:?}");
    }
}

/// The library would panic over such a map at the first text that leads there, on a thread of the pipeline.
#[test]
fn damaged_maps_of_characters_are_errors_for_all_tokenizers() {
    let Some(library) = runtime::library("damaged maps of characters") else {
        return;
    };
    // An array of one unit, which leads out of it.
    let map = json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAUAAA="});
    let sequence = json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, map]});
    let framed = graphs::unigram_tokenizer();
    for mut tokenizer in [framed.clone(), graphs::unframed(framed)] {
        for normalizer in [&map, &sequence] {
            tokenizer["normalizer"] = normalizer.clone();
            let folder = graphs::folder(&variant());
            let path = folder.path().join("tokenizer.json");
            std::fs::write(path, tokenizer.to_string()).unwrap();
            let error = open_folder(folder.path(), &library).unwrap_err();
            assert!(error.fact.contains("leads out of itself"), "{error:?}");
        }
    }
}

/// A file that is larger than anything sensible is not even read; a sparse one costs no disk.
#[test]
fn huge_files_are_not_read() {
    let Some(library) = runtime::library("huge files") else {
        return;
    };
    for name in FILES {
        let folder = graphs::folder(&variant());
        let file = std::fs::File::create(folder.path().join(name)).unwrap();
        file.set_len(40 << 30).unwrap();
        let error = open_folder(folder.path(), &library).unwrap_err();
        assert!(error.fact.contains("larger than"), "{error:?}");
    }
}

/// More in the long runs.
fn cases() -> u32 {
    let torture = std::env::var("VECTIDE_TORTURE");
    match torture.is_ok_and(|value| value == "1") {
        true => 5_000,
        false => 400,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Bytes changed, taken out and put in, most of them in the graph, in front of its tables too; tokenizers of
    /// both kinds.
    #[test]
    fn changed_bytes_end_in_a_model_or_an_error(
        file in prop_oneof![3 => Just(0), 2 => 0..FILES.len()],
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
        in_front in any::<bool>(),
        has_scores in any::<bool>(),
        is_framed in any::<bool>(),
    ) {
        let Some(library) = runtime::library("changed bytes") else {
            return Ok(());
        };
        let folder = graphs::folder(&variant());
        if has_scores {
            let mut tokenizer = graphs::unigram_tokenizer();
            if !is_framed {
                tokenizer = graphs::unframed(tokenizer);
            }
            std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        }
        let path = folder.path().join(FILES[file]);
        let mut contents = std::fs::read(&path).unwrap();
        for (place, byte, edit) in edits {
            let room = if in_front { contents.len().min(1200) } else { contents.len() };
            if room == 0 {
                break;
            }
            let place = place.index(room);
            match edit {
                0 => contents[place] = byte,
                1 => contents[place] ^= 1 << (byte % 8),
                2 => drop(contents.remove(place)),
                _ => contents.insert(place, b"0123456789{}[]\",-."[byte as usize % 18]),
            }
        }
        std::fs::write(&path, contents).unwrap();
        let _ = open_folder(folder.path(), &library);
    }
}
