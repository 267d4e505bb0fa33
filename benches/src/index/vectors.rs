//! The vectors of the index benchmark: real embeddings, enlarged to any number by mixing them.
//!
//! **Base.** Sentences of the corpora in the test data's folder (VECTIDE_TEST_DATA): SciFact abstracts, SQuAD
//! paragraphs, the OpenTelemetry documents, embedded by all-MiniLM-L6-v2; the queries are the corpora's own questions and
//! claims. Embedding them takes some minutes, so both are kept beside the build.
//!
//! **Enlarged.** A row is the sum of a base vector, of a share of 0.2 to 0.5 of one that stands at most 8
//! sentences from it, and of 0.3 of the difference of two random ones, normalised: it lies near its
//! sentence, off it in the directions in which real sentences differ. The generator is seeded, so row `n` is
//! the same in every run and for every peer.
//!
//! Invariant: no row is made of random numbers alone; without the corpora there is no benchmark.

use crate::model::{embed_all, embedder};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use vectide_model::{Embedding, quantize};
use vectide_tests::{Random, data_directory, read_lines};

/// Components of a vector of the model.
pub(crate) const DIMENSION: usize = 384;

/// Sentences of the base.
const SENTENCES_MAX: usize = 100_000;
/// Shorter sentences say little, and longer ones are tables.
const SENTENCE_BYTES: std::ops::Range<usize> = 40..500;
/// Queries that are kept.
const QUERIES_MAX: usize = 4_000;
/// How far a neighbour may stand from its sentence.
const NEIGHBOURS: u64 = 8;
/// The share of the difference of two random vectors.
const NOISE: f32 = 0.3;

/// Real embeddings.
pub(crate) struct Base {
    /// Of sentences, in the order of their texts.
    pub(crate) rows: Vec<Vec<f32>>,
    /// Of questions and claims.
    pub(crate) queries: Vec<Vec<f32>>,
}

impl Base {
    /// Embeds the corpora, or reads what an earlier run has embedded.
    pub(crate) fn open() -> Option<Self> {
        let (rows, queries) = (kept("sentences.f32"), kept("queries.f32"));
        if !rows.is_file() || !queries.is_file() {
            let (sentences, questions) = corpora()?;
            println!(
                "embedding {} sentences and {} queries once",
                sentences.len(),
                questions.len()
            );
            let model = embedder();
            let embed = |texts: &[String]| {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                embed_all(&*model, &texts)
            };
            write(&rows, &embed(&sentences));
            write(&queries, &embed(&questions));
        }
        Some(Self {
            rows: read(&rows),
            queries: read(&queries),
        })
    }

    /// Row `number` of the enlarged set.
    pub(crate) fn row(&self, number: u64) -> Vec<f32> {
        let mut random = Random::new(number + 1);
        let count = self.rows.len() as u64;
        let at = number % count;
        let neighbour = (at + 1 + random.below(NEIGHBOURS)) % count;
        let share = 0.2 + 0.3 * random.below(1 << 20) as f32 / (1 << 20) as f32;
        let mut any = || &self.rows[random.below(count) as usize];
        let (one, other) = (any(), any());
        let mixed: Vec<f32> = (0..DIMENSION)
            .map(|c| {
                self.rows[at as usize][c]
                    + share * self.rows[neighbour as usize][c]
                    + NOISE * (one[c] - other[c])
            })
            .collect();
        let norm = mixed.iter().map(|x| x * x).sum::<f32>().sqrt();
        mixed.iter().map(|x| x / norm).collect()
    }

    /// A real one as an index stores it.
    pub(crate) fn stored(&self, number: usize) -> Embedding {
        quantize(&self.rows[number])
    }

    /// Row `number` of the enlarged set as an index stores it.
    pub(crate) fn embedding(&self, number: u64) -> Embedding {
        quantize(&self.row(number))
    }
}

/// Where files of the benchmark are kept.
pub(crate) fn kept(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/index-benchmark");
    std::fs::create_dir_all(&target).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    target.join(name)
}

/// Little-endian f32, one row after the other: what peers read, too.
pub(crate) fn write(path: &Path, rows: &[Vec<f32>]) {
    let bytes: Vec<u8> = rows
        .iter()
        .flatten()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let part = path.with_extension("part");
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    written.unwrap_or_else(|error| panic!("{path:?}: {error}"));
}

fn read(path: &Path) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let row = |bytes: &[u8]| {
        let (numbers, _) = bytes.as_chunks();
        numbers
            .iter()
            .map(|number| f32::from_le_bytes(*number))
            .collect()
    };
    bytes.chunks_exact(DIMENSION * 4).map(row).collect()
}

/// Sentences and questions of all corpora, each once.
fn corpora() -> Option<(Vec<String>, Vec<String>)> {
    let (mut sentences, mut questions) = (Vec::new(), Vec::new());
    for set in ["scifact", "squad-newwiki", "squad-dev"] {
        let data = data_directory(set, "index")?;
        for text in fields(&data.join("corpus.jsonl.zst"), "text") {
            sentences.extend(sentences_of(&text));
        }
        questions.extend(fields(&data.join("queries.jsonl.zst"), "text"));
    }
    let data = data_directory("otel-docs-changes", "index")?;
    for text in last_versions(&data.join("events.jsonl.zst")) {
        sentences.extend(sentences_of(&text));
    }
    let mut seen = HashSet::new();
    sentences.retain(|sentence| seen.insert(sentence.clone()));
    sentences.truncate(SENTENCES_MAX);
    let every = questions.len().div_ceil(QUERIES_MAX);
    Some((sentences, questions.into_iter().step_by(every).collect()))
}

fn fields(path: &Path, name: &'static str) -> impl Iterator<Item = String> {
    read_lines(path).map(move |line| {
        let row: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        row[name].as_str().unwrap_or_default().to_owned()
    })
}

/// The last version of each document, in the order of their paths.
fn last_versions(events: &Path) -> Vec<String> {
    let mut documents = HashMap::new();
    for line in read_lines(events) {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let path = event["path"].as_str().unwrap_or_default().to_owned();
        match event["content"].as_str() {
            Some(content) => documents.insert(path, content.to_owned()),
            None => documents.remove(&path),
        };
    }
    let mut documents: Vec<(String, String)> = documents.into_iter().collect();
    documents.sort();
    documents.into_iter().map(|(_, content)| content).collect()
}

/// What ends with a full stop, roughly.
fn sentences_of(text: &str) -> impl Iterator<Item = String> {
    let parts = text.split_inclusive(['\n', '.', '?', '!']);
    let mut sentences = vec![String::new()];
    for part in parts {
        if let Some(last) = sentences.last_mut() {
            last.push_str(part);
            if last.len() >= SENTENCE_BYTES.start {
                sentences.push(String::new());
            }
        }
    }
    sentences
        .into_iter()
        .map(|sentence| sentence.trim().to_owned())
        .filter(|sentence| SENTENCE_BYTES.contains(&sentence.len()))
}
