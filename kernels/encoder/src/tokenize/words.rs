//! WordPiece: a normalised word to the ids of its pieces.
//!
//! Invariant: a word's pieces are the longest that fit, one after the other, or one unknown token.

use rustc_hash::FxHashMap;

/// Longer words are one unknown token (`max_input_chars_per_word` of the model's tokenizer).
pub(super) const WORD_CHARACTERS_MAX: usize = 100;

/// The pieces that words are made of. Ids fit 16 bits: [`Vocabulary::new`] checks.
pub(super) struct Vocabulary {
    /// Pieces that begin a word.
    first: FxHashMap<Box<[u8]>, u16>,
    /// Pieces that go on, without their prefix.
    next: FxHashMap<Box<[u8]>, u16>,
    unknown: u16,
    piece_bytes_max: usize,
}

impl Vocabulary {
    /// Sorts the pieces; `None` when an id is beyond 16 bits or the unknown token is missing.
    pub(super) fn new<'a>(
        pieces: impl Iterator<Item = (&'a str, u32)>,
        continuing_prefix: &str,
        unknown: &str,
    ) -> Option<Self> {
        let mut vocabulary = Self {
            first: FxHashMap::default(),
            next: FxHashMap::default(),
            unknown: 0,
            piece_bytes_max: 1,
        };
        for (piece, id) in pieces {
            let id = u16::try_from(id).ok()?;
            vocabulary.piece_bytes_max = vocabulary.piece_bytes_max.max(piece.len());
            if let Some(next) = piece.strip_prefix(continuing_prefix) {
                vocabulary.next.insert(next.as_bytes().into(), id);
            }
            // A piece with the prefix also matches literally at the start of a word.
            vocabulary.first.insert(piece.as_bytes().into(), id);
        }
        vocabulary.unknown = *vocabulary.first.get(unknown.as_bytes())?;
        Some(vocabulary)
    }

    /// Appends the ids of a word's pieces: the longest match first, or one unknown token.
    pub(super) fn pieces(&self, word: &[u8], ids: &mut Vec<u16>) {
        let kept = ids.len();
        let characters = word.iter().filter(|byte| !is_continuation(**byte)).count();
        let mut rest = word;
        let mut pieces = &self.first;
        while !rest.is_empty() && characters <= WORD_CHARACTERS_MAX {
            let longest = (1..=rest.len().min(self.piece_bytes_max)).rev();
            let found = longest
                .filter(|end| !rest.get(*end).is_some_and(|byte| is_continuation(*byte)))
                .find_map(|end| Some((end, *pieces.get(&rest[..end])?)));
            let Some((end, id)) = found else { break };
            ids.push(id);
            rest = &rest[end..];
            pieces = &self.next;
        }
        if !rest.is_empty() {
            ids.truncate(kept);
            ids.push(self.unknown);
        }
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}

#[cfg(test)]
mod tests {
    use super::super::word_cache::WordCache;
    use super::*;

    fn vocabulary() -> Vocabulary {
        let pieces = [
            "[UNK]", "un", "##aff", "##able", "a", "##f", "##か", "か", "##a",
        ];
        let numbered = pieces.into_iter().zip(0..);
        Vocabulary::new(numbered, "##", "[UNK]").unwrap()
    }

    #[test]
    fn the_longest_piece_wins_and_gaps_are_unknown() {
        let vocabulary = vocabulary();
        let mut cache = WordCache::new(4);
        let mut check = |word: &str, ids: &[u16]| {
            for _ in 0..2 {
                let found = cache.pieces(word.as_bytes(), |word, ids| vocabulary.pieces(word, ids));
                assert_eq!(found, ids, "{word}");
            }
        };
        check("unaffable", &[1, 2, 3]);
        check("a", &[4]);
        check("unx", &[0]);
        check("かか", &[7, 6]);
        check("か\u{3042}", &[0]);
        check(&"a".repeat(100), &[&[4][..], &[8; 99]].concat());
        check(&"a".repeat(101), &[0]);
        check("aaaaaaa", &[4, 8, 8, 8, 8, 8, 8]);
        check("aaaaaaaa", &[4, 8, 8, 8, 8, 8, 8, 8]);
        check("\0", &[0]);
        check("a\0", &[0]);
        check("a\0\0", &[0]);
        check("\0a", &[0]);
        check("a", &[4]);
    }

    #[test]
    fn large_ids_are_refused() {
        assert!(Vocabulary::new([("[UNK]", 65_536)].into_iter(), "##", "[UNK]").is_none());
        assert!(Vocabulary::new([("a", 1)].into_iter(), "##", "[UNK]").is_none());
    }
}
