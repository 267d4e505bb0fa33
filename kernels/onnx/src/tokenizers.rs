//! The tokenizers of models that are computed elsewhere: they count as those of the models here do.
//!
//! Invariant: a file goes the same way as one beside a graph, so what panics becomes an error, and a text that is
//! panicked over is counted by its length.

use crate::texts::Texts;
use vectide_model::{CountingTokenizer, NoTokenizer, TokenizerReader};

/// More than any text here has: nothing is encoded, only counted.
const TOKENS_MAX: usize = 1 << 17;

/// Reads any `tokenizer.json` that a model here may have.
pub struct Tokenizers;

impl TokenizerReader for Tokenizers {
    fn read(&self, json: &[u8]) -> Result<CountingTokenizer, NoTokenizer> {
        let texts = Texts::read(json, TOKENS_MAX).map_err(NoTokenizer)?;
        Ok(CountingTokenizer {
            counter: texts.counter(),
            special_tokens: texts.special_tokens(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_are_counted_with_what_every_text_gets() {
        let word =
            |id: u32| json!({"id": format!("[{id}]"), "ids": [id], "tokens": [format!("[{id}]")]});
        let piece = |id: u32| json!({"SpecialToken": {"id": format!("[{id}]"), "type_id": 0}});
        let mut file = json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, piece(1)],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"[1]": word(1)}},
            "model": {"type": "WordLevel", "unk_token": "[0]",
                "vocab": {"[0]": 0, "[1]": 1, "internationalization": 2}},
        });
        let read = |file: &serde_json::Value| Tokenizers.read(file.to_string().as_bytes());
        let tokenizer = read(&file).unwrap();
        assert_eq!(tokenizer.special_tokens, 1);
        for (text, tokens) in [
            ("", 0),
            ("Internationalization", 1),
            ("internationalization of  it", 3),
        ] {
            assert_eq!(tokenizer.counter.count(text), tokens, "{text}");
        }
        file["model"]["type"] = json!("unheard of");
        assert!(read(&file).is_err());
        for json in [&b""[..], b"{", b"[]", b"\xFF"] {
            assert!(Tokenizers.read(json).is_err());
        }
    }
}
