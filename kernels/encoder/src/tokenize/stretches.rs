//! Unigram and BPE of bytes, a bounded stretch of the text at a time.
//!
//! Unigram has a walk of its own ([`super::unigram`]); BPE, and a Unigram with steps that the walk does not
//! cover, go to the `tokenizers` library.
//!
//! A model looks at the first few hundred tokens of a text that may have a megabyte, so a text is taken
//! in stretches until there are enough tokens. A stretch ends before a space that follows a letter
//! or a digit, and nothing of such a tokenizer reaches over that place: the normalisers that are let through
//! ([`super::stretches_file`]) change a character, a grapheme or a run of white space at a time, and the space
//! is where one grapheme ends and a run begins; the pre-tokenizers begin a word with the space; and no added
//! token has a letter or digit before a space, or takes the white space behind itself.
//!
//! Invariant: ids and counts equal the library's for a text as a whole, unless more than 64 KiB follow
//! each other without such a place; then a stretch is cut wherever a character ends.

use super::stretches_file::StretchesFile;
use super::token_sink::TokenSink;
use super::unigram::Unigram;
use super::{TokenizerError, cut};
use serde_json::Value;
use tokenizers::Tokenizer;

/// What a stretch has where the text has places for it: about a thousand tokens.
const STRETCH_BYTES: usize = 4 * 1024;
/// What it has at most: longer ones would hold a query up.
const STRETCH_BYTES_MAX: usize = 64 * 1024;

/// A tokenizer.
pub(super) struct Stretches {
    library: Tokenizer,
    unigram: Option<Unigram>,
    begin: u32,
    end: u32,
    tokens_max: usize,
}

impl Stretches {
    /// Reads it.
    pub(super) fn read(json: Value, tokens_max: usize) -> Result<Self, TokenizerError> {
        let StretchesFile {
            library,
            unigram,
            begin,
            end,
        } = StretchesFile::read(json)?;
        let mut tokenizer = Self {
            library,
            unigram,
            begin,
            end,
            tokens_max,
        };
        for probe in ["", "A", "b c. 日本\0", " of  the\r\nwater ｆ\u{301} é "] {
            // Were the walk not the library's after all, no model would get its ids.
            if tokenizer.encode_by_library(probe)? != tokenizer.encode(probe) {
                tokenizer.unigram = None;
            }
        }
        Ok(tokenizer)
    }

    /// The largest id that a text can have.
    pub(super) fn largest_id(&self) -> u32 {
        let vocabulary = self.library.get_vocab(true).into_values();
        vocabulary
            .max()
            .unwrap_or_default()
            .max(self.begin)
            .max(self.end)
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let limit = self.tokens_max.saturating_sub(2);
        let mut ids = vec![self.begin];
        self.walk(text, limit.saturating_add(1), &mut ids);
        ids.truncate(limit.saturating_add(1));
        ids.push(self.end);
        ids
    }

    pub(super) fn encode_by_library(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.library.encode_fast(text, false);
        let encoding = encoding.map_err(|error| TokenizerError(error.to_string()))?;
        let ids = [&[self.begin], encoding.get_ids(), &[self.end]].concat();
        Ok(cut(ids, self.tokens_max, self.end))
    }

    /// The tokens of a text without those around it, however many.
    pub(super) fn count(&self, text: &str) -> usize {
        let mut count = 0;
        self.walk(text, usize::MAX, &mut count);
        count
    }

    /// Appends the ids of one stretch after the other until there are at least `limit`.
    fn walk(&self, text: &str, limit: usize, out: &mut impl TokenSink<u32>) {
        let mut rest = text;
        while !rest.is_empty() && out.len() < limit {
            let (stretch, behind) = rest.split_at(stretch_bytes(rest));
            match &self.unigram {
                Some(unigram) => unigram.walk(&self.library, stretch, limit, out),
                // The library's steps can't fail for such a tokenizer; should they, the stretch is
                // lost to the model but the text is not.
                None => {
                    if let Ok(encoding) = self.library.encode_fast(stretch, false) {
                        out.push(encoding.get_ids());
                    }
                }
            }
            rest = behind;
        }
    }
}

/// Length of the stretch that a text begins with.
fn stretch_bytes(text: &str) -> usize {
    if text.len() <= STRETCH_BYTES {
        return text.len();
    }
    let is_end = |at: &usize| is_place(text, *at);
    let near = (1..=STRETCH_BYTES).rev().find(is_end);
    let far = || (STRETCH_BYTES + 1..STRETCH_BYTES_MAX.min(text.len())).find(is_end);
    near.or_else(far).unwrap_or_else(|| {
        let mut most = STRETCH_BYTES_MAX.min(text.len());
        while !text.is_char_boundary(most) {
            most -= 1;
        }
        most
    })
}

/// Whether a stretch may end there: before a space and behind a letter or digit.
fn is_place(text: &str, at: usize) -> bool {
    // An ASCII byte is a character of its own, so that both sides are whole.
    text.as_bytes()[at] == b' ' && text[..at].chars().next_back().is_some_and(is_firm)
}

/// Letters and digits that no normaliser removes, makes white space of, or joins with a space behind
/// them. Scripts with letters that do so, as Malayalam's dotted reph does, have none here.
fn is_firm(character: char) -> bool {
    let is_plain = character < '\u{d00}' || ('\u{3041}'..='\u{d7a3}').contains(&character);
    is_plain && character.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_end_behind_words_where_there_are_any() {
        assert_eq!(stretch_bytes(""), 0);
        let words = "word ".repeat(10_000);
        let first = stretch_bytes(&words);
        assert!(first <= STRETCH_BYTES && first > STRETCH_BYTES - 6);
        assert!(words[first..].starts_with(" word"));
        // Spaces alone are no place, nor is punctuation before a space.
        let spaces = " ".repeat(200_000);
        assert_eq!(stretch_bytes(&spaces), STRETCH_BYTES_MAX);
        let far = format!("{}a b", "- ".repeat(10_000));
        assert_eq!(stretch_bytes(&far), 20_001);
        let letters = "漢".repeat(100_000);
        assert_eq!(stretch_bytes(&letters), STRETCH_BYTES_MAX / 3 * 3);
    }
}
