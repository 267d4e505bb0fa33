//! Which files of Unigram have a walk of their own ([`super::unigram`]), and what it has to keep to.
//!
//! Of the steps that [`super::stretches_file`] lets through, some look at more than one character where
//! the walk can't: spaces that begin a text only, runs of spaces that are sought before a map makes
//! others, added tokens with a space inside. Such files are left to the library.
//!
//! Invariant: steps that were accepted change one character at a time where characters stand alone
//! ([`super::unigram_characters`]), and then runs of spaces, in the way that [`Spaces`] says.

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, Tokenizer};

/// SentencePiece's mark for a space.
pub(super) const MARK: char = '▁';
/// Added tokens are looked for one after the other where one may begin: XLM-RoBERTa has five.
const ADDED_MAX: usize = 64;

/// What becomes of spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spaces {
    /// All white space only separates words (`WhitespaceSplit` before `Metaspace`).
    Separate,
    /// Each is a mark, which begins a word (`Metaspace` alone).
    Mark {
        /// Several are as one.
        are_joined: bool,
        /// Those that end a text are none.
        are_stripped: bool,
    },
}

/// An accepted file.
pub(super) struct UnigramFile {
    /// Steps that change characters.
    pub(super) steps: Vec<NormalizerWrapper>,
    pub(super) spaces: Spaces,
    /// Added tokens that are sought in a text as it is.
    pub(super) literal: Vec<String>,
    /// Forms of those that are sought once it is normalised.
    pub(super) normalized: Vec<String>,
    pub(super) unknown: u32,
}

impl UnigramFile {
    /// Takes what the walk needs of a checked file and the library that was read from it; `None` when
    /// the library has to walk itself.
    pub(super) fn read(value: &Value, library: &Tokenizer) -> Option<Self> {
        let mut spaces = words(&value["pre_tokenizer"])?;
        let steps = steps(&value["normalizer"], &mut spaces)?;
        let (literal, normalized) = added(library)?;
        let unknown = value["model"]["unk_id"].as_u64()?;
        Some(Self {
            steps,
            spaces,
            literal,
            normalized,
            unknown: u32::try_from(unknown).ok()?,
        })
    }
}

/// How words are cut; each must begin with a mark, wherever it stands.
fn words(pre_tokenizer: &Value) -> Option<Spaces> {
    let steps = pre_tokenizer["pretokenizers"].as_array();
    let (last, before) = match steps {
        Some(steps) => steps.split_last()?,
        None => (pre_tokenizer, &[][..]),
    };
    // As the library reads it: the older option, where it is false, is the newer one's "never".
    let is_everywhere = last["add_prefix_space"] != false
        && matches!(last["prepend_scheme"].as_str(), None | Some("always"));
    let spaces = match before {
        [] => Spaces::Mark {
            are_joined: false,
            are_stripped: false,
        },
        _ => Spaces::Separate,
    };
    is_everywhere.then_some(spaces)
}

/// The steps before those on spaces, and in `spaces` what the latter do.
fn steps(normalizer: &Value, spaces: &mut Spaces) -> Option<Vec<NormalizerWrapper>> {
    let all = match normalizer["normalizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None if normalizer.is_null() => &[],
        None => std::slice::from_ref(normalizer),
    };
    let is_of_spaces = |step: &&Value| step["type"] == "Strip" || step["type"] == "Replace";
    let count = all.iter().take_while(|step| !is_of_spaces(step)).count();
    let (steps, of_spaces) = all.split_at(count);
    let names = of_spaces.iter().map(|step| match step["type"].as_str() {
        Some("Replace") if step["content"] == " " => Some("joined"),
        Some("Replace") => Some("marked"),
        Some("Strip") if step["strip_right"] == true => Some("stripped"),
        _ => None,
    });
    let names: Vec<&str> = names.collect::<Option<_>>()?;
    // A mark that is made of spaces is white space no more: nothing may look for that behind it.
    let (joins, strips) = match names[..] {
        [] => (false, false),
        ["stripped"] => (false, true),
        ["joined"] => (true, false),
        ["stripped", "joined"] | ["joined", "stripped"] => (true, true),
        ["marked"] if *spaces != Spaces::Separate => (true, false),
        ["stripped", "marked"] if *spaces != Spaces::Separate => (true, true),
        _ => return None,
    };
    if let Spaces::Mark {
        are_joined,
        are_stripped,
    } = spaces
    {
        (*are_joined, *are_stripped) = (joins, strips);
    }
    let read = |step: &Value| serde_json::from_value(step.clone()).ok();
    steps.iter().map(read).collect()
}

/// Added tokens, literal ones and normalised ones, that are found inside of a word whatever is beside it.
fn added(library: &Tokenizer) -> Option<(Vec<String>, Vec<String>)> {
    let (mut literal, mut normalized) = (Vec::new(), Vec::new());
    for token in library.get_added_tokens_decoder().into_values() {
        let mut content = token.content;
        if token.normalized {
            if let Some(normalizer) = library.get_normalizer() {
                let mut form = NormalizedString::from(content.as_str());
                normalizer.normalize(&mut form).ok()?;
                content = form.get().to_owned();
            }
            normalized.push(content.clone());
        } else {
            literal.push(content.clone());
        }
        let is_space = |character: char| character.is_whitespace() || character == MARK;
        let is_plain = !token.single_word && !token.rstrip && !content.is_empty();
        if !is_plain || content.contains(is_space) {
            return None;
        }
    }
    (literal.len() + normalized.len() <= ADDED_MAX).then_some((literal, normalized))
}

#[cfg(test)]
mod tests {
    use super::super::stretches_file::StretchesFile;
    use super::*;
    use serde_json::json;

    fn file() -> Value {
        let json = include_str!("../../tests/data/random/xlm-roberta-384/tokenizer.json");
        serde_json::from_str(json).unwrap()
    }

    fn is_covered(change: impl FnOnce(&mut Value)) -> bool {
        let mut file = file();
        change(&mut file);
        StretchesFile::read(file).unwrap().unigram.is_some()
    }

    #[test]
    fn published_shapes_are_covered() {
        assert!(is_covered(|_| ()));
        // As XLM-RoBERTa's and multilingual-e5's files have it, and as conversions write it.
        let old = json!({"type": "Metaspace", "replacement": "▁", "add_prefix_space": true});
        let white = json!({"type": "WhitespaceSplit"});
        let words = json!({"type": "Sequence", "pretokenizers": [white, old]});
        assert!(is_covered(|it| {
            it["pre_tokenizer"] = words;
            it["normalizer"] = it["normalizer"]["normalizers"][0].take();
        }));
        assert!(is_covered(|it| it["pre_tokenizer"] = old));
        assert!(is_covered(|it| it["normalizer"] = Value::Null));
        let strip = json!({"type": "Strip", "strip_left": false, "strip_right": true});
        let replace = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"});
        assert!(is_covered(|it| {
            it["normalizer"]["normalizers"][1] = strip;
            it["normalizer"]["normalizers"][2] = replace;
        }));
    }

    #[test]
    fn others_are_left_to_the_library() {
        for scheme in ["first", "never"] {
            assert!(!is_covered(
                |it| it["pre_tokenizer"]["prepend_scheme"] = scheme.into()
            ));
        }
        for steps in [
            [" {2,}", "Precompiled"],
            ["▁", "Strip"],
            ["Strip", "Precompiled"],
        ] {
            assert!(!is_covered(|it| {
                let map = it["normalizer"]["normalizers"][0].take();
                let steps = steps.map(|step| match step {
                    "Strip" => json!({"type": step, "strip_left": false, "strip_right": true}),
                    "Precompiled" => map.clone(),
                    _ => {
                        json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"})
                    }
                });
                it["normalizer"]["normalizers"] = json!(steps);
            }));
        }
        for (content, single_word) in [("x. y", false), ("a▁", false), ("x", true)] {
            assert!(!is_covered(|it| {
                it["added_tokens"].as_array_mut().unwrap().push(json!({
                    "id": 900, "content": content, "single_word": single_word, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": false,
                }));
            }));
        }
        assert!(!is_covered(|it| {
            let added = it["added_tokens"].as_array_mut().unwrap();
            added.extend((0..ADDED_MAX).map(|number| {
                json!({"id": 900 + number, "content": format!("<{number}>"), "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false, "special": false})
            }));
        }));
    }

    #[test]
    fn a_mark_in_the_middle_of_white_space_is_no_separator() {
        let white = json!({"type": "WhitespaceSplit"});
        let replace = |content: &str| json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": content});
        let with = |content: &str| {
            is_covered(|it| {
                let words = it["pre_tokenizer"].take();
                it["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [white, words]});
                it["normalizer"]["normalizers"] =
                    json!([it["normalizer"]["normalizers"][0], replace(content)]);
            })
        };
        assert!(with(" "));
        assert!(!with("▁"));
    }
}
