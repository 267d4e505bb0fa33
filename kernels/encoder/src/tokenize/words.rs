//! WordPiece: a normalised word to the ids of its pieces, with a cache of the words met lately.
//!
//! Invariant: the cache holds answers of [`Vocabulary::pieces`] only, and forgetting any of them
//! changes no result.

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

/// Longest word that is cached, in bytes: covers more than 99.9 % of English words.
const CACHED_BYTES_MAX: usize = 24;
/// Most pieces of a word that is cached.
const CACHED_PIECES_MAX: usize = 7;
/// Slots of a thread's cache: a few times the words in use at one time, in 1.3 MB.
const SLOTS: usize = 1 << 15;

/// A word padded with zeros and its pieces; a word that ends with a zero is not kept, for it would look
/// like the shorter one.
#[derive(Clone, Copy, Default)]
struct Slot {
    word: [u64; CACHED_BYTES_MAX / 8],
    ids: [u16; CACHED_PIECES_MAX],
    count: u16,
}

/// One thread's cache: each word has one slot, where the latest word stays.
pub(super) struct WordCache {
    slots: Box<[Slot]>,
    uncached: Vec<u16>,
}

impl WordCache {
    pub(super) fn new() -> Self {
        Self {
            slots: vec![Slot::default(); SLOTS].into(),
            uncached: Vec::new(),
        }
    }

    /// The ids of a word's pieces; the word is not empty.
    #[inline]
    pub(super) fn pieces(&mut self, vocabulary: &Vocabulary, word: &[u8]) -> &[u16] {
        if word.len() > CACHED_BYTES_MAX || word.last() == Some(&0) {
            self.uncached.clear();
            vocabulary.pieces(word, &mut self.uncached);
            return &self.uncached;
        }
        let key = padded(word);
        let slot = slot_of(&key);
        if self.slots[slot].word != key {
            self.uncached.clear();
            vocabulary.pieces(word, &mut self.uncached);
            if self.uncached.len() > CACHED_PIECES_MAX {
                return &self.uncached;
            }
            let slot = &mut self.slots[slot];
            slot.word = key;
            slot.count = self.uncached.len() as u16;
            slot.ids[..self.uncached.len()].copy_from_slice(&self.uncached);
        }
        let slot = &self.slots[slot];
        &slot.ids[..slot.count as usize]
    }
}

#[inline(always)]
fn padded(word: &[u8]) -> [u64; CACHED_BYTES_MAX / 8] {
    let mut bytes = [0; CACHED_BYTES_MAX];
    bytes[..word.len()].copy_from_slice(word);
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|i| u64::from_le_bytes(words[i]))
}

#[inline(always)]
fn slot_of(key: &[u64; CACHED_BYTES_MAX / 8]) -> usize {
    // Odd constants from the digits of pi and e; the product's high bits depend on all of the key.
    let mixed = key[0].wrapping_mul(0x243F_6A88_85A3_08D3)
        ^ key[1].wrapping_mul(0xB7E1_5162_8AED_2A6B)
        ^ key[2].wrapping_mul(0x1319_8A2E_0370_7345);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> (64 - SLOTS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
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
        let mut cache = WordCache::new();
        let mut check = |word: &str, ids: &[u16]| {
            for _ in 0..2 {
                assert_eq!(cache.pieces(&vocabulary, word.as_bytes()), ids, "{word}");
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
