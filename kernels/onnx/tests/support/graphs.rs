//! Small graphs in ONNX's format, written by hand, and the vectors that they must give.
//!
//! A graph looks up a vector for each token, adds the sum of all of its text's, and that of its type and position
//! where it has such inputs: what it gives shows when a token, a mask, a type or a position is fed wrongly. The
//! same is computed here in a few lines.
//!
//! Invariant: a graph is a function of its [`Variant`].

// Not every test uses all of it.
#![allow(dead_code)]
// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

use serde_json::json;
use std::path::{Path, PathBuf};

/// Ids that the tables have rows for.
pub(crate) const VOCABULARY: usize = 300;
/// Positions that the table has rows for.
pub(crate) const POSITIONS: usize = 66;
/// Dimensions of a vector.
pub(crate) const WIDTH: usize = 24;

/// What differs from graph to graph.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    /// The inputs' names.
    pub(crate) inputs: Vec<&'static str>,
    /// Sizes of the inputs; -1 for any.
    pub(crate) sizes: [i64; 2],
    /// The inputs' element type: 7 is int64.
    pub(crate) input_type: u64,
    /// The output's name.
    pub(crate) output: &'static str,
    /// Whether it has a vector a text instead of one a token.
    pub(crate) is_sentences: bool,
    /// Whether every vector depends on the whole batch, as in a model that is quantised as it runs.
    pub(crate) depends_on_batch: bool,
    /// Whether the output is of float16.
    pub(crate) is_half: bool,
    /// A value that the table has somewhere.
    pub(crate) poison: Option<f32>,
    /// The file that has the table, where it is not in the graph.
    pub(crate) outside: Option<&'static str>,
}

impl Default for Variant {
    fn default() -> Self {
        Self {
            inputs: vec!["input_ids", "attention_mask"],
            sizes: [-1, -1],
            input_type: 7,
            output: "last_hidden_state",
            is_sentences: false,
            depends_on_batch: false,
            is_half: false,
            poison: None,
            outside: None,
        }
    }
}

/// Numbers that look random, from -0.5 to 0.5.
fn table(seed: u64, rows: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..rows * WIDTH).map(|_| next()).collect()
}

fn tokens() -> Vec<f32> {
    table(1, VOCABULARY)
}
fn types() -> Vec<f32> {
    table(2, 4)
}
fn positions() -> Vec<f32> {
    table(3, POSITIONS)
}

/// The id whose vector is poisoned.
pub(crate) const POISONED: usize = 7;

fn number(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn bytes(field: u64, contents: &[u8]) -> Vec<u8> {
    [
        &number(field << 3 | 2),
        &number(contents.len() as u64),
        contents,
    ]
    .concat()
}

fn text(field: u64, contents: &str) -> Vec<u8> {
    bytes(field, contents.as_bytes())
}

fn value(field: u64, value: i64) -> Vec<u8> {
    [number(field << 3), number(value as u64)].concat()
}

/// A node; attributes are numbers.
fn node(kind: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) -> Vec<u8> {
    let inputs = inputs.iter().flat_map(|input| text(1, input));
    let mut node: Vec<u8> = inputs.collect();
    node.extend([text(2, output), text(4, kind)].concat());
    for (name, number) in attributes {
        let attribute = [text(1, name), value(3, *number), value(20, 2)].concat();
        node.extend(bytes(5, &attribute));
    }
    bytes(1, &node)
}

fn tensor(name: &str, sizes: &[usize], kind: i64, data: &[u8]) -> Vec<u8> {
    let sizes = sizes.iter().flat_map(|size| value(1, *size as i64));
    let mut tensor: Vec<u8> = sizes.collect();
    tensor.extend([value(2, kind), text(8, name), bytes(9, data)].concat());
    bytes(5, &tensor)
}

fn floats(name: &str, values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    tensor(name, &[values.len() / WIDTH, WIDTH], 1, &data)
}

fn floats_outside(name: &str, rows: usize, file: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| bytes(13, &[text(1, key), text(2, value)].concat());
    let tensor = [
        value(1, rows as i64),
        value(1, WIDTH as i64),
        value(2, 1),
        text(8, name),
        entry("location", file),
        entry("offset", "0"),
        entry("length", &(rows * WIDTH * 4).to_string()),
        value(14, 1),
    ];
    bytes(5, &tensor.concat())
}

fn declared(field: u64, name: &str, kind: u64, sizes: &[i64]) -> Vec<u8> {
    let sizes = sizes.iter().enumerate().flat_map(|(place, size)| {
        let size = match size {
            -1 => text(2, &format!("any{place}")),
            size => value(1, *size),
        };
        bytes(1, &size)
    });
    let shape: Vec<u8> = sizes.collect();
    let kind = [value(1, kind as i64), bytes(2, &shape)].concat();
    bytes(field, &[text(1, name), bytes(2, &bytes(1, &kind))].concat())
}

/// The table of tokens, as the file outside has it.
pub(crate) fn tokens_table(variant: &Variant) -> Vec<f32> {
    let mut table = tokens();
    if let Some(poison) = variant.poison {
        table[POISONED * WIDTH] = poison;
    }
    table
}

/// The contents of a `model.onnx`.
pub(crate) fn model(variant: &Variant) -> Vec<u8> {
    let has = |name: &str| variant.inputs.contains(&name);
    let mut nodes = node("Gather", &["tokens", "input_ids"], "looked_up", &[]);
    let mut summed = "looked_up";
    if has("attention_mask") {
        nodes.extend(node("Cast", &["attention_mask"], "mask", &[("to", 1)]));
        nodes.extend(node("Unsqueeze", &["mask", "two"], "mask3", &[]));
        nodes.extend(node("Mul", &["looked_up", "mask3"], "masked", &[]));
        summed = "masked";
    }
    let keeps = [("keepdims", i64::from(!variant.is_sentences))];
    nodes.extend(node("ReduceSum", &[summed, "one"], "sum", &keeps));
    let mut last = match variant.is_sentences {
        true => "sum",
        false => {
            nodes.extend(node("Add", &["looked_up", "sum"], "with_sum", &[]));
            "with_sum"
        }
    };
    for (name, input, output) in [
        ("types", "token_type_ids", "with_types"),
        ("positions", "position_ids", "with_positions"),
    ] {
        if has(input) {
            let found = format!("found_{name}");
            nodes.extend(node("Gather", &[name, input], &found, &[]));
            nodes.extend(node("Add", &[last, &found], output, &[]));
            last = output;
        }
    }
    if variant.depends_on_batch {
        let keeps = [("keepdims", 1)];
        nodes.extend(node("ReduceMax", &[last], "largest", &keeps));
        nodes.extend(node("Add", &[last, "largest"], "all", &[]));
        last = "all";
    }
    let kind = match variant.is_half {
        true => 10,
        false => 1,
    };
    nodes.extend(node("Cast", &[last], variant.output, &[("to", kind)]));
    let table = tokens_table(variant);
    let constant = |name: &str, number: i64| tensor(name, &[1], 7, &number.to_le_bytes());
    let tables = [
        match variant.outside {
            Some(file) => floats_outside("tokens", VOCABULARY, file),
            None => floats("tokens", &table),
        },
        floats("types", &types()),
        floats("positions", &positions()),
        constant("one", 1),
        constant("two", 2),
    ];
    let inputs = variant.inputs.iter();
    let inputs = inputs.flat_map(|name| declared(11, name, variant.input_type, &variant.sizes));
    let output_sizes: &[i64] = match variant.is_sentences {
        true => &[-1, WIDTH as i64],
        false => &[-1, -1, WIDTH as i64],
    };
    let graph = [
        nodes,
        text(2, "small"),
        tables.concat(),
        inputs.collect(),
        declared(12, variant.output, kind as u64, output_sizes),
    ];
    let opset = [text(1, ""), value(2, 14)].concat();
    [value(1, 8), bytes(8, &opset), bytes(7, &graph.concat())].concat()
}

/// The tokenizer that the small graphs go with: WordPiece of 233 pieces.
pub(crate) fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../encoder/tests/data/random/tokenizer.json")
}

/// A tokenizer of another kind: pieces with scores, as SentencePiece has them, `<s>` and `</s>` around a text.
pub(crate) fn unigram_tokenizer() -> serde_json::Value {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let piece = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let token = |id: u32, name: &str| json!({"id": name, "ids": [id], "tokens": [name]});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<s>"), special(1, "<pad>"), special(2, "</s>"), special(3, "<unk>")],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [piece("<s>"), text, piece("</s>")],
            "pair": [piece("<s>"), text, piece("</s>")],
            "special_tokens": {"<s>": token(0, "<s>"), "</s>": token(2, "</s>")}},
        "model": {"type": "Unigram", "unk_id": 3, "byte_fallback": false, "vocab":
            [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -3.0], ["▁wa", -4.0],
             ["ter", -4.0], ["▁water", -6.0], ["s", -5.0]]},
    })
}

/// A tokenizer without special tokens around a text: the encoder's own reader refuses it, so the `tokenizers`
/// library has it.
pub(crate) fn unframed(mut tokenizer: serde_json::Value) -> serde_json::Value {
    tokenizer["post_processor"] = serde_json::Value::Null;
    tokenizer
}

/// A folder with a graph, its table where that lies outside, the tokenizer, and files that say `mean`.
pub(crate) fn folder(variant: &Variant) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.onnx"), model(variant)).unwrap();
    if let Some(file) = variant.outside {
        let table = tokens_table(variant);
        let table: Vec<u8> = table.iter().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(folder.path().join(file), table).unwrap();
    }
    std::fs::copy(tokenizer(), folder.path().join("tokenizer.json")).unwrap();
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    for (name, contents) in [
        (
            "1_Pooling/config.json",
            json!({"pooling_mode_mean_tokens": true}),
        ),
        ("sentence_bert_config.json", json!({"max_seq_length": 60})),
    ] {
        std::fs::write(folder.path().join(name), contents.to_string()).unwrap();
    }
    folder
}

/// What a text of these ids must get.
pub(crate) fn expected(
    variant: &Variant,
    ids: &[u32],
    is_first: bool,
    position: usize,
) -> Vec<f32> {
    let (tokens, types, positions) = (tokens_table(variant), types(), positions());
    let row = |table: &[f32], row: usize, column: usize| table[row * WIDTH + column];
    let column = |column: usize| {
        let values = ids.iter().enumerate().map(|(place, id)| {
            let mut value = row(&tokens, *id as usize, column);
            if variant.inputs.contains(&"token_type_ids") {
                value += row(&types, 0, column);
            }
            if variant.inputs.contains(&"position_ids") {
                value += row(&positions, position + place, column);
            }
            value
        });
        let looked_up = ids.iter().map(|id| row(&tokens, *id as usize, column));
        let sum: f32 = looked_up.sum();
        let values: Vec<f32> = values.collect();
        match (variant.is_sentences, is_first) {
            (true, _) => sum,
            (false, true) => values[0] + sum,
            (false, false) => values.iter().sum::<f32>() / values.len() as f32 + sum,
        }
    };
    let vector: Vec<f32> = (0..WIDTH).map(column).collect();
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / norm).collect()
}
