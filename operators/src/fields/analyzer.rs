//! Texts to terms: what keyword search takes for the same word.
//!
//! Words are those of Unicode's text segmentation (UAX #29), in lower case and compatibility form, brought to
//! their stems by Snowball's rules for a language. Chinese and Japanese have no spaces between words; there,
//! as is usual, each two neighbouring characters are a term. English words without content are left out.
//!
//! Invariant: the same text gives the same terms, whatever the cache holds.

use frostem::{Algorithm, Stemmer};
use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Deserialize;
use std::borrow::Cow;
use unicode_normalization::UnicodeNormalization;
use unicode_segmentation::UnicodeSegmentation;
use vectide_model::Term;
use xxhash_rust::xxh3::xxh3_64;

/// Names the way terms are made; a change of it needs another number, since states hold terms.
const VERSION: u32 = 2;

/// Words that a cache remembers: some 4 MB of them, 20 at most, and most of what a corpus says again and again.
const CACHE_WORDS: usize = 65_536;

/// Bytes of the longest word: what is longer is no word that anybody asks for, and is cut.
const WORD_BYTES_MAX: usize = 256;

/// The stop words of Lucene's English analyzer.
const ENGLISH_STOP_WORDS: [&str; 33] = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it",
    "no", "not", "of", "on", "or", "such", "that", "the", "their", "then", "there", "these",
    "they", "this", "to", "was", "will", "with",
];

macro_rules! languages {
    ($($name:ident),*) => {
        /// The language whose word forms are taken for the same.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum Language {
            /// Any: words are taken as they stand.
            Any,
            $(
                #[doc = concat!(stringify!($name), ".")]
                $name,
            )*
        }

        impl Language {
            #[cfg(test)]
            const ALL: &[Self] = &[Self::Any, $(Self::$name),*];

            fn stemmer(self) -> Option<Stemmer> {
                match self {
                    Self::Any => None,
                    $(Self::$name => Some(Stemmer::new(Algorithm::$name)),)*
                }
            }
        }
    };
}

languages!(
    Arabic, Danish, Dutch, English, Finnish, French, German, Greek, Hungarian, Italian, Norwegian,
    Portuguese, Romanian, Russian, Spanish, Swedish, Tamil, Turkish
);

/// What became of words before; empty for those that are left out.
#[derive(Debug, Default)]
pub struct WordCache {
    terms: FxHashMap<Box<str>, Option<Term>>,
}

/// Makes terms of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Analyzer {
    language: Language,
}

impl Analyzer {
    /// For texts of a language.
    pub fn new(language: Language) -> Self {
        Self { language }
    }

    /// Names everything that decides what terms a text has.
    pub fn version(&self) -> String {
        format!("{VERSION} {:?}", self.language).to_lowercase()
    }

    /// The terms of a text in its order, repeated ones again.
    pub fn terms(&self, text: &str, cache: &mut WordCache) -> Vec<Term> {
        let mut terms = Vec::new();
        let stemmer = self.language.stemmer();
        let mut run = Run::default();
        for (start, word) in text.unicode_word_indices() {
            if word.chars().next().is_some_and(is_unspaced) {
                run.add(start, word, &mut terms);
                continue;
            }
            let word = cut(word);
            if let Some(known) = cache.terms.get(word) {
                terms.extend(known);
                continue;
            }
            let term = self.term(word, stemmer.as_ref());
            terms.extend(term);
            if cache.terms.len() >= CACHE_WORDS {
                cache.terms.clear();
            }
            cache.terms.insert(word.into(), term);
        }
        run.end(&mut terms);
        terms
    }

    fn term(&self, word: &str, stemmer: Option<&Stemmer>) -> Option<Term> {
        let word = match word.is_ascii() {
            true => word.to_ascii_lowercase(),
            false => word.nfkc().collect::<String>().to_lowercase(),
        };
        let is_stop_word = self.language == Language::English
            && ENGLISH_STOP_WORDS.binary_search(&word.as_str()).is_ok();
        if is_stop_word {
            return None;
        }
        let stem = stemmer.map_or(Cow::Borrowed(word.as_str()), |it| it.stem(&word));
        Some(hashed(&stem))
    }
}

fn hashed(word: &str) -> Term {
    Term(xxh3_64(word.as_bytes()).to_be_bytes())
}

fn cut(word: &str) -> &str {
    let mut ends = (0..=word.len().min(WORD_BYTES_MAX)).rev();
    let end = ends.find(|at| word.is_char_boundary(*at));
    &word[..end.unwrap_or(0)]
}

/// Whether words of this script stand without spaces between them.
fn is_unspaced(character: char) -> bool {
    matches!(u32::from(character),
        0x3040..=0x30ff // Hiragana, Katakana
        | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff // Han
        | 0xff66..=0xff9d // Katakana of half width
        | 0x2_0000..=0x3_ffff) // Han beyond the basic plane
}

/// Neighbouring characters of an unspaced script.
#[derive(Default)]
struct Run {
    last: Option<char>,
    /// Where the last one ends.
    end: usize,
    /// Whether the last one is part of a term.
    is_paired: bool,
}

impl Run {
    fn add(&mut self, start: usize, word: &str, terms: &mut Vec<Term>) {
        if start != self.end {
            self.end(terms);
        }
        self.end = start + word.len();
        for character in word.nfkc() {
            if let Some(last) = self.last {
                terms.push(hashed(&String::from_iter([last, character])));
                self.is_paired = true;
            }
            self.last = Some(character);
        }
    }

    /// A character that stands alone is a term.
    fn end(&mut self, terms: &mut Vec<Term>) {
        if let Some(last) = self.last.take().filter(|_| !self.is_paired) {
            terms.push(hashed(last.encode_utf8(&mut [0; 4])));
        }
        self.is_paired = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn terms(language: Language, text: &str) -> Vec<Term> {
        Analyzer::new(language).terms(text, &mut WordCache::default())
    }

    fn are(words: &[&str]) -> Vec<Term> {
        words.iter().map(|word| hashed(word)).collect()
    }

    #[test]
    fn words_lose_their_form() {
        let english = |text| terms(Language::English, text);
        assert_eq!(
            english("The Connections aren't CONNECTED: 3.5 µg, e-mail!"),
            are(&["connect", "aren't", "connect", "3.5", "μg", "e", "mail"])
        );
        assert_eq!(
            terms(Language::Any, "The Running"),
            are(&["the", "running"])
        );
        assert_eq!(english(" \u{0}, 😀 -- "), are(&[]));
        assert_eq!(
            terms(Language::German, "Häuser"),
            terms(Language::German, "Häusern")
        );
        let mut sorted = ENGLISH_STOP_WORDS;
        sorted.sort_unstable();
        assert_eq!(sorted, ENGLISH_STOP_WORDS, "they are searched in");
    }

    #[test]
    fn unspaced_scripts_give_pairs() {
        let any = |text| terms(Language::Any, text);
        assert_eq!(any("東京都へ go"), are(&["東京", "京都", "都へ", "go"]));
        assert_eq!(any("京 (都)"), are(&["京", "都"]));
        assert_eq!(any("カタカナ"), any("ｶﾀｶﾅ"));
    }

    /// Stems of a Snowball of years ago were cut by marks that an earlier step had left behind, a panic.
    #[test]
    fn greek_words_with_two_endings_have_stems() {
        let greek = |text| terms(Language::Greek, text);
        assert_eq!(greek("ανεύρετε"), greek("ανευρετε"));
        assert_eq!(greek("αντίθετε"), greek("αντιθετε"));
    }

    /// Letters of the languages' scripts; few of them a word, so that endings are often met.
    fn word() -> impl Strategy<Value = String> {
        let letters = prop::sample::select(vec![
            "aeinorst'",
            "abcdefghij",
            "klmnopqrst",
            "uvwxyzëéèäöüåøæß",
            "ıişğçöü",
            "ăâîșțşţłőű",
            "αβγδεζηθικλ",
            "μνξοπρσςτυφχψω",
            "άέήίόύώϊϋΐΰετε",
            "абвгдеёжзий",
            "клмнопрстуф",
            "хцчшщъыьэюя",
            "ابتثجحخدذرزسش",
            "ضطظعغفقكلمنهوىي",
            "ءآأؤإئةـًٌٍَُِّْال",
            "அஆஇஈஉஊகஙசஞடணதநபமய",
            "ரலவழளறனாிீுூெேைொோௌ்",
            "é\u{301}字😀0ﬁ",
        ]);
        let of_one_script = letters.prop_flat_map(|letters| {
            let letter = prop::sample::select(letters.chars().collect::<Vec<_>>());
            prop::collection::vec(letter, 1..16).prop_map(String::from_iter)
        });
        prop_oneof![of_one_script, any::<String>()]
    }

    proptest! {
        #[test]
        fn every_word_has_its_terms_in_every_language(words in prop::collection::vec(word(), 1..20)) {
            let text = words.join(" ");
            for language in Language::ALL {
                prop_assert_eq!(terms(*language, &text), terms(*language, &text));
            }
        }

        #[test]
        fn the_cache_changes_nothing(texts in prop::collection::vec(any::<String>(), 1..20)) {
            let analyzer = Analyzer::new(Language::English);
            let mut cache = WordCache::default();
            for text in texts.iter().chain(&texts) {
                let with = analyzer.terms(text, &mut cache);
                prop_assert_eq!(with, terms(Language::English, text));
            }
        }
    }
}
