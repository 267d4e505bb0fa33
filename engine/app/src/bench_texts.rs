//! Texts for measuring an embedder where no real ones are at hand: English words, common ones more often, in
//! lengths from a line to a page.
//!
//! Invariant: the same number has the same text on every machine.

/// Words by how often they stand in English; later ones are rarer and longer, and some are several word pieces.
const WORDS: [&str; 120] = [
    "the",
    "of",
    "and",
    "to",
    "a",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "by",
    "one",
    "had",
    "not",
    "but",
    "what",
    "all",
    "were",
    "when",
    "we",
    "there",
    "can",
    "an",
    "your",
    "which",
    "their",
    "said",
    "if",
    "do",
    "will",
    "each",
    "about",
    "how",
    "up",
    "out",
    "them",
    "then",
    "many",
    "some",
    "so",
    "these",
    "would",
    "other",
    "into",
    "has",
    "more",
    "her",
    "two",
    "like",
    "him",
    "see",
    "time",
    "could",
    "make",
    "than",
    "first",
    "been",
    "water",
    "people",
    "place",
    "number",
    "between",
    "system",
    "years",
    "research",
    "government",
    "language",
    "because",
    "different",
    "history",
    "company",
    "university",
    "development",
    "information",
    "production",
    "including",
    "population",
    "international",
    "department",
    "temperature",
    "relationship",
    "significant",
    "mathematics",
    "particularly",
    "environment",
    "approximately",
    "architecture",
    "observations",
    "manufacturing",
    "electromagnetic",
    "concentration",
    "infrastructure",
    "photosynthesis",
    "neighbourhoods",
    "misunderstanding",
    "biodiversity",
    "reconfigured",
    "thermodynamics",
    "incompatibility",
    "phosphorylation",
    "Kubernetes",
    "Mediterranean",
    "Shakespearean",
    "counterintuitive",
    "Schleswig-Holstein",
    "microarchitecture",
    "internationalization",
    "deoxyribonucleic",
];
/// Words of the shortest text and of the longest: most models look at no more tokens than that.
const WORDS_MIN: u64 = 10;
const WORDS_MAX: u64 = 230;
/// So that words are as long as English ones are.
const ANY_WORD_IN: u64 = 5;
/// Words of a sentence.
const SENTENCE_WORDS: u64 = 14;

/// A seeded generator (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // The high half of a product maps the hash's high bits evenly.
        (((x ^ (x >> 31)) >> 32) * limit) >> 32
    }

    /// One word in five is any; the others are the product of two even choices, half of which are among the
    /// first fifth.
    fn word(&mut self) -> &'static str {
        let words = WORDS.len() as u64;
        let at = match self.below(ANY_WORD_IN) {
            0 => self.below(words),
            _ => self.below(words) * (self.below(words) + 1) / words,
        };
        WORDS[at as usize]
    }
}

/// The text of a number.
pub(crate) fn made_up_text(number: u64) -> String {
    let mut numbers = Numbers(number);
    let words = WORDS_MIN + numbers.below(WORDS_MAX - WORDS_MIN + 1);
    let mut text = String::new();
    for at in 1..=words {
        text += numbers.word();
        text += match at {
            _ if at == words => ".",
            _ if at % SENTENCE_WORDS == 0 => ". ",
            _ => " ",
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_have_natural_words_and_many_lengths() {
        let texts: Vec<String> = (0..300).map(made_up_text).collect();
        let mut different = texts.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), texts.len());
        assert_eq!(made_up_text(7), texts[7]);
        let words: Vec<&str> = texts.iter().flat_map(|it| it.split_whitespace()).collect();
        let letters: usize = words.iter().map(|it| it.len()).sum();
        let mean = letters as f64 / words.len() as f64;
        // English prose has 4.7 letters a word.
        assert!((4.0..6.0).contains(&mean), "{mean}");
        let counts = texts.iter().map(|it| it.split_whitespace().count());
        let (least, most) = (counts.clone().min().unwrap(), counts.max().unwrap());
        assert!(least < 20 && most > 220, "{least} to {most}");
    }
}
