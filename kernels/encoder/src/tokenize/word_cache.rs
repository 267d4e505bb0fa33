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

/// A word padded with zeros and its pieces; a word that ends with a zero is not kept, for it would look
/// like the shorter one.
#[derive(Clone, Copy, Default)]
struct Slot<Id> {
    word: [u64; CACHED_BYTES_MAX / 8],
    ids: [Id; CACHED_PIECES_MAX],
    count: u16,
}

/// One thread's cache: each word has a pair of slots, where the latest two words stay, the later one first.
pub(super) struct WordCache<Id> {
    pairs: Box<[[Slot<Id>; 2]]>,
    /// What of a mixed key is no number of a pair.
    shift: u32,
    uncached: Vec<Id>,
}

impl<Id: Copy + Default> WordCache<Id> {
    /// One of twice two to the power of `bits` words.
    pub(super) fn new(bits: u32) -> Self {
        Self {
            pairs: vec![[Slot::default(); 2]; 1 << bits].into(),
            shift: u64::BITS - bits,
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
        let [first, second] = &mut self.pairs[(mixed(&key) >> self.shift) as usize];
        if first.word != key {
            if second.word == key {
                std::mem::swap(first, second);
            } else {
                self.uncached.clear();
                find(word, &mut self.uncached);
                if self.uncached.len() > CACHED_PIECES_MAX {
                    return &self.uncached;
                }
                *second = *first;
                first.word = key;
                first.count = self.uncached.len() as u16;
                first.ids[..self.uncached.len()].copy_from_slice(&self.uncached);
            }
        }
        &first.ids[..first.count as usize]
    }
}

#[inline(always)]
fn padded(word: &[u8]) -> [u64; CACHED_BYTES_MAX / 8] {
    let mut bytes = [0; CACHED_BYTES_MAX];
    bytes[..word.len()].copy_from_slice(word);
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|i| u64::from_le_bytes(words[i]))
}

/// A number whose high bits depend on all of a key.
#[inline(always)]
fn mixed(key: &[u64; CACHED_BYTES_MAX / 8]) -> u64 {
    // Odd constants from the digits of pi and e.
    let mixed = key[0].wrapping_mul(0x243F_6A88_85A3_08D3)
        ^ key[1].wrapping_mul(0xB7E1_5162_8AED_2A6B)
        ^ key[2].wrapping_mul(0x1319_8A2E_0370_7345);
    (mixed ^ (mixed >> 29)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One pair holds the latest two of any words, and answers for each as `find` did.
    #[test]
    fn words_that_share_a_pair_keep_their_own_pieces() {
        let mut cache = WordCache::<u32>::new(1);
        let mut found = 0;
        for round in 0..50_u32 {
            for word in [
                "a",
                "b",
                "water",
                "a\0",
                "\0",
                "日本",
                "the longest of these words",
            ] {
                let expected: Vec<u32> = word.bytes().take(9).map(u32::from).collect();
                let ids = cache.pieces(word.as_bytes(), |_, ids| {
                    found += 1;
                    ids.extend_from_slice(&expected);
                });
                assert_eq!(ids, expected, "{word} in round {round}");
            }
        }
        let mut again = |word: &str| {
            let before = found;
            cache.pieces(word.as_bytes(), |_, ids| {
                found += 1;
                ids.push(1);
            });
            found - before
        };
        again("x");
        assert_eq!(again("x"), 0);
    }
}
