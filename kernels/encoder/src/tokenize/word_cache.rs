//! The words that a thread met lately, with the ids of their pieces.
//!
//! Most words of a text are a few thousand, so a small table in the processor's own cache answers for
//! nearly all of them, whichever model makes the pieces.
//!
//! Invariant: the cache holds what it was told of a word and nothing else, and forgetting any of them
//! changes no result.

/// Longest word that is cached, in bytes: covers more than 99.9 % of English words.
const CACHED_BYTES_MAX: usize = 24;
/// Most pieces of a word that is cached.
const CACHED_PIECES_MAX: usize = 7;
/// Slots of a thread's cache: a few times the words in use at one time, in 1.3 MB where ids have 16 bits.
const SLOTS: usize = 1 << 15;

/// A word padded with zeros and its pieces; a word that ends with a zero is not kept, for it would look
/// like the shorter one.
#[derive(Clone, Copy, Default)]
struct Slot<Id> {
    word: [u64; CACHED_BYTES_MAX / 8],
    ids: [Id; CACHED_PIECES_MAX],
    count: u16,
}

/// One thread's cache: each word has one slot, where the latest word stays.
pub(super) struct WordCache<Id> {
    slots: Box<[Slot<Id>]>,
    uncached: Vec<Id>,
}

impl<Id: Copy + Default> WordCache<Id> {
    pub(super) fn new() -> Self {
        Self {
            slots: vec![Slot::default(); SLOTS].into(),
            uncached: Vec::new(),
        }
    }

    /// The ids of a word's pieces, which `find` appends where they are not known; the word is not empty.
    #[inline]
    pub(super) fn pieces(&mut self, word: &[u8], find: impl FnOnce(&[u8], &mut Vec<Id>)) -> &[Id] {
        if word.len() > CACHED_BYTES_MAX || word.last() == Some(&0) {
            self.uncached.clear();
            find(word, &mut self.uncached);
            return &self.uncached;
        }
        let key = padded(word);
        let slot = slot_of(&key);
        if self.slots[slot].word != key {
            self.uncached.clear();
            find(word, &mut self.uncached);
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
