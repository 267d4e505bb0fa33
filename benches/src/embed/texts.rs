//! What is embedded: whole passages, most of which fill the model's 256 tokens, and questions of a dozen. Some
//! 44,000 tokens of the former and 10,000 of the latter, so that every library is measured for a second, in even
//! numbers of batches of 32, so that one of two threads does not wait for the other's last.
//!
//! Invariant: the same texts on every machine that has the data; what is not there is told.

use serde_json::Value;
use std::path::Path;
use vectide_tests::{data_directory, read_lines};

const PASSAGES: usize = 192;
const QUESTIONS: usize = 768;

/// Texts that every contestant embeds.
pub(crate) struct TextSet {
    pub(crate) name: &'static str,
    pub(crate) texts: Vec<String>,
}

/// The sets whose data are there.
pub(crate) fn sets() -> Vec<TextSet> {
    let sets = [
        (
            "passages (SciFact)",
            "scifact",
            "corpus.jsonl.zst",
            PASSAGES,
        ),
        (
            "questions (SQuAD New Wikipedia)",
            "squad-newwiki",
            "queries.jsonl.zst",
            QUESTIONS,
        ),
    ];
    let there = sets.into_iter().filter_map(|(name, set, file, count)| {
        let texts = read(&data_directory(set, name)?.join(file), count);
        Some(TextSet { name, texts })
    });
    there.collect()
}

/// So many texts of a file, evenly far apart.
fn read(path: &Path, count: usize) -> Vec<String> {
    let texts = read_lines(path).filter_map(|line| {
        let row: Value = serde_json::from_str(&line).ok()?;
        Some(row["text"].as_str()?.to_owned())
    });
    let texts: Vec<String> = texts.collect();
    let step = (texts.len() / count).max(1);
    texts.into_iter().step_by(step).take(count).collect()
}
