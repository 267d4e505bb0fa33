//! Texts to token ids, by whatever tokenizer the model has.
//!
//! What `vectide-encoder` knows (WordPiece as BERT has it, SentencePiece's Unigram, BPE of bytes) goes its way,
//! whose ids are the library's; all other files go to the `tokenizers` library, once what it would believe of them
//! was checked. Padding and truncation in the file are ignored.
//!
//! Invariant: a text has at most `tokens_max` ids, special ones included, and no text takes more work than
//! those ids need: of a text that is far too long only a beginning is looked at. A panic over a text is that
//! text's error.

use serde_json::Value;
use std::sync::Arc;
use tokenizers::{PostProcessor, TruncationDirection};
use vectide_encoder::{Tokenizer, check_library_file};
use vectide_model::{TokenCounter, contained};

/// Bytes of text that are first looked at for each token that is wanted: four times what a token of English has.
const BYTES_A_TOKEN: usize = 16;
/// A shorter beginning is not worth cutting.
const BEGINNING_BYTES_MIN: usize = 4096;
/// Tokens before the cut that may be other ones than without it.
const CUT_TOKENS: usize = 16;
/// Bytes of a token of a text that can't be counted: fewer than those of English, so that it is cut rather short.
const ESTIMATED_TOKEN_BYTES: usize = 3;

/// The ids of one text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenIds {
    /// The ids, special ones included.
    pub(crate) ids: Vec<u32>,
    /// The type of each; empty where all are 0.
    pub(crate) types: Vec<u32>,
}

/// A model's tokenizer.
pub(crate) enum Texts {
    /// One that `vectide-encoder` knows.
    Own(Arc<Tokenizer>),
    /// Any other.
    Library(Arc<LibraryTokenizer>),
}

impl Texts {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn read(json: &[u8], tokens_max: usize) -> Result<Self, String> {
        let refusal = match contained(|| Tokenizer::from_json(json, tokens_max))? {
            Ok(own) => return Ok(Self::Own(Arc::new(own))),
            Err(refusal) => refusal,
        };
        let library = LibraryTokenizer::read(json, tokens_max)?;
        tracing::debug!(%refusal, "the `tokenizers` library makes this model's tokens");
        Ok(Self::Library(Arc::new(library)))
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// What the library says.
    pub(crate) fn encode(&self, text: &str) -> Result<TokenIds, String> {
        contained(|| match self {
            Self::Own(own) => Ok(TokenIds {
                ids: own.encode(text),
                types: Vec::new(),
            }),
            Self::Library(library) => library.encode(text),
        })
        .map_err(|panic| format!("its tokenizer panicked: {panic}"))?
    }

    /// Counts tokens, without special ones.
    pub(crate) fn counter(&self) -> Arc<dyn TokenCounter> {
        let counter: Arc<dyn TokenCounter> = match self {
            Self::Own(own) => own.clone(),
            Self::Library(library) => library.clone(),
        };
        Arc::new(ContainedCounter(counter))
    }

    /// Special tokens that every text gets.
    pub(crate) fn special_tokens(&self) -> usize {
        match self {
            Self::Own(_) => 2,
            Self::Library(library) => library.special_tokens,
        }
    }
}

/// Counts whatever becomes of the tokenizer: a text that it panics over is told where it is embedded.
struct ContainedCounter(Arc<dyn TokenCounter>);

impl TokenCounter for ContainedCounter {
    fn count(&self, text: &str) -> usize {
        let counted = contained(|| self.0.count(text));
        counted.unwrap_or_else(|_| text.len().div_ceil(ESTIMATED_TOKEN_BYTES))
    }
}

/// The id that fills rows, as `tokenizer.json` has it.
pub(crate) fn pad_id(json: &[u8]) -> Option<u32> {
    let file: Value = serde_json::from_slice(json).ok()?;
    file["padding"]["pad_id"].as_u64()?.try_into().ok()
}

/// The library's tokenizer.
pub(crate) struct LibraryTokenizer {
    library: tokenizers::Tokenizer,
    special_tokens: usize,
    tokens_max: usize,
}

impl LibraryTokenizer {
    fn read(json: &[u8], tokens_max: usize) -> Result<Self, String> {
        let mut file: Value =
            serde_json::from_slice(json).map_err(|error| format!("it is no JSON: {error}"))?;
        if !file.is_object() {
            return Err("it is no JSON object".into());
        }
        check_templates(&file["post_processor"])?;
        check_library_file(&file).map_err(|error| error.to_string())?;
        // Ids never become texts again, and the library panics over a decoder that it does not know.
        for part in ["padding", "truncation", "decoder"] {
            file[part] = Value::Null;
        }
        let library = contained(|| tokenizers::Tokenizer::from_bytes(file.to_string()))?;
        let library = library.map_err(|error| error.to_string())?;
        let processor = library.get_post_processor();
        let special_tokens = processor.map_or(0, |processor| processor.added_tokens(false));
        let tokenizer = Self {
            library,
            special_tokens,
            tokens_max,
        };
        for probe in ["", "a", "Two words,\n\0 日本語 🙂"] {
            let ids = contained(|| tokenizer.encode(probe))??;
            if ids.ids.len() > tokens_max {
                return Err(format!(
                    "it makes {} tokens of a text that may have {tokens_max}",
                    ids.ids.len()
                ));
            }
        }
        Ok(tokenizer)
    }

    fn encode(&self, text: &str) -> Result<TokenIds, String> {
        let told = |error: tokenizers::Error| error.to_string();
        let limit = self.tokens_max.saturating_sub(self.special_tokens);
        let mut bytes = (limit * BYTES_A_TOKEN).max(BEGINNING_BYTES_MIN);
        let mut encoding = loop {
            let beginning = beginning(text, bytes);
            let encoding = self.library.encode_fast(beginning, false).map_err(told)?;
            let is_whole = beginning.len() == text.len();
            if is_whole || encoding.len() >= limit + CUT_TOKENS {
                break encoding;
            }
            bytes *= 4;
        };
        encoding.truncate(limit, 0, TruncationDirection::Right);
        // What was cut off is kept there.
        encoding.take_overflowing();
        let encoding = self.library.post_process(encoding, None, true);
        let encoding = encoding.map_err(told)?;
        let mut types = encoding.get_type_ids().to_vec();
        if types.iter().all(|it| *it == 0) {
            types.clear();
        }
        Ok(TokenIds {
            ids: encoding.get_ids().to_vec(),
            types,
        })
    }
}

impl TokenCounter for LibraryTokenizer {
    fn count(&self, text: &str) -> usize {
        // A text that the library can't encode is one that can't be embedded either, which tells it.
        let encoding = self.library.encode_fast(text, false);
        encoding.map_or(0, |encoding| encoding.len())
    }
}

/// About so many bytes of a text, to the end of a word where one ends there.
fn beginning(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let mut end = bytes;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let part = &text[..end];
    match part.rfind(char::is_whitespace) {
        Some(end) if end >= bytes / 2 => &part[..end],
        _ => part,
    }
}

/// Checks that templates name special tokens that the file has: the library panics at the first text otherwise.
fn check_templates(processor: &Value) -> Result<(), String> {
    for inner in processor["processors"].as_array().into_iter().flatten() {
        if inner["processors"].is_array() {
            return Err("its post_processor has sequences in a sequence".into());
        }
        check_templates(inner)?;
    }
    let pieces = ["single", "pair"].map(|name| processor[name].as_array());
    for piece in pieces.into_iter().flatten().flatten() {
        if let Some(name) = piece["SpecialToken"]["id"].as_str()
            && !processor["special_tokens"][name].is_object()
        {
            return Err(format!("its post_processor lacks the token `{name}`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Pieces with scores, as SentencePiece has them; `<s>` and `</s>` around a text.
    fn unigram() -> Value {
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let piece = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let token = |id: u32, name: &str| json!({"id": name, "ids": [id], "tokens": [name]});
        json!({
            "version": "1.0",
            "added_tokens": [special(0, "<s>"), special(1, "<pad>"), special(2, "</s>"), special(3, "<unk>")],
            "normalizer": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
            "post_processor": {"type": "TemplateProcessing",
                "single": [piece("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, piece("</s>")],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": token(0, "<s>"), "</s>": token(2, "</s>")}},
            "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
            "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"},
            "truncation": {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
            "model": {"type": "Unigram", "unk_id": 3, "byte_fallback": false, "vocab":
                [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -3.0], ["▁wa", -4.0],
                 ["ter", -4.0], ["▁water", -6.0], ["s", -5.0]]},
        })
    }

    /// The same without special tokens, which `vectide-encoder` refuses.
    fn unframed() -> Value {
        let mut file = unigram();
        file["post_processor"] = Value::Null;
        file
    }

    fn read(file: &Value, tokens_max: usize) -> Result<Texts, String> {
        Texts::read(file.to_string().as_bytes(), tokens_max)
    }

    #[test]
    fn pieces_with_scores_are_made_here() {
        let texts = read(&unigram(), 10).unwrap();
        assert!(matches!(texts, Texts::Own(_)));
        let ids = |text: &str| texts.encode(text).unwrap().ids;
        assert_eq!(ids("water waters"), [0, 7, 7, 8, 2]);
        assert_eq!(ids(""), [0, 2]);
        assert_eq!(ids("x"), [0, 4, 3, 2]);
        // Cut behind, whatever the file says, and between the special tokens.
        assert_eq!(ids(&"water ".repeat(50)), [0, 7, 7, 7, 7, 7, 7, 7, 7, 2]);
        assert_eq!(texts.counter().count(&"water ".repeat(50)), 51);
        assert_eq!(texts.special_tokens(), 2);
        assert_eq!(pad_id(unigram().to_string().as_bytes()), Some(1));
        assert_eq!(pad_id(b"{"), None);
    }

    #[test]
    fn what_is_not_known_here_goes_to_the_library() {
        let texts = read(&unframed(), 8).unwrap();
        assert!(matches!(texts, Texts::Library(_)));
        let ids = |text: &str| texts.encode(text).unwrap().ids;
        assert_eq!(ids("water waters"), [7, 7, 8]);
        assert_eq!(ids(""), [0_u32; 0]);
        // Cut behind, whatever the file says.
        assert_eq!(ids(&"water ".repeat(50)), [7; 8]);
        assert_eq!(texts.counter().count(&"water ".repeat(50)), 51);
        assert_eq!(texts.special_tokens(), 0);
        // Special tokens that `vectide-encoder` has no place for: two of them behind a text.
        let mut file = unigram();
        let piece = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        file["post_processor"]["single"] =
            json!([piece("<s>"), text, piece("</s>"), piece("</s>")]);
        let texts = read(&file, 10).unwrap();
        assert!(matches!(texts, Texts::Library(_)));
        assert_eq!(texts.special_tokens(), 3);
        let ids = texts.encode(&"water ".repeat(50)).unwrap().ids;
        assert_eq!(ids, [0, 7, 7, 7, 7, 7, 7, 7, 2, 2]);
    }

    /// A map that leads out of itself would be a panic at the first text that it is asked for.
    #[test]
    fn damaged_maps_of_characters_are_refused_whichever_way_a_file_goes() {
        let map = json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAAAUAAA="});
        let sequence = json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, map]});
        for mut file in [unigram(), unframed()] {
            for normalizer in [&map, &sequence] {
                file["normalizer"] = normalizer.clone();
                let error = read(&file, 10).err().unwrap();
                assert!(error.contains("leads out of itself"), "{error}");
            }
        }
    }

    #[test]
    fn a_count_that_panics_is_estimated() {
        struct Panics;
        impl TokenCounter for Panics {
            fn count(&self, _: &str) -> usize {
                panic!("no count")
            }
        }
        let counter = ContainedCounter(Arc::new(Panics));
        assert_eq!(counter.count("seven b"), 3);
    }

    /// Of a megabyte only a beginning is encoded, and the ids are those of the whole.
    #[test]
    fn long_texts_have_the_ids_of_their_beginning() {
        let Texts::Library(library) = read(&unframed(), 10).unwrap() else {
            panic!("not the library");
        };
        let texts = [
            "water ".repeat(180_000),
            format!("{}water", " ".repeat(1 << 20)),
            "waters".repeat(20_000),
            "日本 ".repeat(100_000),
        ];
        for text in texts {
            let whole = library.library.encode_fast(text.as_str(), false).unwrap();
            let expected: Vec<u32> = whole.get_ids().iter().copied().take(10).collect();
            assert_eq!(library.encode(&text).unwrap().ids, expected, "{text:.20}");
        }
    }

    #[test]
    fn what_the_library_would_panic_over_is_an_error() {
        for part in ["model", "post_processor", "pre_tokenizer", "added_tokens"] {
            let mut file = unigram();
            file[part] = json!({"type": "unheard of"});
            assert!(read(&file, 10).is_err(), "{part}");
        }
        let mut file = unigram();
        file["post_processor"]["special_tokens"] = json!({});
        let error = read(&file, 10).err().unwrap();
        assert!(error.contains("lacks the token `<s>`"), "{error}");
        let template = file["post_processor"].clone();
        file["post_processor"] = json!({"type": "Sequence", "processors": [template]});
        assert!(read(&file, 10).is_err());
        let mut deep = file["post_processor"].clone();
        deep = json!({"type": "Sequence", "processors": [deep]});
        file["post_processor"] = deep;
        assert!(read(&file, 10).is_err());
        for json in [&b""[..], b"[]", b"7", b"{}", b"\xFF"] {
            assert!(Texts::read(json, 10).is_err());
        }
        // An unknown decoder is not needed.
        let mut file = unigram();
        file["decoder"] = json!({"type": "unheard of"});
        read(&file, 10).unwrap();
    }

    #[test]
    fn truncated_files_are_errors() {
        let file = unigram().to_string();
        for length in 0..file.len() {
            assert!(Texts::read(file.as_bytes().get(..length).unwrap(), 10).is_err());
        }
    }
}
