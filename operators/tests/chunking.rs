//! What the structured chunker promises, on real documents and on texts made to break it.
//!
//! Invariant: every chunk fits the model unless it is a single grapheme, no cut falls within a
//! grapheme, nothing but white space is left out, and an edit changes only chunks near it.

use proptest::prelude::*;
use serde::Deserialize;
use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use unicode_segmentation::UnicodeSegmentation;
use vectide_model::{Chunker, ChunkerConfig, TokenCounter, chunker_contract};
use vectide_operators::chunk::{StructuredConfig, WholeConfig};

// --- Counters ------------------------------------------------------------------------------------

/// Words, and every character of scripts without spaces: what WordPiece makes of a text, roughly.
struct WordsAndIdeographs;

impl TokenCounter for WordsAndIdeographs {
    fn count(&self, text: &str) -> usize {
        let mut count = 0;
        let mut in_word = false;
        for letter in text.chars() {
            let single = letter.is_ascii_punctuation() || letter as u32 >= 0x2E80;
            let word = letter.is_alphanumeric() && !single;
            count += usize::from(single || (word && !in_word));
            in_word = word;
        }
        count
    }
}

/// Not additive: it rounds, as byte-pair counters seem to when their input is cut.
struct FourCharacters;

impl TokenCounter for FourCharacters {
    fn count(&self, text: &str) -> usize {
        text.chars().count() / 4
    }
}

/// Makes one token of any word, and so none of its parts the whole.
struct Words;

impl TokenCounter for Words {
    fn count(&self, text: &str) -> usize {
        text.split_whitespace().count()
    }
}

fn chunker(target_tokens: u32, max_tokens: u32, tokens: Arc<dyn TokenCounter>) -> Arc<dyn Chunker> {
    let config = StructuredConfig {
        target_tokens,
        max_tokens,
        ..StructuredConfig::default()
    };
    config.open(tokens).expect("a good configuration")
}

fn default_chunker() -> Arc<dyn Chunker> {
    chunker(200, 256, Arc::new(WordsAndIdeographs))
}

fn texts<'a>(chunker: &dyn Chunker, text: &'a str) -> Vec<&'a str> {
    let spans = chunker.chunk(text).expect("the text can be cut");
    spans.into_iter().map(|span| &text[span]).collect()
}

/// Checks every promise about one text.
fn check(chunker: &dyn Chunker, tokens: &dyn TokenCounter, limit: usize, text: &str) {
    chunker_contract(chunker, text);
    let spans = chunker.chunk(text).expect("the text can be cut");
    for span in &spans {
        let chunk = &text[span.clone()];
        let graphemes = chunk.graphemes(true).take(2).count();
        assert!(
            tokens.count(chunk) <= limit || graphemes == 1,
            "{} tokens in {chunk:?}",
            tokens.count(chunk)
        );
    }
    let mut edges = spans
        .iter()
        .flat_map(|span| [span.start, span.end])
        .peekable();
    for (start, grapheme) in text.grapheme_indices(true) {
        while let Some(edge) = edges.next_if(|edge| *edge < start + grapheme.len()) {
            // A span may end before the line feed of "\r\n": both are white space.
            assert!(
                edge == start || grapheme == "\r\n",
                "cut within {grapheme:?}"
            );
        }
    }
}

// --- Real documents ------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Record {
    text: Option<String>,
    content: Option<String>,
}

fn data_set(path: &str) -> Option<Vec<String>> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let root = std::env::var_os("VECTIDE_TEST_DATA").map_or(beside, PathBuf::from);
    let Ok(file) = std::fs::File::open(root.join(path)) else {
        println!("skipped: {path}: not found (set VECTIDE_TEST_DATA)");
        return None;
    };
    let lines = std::io::BufReader::new(zstd::Decoder::new(file).expect("a zstd file")).lines();
    let records = lines.map(|line| {
        let line = line.expect("a line of UTF-8");
        serde_json::from_str::<Record>(&line).expect("a record")
    });
    Some(
        records
            .filter_map(|record| record.text.or(record.content))
            .collect(),
    )
}

#[test]
fn real_documents() {
    let (structured, whole) = (
        default_chunker(),
        WholeConfig {}.open(Arc::new(Words)).unwrap(),
    );
    for path in [
        "squad-dev/articles.jsonl.zst",
        "squad-newwiki/articles.jsonl.zst",
        "jaquad-dev/articles.jsonl.zst",
        "scifact/corpus.jsonl.zst",
        "otel-docs-changes/events.jsonl.zst",
    ] {
        let Some(documents) = data_set(path) else {
            continue;
        };
        // The history's 12,827 versions are much alike: every eighth is checked in full.
        let step = if path.starts_with("otel") { 8 } else { 1 };
        let (mut chunks, mut tokens, mut small) = (0, 0, 0);
        for (number, text) in documents.iter().enumerate() {
            chunker_contract(structured.as_ref(), text);
            chunker_contract(whole.as_ref(), text);
            if number.is_multiple_of(step) {
                check(structured.as_ref(), &WordsAndIdeographs, 254, text);
            }
            let sizes: Vec<usize> = texts(structured.as_ref(), text)
                .iter()
                .map(|chunk| WordsAndIdeographs.count(chunk))
                .collect();
            chunks += sizes.len();
            tokens += sizes.iter().sum::<usize>();
            if sizes.len() > 1 {
                small += sizes.iter().filter(|size| **size < 40).count();
            }
        }
        let mean = tokens as f64 / chunks as f64;
        println!("{path}: {chunks} chunks, {mean:.0} tokens on average, {small} below the minimum");
        // The abstracts are shorter than a chunk may be; all else is long enough for the target.
        assert!(
            path.starts_with("scifact") || (150.0..=240.0).contains(&mean),
            "{path}: {mean}"
        );
        assert!(
            small * 100 <= chunks,
            "{path}: {small} small chunks of {chunks}"
        );
    }
}

// --- Made texts ----------------------------------------------------------------------------------

fn hostile_text() -> impl Strategy<Value = String> {
    let unit = prop_oneof![
        "[a-z]{1,12} ",
        "[a-zA-Z0-9+/]{20,300}",
        Just("\n".to_string()),
        Just("\r\n".to_string()),
        Just("\n\n".to_string()),
        Just("\n## Heading\n".to_string()),
        Just("---\n".to_string()),
        Just("\n```\n".to_string()),
        Just("| a | b |\n".to_string()),
        Just("- item\n".to_string()),
        Just("\u{0}".to_string()),
        Just(" \u{301}".to_string()),
        Just("e\u{301}\u{302}".to_string()),
        Just("\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}".to_string()),
        Just("\u{1f1eb}\u{1f1ee}".to_string()),
        Just("\u{600}".to_string()),
        Just("क्षि".to_string()),
        Just("각".to_string()),
        "[あ-ん一-十]{1,30}[。！？]?",
        "\\PC{1,20}",
    ];
    proptest::collection::vec((unit, 1_usize..20), 0..60).prop_map(|units| {
        units
            .into_iter()
            .map(|(unit, times)| unit.repeat(times))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text(text in hostile_text(), small in any::<bool>()) {
        let (target, max) = if small { (12, 16) } else { (200, 256) };
        let limit = max as usize - 2;
        check(chunker(target, max, Arc::new(Words)).as_ref(), &Words, limit, &text);
        let tokens = WordsAndIdeographs;
        check(chunker(target, max, Arc::new(WordsAndIdeographs)).as_ref(), &tokens, limit, &text);
        let tokens = FourCharacters;
        check(chunker(target, max, Arc::new(FourCharacters)).as_ref(), &tokens, limit, &text);
    }
}

#[test]
fn a_grapheme_longer_than_the_limit_is_a_chunk_of_its_own() {
    let monster = format!("a{}", "\u{301}".repeat(5000));
    let text = format!("before {monster} after");
    let chunker = chunker(200, 256, Arc::new(FourCharacters));
    check(chunker.as_ref(), &FourCharacters, 254, &text);
    assert_eq!(
        texts(chunker.as_ref(), &text),
        ["before", monster.as_str(), "after"]
    );
}

#[test]
fn languages_without_spaces_are_cut_at_sentences() {
    for sentence in [
        "今日は朝から雨が降っていたので、家で本を読みました。",
        "天气很好我们去公园散步吧！",
    ] {
        let text: String = (0..80).map(|i| format!("{i}{sentence}")).collect();
        let chunker = default_chunker();
        check(chunker.as_ref(), &WordsAndIdeographs, 254, &text);
        let chunks = texts(chunker.as_ref(), &text);
        let mean = WordsAndIdeographs.count(&text) / chunks.len();
        assert!((150..=254).contains(&mean), "{mean} tokens on average");
        for chunk in chunks {
            assert!(chunk.ends_with(['。', '！']), "{chunk}");
        }
    }
}

#[test]
fn headings_stay_with_their_text() {
    let section = |i: usize| format!("## Part {i}\n\n{}\n\n", sentences(i, 8));
    let text: String = (0..40).map(section).collect();
    let chunks = default_chunker();
    for chunk in texts(chunks.as_ref(), &text) {
        let last = chunk.lines().last().unwrap_or_default();
        assert!(!last.starts_with('#'), "ends with its heading: {chunk:?}");
        assert!(
            chunk.starts_with("## "),
            "could begin with a heading: {chunk:?}"
        );
    }
}

#[test]
fn a_million_letters_take_linear_time() {
    let spaceless = "0123456789abcdef".repeat(62_500);
    let ideographs: String = (0..1_000_000_u32)
        .map(|i| char::from_u32(0x4E00 + i.wrapping_mul(2_654_435_761) % 20_000).unwrap())
        .collect();
    let lines = "a\n".repeat(500_000);
    for text in [
        &spaceless,
        &ideographs,
        &lines,
        &"\u{0}".repeat(1_000_000),
        &"a ".repeat(500_000),
    ] {
        let chunker = default_chunker();
        let start = Instant::now();
        let chunks = texts(chunker.as_ref(), text);
        let took = start.elapsed();
        println!(
            "{} bytes: {} chunks in {took:.2?}",
            text.len(),
            chunks.len()
        );
        // Under a second each on a quiet machine; quadratic work would take minutes.
        assert!(took < Duration::from_secs(10), "{took:?}");
        let longest = chunks.iter().map(|chunk| chunk.len()).max().unwrap();
        assert!(longest <= 254 * 16, "{longest} bytes");
    }
}

// --- Locality ------------------------------------------------------------------------------------

/// Text that never repeats itself.
fn sentences(seed: usize, count: usize) -> String {
    let sentence = |i: usize| {
        let number = (seed * 1000 + i).wrapping_mul(2_654_435_761) % 99_991;
        let words = 6 + number % 9;
        let word = |w: usize| format!("w{}", (number * 31 + w * 977) % 7919);
        let words: Vec<String> = (0..words).map(word).collect();
        format!("Sentence {number} {}.", words.join(" "))
    };
    (0..count).map(sentence).collect::<Vec<_>>().join(" ")
}

/// Chunks of `after` that `before` does not have, and the distance in bytes of the furthest one's
/// nearer end from the edit.
fn changed(before: &str, after: &str, edit: usize) -> (usize, usize) {
    let chunker = default_chunker();
    let mut held: HashMap<&str, usize> = HashMap::new();
    for chunk in texts(chunker.as_ref(), before) {
        *held.entry(chunk).or_default() += 1;
    }
    let (mut count, mut furthest) = (0, 0);
    for span in chunker.chunk(after).expect("the text can be cut") {
        match held.get_mut(&after[span.clone()]) {
            Some(left) if *left > 0 => *left -= 1,
            _ => {
                count += 1;
                let distance = span
                    .start
                    .saturating_sub(edit)
                    .max(edit.saturating_sub(span.end));
                furthest = furthest.max(distance);
            }
        }
    }
    (count, furthest)
}

/// Edits a text at many places and checks how far the changes reach.
fn check_locality(name: &str, text: &str, mean_max: f64) {
    let places: Vec<usize> = text.match_indices(". ").map(|(at, _)| at + 2).collect();
    let (mut edits, mut total, mut furthest) = (0, 0, 0);
    for &at in places.iter().step_by(places.len() / 60) {
        let sentence_end = text[at..].find(". ").map_or(text.len(), |end| at + end + 2);
        let inserted = format!(
            "{}An inserted sentence of some words. {}",
            &text[..at],
            &text[at..]
        );
        let deleted = format!("{}{}", &text[..at], &text[sentence_end..]);
        let replaced = format!("{}Another one. {}", &text[..at], &text[sentence_end..]);
        for after in [inserted, deleted, replaced] {
            let (count, distance) = changed(text, &after, at);
            edits += 1;
            total += count;
            furthest = furthest.max(distance);
        }
    }
    let mean = f64::from(total as u32) / f64::from(edits);
    println!(
        "{name}: {edits} edits, {mean:.2} chunks changed on average, furthest {furthest} bytes"
    );
    assert!(mean <= mean_max, "{name}: {mean} chunks changed on average");
    // A chunk has about 1,500 bytes in these texts.
    assert!(
        furthest <= 20_000,
        "{name}: a change {furthest} bytes from its edit"
    );
}

#[test]
fn an_edit_changes_few_chunks_and_only_near_it() {
    let paragraphs: Vec<String> = (0..300).map(|i| sentences(i, 2 + i * 7 % 6)).collect();
    check_locality("paragraphs", &paragraphs.join("\n\n"), 2.0);
    check_locality("one line", &sentences(7, 1500), 3.0);
    let sections = |(i, text): (usize, &String)| format!("## Title {i}\n\n{text}\n\n");
    let sections: String = paragraphs.iter().enumerate().map(sections).collect();
    check_locality("sections", &sections, 1.3);
}
