//! Reads a `tokenizer.json` of Unigram or BPE: what it says is checked before the library believes it.
//!
//! The library panics over some damaged files, and takes a hundred times the memory of a piece of its
//! vocabulary. So sizes are bounded first, what is not needed is taken out, and only steps are let
//! through that [`super::stretches`] can cut a text between.
//!
//! Invariant: a library that was read neither fails nor panics on any text, and takes about a
//! gigabyte at most, and 8 MB for each thread that used it.

use super::TokenizerError;
use super::charsmap;
use super::unigram::Unigram;
use serde_json::{Map, Value};
use tokenizers::{ModelWrapper, NormalizedString, Normalizer, Tokenizer};

/// Bytes of all pieces: XLM-RoBERTa's have 2.6 MB, and take 360 MB while they are read. The library's
/// tree of them has a node of some 200 bytes for each byte that no other piece begins with.
const PIECES_BYTES_MAX: usize = 3 << 20;
/// Bytes of one piece: XLM-RoBERTa's longest has 48. Each place of a text is tried to this depth.
pub(super) const PIECE_BYTES_MAX: usize = 256;
/// Pieces, as in the vocabulary of a model, and merges.
const PIECES_MAX: usize = 1 << 20;
/// Tokens beside the pieces: ModernBERT has 117, of which each is looked for in each text.
const ADDED_MAX: usize = 4096;
/// Words whose merges BPE keeps for each thread until the thread ends, even when the model is gone: one
/// of the longest, 255 bytes, takes 8 KB.
const WORDS_KEPT_MAX: usize = 1000;

/// The library's tokenizer with the ids before and behind a text.
pub(super) struct StretchesFile {
    pub(super) library: Tokenizer,
    /// Where Unigram's steps are such that it needs no library.
    pub(super) unigram: Option<Unigram>,
    pub(super) begin: u32,
    pub(super) end: u32,
}

fn fault(detail: impl Into<String>) -> TokenizerError {
    TokenizerError(detail.into())
}

impl StretchesFile {
    /// Reads it.
    pub(super) fn read(mut value: Value) -> Result<Self, TokenizerError> {
        match value["model"]["type"].as_str() {
            Some("Unigram") => check_unigram(&value)?,
            _ => check_bpe(&value)?,
        }
        check_added(&value["added_tokens"])?;
        let (begin, end) = frame(&value["post_processor"])?;
        // Texts are cut and framed by this crate, and ids never become texts again.
        for part in ["padding", "truncation", "decoder", "post_processor"] {
            value[part] = Value::Null;
        }
        let mut library =
            Tokenizer::from_bytes(value.to_string()).map_err(|error| fault(error.to_string()))?;
        check_normalised(&library)?;
        keep_fewer_words(&mut library);
        Ok(Self {
            unigram: Unigram::new(&value, &library),
            library,
            begin,
            end,
        })
    }
}

fn check_unigram(value: &Value) -> Result<(), TokenizerError> {
    let model = &value["model"];
    let pieces = model["vocab"].as_array().map(Vec::as_slice);
    let pieces = pieces.unwrap_or_default();
    check_pieces(pieces.len(), pieces.iter().map(|piece| piece[0].as_str()))?;
    let unknown = model["unk_id"].as_u64();
    if unknown.is_none_or(|id| id >= pieces.len() as u64) {
        return Err(fault("its vocabulary has no unknown token (unk_id)"));
    }
    if model["byte_fallback"] == true {
        return Err(fault("byte_fallback is not supported"));
    }
    check_normalizer(&value["normalizer"])?;
    check_unigram_words(&value["pre_tokenizer"])
}

/// SentencePiece's words begin with a mark for the space before them.
fn check_unigram_words(pre_tokenizer: &Value) -> Result<(), TokenizerError> {
    let whole = std::slice::from_ref(pre_tokenizer);
    let steps = match pre_tokenizer["type"].as_str() {
        Some("Sequence") => pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice),
        _ => Some(whole),
    };
    let is_metaspace = |step: &Value| {
        step["type"] == "Metaspace" && step["replacement"] == "▁" && step["split"] != false
    };
    match steps.unwrap_or_default() {
        [words] if is_metaspace(words) => Ok(()),
        [white, words] if white["type"] == "WhitespaceSplit" && is_metaspace(words) => Ok(()),
        _ => Err(fault(format!(
            "its pre_tokenizer is {}, supported with Unigram is Metaspace that splits, alone or behind \
             WhitespaceSplit",
            named(pre_tokenizer)
        ))),
    }
}

fn check_bpe(value: &Value) -> Result<(), TokenizerError> {
    let model = &value["model"];
    let pieces = model["vocab"].as_object();
    let pieces = pieces.ok_or_else(|| fault("its vocabulary is no object"))?;
    check_pieces(
        pieces.len(),
        pieces.keys().map(|piece| Some(piece.as_str())),
    )?;
    let merges = model["merges"].as_array().map(Vec::as_slice);
    check_merges(merges.unwrap_or_default(), pieces)?;
    // The library looks for it when a text has an unknown byte, and fails there.
    let is_piece = |name: &str| pieces.contains_key(name);
    if !model["unk_token"].is_null() && !model["unk_token"].as_str().is_some_and(is_piece) {
        return Err(fault(format!(
            "its unknown token {:.40} is not in its vocabulary (unk_token)",
            model["unk_token"].to_string()
        )));
    }
    let is_unset = |name: &str| matches!(&model[name], Value::Null) || model[name] == "";
    for name in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        if !is_unset(name) {
            return Err(fault(format!("{name} is not supported with BPE")));
        }
    }
    if model["byte_fallback"] == true {
        return Err(fault("byte_fallback is not supported"));
    }
    let words = &value["pre_tokenizer"];
    // Its expression for words begins one with the space before it.
    if words["type"] != "ByteLevel" || words["use_regex"] == false {
        return Err(fault(format!(
            "its pre_tokenizer is {}, supported with BPE is ByteLevel with its own words",
            named(words)
        )));
    }
    check_normalizer(&value["normalizer"])
}

/// The library writes both parts of a merge into as many bytes as the longest piece has, before it sees
/// whether together they are one.
fn check_merges(merges: &[Value], pieces: &Map<String, Value>) -> Result<(), TokenizerError> {
    if merges.len() > PIECES_MAX {
        return Err(fault(format!("it has {} merges", merges.len())));
    }
    for merge in merges {
        let parts = match merge {
            // The first line of older files.
            Value::String(line) if line.starts_with("#version") => continue,
            Value::String(line) => line.split_once(' '),
            _ => merge[0].as_str().zip(merge[1].as_str()),
        };
        let is_whole = parts.is_some_and(|(first, second)| {
            let both = format!("{first}{second}");
            [first, second, &both]
                .iter()
                .all(|it| pieces.contains_key(*it))
        });
        if !is_whole {
            return Err(fault(format!(
                "the merge {:.80} has a part or a whole that is not in its vocabulary (merges)",
                merge.to_string()
            )));
        }
    }
    Ok(())
}

fn named(step: &Value) -> &str {
    step["type"].as_str().unwrap_or("none")
}

pub(super) fn check_pieces<'a>(
    count: usize,
    pieces: impl Iterator<Item = Option<&'a str>>,
) -> Result<(), TokenizerError> {
    if !(1..=PIECES_MAX).contains(&count) {
        return Err(fault(format!("its vocabulary has {count} pieces")));
    }
    let mut bytes = 0;
    for piece in pieces {
        let length = piece.ok_or_else(|| fault("a piece has no text"))?.len();
        if length > PIECE_BYTES_MAX {
            return Err(fault(format!(
                "a piece has {length} bytes, at most {PIECE_BYTES_MAX} are supported"
            )));
        }
        bytes += length;
    }
    match bytes <= PIECES_BYTES_MAX {
        true => Ok(()),
        false => Err(fault(format!(
            "its pieces have {bytes} bytes, at most {PIECES_BYTES_MAX} are supported"
        ))),
    }
}

/// Normalisers that look at no more than a character, a grapheme or a run of white space.
fn check_normalizer(normalizer: &Value) -> Result<(), TokenizerError> {
    let steps = match normalizer["type"].as_str() {
        Some("Sequence") => normalizer["normalizers"].as_array().map(Vec::as_slice),
        _ if normalizer.is_null() => Some(&[][..]),
        _ => Some(std::slice::from_ref(normalizer)),
    };
    for step in steps.ok_or_else(|| fault("its normalizer has no steps"))? {
        let is_supported = match named(step) {
            "NFC" | "NFKC" | "Lowercase" => true,
            "Precompiled" => {
                let map = step["precompiled_charsmap"].as_str().unwrap_or_default();
                charsmap::check(map)?;
                true
            }
            // The space before a stretch must stay.
            "Strip" => step["strip_left"] == false,
            "Replace" => {
                let content = step["content"].as_str();
                step["pattern"]["Regex"] == " {2,}" && matches!(content, Some(" " | "▁"))
            }
            _ => false,
        };
        if !is_supported {
            return Err(fault(format!(
                "its normalizer has {}, supported are Precompiled, NFC, NFKC, Lowercase, Strip on the right, \
                 and Replace of spaces by one",
                named(step)
            )));
        }
    }
    Ok(())
}

/// Added tokens must not reach over a place where a text is cut.
fn check_added(added: &Value) -> Result<(), TokenizerError> {
    let added = added.as_array().map(Vec::as_slice).unwrap_or_default();
    if added.len() > ADDED_MAX {
        return Err(fault(format!("it has {} added tokens", added.len())));
    }
    for token in added {
        let content = token["content"].as_str().unwrap_or_default();
        if has_place(content) || token["rstrip"] == true || content.len() > PIECE_BYTES_MAX {
            return Err(fault(format!(
                "the added token `{content:.40}` has a space behind a letter, is long, or takes white space \
                 behind itself, which is not supported"
            )));
        }
    }
    Ok(())
}

/// Whether a text could be cut inside of it.
fn has_place(content: &str) -> bool {
    let mut pairs = content.chars().zip(content.chars().skip(1));
    pairs.any(|(one, next)| one.is_alphanumeric() && next.is_whitespace())
}

/// Added tokens that the library looks for in a normalised text, it normalises too; its search for one
/// that nothing is left of panics.
fn check_normalised(library: &Tokenizer) -> Result<(), TokenizerError> {
    let Some(normalizer) = library.get_normalizer() else {
        return Ok(());
    };
    let added = library.get_added_tokens_decoder().into_values();
    for token in added.filter(|token| token.normalized) {
        let mut form = NormalizedString::from(token.content.as_str());
        (normalizer.normalize(&mut form)).map_err(|error| fault(error.to_string()))?;
        if form.get().is_empty() || has_place(form.get()) {
            return Err(fault(format!(
                "the added token `{:.40}` is empty or has a space behind a letter once it is normalised, which \
                 is not supported",
                token.content
            )));
        }
    }
    Ok(())
}

/// Unigram keeps its words in the model, and goes with them.
fn keep_fewer_words(library: &mut Tokenizer) {
    if matches!(library.get_model(), ModelWrapper::BPE(_)) {
        let mut model = library.get_model().clone();
        model.resize_cache(WORDS_KEPT_MAX);
        library.with_model(model);
    }
}

/// The ids that a post-processor puts before and behind a text.
fn frame(processor: &Value) -> Result<(u32, u32), TokenizerError> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let found = match processor["type"].as_str() {
        Some("BertProcessing" | "RobertaProcessing") => {
            id(&processor["cls"][1]).zip(id(&processor["sep"][1]))
        }
        Some("TemplateProcessing") => {
            let special = |piece: &Value| {
                let name = piece["SpecialToken"]["id"].as_str()?;
                match processor["special_tokens"][name]["ids"]
                    .as_array()?
                    .as_slice()
                {
                    [one] => id(one),
                    _ => None,
                }
            };
            match processor["single"].as_array().map(Vec::as_slice) {
                Some([first, text, last]) if text["Sequence"]["id"] == "A" => {
                    special(first).zip(special(last))
                }
                _ => None,
            }
        }
        // It changes offsets only where it stands in a sequence.
        Some("Sequence") => {
            let steps = processor["processors"].as_array().map(Vec::as_slice);
            let mut steps = steps.unwrap_or_default().iter();
            let framing = steps.find(|step| step["type"] != "ByteLevel");
            let is_sequence = framing.is_some_and(|step| step["type"] == "Sequence");
            match framing.filter(|_| !is_sequence && steps.next().is_none()) {
                Some(framing) => return frame(framing),
                None => None,
            }
        }
        _ => None,
    };
    found.ok_or_else(|| fault("texts are not put between one token and another (post_processor)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn unigram() -> Value {
        json!({
            "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.0], ["▁", -2.0]]},
            "normalizer": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": true},
            "post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2],
                "trim_offsets": true, "add_prefix_space": true},
            "added_tokens": [],
        })
    }

    fn bpe() -> Value {
        let mut value = unigram();
        value["model"] = json!({
            "type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<unk>": 3},
            "merges": [["a", "b"]], "unk_token": "<unk>",
        });
        value["pre_tokenizer"] =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
        value
    }

    fn fault_in(mut value: Value, change: impl FnOnce(&mut Value)) -> String {
        change(&mut value);
        StretchesFile::read(value)
            .err()
            .map_or(String::new(), |error| error.0)
    }

    fn fault(change: impl FnOnce(&mut Value)) -> String {
        fault_in(unigram(), change)
    }

    #[test]
    fn merges_are_of_pieces() {
        for whole in [
            json!([["a", "b"]]),
            json!(["#version: 0.2", "a b"]),
            json!([]),
        ] {
            assert_eq!(fault_in(bpe(), |it| it["model"]["merges"] = whole), "");
        }
        for wrong in [
            json!([["a", "<unk>"]]),
            json!([["<unk>", "<unk>"]]),
            json!(["a <unk>"]),
            json!([["ab", "c"]]),
            json!(["ab"]),
            json!([["a"]]),
            json!([7]),
        ] {
            let found = fault_in(bpe(), |it| it["model"]["merges"] = wrong);
            assert!(found.contains("merges"), "{found}");
        }
    }

    #[test]
    fn an_unknown_token_is_a_piece() {
        assert_eq!(
            fault_in(bpe(), |it| it["model"]["unk_token"] = Value::Null),
            ""
        );
        for wrong in [json!("<other>"), json!(""), json!(3)] {
            let found = fault_in(bpe(), |it| it["model"]["unk_token"] = wrong);
            assert!(found.contains("unk_token"), "{found}");
        }
    }

    #[test]
    fn added_tokens_are_checked_as_they_are_looked_for() {
        let found = |normalizer: Value, content: &str, normalized: bool| {
            fault(|it| {
                it["normalizer"] = normalizer;
                it["added_tokens"] = json!([{"id": 3, "content": content, "normalized": normalized,
                    "special": false, "single_word": false, "lstrip": false, "rstrip": false}]);
            })
        };
        let strip = json!({"type": "Strip", "strip_left": false, "strip_right": true});
        assert_eq!(found(strip.clone(), " ", false), "");
        assert_eq!(found(strip.clone(), " x", true), "");
        assert!(found(strip, " ", true).contains("normalised"));
        // A diaeresis alone becomes a space with a mark.
        let compatible = json!({"type": "NFKC"});
        assert_eq!(found(compatible.clone(), "a\u{a8}", false), "");
        assert!(found(compatible, "a\u{a8}", true).contains("normalised"));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        assert_eq!(fault(|_| ()), "");
        let check = |change: fn(&mut Value), expected: &str| {
            let found = fault(change);
            assert!(found.contains(expected), "{found}");
        };
        check(|it| it["model"]["unk_id"] = Value::Null, "unk_id");
        check(|it| it["model"]["unk_id"] = 3.into(), "unk_id");
        check(|it| it["model"]["vocab"] = json!([]), "0 pieces");
        check(|it| it["model"]["vocab"][1] = json!([]), "no text");
        check(
            |it| it["model"]["vocab"][1][0] = "a".repeat(300).into(),
            "300 bytes",
        );
        check(
            |it| it["model"]["byte_fallback"] = true.into(),
            "byte_fallback",
        );
        check(
            |it| it["pre_tokenizer"]["split"] = false.into(),
            "Metaspace",
        );
        check(|it| it["pre_tokenizer"] = Value::Null, "none");
        check(
            |it| it["normalizer"] = json!({"type": "Strip", "strip_left": true}),
            "Strip",
        );
        check(
            |it| {
                let pattern = json!({"Regex": "(a+)+b"});
                it["normalizer"] = json!({"type": "Replace", "pattern": pattern, "content": ""});
            },
            "Replace",
        );
        check(|it| it["post_processor"] = Value::Null, "post_processor");
        for added in [
            json!({"content": "New York"}),
            json!({"content": "<x>", "rstrip": true}),
        ] {
            assert!(fault(|it| it["added_tokens"] = json!([added])).contains("added token"));
        }
    }

    #[test]
    fn the_frame_is_found_in_every_form() {
        let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let tokens = json!({"<s>": {"ids": [0]}, "</s>": {"ids": [2]}});
        let template = |single: Value| json!({"type": "TemplateProcessing", "single": single, "special_tokens": tokens});
        let whole = template(json!([special("<s>"), text, special("</s>")]));
        assert_eq!(frame(&whole).unwrap(), (0, 2));
        let byte_level = json!({"type": "ByteLevel"});
        let sequence = json!({"type": "Sequence", "processors": [byte_level, whole]});
        assert_eq!(frame(&sequence).unwrap(), (0, 2));
        for wrong in [
            template(json!([text, special("</s>")])),
            template(json!([special("<s>"), text, special("other")])),
            json!({"type": "Sequence", "processors": [sequence]}),
            json!({"type": "Sequence", "processors": [whole, whole]}),
        ] {
            assert!(frame(&wrong).is_err(), "{wrong}");
        }
    }
}
