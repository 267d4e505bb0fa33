//! Damaged model files: whatever bytes they have, opening ends with an embedder or an error, and
//! takes no more memory than the files have.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/random_models.rs"]
mod random_models;

use proptest::prelude::*;
use random_models::small_folder;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use vectide_encoder::bert;
use vectide_model::{EmbedConfig, Lane, OpenContext};

const FILES: [&str; 8] = [
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "model.safetensors",
];

/// The files of a small model, all of them.
static WHOLE: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(|| {
    let (_temporary, folder) = small_folder();
    let lengths = json!({"max_seq_length": 60, "do_lower_case": true});
    std::fs::write(folder.join(FILES[4]), lengths.to_string()).unwrap();
    let read = |name| (name, std::fs::read(folder.join(name)).unwrap());
    FILES.into_iter().map(read).collect()
});

/// Memory is the process's: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Opens the model with some files replaced; an error must name its field and fact. Returns whether
/// it could be opened.
fn open_with(changes: &[(&str, &[u8])]) -> bool {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    for (name, contents) in WHOLE.iter() {
        let changed = changes.iter().find(|(it, _)| it == name);
        let contents = changed.map_or(contents.as_slice(), |(_, contents)| contents);
        std::fs::write(folder.join(name), contents).unwrap();
    }
    open(folder)
}

fn open(folder: &Path) -> bool {
    let config = EmbedConfig {
        path: Some(folder.into()),
        ..EmbedConfig::named(bert::MODEL_NAME)
    };
    let context = OpenContext {
        config_dir: "/".into(),
    };
    let _ = bert::locate(&config, &context);
    match bert::open(&config, &context) {
        Ok(model) => {
            // Vectors of changed weights may be anything finite; others are an error.
            if let Ok(vectors) = model.embed(Lane::Bulk, &["some water", ""]) {
                assert!(vectors.iter().flatten().all(|value| value.is_finite()));
            }
            true
        }
        Err(error) => {
            let is_told = error.field.ends_with("prefix") || error.field == "path";
            assert!(is_told && !error.fact.is_empty(), "{error:?}");
            false
        }
    }
}

/// The most memory that the process ever had, in MiB.
fn memory_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    kilobytes.map_or(0, |number| number.parse::<u64>().unwrap() / 1024)
}

fn whole(name: &str) -> &'static [u8] {
    let found = WHOLE.iter().find(|(it, _)| *it == name);
    &found.unwrap().1
}

#[test]
fn huge_declared_sizes_take_no_memory() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(open_with(&[]));
    let before = memory_peak();
    let config: Value = serde_json::from_slice(whole("config.json")).unwrap();
    for name in [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "vocab_size",
        "type_vocab_size",
    ] {
        for value in [0_u64, 1, 256, 1 << 10, 1 << 20, 1 << 31, 1 << 40, u64::MAX] {
            let mut config = config.clone();
            config[name] = value.into();
            let opened = open_with(&[("config.json", config.to_string().as_bytes())]);
            assert!(!opened || value == 1, "{name} {value}");
        }
    }
    let weights = whole("model.safetensors");
    let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&weights[8..8 + length]).unwrap();
    for shape in [
        json!([1_u64 << 40, 64]),
        json!([u64::MAX, u64::MAX]),
        json!([0, 64]),
        json!([]),
    ] {
        for offsets in [
            json!([0, 256]),
            json!([0, 1_u64 << 50]),
            json!([u64::MAX, 0]),
        ] {
            let mut header = header.clone();
            let tensor = &mut header["embeddings.token_type_embeddings.weight"];
            tensor["shape"] = shape.clone();
            tensor["data_offsets"] = offsets.clone();
            let header = header.to_string();
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header.as_bytes());
            file.extend(&weights[8 + length..]);
            assert!(
                !open_with(&[("model.safetensors", &file)]),
                "{shape} {offsets}"
            );
        }
    }
    for length in [0, 7, 1 << 20, 1 << 40, u64::MAX] {
        let mut file = weights.to_vec();
        file[..8].copy_from_slice(&length.to_le_bytes());
        assert!(!open_with(&[("model.safetensors", &file)]), "{length}");
    }
    let more = memory_peak() - before;
    assert!(more < 100, "{more} MiB");
}

/// A file that is larger than anything sensible is not even read; a sparse one costs no disk.
#[test]
fn huge_files_are_not_read() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for name in FILES {
        let (_temporary, folder) = small_folder();
        let file = std::fs::File::create(folder.join(name)).unwrap();
        file.set_len(20 << 30).unwrap();
        assert!(!open(&folder), "{name}");
    }
    assert!(memory_peak() < 1024, "{} MiB", memory_peak());
}

#[test]
fn truncated_files_are_errors() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, contents) in WHOLE.iter() {
        let step = (contents.len() / 50).max(1);
        for length in (0..contents.len() - 2).step_by(step) {
            assert!(
                !open_with(&[(name, &contents[..length])]),
                "{name} {length}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Bytes changed, taken out and put in; the header of the weights, where most bytes matter, gets
    /// its share.
    #[test]
    fn changed_bytes_end_in_a_model_or_an_error(
        file in 0..FILES.len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
        in_front in any::<bool>(),
    ) {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, contents) = &WHOLE[file];
        let mut contents = contents.clone();
        for (place, byte, edit) in edits {
            let room = if in_front { contents.len().min(4000) } else { contents.len() };
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
        open_with(&[(name, &contents)]);
    }
}
