//! How many tokens a text has, as far as that can be said without the service's tokenizer.
//!
//! The estimate is meant to be too high: a chunk that is shorter than it could be costs little, one that
//! the service refuses or cuts costs its text. A word counts a token for each three letters begun (the
//! vocabularies in use have four to five letters a token in English), digits one for two, every other sign
//! one, and a letter outside of ASCII as many as its bytes less one. English comes out at about a third more
//! than it has; text that is no language (base64, hexadecimal) may have more than is said here.
//!
//! Invariant: counting is additive over cuts between tokens, and what [`cut`] leaves has at most the tokens
//! that were asked for.

use vectide_model::TokenCounter;

/// Letters of an ASCII word that count as one token.
const LETTERS_A_TOKEN: usize = 3;
/// Digits that count as one token.
const DIGITS_A_TOKEN: usize = 2;

/// Counts by the estimate.
pub(super) struct EstimatedTokens;

impl TokenCounter for EstimatedTokens {
    fn count(&self, text: &str) -> usize {
        walk(text, usize::MAX).tokens
    }
}

/// The beginning of a text that has at most so many tokens.
pub(super) fn cut(text: &str, tokens_max: usize) -> &str {
    text.get(..walk(text, tokens_max).bytes).unwrap_or(text)
}

#[derive(Clone, Copy, Default)]
struct Walked {
    tokens: usize,
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Space,
    Letters,
    Digits,
    Other,
}

/// Walks as far as the tokens reach.
fn walk(text: &str, tokens_max: usize) -> Walked {
    let mut walked = Walked::default();
    let (mut kind, mut run) = (Kind::Space, 0);
    for (at, letter) in text.char_indices() {
        let now = kind_of(letter);
        run = if now == kind { run + 1 } else { 1 };
        kind = now;
        let begins = |each: usize| usize::from(run % each == 1 || each == 1);
        let tokens = match kind {
            Kind::Space => 0,
            Kind::Letters => begins(LETTERS_A_TOKEN),
            Kind::Digits => begins(DIGITS_A_TOKEN),
            Kind::Other => letter.len_utf8().saturating_sub(1).max(1),
        };
        if walked.tokens + tokens > tokens_max {
            return walked;
        }
        walked.tokens += tokens;
        walked.bytes = at + letter.len_utf8();
    }
    walked
}

fn kind_of(letter: char) -> Kind {
    match letter {
        letter if letter.is_whitespace() => Kind::Space,
        letter if letter.is_ascii_alphabetic() => Kind::Letters,
        letter if letter.is_ascii_digit() => Kind::Digits,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_estimated_as_documented() {
        for (text, tokens) in [
            ("", 0),
            (" \n\t\u{3000}", 0),
            ("the", 1),
            ("vectors", 3),
            ("one two", 2),
            ("2026", 2),
            ("a,b", 3),
            ("日本", 4),
            ("ß", 1),
            ("🙂", 3),
            ("abc123", 3),
        ] {
            assert_eq!(EstimatedTokens.count(text), tokens, "{text}");
        }
    }

    #[test]
    fn a_cut_has_no_more_than_asked_for_and_is_the_longest() {
        let text = "An engine keeps 1234 indexes true, 日本語の文章も🙂, and ends.";
        let all = EstimatedTokens.count(text);
        for tokens in 0..=all + 3 {
            let part = cut(text, tokens);
            assert!(text.starts_with(part));
            assert!(EstimatedTokens.count(part) <= tokens);
        }
        assert_eq!(cut(text, all), text);
        assert_eq!(cut(text, 0), "");
        assert_eq!(cut("word word", 2), "word ");
    }
}
