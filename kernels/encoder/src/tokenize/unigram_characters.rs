//! What a Unigram tokenizer's normaliser makes of a character, by asking the `tokenizers` library.
//!
//! Its map of characters takes a grapheme at a time, so a character has one effect whatever its neighbours
//! are only if no grapheme has it beside another. The rules of Unicode for where graphemes end look at the
//! kinds of the two characters there, but for sequences of emoji, flags and conjuncts, which have characters
//! that join in them. So between two characters that join with nothing but those that join, a
//! grapheme always ends. Other normalisers compose characters; there only those that they leave alone
//! in any company have a class.
//!
//! Invariant: a text of characters that are not [`UnigramClass::AskLibrary`] is normalised to what stands
//! for each of them; one with others is, up to the last character but one before the first of those.

use super::characters::{Character, Characters};
use super::unigram_file::{MARK, Spaces, UnigramFile};
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};
use unicode_normalization::char::canonical_combining_class;
use unicode_normalization::{IsNormalized, is_nfc_quick, is_nfkc_quick};
use unicode_segmentation::UnicodeSegmentation;

/// What a character does to the token stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnigramClass {
    /// It vanishes.
    Removed,
    /// It is a space, or its like.
    Space,
    /// It is part of a word.
    Letters,
    /// It is part of a word, or an added token begins with it.
    MayBeAdded,
    /// Only the library knows.
    AskLibrary,
}

/// What classes depend on.
struct Rules {
    steps: Vec<NormalizerWrapper>,
    /// The one step is SentencePiece's map, or there is none.
    is_by_character: bool,
    spaces: Spaces,
    /// First characters of added tokens.
    literal: String,
    normalized: String,
}

/// The table of a tokenizer's characters.
pub(super) fn unigram_characters(file: &UnigramFile) -> Characters<UnigramClass> {
    let firsts = |tokens: &[String]| tokens.iter().filter_map(|it| it.chars().next()).collect();
    let rules = Rules {
        steps: file.steps.clone(),
        is_by_character: matches!(file.steps[..], [] | [NormalizerWrapper::Precompiled(_)]),
        spaces: file.spaces,
        literal: firsts(&file.literal),
        normalized: firsts(&file.normalized),
    };
    Characters::new(move |character| {
        let found = rules.classify(character);
        found.unwrap_or(Character::bare(UnigramClass::AskLibrary))
    })
}

impl Rules {
    /// A character's entry; `None` when only the library knows.
    fn classify(&self, character: char) -> Option<Character<UnigramClass>> {
        let text = self.normalized(character.encode_utf8(&mut [0; 4]))?;
        let is_same = text.chars().eq([character]);
        if !is_alone(character) || !(self.is_by_character || is_same && is_inert(character)) {
            return None;
        }
        if self.is_space(&text) {
            // Together they are one grapheme, and the walk takes them for one space.
            let is_one = character != '\r' || self.is_space(&self.normalized("\r\n")?);
            return is_one.then_some(Character::bare(UnigramClass::Space));
        }
        let is_white = |it: char| it.is_whitespace() || it == MARK;
        if is_white(character) || character == '\r' || text.contains(is_white) {
            return None;
        }
        let may_be_literal = self.literal.contains(character);
        if text.is_empty() {
            return (!may_be_literal).then_some(Character::bare(UnigramClass::Removed));
        }
        let may_be_added = may_be_literal || text.contains(|it| self.normalized.contains(it));
        let class = match may_be_added {
            true => UnigramClass::MayBeAdded,
            false => UnigramClass::Letters,
        };
        Character::new(class, &text)
    }

    /// A text after all steps on characters.
    fn normalized(&self, text: &str) -> Option<String> {
        let mut text = NormalizedString::from(text);
        for step in &self.steps {
            step.normalize(&mut text).ok()?;
        }
        Some(text.get().to_owned())
    }

    fn is_space(&self, text: &str) -> bool {
        match self.spaces {
            Spaces::Mark { .. } => text == " ",
            Spaces::Separate => !text.is_empty() && text.chars().all(char::is_whitespace),
        }
    }
}

/// Whether a grapheme ends between the character and any other for which this holds too; but for the end
/// of a line, carriage return and line feed.
fn is_alone(character: char) -> bool {
    // Beside these, one of each kind that joins, whatever joins with its own kind or its like would: marks and
    // what goes before a letter, flags, and the first, second and last letters of a Hangul syllable. Whole
    // syllables join with letters only.
    [
        ("a", "a"),
        ("", "\u{1F1E6}"),
        ("", "\u{1100}"),
        ("\u{AC00}", ""),
        ("\u{AC01}", ""),
    ]
    .iter()
    .all(|(before, behind)| {
        let text = format!("{before}{character}{behind}");
        let others = usize::from(!before.is_empty()) + usize::from(!behind.is_empty());
        text.graphemes(true).count() == others + 1
    })
}

/// Whether normal forms have it as it is, whatever is beside it, if that is inert too. They are stable: a
/// library of another version of Unicode does not change it either.
fn is_inert(character: char) -> bool {
    let is_normal = |form: fn(std::iter::Once<char>) -> IsNormalized| {
        form(std::iter::once(character)) == IsNormalized::Yes
    };
    canonical_combining_class(character) == 0 && is_normal(is_nfc_quick) && is_normal(is_nfkc_quick)
}

#[cfg(test)]
mod tests {
    use super::*;
    use UnigramClass::*;
    use tokenizers::normalizers::NFKC;

    fn table(steps: Vec<NormalizerWrapper>, spaces: Spaces) -> Characters<UnigramClass> {
        unigram_characters(&UnigramFile {
            steps,
            spaces,
            literal: vec!["<s>".into()],
            normalized: vec!["[x]".into()],
            unknown: 0,
        })
    }

    const MARKS: Spaces = Spaces::Mark {
        are_joined: false,
        are_stripped: false,
    };

    fn map() -> NormalizerWrapper {
        let json = include_str!("../../tests/data/random/xlm-roberta-384/tokenizer.json");
        let file: serde_json::Value = serde_json::from_str(json).unwrap();
        serde_json::from_value(file["normalizer"]["normalizers"][0].clone()).unwrap()
    }

    fn check(table: &Characters<UnigramClass>, character: char, class: UnigramClass, text: &str) {
        let entry = table.get(character);
        let found = (
            entry.class,
            std::str::from_utf8(entry.replacement()).unwrap(),
        );
        assert_eq!(found, (class, text), "{character:?}");
    }

    #[test]
    fn a_map_is_asked_of_characters_that_stand_alone() {
        let table = table(vec![map()], MARKS);
        check(&table, 'a', Letters, "a");
        check(&table, 'ａ', Letters, "a");
        check(&table, ' ', Space, "");
        check(&table, '\u{3000}', Space, "");
        check(&table, '\n', Space, "");
        check(&table, '\0', Letters, "\0");
        check(&table, '日', Letters, "日");
        check(&table, '한', Letters, "한");
        check(&table, '🙂', Letters, "🙂");
        check(&table, '<', MayBeAdded, "<");
        check(&table, '[', MayBeAdded, "[");
        // Marks, what joins emoji, flags, letters of syllables, signs before numbers, the mark of spaces.
        for joins in "\u{301}\u{200d}\u{fe0f}🇯\u{1112}\u{1161}\u{11ab}\u{600}\u{903}▁".chars()
        {
            check(&table, joins, AskLibrary, "");
        }
    }

    #[test]
    fn normal_forms_are_asked_of_characters_that_they_leave() {
        let table = table(vec![NFKC.into()], Spaces::Separate);
        check(&table, 'a', Letters, "a");
        check(&table, 'é', Letters, "é");
        check(&table, 'ａ', AskLibrary, "");
        check(&table, '\n', Space, "");
        check(&table, '\r', Space, "");
        check(&table, '\u{301}', AskLibrary, "");
    }

    #[test]
    fn white_space_that_stays_has_no_class() {
        let table = table(vec![], MARKS);
        check(&table, ' ', Space, "");
        for white in "\n\r\t\u{a0}\u{3000}".chars() {
            check(&table, white, AskLibrary, "");
        }
    }
}
