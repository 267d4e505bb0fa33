//! What the model's normaliser and pre-tokenizer make of each character, looked up in a table.
//!
//! BERT's text preparation works character by character: each one is removed, is white space,
//! stands alone (punctuation, ideographs), or becomes letters of a word (lower case, without
//! accents). The table is filled by asking the `tokenizers` library about single characters, a page
//! of 256 at a time and only for pages that occur, so there is no second copy of its rules here.
//!
//! Invariant: where a character's effect could depend on its neighbours, its class is
//! [`CharacterClass::AskLibrary`], and the caller hands the whole stretch to the library.

use std::sync::OnceLock;
use tokenizers::{
    NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
};
use unicode_normalization::char::canonical_combining_class;

/// What a character does to the token stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CharacterClass {
    /// It vanishes.
    Removed,
    /// It ends a word.
    Space,
    /// It ends a word and is one itself.
    Alone,
    /// It is part of a word.
    Letters,
    /// Only the library knows.
    AskLibrary,
}

/// Bytes of the longest replacement of one character that is kept in the table: a Hangul syllable
/// becomes three letters of three bytes; four of those are left to the library.
const REPLACEMENT_BYTES_MAX: usize = 14;

/// A character's class and what stands for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Character {
    pub(super) class: CharacterClass,
    length: u8,
    bytes: [u8; REPLACEMENT_BYTES_MAX],
}

impl Character {
    /// What stands for the character, in UTF-8.
    #[inline(always)]
    pub(super) fn replacement(&self) -> &[u8] {
        &self.bytes[..self.length as usize]
    }

    fn new(class: CharacterClass, replacement: &str) -> Self {
        let mut bytes = [0; REPLACEMENT_BYTES_MAX];
        match bytes.get_mut(..replacement.len()) {
            Some(to) => to.copy_from_slice(replacement.as_bytes()),
            None => return Self::new(CharacterClass::AskLibrary, ""),
        }
        Self {
            class,
            length: replacement.len() as u8,
            bytes,
        }
    }
}

const PAGE_CHARACTERS: usize = 256;
/// Pages of all of Unicode. Should a text use them all, the table has 17 MiB.
const PAGES: usize = 0x11_0000 / PAGE_CHARACTERS;

type Page = Box<[Character; PAGE_CHARACTERS]>;

/// The table; filled as it is used, from any thread.
pub(super) struct Characters {
    normalizer: NormalizerWrapper,
    pre_tokenizer: PreTokenizerWrapper,
    ascii: Page,
    pages: Box<[OnceLock<Page>]>,
}

impl Characters {
    pub(super) fn new(normalizer: NormalizerWrapper, pre_tokenizer: PreTokenizerWrapper) -> Self {
        let ascii = page(&normalizer, &pre_tokenizer, 0);
        Self {
            normalizer,
            pre_tokenizer,
            ascii,
            pages: std::iter::repeat_with(OnceLock::new).take(PAGES).collect(),
        }
    }

    /// An ASCII character; a byte beyond ASCII gives the entry of U+0080 to U+00FF.
    #[inline(always)]
    pub(super) fn ascii(&self, byte: u8) -> &Character {
        &self.ascii[byte as usize]
    }

    /// Any character.
    #[inline]
    pub(super) fn get(&self, character: char) -> &Character {
        let number = character as usize / PAGE_CHARACTERS;
        let page =
            self.pages[number].get_or_init(|| page(&self.normalizer, &self.pre_tokenizer, number));
        &page[character as usize % PAGE_CHARACTERS]
    }
}

fn page(
    normalizer: &NormalizerWrapper,
    pre_tokenizer: &PreTokenizerWrapper,
    number: usize,
) -> Page {
    Box::new(std::array::from_fn(|index| {
        let code = (number * PAGE_CHARACTERS + index) as u32;
        // Surrogates are in no text.
        char::from_u32(code).map_or(Character::new(CharacterClass::Removed, ""), |character| {
            classify(normalizer, pre_tokenizer, character)
        })
    }))
}

fn classify(
    normalizer: &NormalizerWrapper,
    pre_tokenizer: &PreTokenizerWrapper,
    character: char,
) -> Character {
    let ask = Character::new(CharacterClass::AskLibrary, "");
    let mut normalized = NormalizedString::from(character.to_string());
    if normalizer.normalize(&mut normalized).is_err() {
        return ask;
    }
    let text = normalized.get();
    let core = text.trim_matches(' ');
    if core.is_empty() {
        let class = match text {
            "" => CharacterClass::Removed,
            _ => CharacterClass::Space,
        };
        return Character::new(class, "");
    }
    // Decomposition sorts marks of different classes that stand together: not a matter of one
    // character.
    if core.chars().any(|c| canonical_combining_class(c) != 0) {
        return ask;
    }
    let is_padded = text.len() == core.len() + 2;
    let pieces = pieces_between_letters(pre_tokenizer, core);
    match (pieces.as_deref(), is_padded, text.len() == core.len()) {
        (Some([_one_word]), false, true) => Character::new(CharacterClass::Letters, core),
        (Some([_one_word]), true, false) => Character::new(CharacterClass::Alone, core),
        (Some([_, middle, _]), _, _) if middle == core => {
            Character::new(CharacterClass::Alone, core)
        }
        _ => ask,
    }
}

/// How the pre-tokenizer cuts `text` with a letter before and behind it.
fn pieces_between_letters(pre_tokenizer: &PreTokenizerWrapper, text: &str) -> Option<Vec<String>> {
    let mut cut = PreTokenizedString::from(format!("a{text}a"));
    pre_tokenizer.pre_tokenize(&mut cut).ok()?;
    let pieces = cut.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Some(
        pieces
            .into_iter()
            .map(|(piece, _, _)| piece.to_string())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::normalizers::BertNormalizer;
    use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

    #[test]
    fn characters_of_each_kind() {
        let table = Characters::new(
            BertNormalizer::default().into(),
            PreTokenizerWrapper::BertPreTokenizer(BertPreTokenizer),
        );
        use CharacterClass::*;
        let check = |character: char, class: CharacterClass, replacement: &str| {
            let entry = table.get(character);
            let found = (
                entry.class,
                std::str::from_utf8(entry.replacement()).unwrap(),
            );
            assert_eq!(found, (class, replacement), "{character:?}");
        };
        check('A', Letters, "a");
        check('7', Letters, "7");
        check(' ', Space, "");
        check('\u{3000}', Space, "");
        check('\n', Space, "");
        check('\0', Removed, "");
        check('\u{85}', Removed, "");
        check('\u{301}', Removed, "");
        check('-', Alone, "-");
        check('。', Alone, "。");
        check('≠', Alone, "=");
        check('É', Letters, "e");
        check('日', Alone, "日");
        check('か', Letters, "か");
        check('が', Letters, "か");
        check('한', Letters, "\u{1112}\u{1161}\u{11ab}");
        check('İ', Letters, "i");
        check('\u{302e}', AskLibrary, "");
        assert_eq!(table.ascii(b'Z').replacement(), b"z");
    }
}
