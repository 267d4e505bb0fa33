//! What BERT's normaliser and pre-tokenizer make of a character, by asking the `tokenizers` library.
//!
//! Each one is removed, is white space, stands alone (punctuation, ideographs), or becomes letters of a
//! word (lower case, without accents).
//!
//! Invariant: where a character's effect could depend on its neighbours, its class is
//! [`CharacterClass::AskLibrary`], and the caller hands the whole stretch to the library.

use super::characters::{Character, Characters};
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

/// The table of BERT's characters.
pub(super) fn bert_characters(
    normalizer: NormalizerWrapper,
    pre_tokenizer: PreTokenizerWrapper,
) -> Characters<CharacterClass> {
    Characters::new(move |character| classify(&normalizer, &pre_tokenizer, character))
}

fn classify(
    normalizer: &NormalizerWrapper,
    pre_tokenizer: &PreTokenizerWrapper,
    character: char,
) -> Character<CharacterClass> {
    let ask = Character::bare(CharacterClass::AskLibrary);
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
        return Character::bare(class);
    }
    // Decomposition sorts marks of different classes that stand together: not a matter of one
    // character.
    if core.chars().any(|c| canonical_combining_class(c) != 0) {
        return ask;
    }
    let is_padded = text.len() == core.len() + 2;
    let pieces = pieces_between_letters(pre_tokenizer, core);
    let class = match (pieces.as_deref(), is_padded, text.len() == core.len()) {
        (Some([_one_word]), false, true) => CharacterClass::Letters,
        (Some([_one_word]), true, false) => CharacterClass::Alone,
        (Some([_, middle, _]), _, _) if middle == core => CharacterClass::Alone,
        _ => return ask,
    };
    Character::new(class, core).unwrap_or(ask)
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
        let table = bert_characters(
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
