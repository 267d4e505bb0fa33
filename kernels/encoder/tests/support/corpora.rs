//! The real corpora that tests and benchmarks read: in the folder that VECTIDE_TEST_DATA names, or the
//! default one ([`folder`]).
//!
//! Invariant: a corpus that is not there is told by name, never taken for an empty one.

// Not every test and benchmark reads all of them.
#![allow(dead_code)]
// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::path::PathBuf;

/// One field of a compressed file of JSON lines.
pub(crate) struct Corpus {
    /// File in the data's folder.
    pub(crate) file: &'static str,
    /// The field with the text.
    pub(crate) field: &'static str,
}

const fn corpus(file: &'static str, field: &'static str) -> Corpus {
    Corpus { file, field }
}

/// English abstracts.
pub(crate) const SCIFACT: Corpus = corpus("scifact/corpus.jsonl.zst", "text");
/// English paragraphs.
pub(crate) const SQUAD: Corpus = corpus("squad-dev/corpus.jsonl.zst", "text");
/// Every version of a website's documents, three quarters of them English.
pub(crate) const OTEL: Corpus = corpus("otel-docs-changes/events.jsonl.zst", "content");
/// Japanese paragraphs.
pub(crate) const JAQUAD: Corpus = corpus("jaquad-dev/corpus.jsonl.zst", "text");

/// English questions.
pub(crate) const QUESTIONS: Corpus = corpus("squad-dev/queries.jsonl.zst", "text");

/// Every text of the data but [`OTEL`]'s.
pub(crate) const RETRIEVAL: [Corpus; 15] = [
    corpus("scifact/corpus.jsonl.zst", "title"),
    SCIFACT,
    corpus("scifact/queries.jsonl.zst", "text"),
    corpus("squad-dev/corpus.jsonl.zst", "title"),
    SQUAD,
    corpus("squad-dev/articles.jsonl.zst", "text"),
    QUESTIONS,
    corpus("squad-newwiki/corpus.jsonl.zst", "title"),
    corpus("squad-newwiki/corpus.jsonl.zst", "text"),
    corpus("squad-newwiki/articles.jsonl.zst", "text"),
    corpus("squad-newwiki/queries.jsonl.zst", "text"),
    corpus("jaquad-dev/corpus.jsonl.zst", "title"),
    JAQUAD,
    corpus("jaquad-dev/articles.jsonl.zst", "text"),
    corpus("jaquad-dev/queries.jsonl.zst", "text"),
];

/// The data's folder.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("VECTIDE_TEST_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")),
        PathBuf::from,
    )
}

impl Corpus {
    /// All texts; says what `who` goes without when the file is not there.
    pub(crate) fn texts(&self, who: &str) -> Option<Vec<String>> {
        Some(self.lines(who)?.into_iter().flatten().collect())
    }

    /// What each line has for a text; as [`Corpus::texts`].
    pub(crate) fn lines(&self, who: &str) -> Option<Vec<Option<String>>> {
        let path = folder().join(self.file);
        let Ok(compressed) = std::fs::File::open(&path) else {
            println!("skipped: {who}: {} is not there", path.display());
            return None;
        };
        let mut lines = String::new();
        let mut decoder = zstd::Decoder::new(compressed).unwrap();
        decoder.window_log_max(27).unwrap();
        decoder.read_to_string(&mut lines).unwrap();
        let rows = lines.lines().map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            row[self.field].as_str().map(str::to_owned)
        });
        Some(rows.collect())
    }
}
