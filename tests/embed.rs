//! `vectide embed`: a file of texts becomes a file of vectors that numpy reads, the same as the model makes one
//! by one; a line that is none is named and leaves nothing behind.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Output;
use vectide_model::Lane;
use vectide_tests::{ScriptedPipeline, vectide};

const DIMENSIONS: usize = 64;
const TEXTS: usize = 1_500;

fn text(at: usize) -> String {
    format!("text {at} of topic {} ", at % 37).repeat(at % 5)
}

fn embed(input: &Path, output: &Path) -> Output {
    vectide(&["embed", "--model", "hashing", "--dimensions", "64"])
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(output)
        .output()
        .unwrap()
}

#[test]
fn texts_become_rows_in_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (
        directory.path().join("texts.jsonl.zst"),
        directory.path().join("vectors.npy"),
    );
    let lines: String = (0..TEXTS)
        .map(|at| format!("{}\n", json!({"id": at, "text": text(at)})))
        .collect();
    fs::write(&input, zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
    let done = embed(&input, &output);
    assert!(done.status.success(), "{done:?}");
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["texts"], TEXTS);
    assert_eq!(report["dimensions"], DIMENSIONS);
    assert!(report["tokens"].as_u64().unwrap() > TEXTS as u64);

    let bytes = fs::read(&output).unwrap();
    assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
    let (header, rows) = bytes.split_at(128);
    let header = std::str::from_utf8(&header[10..]).unwrap();
    let shape =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({TEXTS}, {DIMENSIONS}), }}");
    assert_eq!(header.trim_end(), shape);
    assert!(header.ends_with('\n'));
    assert_eq!(rows.len(), TEXTS * DIMENSIONS * 4);
    let model = ScriptedPipeline::with_hashing(DIMENSIONS).embedder;
    for (at, row) in rows.chunks_exact(DIMENSIONS * 4).enumerate() {
        let row = row
            .chunks_exact(4)
            .map(|x| f32::from_le_bytes(x.try_into().unwrap()));
        let row: Vec<f32> = row.collect();
        assert_eq!(
            row,
            model.embed(Lane::Bulk, &[&text(at)]).unwrap()[0],
            "text {at}"
        );
    }
}

#[test]
fn a_line_that_is_none_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (
        directory.path().join("texts.jsonl"),
        directory.path().join("vectors.npy"),
    );
    fs::write(&input, "{\"text\": \"good\"}\n{\"txt\": \"bad\"}\n").unwrap();
    let done = embed(&input, &output);
    assert_eq!(done.status.code(), Some(1));
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        told.contains("texts.jsonl:2: missing field `text`"),
        "{told}"
    );
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let unknown = vectide(&["embed", "--model", "none", "--input", "a", "--output", "b"]).output();
    let told = String::from_utf8_lossy(&unknown.unwrap().stderr).into_owned();
    assert!(
        told.contains("there is no model `none`") && told.contains("all-MiniLM-L6-v2"),
        "{told}"
    );
}
