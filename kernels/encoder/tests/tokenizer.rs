//! The fast tokenizer against the `tokenizers` library: equal ids, on made-up and on real texts.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/corpora.rs"]
mod corpora;

use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::LazyLock;
use vectide_encoder::{Tokenizer, model_files};
use vectide_model::TokenCounter;

/// Without a limit, so that whole texts are compared.
static UNLIMITED: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(usize::MAX));
static LIMITED: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer(256));

fn tokenizer(tokens_max: usize) -> Tokenizer {
    let files = model_files::fetch("all-MiniLM-L6-v2").unwrap();
    let json = std::fs::read(files.tokenizer).unwrap();
    Tokenizer::from_json(&json, tokens_max).unwrap()
}

fn check(text: &str) {
    let expected = UNLIMITED.encode_by_library(text).unwrap();
    let start: String = text.chars().take(80).collect();
    assert_eq!(UNLIMITED.encode(text), expected, "{start:?}");
    assert_eq!(UNLIMITED.count(text), expected.len() - 2, "{start:?}");
    let mut cut = expected;
    if cut.len() > 256 {
        cut.truncate(255);
        cut.push(102);
    }
    assert_eq!(LIMITED.encode(text), cut, "{start:?}");
}

#[test]
fn every_character_alone_and_between_letters() {
    for character in '\0'..=char::MAX {
        // Beyond the second plane there are no letters but ideographs, tags and private use.
        let code = character as u32;
        if code < 0x2_0000 || code.is_multiple_of(97) {
            let text = format!("{character} a{character}b {character}{character}");
            let expected = UNLIMITED.encode_by_library(&text).unwrap();
            assert_eq!(
                UNLIMITED.encode(&text),
                expected,
                "{character:?} U+{code:04X}"
            );
        }
    }
}

#[test]
fn odd_texts() {
    for text in [
        "",
        "   ",
        "[SEP]",
        "a[SEP]b",
        "[[SEP]]",
        "[SEP",
        "[sep]",
        "[CLS][MASK][PAD][UNK]x",
        "\u{302e}a",
        "a\u{302e}\u{302f} b",
        "word \u{1d165}\u{1d16d}\u{302e} word",
        "x[SEP]\u{302e}y z",
        "\u{302e}",
        "a \u{302e}\u{85}\u{2028}b\u{302e}",
        "e\u{301}\u{323} o\u{308}",
        "\u{1112}\u{1161}\u{11ab}",
    ] {
        check(text);
    }
    check(&"a".repeat(100));
    check(&"a".repeat(101));
    check(&format!("{} b", "é".repeat(100)));
    check(&format!("{} b", "ñ".repeat(101)));
    check(&"word-".repeat(10_000));
    check(&"か".repeat(101));
    check(&format!("{}\u{302e} b", "a".repeat(60_000)));
    check(&format!("{}\u{302e}\u{1d16d} b", "a-".repeat(60_000)));
}

/// A megabyte of each kind of text that breaks tokenizers.
#[test]
fn large_texts() {
    for unit in [
        " ",
        "\0",
        "a",
        "\n\u{3000}\u{a0}",
        "[SEP]",
        "[",
        "don't re-index (now)! ",
        "مرحبا بالعالم ",
        "שָׁלוֹם ",
        "\u{202e}abc\u{202c} ",
        "👨‍👩‍👧‍👦🇯🇵👍🏽",
        "ガギグゲゴ日本語。",
        "e\u{301}\u{323} ",
        "\u{fffd}\u{feff}\u{ad}",
    ] {
        check(&unit.repeat((1 << 20) / unit.len()));
    }
}

/// A text whose every stretch is beyond the library's bound must not cost its length squared.
#[test]
fn a_long_text_without_spaces_takes_linear_time() {
    let text = format!("{}\u{302e}", "a".repeat(5_000_000)).repeat(2);
    let start = std::time::Instant::now();
    assert!(UNLIMITED.count(&text) >= 2);
    assert_eq!(LIMITED.encode(&"漢\u{302e}".repeat(100_000)).len(), 256);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_text(text in any::<String>()) {
        check(&text);
    }

    #[test]
    fn any_mixture_of_what_matters(
        parts in proptest::collection::vec(
            prop_oneof![
                "[a-zA-Z]{1,12}",
                "[ -~]{1,20}",
                "\\PC{1,10}",
                "[ぁ-ヿ一-龠。、]{1,12}",
                "[\u{300}-\u{36f}\u{302a}-\u{302f}\u{1d165}-\u{1d172}]{1,4}",
                "(\\[SEP\\]|\\[CLS\\]|\\[MASK\\]|\\[PAD\\]|\\[UNK\\]){1,3}",
                "[ \t\n\u{a0}\u{3000}]{1,5}",
                "[\u{590}-\u{6ff}\u{200e}\u{200f}\u{202a}-\u{202e}]{1,10}",
                "[\u{1f300}-\u{1faff}\u{200d}\u{fe0f}\u{1f1e6}-\u{1f1ff}]{1,6}",
                "[\u{1100}-\u{11ff}가-힣]{1,6}",
                Just("\u{0}".to_string()),
            ],
            0..20,
        )
    ) {
        check(&parts.concat());
    }
}

/// Whole texts of all retrieval sets, Japanese among them.
#[test]
fn real_texts() {
    for corpus in &corpora::RETRIEVAL {
        let Some(texts) = corpus.texts("real_texts") else {
            continue;
        };
        texts.iter().for_each(|text| check(text));
        println!("{} {}: {} texts", corpus.file, corpus.field, texts.len());
        assert!(texts.len() >= 48);
    }
}

/// Thousands of documents in a dozen languages with their markup. Versions share most of their
/// lines, and a line's end is white space, beyond which no character has an effect: so each
/// distinct line is compared once, and a few documents as a whole.
#[test]
fn real_documents_in_many_languages() {
    let Some(texts) = corpora::OTEL.texts("real_documents_in_many_languages") else {
        return;
    };
    texts.iter().step_by(200).for_each(|text| check(text));
    let lines: HashSet<&str> = texts.iter().flat_map(|text| text.lines()).collect();
    lines.iter().for_each(|line| check(line));
    println!("{} documents, {} distinct lines", texts.len(), lines.len());
    assert!(lines.len() > 100_000);
}
