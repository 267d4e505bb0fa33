//! Texts to token ids, by whatever tokenizer the model has.
//!
//! WordPiece as BERT has it goes the fast way of `vectide-encoder`, whose ids are the library's; all other
//! kinds of `tokenizer.json` go to the `tokenizers` library. Padding and truncation in the file are ignored.
//!
//! Invariant: a text has at most `tokens_max` ids, special ones included, and no text takes more work than
//! those ids need: of a text that is far too long only a beginning is looked at.

use crate::contained::contained;
use serde_json::Value;
use std::sync::Arc;
use tokenizers::{PostProcessor, TruncationDirection};
use vectide_encoder::Tokenizer;
use vectide_model::TokenCounter;

/// Bytes of text that are first looked at for each token that is wanted: four times what a token of English has.
const BYTES_A_TOKEN: usize = 16;
/// A shorter beginning is not worth cutting.
const BEGINNING_BYTES_MIN: usize = 4096;
/// Tokens before the cut that may be other ones than without it.
const CUT_TOKENS: usize = 16;

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
    /// BERT's WordPiece.
    WordPiece(Arc<Tokenizer>),
    /// Any other.
    Library(Arc<LibraryTokenizer>),
}

impl Texts {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn read(json: &[u8], tokens_max: usize) -> Result<Self, String> {
        if let Ok(fast) = contained(|| Tokenizer::from_json(json, tokens_max))? {
            return Ok(Self::WordPiece(Arc::new(fast)));
        }
        let library = LibraryTokenizer::read(json, tokens_max)?;
        Ok(Self::Library(Arc::new(library)))
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// What the library says.
    pub(crate) fn encode(&self, text: &str) -> Result<TokenIds, String> {
        match self {
            Self::WordPiece(fast) => Ok(TokenIds {
                ids: fast.encode(text),
                types: Vec::new(),
            }),
            Self::Library(library) => library.encode(text),
        }
    }

    /// Counts tokens, without special ones.
    pub(crate) fn counter(&self) -> Arc<dyn TokenCounter> {
        match self {
            Self::WordPiece(fast) => fast.clone(),
            Self::Library(library) => library.clone(),
        }
    }

    /// Special tokens that every text gets.
    pub(crate) fn special_tokens(&self) -> usize {
        match self {
            Self::WordPiece(_) => 2,
            Self::Library(library) => library.special_tokens,
        }
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

    fn read(file: &Value, tokens_max: usize) -> Result<Texts, String> {
        Texts::read(file.to_string().as_bytes(), tokens_max)
    }

    #[test]
    fn pieces_with_scores_go_to_the_library() {
        let texts = read(&unigram(), 10).unwrap();
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

    /// Of a megabyte only a beginning is encoded, and the ids are those of the whole.
    #[test]
    fn long_texts_have_the_ids_of_their_beginning() {
        let Texts::Library(library) = read(&unigram(), 12).unwrap() else {
            panic!("the fast way");
        };
        let texts = [
            "water ".repeat(180_000),
            format!("{}water", " ".repeat(1 << 20)),
            "waters".repeat(20_000),
            "日本 ".repeat(100_000),
        ];
        for text in texts {
            let whole = library.library.encode_fast(text.as_str(), false).unwrap();
            let mut expected = vec![0];
            expected.extend(whole.get_ids().iter().take(10));
            expected.push(2);
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
