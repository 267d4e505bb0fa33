//! Which rows of a head or segment are live at an epoch.
//!
//! Invariant: `live` is the number of set bits, and no bit at or beyond `rows` is set. Writers change a bitmap
//! by `Arc::make_mut`, page by page, so a reader's copy never moves, and an epoch that a row dies in costs a
//! page of 512 bytes and the list of pages, not the bits of all rows.

use std::sync::Arc;

/// Bits of a word.
const WORD: usize = 64;
/// Words of a page: 4,096 rows in 512 bytes.
const PAGE_WORDS: usize = 64;
/// Rows of a page.
const PAGE: usize = WORD * PAGE_WORDS;

type Page = [u64; PAGE_WORDS];

/// One bit a row, the lowest bit of a word first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bitmap {
    pages: Vec<Arc<Page>>,
    rows: usize,
    live: usize,
}

impl Bitmap {
    /// `rows` live rows.
    pub(crate) fn all(rows: usize) -> Self {
        let full = Arc::new([u64::MAX; PAGE_WORDS]);
        let mut pages = vec![full; rows / PAGE];
        let rest = rows % PAGE;
        if rest > 0 {
            let word = |at: usize| match rest.saturating_sub(at * WORD) {
                WORD.. => u64::MAX,
                bits => (1 << bits) - 1,
            };
            pages.push(Arc::new(std::array::from_fn(word)));
        }
        Self {
            pages,
            rows,
            live: rows,
        }
    }

    /// Appends a live row.
    pub(crate) fn push(&mut self) {
        if self.rows.is_multiple_of(PAGE) {
            self.pages.push(Arc::new([0; PAGE_WORDS]));
        }
        let row = self.rows;
        *self.word_mut(row) |= 1 << (row % WORD);
        self.rows += 1;
        self.live += 1;
    }

    fn word_mut(&mut self, row: usize) -> &mut u64 {
        &mut Arc::make_mut(&mut self.pages[row / PAGE])[row % PAGE / WORD]
    }

    /// Whether a row is live; rows beyond the end are not.
    #[inline]
    pub(crate) fn contains(&self, row: usize) -> bool {
        let page = self.pages.get(row / PAGE);
        page.is_some_and(|page| page[row % PAGE / WORD] & (1 << (row % WORD)) != 0)
    }

    /// Marks a row dead; says whether it was live.
    pub(crate) fn clear(&mut self, row: usize) -> bool {
        let was_live = self.contains(row);
        if was_live {
            *self.word_mut(row) &= !(1 << (row % WORD));
            self.live -= 1;
        }
        was_live
    }

    /// Live rows.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// All rows, dead ones included.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether every row is live.
    pub(crate) fn is_full(&self) -> bool {
        self.live == self.rows
    }

    /// The live rows that are in a set, too, which has a bit for each row. Pages that it leaves as they are
    /// are shared.
    pub(crate) fn intersection(&self, set: &[u64]) -> Self {
        let mut live = 0;
        let narrow = |(page, words): (&Arc<Page>, &[u64])| {
            let word = |at: usize| page[at] & words.get(at).copied().unwrap_or(0);
            let narrowed: Page = std::array::from_fn(word);
            live += narrowed
                .iter()
                .map(|word| word.count_ones() as usize)
                .sum::<usize>();
            if narrowed == **page {
                page.clone()
            } else {
                Arc::new(narrowed)
            }
        };
        let pages = self
            .pages
            .iter()
            .zip(set.chunks(PAGE_WORDS))
            .map(narrow)
            .collect();
        Self {
            pages,
            rows: self.rows,
            live,
        }
    }

    /// The bits in one piece, lowest bit of a byte first, as FAISS reads them; `None` when every row is live.
    pub(crate) fn selection(&self) -> Option<Vec<u8>> {
        (!self.is_full()).then(|| {
            let words = self.pages.iter().flat_map(|page| page.iter());
            let mut bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
            bytes.truncate(self.rows.div_ceil(8));
            bytes
        })
    }

    /// The live rows in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        set_bits(self.pages.iter().flat_map(|page| page.iter().copied()))
    }

    /// The rows that were live in `earlier`, a bitmap of the same rows, and are not any more.
    pub(crate) fn died_since<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = usize> + 'a {
        let pairs = earlier.pages.iter().zip(&self.pages);
        set_bits(pairs.flat_map(|(then, now)| {
            let words = then.iter().zip(now.iter());
            words.map(|(then, now)| then & !now)
        }))
    }
}

/// The numbers of the bits that are set, in order.
pub(crate) fn set_bits(words: impl Iterator<Item = u64>) -> impl Iterator<Item = usize> {
    words
        .enumerate()
        .filter(|(_, word)| *word != 0)
        .flat_map(|(at, word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.wrapping_sub(1);
                (bit < WORD).then_some(at * WORD + bit)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(
            start in prop_oneof![0..200_usize, 4_000..4_200_usize, 8_150..8_250_usize],
            pushes in 0..200_usize,
            cleared in prop::collection::vec(0..8_500_usize, 0..300),
        ) {
            let mut bitmap = Bitmap::all(start);
            (0..pushes).for_each(|_| bitmap.push());
            let earlier = bitmap.clone();
            let mut set: BTreeSet<usize> = (0..start + pushes).collect();
            for row in &cleared {
                prop_assert_eq!(bitmap.clear(*row), set.remove(row));
            }
            prop_assert_eq!(bitmap.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((bitmap.live(), bitmap.rows()), (set.len(), start + pushes));
            prop_assert_eq!(bitmap.is_full(), set.len() == start + pushes);
            let selection = bitmap.selection();
            prop_assert_eq!(selection.is_none(), bitmap.is_full());
            if let Some(bytes) = selection {
                prop_assert_eq!(bytes.len(), (start + pushes).div_ceil(8));
                let is_set = |row: usize| bytes[row / 8] & (1 << (row % 8)) != 0;
                prop_assert!((0..start + pushes).all(|row| is_set(row) == set.contains(&row)));
            }
            let third: Vec<u64> = vec![0x9249_2492_4924_9249; (start + pushes).div_ceil(WORD)];
            let is_third = |row: usize| third[row / WORD] & (1 << (row % WORD)) != 0;
            let narrowed = bitmap.intersection(&third);
            let expected: Vec<usize> = set.iter().copied().filter(|row| is_third(*row)).collect();
            prop_assert_eq!(narrowed.live(), expected.len());
            prop_assert_eq!(narrowed.iter().collect::<Vec<_>>(), expected);
            prop_assert_eq!(narrowed.rows(), bitmap.rows());
            let died: BTreeSet<usize> = bitmap.died_since(&earlier).collect();
            prop_assert_eq!(died, earlier.iter().filter(|row| !set.contains(row)).collect());
            prop_assert!((0..9_000).all(|row| bitmap.contains(row) == set.contains(&row)));
        }
    }
}
