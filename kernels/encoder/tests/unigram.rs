//! Unigram's own walk against the `tokenizers` library: equal ids, on hostile texts, for each combination of
//! steps that a file may have.
//!
//! The pieces and the map of characters are those of the small XLM-RoBERTa in `data/random`;
//! VECTIDE_TEST_TOKENIZER names a folder with a real tokenizer.json, which is then compared too.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/random_models.rs"]
mod random_models;

use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::LazyLock;
use vectide_encoder::Tokenizer;
use vectide_model::TokenCounter;

/// The name of the file that is given.
const REAL: &str = "VECTIDE_TEST_TOKENIZER";
/// What limited tokenizers cut to.
const LIMIT: usize = 12;

/// One file, with a limit and without.
struct Compared {
    /// How its words are cut, and the number of its steps.
    name: String,
    unlimited: Tokenizer,
    limited: Tokenizer,
}

impl Compared {
    fn new(name: String, json: &[u8]) -> Self {
        let read = |tokens_max| Tokenizer::from_json(json, tokens_max).unwrap();
        Self {
            unlimited: read(usize::MAX),
            limited: read(LIMIT),
            name,
        }
    }

    fn check(&self, text: &str) {
        let name = &self.name;
        let start: String = text.chars().take(200).collect();
        let expected = self.unlimited.encode_by_library(text).unwrap();
        assert_eq!(self.unlimited.encode(text), expected, "{name}: {start:?}");
        assert_eq!(
            self.unlimited.count(text),
            expected.len() - 2,
            "{name}: {start:?}"
        );
        let mut cut = expected;
        if cut.len() > LIMIT {
            let end = *cut.last().unwrap();
            cut.truncate(LIMIT - 1);
            cut.push(end);
        }
        assert_eq!(self.limited.encode(text), cut, "{name}: {start:?}");
    }
}

fn small() -> Value {
    let path = random_models::data().join("xlm-roberta-384/tokenizer.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

static FILES: LazyLock<Vec<Compared>> = LazyLock::new(|| {
    let base = small();
    let map = base["normalizer"]["normalizers"][0].clone();
    assert_eq!(map["type"], "Precompiled");
    let strip = json!({"type": "Strip", "strip_left": false, "strip_right": true});
    let replace =
        |by: &str| json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": by});
    let of = |name: &str| json!({"type": name});
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
    let never = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"});
    let first = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"});
    let split = json!({"type": "Sequence", "pretokenizers": [of("WhitespaceSplit"), metaspace]});
    let mut files = Vec::new();
    for (number, steps) in [
        json!([map]),
        json!([map, strip, replace("▁")]),
        json!([map, replace("▁")]),
        json!([map, strip, replace(" ")]),
        json!([map, replace(" "), strip]),
        json!([map, replace("▁"), strip]),
        json!([replace(" "), map, strip]),
        json!([]),
        json!([strip]),
        json!([of("NFKC")]),
        json!([of("NFC"), of("Lowercase"), strip]),
        json!([map, of("Lowercase"), replace(" ")]),
    ]
    .into_iter()
    .enumerate()
    {
        for (words, pre_tokenizer) in [
            ("marks", &metaspace),
            ("white", &split),
            ("first", &first),
            ("never", &never),
        ] {
            // The last two are left to the library whatever their steps are.
            if number > 1 && (words == "first" || words == "never") {
                continue;
            }
            let mut file = base.clone();
            file["normalizer"] = json!({"type": "Sequence", "normalizers": steps});
            file["pre_tokenizer"] = pre_tokenizer.clone();
            let added = file["added_tokens"].as_array_mut().unwrap();
            for (content, lstrip, normalized) in [
                ("[x]", true, number % 2 == 0),
                ("wide", false, number % 2 == 1),
                ("日本", false, number % 3 == 0),
            ] {
                added.push(json!({
                    "id": 1000, "content": content, "single_word": false, "lstrip": lstrip,
                    "rstrip": false, "normalized": normalized, "special": false,
                }));
            }
            let name = format!("{words} {number}");
            files.push(Compared::new(name, file.to_string().as_bytes()));
        }
    }
    if let Some(folder) = std::env::var_os("VECTIDE_TEST_TOKENIZER") {
        let path = Path::new(&folder).join("tokenizer.json");
        let json = std::fs::read(path).unwrap();
        files.push(Compared::new(REAL.into(), &json));
    }
    files
});

fn check(text: &str) {
    FILES.iter().for_each(|file| file.check(text));
}

/// Of all of Unicode, where it has a meaning, for files whose steps differ in what they make of one.
#[test]
fn every_character_alone_and_between_others() {
    let names = ["marks 0", "marks 1", "marks 9", "white 0", "white 11", REAL];
    let is_named = |file: &&Compared| names.contains(&file.name.as_str());
    let files: Vec<&Compared> = FILES.iter().filter(is_named).collect();
    assert!(files.len() >= names.len() - 1);
    let check = |text: &str| files.iter().for_each(|file| file.check(text));
    let mut text = String::new();
    for character in '\0'..=char::MAX {
        let code = character as u32;
        if code < 0x2_0000 && !(0x3400..0xA000).contains(&code) || code.is_multiple_of(97) {
            text.push_str(&format!(
                "{character} a{character}b {character}{character} the \u{301}{character}of w{character} "
            ));
        }
        if text.len() > 1500 {
            check(&text);
            text.clear();
        }
    }
    check(&text);
}

#[test]
fn odd_texts() {
    for text in [
        "",
        " ",
        "  ",
        " \n ",
        "the  water ",
        "the  water  ",
        "  the water",
        "a\r\nb\r\n\r\nc\rd\n\re\r",
        "a \r\n",
        "\r\u{301}\n",
        "the\u{200b} <mask>of",
        "the \u{200b} <mask>  of<mask>",
        "the  ,  <mask> of",
        "the   [x] of[x]  [x",
        "[ｘ] ＜mask＞ <ｍask>",
        "<s></s><pad><unk><mask>",
        "<s",
        "<unk",
        "ｗｉｄｅ wide ｗide",
        "日本 日\u{301}本 日日本本",
        "▁",
        "▁▁ ▁",
        "the▁water ▁of",
        "a ▁",
        " \u{301}a",
        "a \u{301}",
        "the water\u{301}",
        "\u{301}",
        "e\u{301}\u{323} o\u{308}",
        "\u{1112}\u{1161}\u{11ab} 한\u{11ab} 하\u{11ab}",
        "क्षि क् ष \u{94d}",
        "👨\u{200d}👩\u{200d}👧🇯🇵🇯 👍🏽 ❤\u{fe0f}",
        "\u{600}1 \u{600}",
        "a\0b\0 \0",
        "\u{ad}so\u{ad}ft\u{ad} \u{ad}",
        "\u{3000}the\u{a0}water\u{2028}of\u{85}",
        "\u{feff}the",
    ] {
        check(text);
        check(&format!("the water {text} of a river"));
    }
    check(&"a".repeat(5000));
    check(&"the ".repeat(5000));
    check(&format!("{}\u{301} the", "日".repeat(3000)));
    check(&" ".repeat(5000));
}

/// A text that goes to the library at each word must not cost more than twice that.
#[test]
fn a_long_text_of_marks_takes_linear_time() {
    let file = &FILES[0];
    let start = std::time::Instant::now();
    for text in [
        "a\u{301} ".repeat(100_000),
        format!("{}\u{301}", "a".repeat(1000)).repeat(300),
        "日\u{301}".repeat(50_000),
        "<".repeat(300_000),
        format!("{}\u{301}", "<mask".repeat(60_000)),
    ] {
        assert!(file.unlimited.count(&text) >= 1);
        assert!(file.limited.encode(&text).len() <= LIMIT);
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
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
                "(the|water|of|river|wide|ing|s){1,3}",
                "[ -~]{1,20}",
                "\\PC{1,6}",
                "[ぁ-ヿ一-龠。、日本]{1,12}",
                "[\u{300}-\u{36f}\u{64b}-\u{652}\u{93c}\u{94d}\u{1d165}-\u{1d172}]{1,3}",
                "(<s>|</s>|<mask>|<pad>|<unk>|\\[x\\]|<m|<){1,3}",
                "[ \t\n\r\u{b}\u{85}\u{a0}\u{2000}-\u{200a}\u{2028}\u{202f}\u{3000}]{1,4}",
                "(\r\n| |  |   |\r|\n){1,3}",
                "[\u{200b}-\u{200f}\u{202a}-\u{202e}\u{2060}\u{feff}\u{ad}]{1,2}",
                "[\u{590}-\u{6ff}]{1,10}",
                "[\u{900}-\u{97f}]{1,8}",
                "[\u{e01}-\u{e5b}]{1,8}",
                "[\u{1f300}-\u{1faff}\u{200d}\u{fe0f}\u{1f1e6}-\u{1f1ff}]{1,6}",
                "[\u{1100}-\u{11ff}가-힣]{1,6}",
                "[\u{ff01}-\u{ffee}]{1,8}",
                "[▁ ]{1,3}",
                "[ﬀ-ﬆ①-⑳Ⅰ-ↈ½¼㌀-㏿]{1,4}",
                Just("\u{0}".to_string()),
                "[\u{1}-\u{1f}\u{7f}-\u{9f}]{1,3}",
            ],
            0..16,
        )
    ) {
        check(&parts.concat());
    }
}
