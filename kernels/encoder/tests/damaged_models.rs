//! Damaged model files: whatever bytes they have, opening ends with an embedder or an error, and
//! takes no more memory than the files have.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/random_models.rs"]
mod random_models;

use proptest::prelude::*;
use random_models::{OTHERS, small_folder, small_other_folder};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use vectide_encoder::Tokenizer;
use vectide_encoder::bert::BertConfig;
use vectide_model::{EmbedderConfig, Lane, OpenContext, TokenCounter};

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

/// All files of one model.
type Files = Vec<(&'static str, Vec<u8>)>;

/// Models: a plain BERT, then one of each other architecture.
const MODELS: usize = 1 + OTHERS.len();

/// The files of a small model of each architecture.
static WHOLE: LazyLock<Vec<Files>> = LazyLock::new(|| {
    let of_model = |model: usize| {
        let (_temporary, folder) = match model.checked_sub(1) {
            None => small_folder(),
            Some(other) => small_other_folder(OTHERS[other]),
        };
        let tokenizer = json!({"model_max_length": 64});
        std::fs::write(folder.join(FILES[3]), tokenizer.to_string()).unwrap();
        let lengths = json!({"max_seq_length": 60, "do_lower_case": model == 0});
        std::fs::write(folder.join(FILES[4]), lengths.to_string()).unwrap();
        let read = |name| (name, std::fs::read(folder.join(name)).unwrap());
        FILES.into_iter().map(read).collect()
    };
    (0..MODELS).map(of_model).collect()
});

/// Memory is the process's: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Opens a model with some files replaced; an error must name its field and fact. Returns whether
/// it could be opened.
fn open_with(model: usize, changes: &[(&str, &[u8])]) -> bool {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    for (name, contents) in &WHOLE[model] {
        let changed = changes.iter().find(|(it, _)| it == name);
        let contents = changed.map_or(contents.as_slice(), |(_, contents)| contents);
        std::fs::write(folder.join(name), contents).unwrap();
    }
    open(folder)
}

fn open(folder: &Path) -> bool {
    let config = BertConfig::in_folder(folder);
    let context = OpenContext::in_folder("/");
    let _ = config.locate(&context);
    match config.open(&context) {
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

/// The memory that the process has, in MiB; from here on [`memory_peak`] is of what follows, not of what
/// other tests took before. Linux alone has both.
fn memory_from_here() -> u64 {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    memory_peak()
}

/// The most memory that the process had since [`memory_from_here`], in MiB.
fn memory_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    kilobytes.map_or(0, |number| number.parse::<u64>().unwrap() / 1024)
}

fn whole(model: usize, name: &str) -> &'static [u8] {
    let found = WHOLE[model].iter().find(|(it, _)| *it == name);
    &found.unwrap().1
}

#[test]
fn huge_declared_sizes_take_no_memory() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(open_with(0, &[]));
    let before = memory_from_here();
    let config: Value = serde_json::from_slice(whole(0, "config.json")).unwrap();
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
            let opened = open_with(0, &[("config.json", config.to_string().as_bytes())]);
            assert!(!opened || value == 1, "{name} {value}");
        }
    }
    let weights = whole(0, "model.safetensors");
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
                !open_with(0, &[("model.safetensors", &file)]),
                "{shape} {offsets}"
            );
        }
    }
    for length in [0, 7, 1 << 20, 1 << 40, u64::MAX] {
        let mut file = weights.to_vec();
        file[..8].copy_from_slice(&length.to_le_bytes());
        assert!(!open_with(0, &[("model.safetensors", &file)]), "{length}");
    }
    let more = memory_peak() - before;
    assert!(more < 100, "{more} MiB");
}

/// A file that is larger than anything sensible is not even read; a sparse one costs no disk.
#[test]
fn huge_files_are_not_read() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let before = memory_from_here();
    for name in FILES {
        let (_temporary, folder) = small_folder();
        let file = std::fs::File::create(folder.join(name)).unwrap();
        file.set_len(20 << 30).unwrap();
        assert!(!open(&folder), "{name}");
    }
    let more = memory_peak() - before;
    assert!(more < 1024, "{more} MiB");
}

#[test]
fn truncated_files_are_errors() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for model in 0..MODELS {
        for (name, contents) in &WHOLE[model] {
            let step = (contents.len() / 50).max(1);
            for length in (0..contents.len() - 2).step_by(step) {
                let opened = open_with(model, &[(name, &contents[..length])]);
                assert!(!opened, "{model} {name} {length}");
            }
        }
    }
}

/// Every number of every other architecture's description; some may be anything.
#[test]
fn huge_numbers_of_other_architectures_take_no_memory() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for model in 1..MODELS {
        assert!(open_with(model, &[]));
        let before = memory_from_here();
        let config: Value = serde_json::from_slice(whole(model, "config.json")).unwrap();
        for (name, was) in config.as_object().unwrap() {
            if !was.is_number() {
                continue;
            }
            for value in [
                0_u64,
                1,
                256,
                1 << 10,
                1 << 16,
                1 << 20,
                1 << 31,
                1 << 40,
                u64::MAX,
            ] {
                let mut config = config.clone();
                config[name] = value.into();
                open_with(model, &[("config.json", config.to_string().as_bytes())]);
            }
        }
        let more = memory_peak() - before;
        assert!(more < 100, "{model}: {more} MiB");
    }
}

/// A tokenizer whose pieces would make the library's tree of them gigabytes large, and one that would
/// make a text a million times as long.
#[test]
fn a_tokenizer_that_would_explode_takes_no_memory() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let before = memory_from_here();
    let unigram: Value = serde_json::from_slice(whole(1, "tokenizer.json")).unwrap();
    let mut many = unigram.clone();
    let pieces = (0..60_000_u64).map(|index| {
        let digits = format!("{:016x}", index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        json!([digits.repeat(10), -1.0])
    });
    many["model"]["vocab"]
        .as_array_mut()
        .unwrap()
        .extend(pieces);
    let mut long = unigram.clone();
    long["model"]["vocab"][300][0] = "a".repeat(1 << 20).into();
    let mut replaced = unigram;
    replaced["normalizer"] =
        json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(1 << 20)});
    for tokenizer in [many, long, replaced] {
        assert!(!open_with(
            1,
            &[("tokenizer.json", tokenizer.to_string().as_bytes())]
        ));
    }
    let more = memory_peak() - before;
    assert!(more < 200, "{more} MiB");
}

/// BPE keeps words for each thread, and for as long as it lives.
#[test]
fn words_take_no_memory_for_good() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let json = whole(MODELS - 1, "tokenizer.json");
    let tokenizer = Tokenizer::from_json(json, usize::MAX).unwrap();
    let words = (0..12_000_u32).map(|index| {
        let letter = |place: u32| char::from(b'a' + (index >> (2 * place)) as u8 % 4);
        let distinct: String = (0..8).map(letter).collect();
        format!("{}{distinct} ", "xyz".repeat(80))
    });
    let text: String = words.collect();
    let before = memory_from_here();
    assert!(tokenizer.count(&text) >= 12_000);
    let more = memory_peak() - before;
    assert!(more < 30, "{more} MiB");
}

/// An architecture without a table of positions in its weights makes one.
#[test]
fn a_table_of_many_positions_is_refused() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for (model, name) in [(2, "n_positions"), (3, "max_position_embeddings")] {
        let mut config: Value = serde_json::from_slice(whole(model, "config.json")).unwrap();
        let heads = ["n_head", "num_attention_heads"][model - 2];
        for (positions, heads_of_model, expected) in
            [(1 << 16, 2, true), (1 << 15, 1, true), (1 << 16, 1, false)]
        {
            config[name] = positions.into();
            config[heads] = heads_of_model.into();
            let opened = open_with(model, &[("config.json", config.to_string().as_bytes())]);
            assert_eq!(opened, expected, "{model} {positions} {heads_of_model}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(900))]

    /// Bytes changed, taken out and put in; the header of the weights, where most bytes matter, gets
    /// its share.
    #[test]
    fn changed_bytes_end_in_a_model_or_an_error(
        model in 0..MODELS,
        file in 0..FILES.len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
        in_front in any::<bool>(),
    ) {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, contents) = &WHOLE[model][file];
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
        open_with(model, &[(name, &contents)]);
    }

    /// SentencePiece's map of characters, which the library follows without looking at its bounds.
    #[test]
    fn a_changed_map_of_characters_never_panics(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0..64_usize), 1..9),
    ) {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut json: Value = serde_json::from_slice(whole(1, "tokenizer.json")).unwrap();
        let map = &mut json["normalizer"]["normalizers"][0]["precompiled_charsmap"];
        let mut digits = map.as_str().unwrap().as_bytes().to_vec();
        for (place, digit) in edits {
            let place = place.index(digits.len());
            digits[place] = DIGITS[digit];
        }
        *map = String::from_utf8(digits).unwrap().into();
        if let Ok(tokenizer) = Tokenizer::from_json(json.to_string().as_bytes(), usize::MAX) {
            prop_assert!(tokenizer.encode(&EVERYTHING).len() > 2);
        }
    }
}

/// Characters of all lengths.
static EVERYTHING: LazyLock<String> = LazyLock::new(|| {
    let characters = ('\u{0}'..'\u{3400}').chain('\u{fe00}'..='\u{ffff}');
    characters.chain('\u{1f300}'..'\u{1f900}').collect()
});
