//! Reads a `tokenizer.json` of WordPiece: what it says is checked before the library believes it.
//!
//! The library panics over some files that are damaged: over a decoder that it does not know, over the name of
//! a special token that is missing when it encodes the first text. So the file is parsed here first, what
//! is not needed is taken out, and only what this crate computes itself is let through.
//!
//! Invariant: a library that was read prepares texts as BERT does, cleaned of control characters, and frames them by `[CLS]` and
//! `[SEP]`, the way [`super::word_piece`] does.

use super::TokenizerError;
use serde_json::Value;
use tokenizers::Tokenizer;

/// The library's tokenizer with the ids before and behind a text.
pub(super) struct TokenizerFile {
    pub(super) library: Tokenizer,
    pub(super) begin: u32,
    pub(super) end: u32,
}

impl TokenizerFile {
    /// Reads it.
    pub(super) fn read(mut value: Value) -> Result<Self, TokenizerError> {
        // Others may look at a character's neighbours, which a table of characters can't.
        for (part, kind) in [
            ("normalizer", "BertNormalizer"),
            ("pre_tokenizer", "BertPreTokenizer"),
        ] {
            if value[part]["type"] != kind {
                let found = value[part]["type"].as_str().unwrap_or("none");
                return Err(TokenizerError(format!(
                    "its {part} is {found}, only {kind} is supported"
                )));
            }
        }
        let is_cleaned = &value["normalizer"]["clean_text"];
        if *is_cleaned != true {
            return Err(TokenizerError(format!(
                "its normalizer has clean_text {is_cleaned}, only true is supported"
            )));
        }
        // Texts are cut by this crate, and ids never become texts again.
        for part in ["padding", "truncation", "decoder"] {
            value[part] = Value::Null;
        }
        let library = Tokenizer::from_bytes(value.to_string())
            .map_err(|error| TokenizerError(error.to_string()))?;
        let special = |name: &str| {
            let id = library.token_to_id(name);
            id.ok_or_else(|| TokenizerError(format!("no token `{name}`")))
        };
        let (begin, end) = (special("[CLS]")?, special("[SEP]")?);
        if !is_between(&value["post_processor"], begin, end) {
            return Err(TokenizerError(
                "texts are not put between [CLS] and [SEP] alone".into(),
            ));
        }
        Ok(Self {
            library,
            begin,
            end,
        })
    }
}

/// Whether a post-processor, as its file has it, puts texts between these two ids.
fn is_between(processor: &Value, begin: u32, end: u32) -> bool {
    match processor["type"].as_str() {
        Some("BertProcessing") => processor["cls"][1] == begin && processor["sep"][1] == end,
        Some("TemplateProcessing") => {
            let Some([first, text, last]) = processor["single"].as_array().map(Vec::as_slice)
            else {
                return false;
            };
            let is_special = |piece: &Value, id: u32| {
                let name = piece["SpecialToken"]["id"].as_str().unwrap_or_default();
                processor["special_tokens"][name]["ids"] == Value::from(vec![id])
            };
            is_special(first, begin) && text["Sequence"]["id"] == "A" && is_special(last, end)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_damaged_or_not_berts_is_refused() {
        let fault = |json: Value| TokenizerFile::read(json).err().expect("an error").0;
        assert!(fault(json!([])).contains("normalizer is none"));
        assert!(fault(json!({"normalizer": {"type": "NFC"}})).contains("normalizer is NFC"));
        // Control characters would stay in words.
        for clean_text in [json!(false), json!(1), Value::Null] {
            let normalizer = json!({"type": "BertNormalizer", "clean_text": clean_text});
            let pre_tokenizer = json!({"type": "BertPreTokenizer"});
            let file = json!({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer});
            let fault = fault(file);
            assert!(
                fault.contains(&format!("clean_text {clean_text}")),
                "{fault}"
            );
        }
    }

    #[test]
    fn only_the_two_tokens_pass() {
        let template = |single: Value, ids: Value| {
            let tokens = json!({"[CLS]": {"ids": [2]}, "[SEP]": {"ids": ids}});
            json!({"type": "TemplateProcessing", "single": single, "special_tokens": tokens})
        };
        let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let whole = json!([special("[CLS]"), text, special("[SEP]")]);
        assert!(is_between(&template(whole.clone(), json!([3])), 2, 3));
        assert!(!is_between(&template(whole.clone(), json!([3])), 2, 4));
        assert!(!is_between(&template(whole, json!([3, 3])), 2, 3));
        let other = json!([special("[CLS]"), text, special("</s>")]);
        assert!(!is_between(&template(other, json!([3])), 2, 3));
        let longer = json!([special("[CLS]"), text, special("[SEP]"), special("[SEP]")]);
        assert!(!is_between(&template(longer, json!([3])), 2, 3));
        assert!(!is_between(&template(json!([text]), json!([3])), 2, 3));
        let bert = json!({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]});
        assert!(is_between(&bert, 2, 3));
        assert!(!is_between(&bert, 3, 2));
        assert!(!is_between(&Value::Null, 2, 3));
    }
}
