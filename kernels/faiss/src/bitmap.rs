//! Which rows of a head or segment are live at an epoch.
//!
//! Invariant: `live` is the number of set bits, and no bit at or beyond `rows` is set. Writers hold
//! a bitmap in an `Arc` and change it by `Arc::make_mut`, so a reader's copy never moves.

/// One bit a row, lowest bit of a byte first, as FAISS reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bitmap {
    bytes: Vec<u8>,
    rows: usize,
    live: usize,
}

impl Bitmap {
    /// `rows` live rows.
    pub(crate) fn all(rows: usize) -> Self {
        let mut bytes = vec![0xff; rows.div_ceil(8)];
        if let (Some(last), true) = (bytes.last_mut(), !rows.is_multiple_of(8)) {
            *last = (1 << (rows % 8)) - 1;
        }
        Self {
            bytes,
            rows,
            live: rows,
        }
    }

    /// Appends a live row.
    pub(crate) fn push(&mut self) {
        if self.rows.is_multiple_of(8) {
            self.bytes.push(0);
        }
        self.bytes[self.rows / 8] |= 1 << (self.rows % 8);
        self.rows += 1;
        self.live += 1;
    }

    /// Whether a row is live; rows beyond the end are not.
    pub(crate) fn contains(&self, row: usize) -> bool {
        row < self.rows && self.bytes[row / 8] & (1 << (row % 8)) != 0
    }

    /// Marks a row dead; says whether it was live.
    pub(crate) fn clear(&mut self, row: usize) -> bool {
        let was_live = self.contains(row);
        if was_live {
            self.bytes[row / 8] &= !(1 << (row % 8));
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

    /// The bits for FAISS, or `None` when every row is live.
    pub(crate) fn selection(&self) -> Option<&[u8]> {
        (self.live < self.rows).then_some(&self.bytes)
    }

    /// The live rows in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        set_bits(self.bytes.iter().copied())
    }

    /// The rows that were live in `earlier`, a bitmap of the same rows, and are not any more.
    pub(crate) fn died_since<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = usize> + 'a {
        set_bits(
            earlier
                .bytes
                .iter()
                .zip(&self.bytes)
                .map(|(then, now)| then & !now),
        )
    }
}

fn set_bits(bytes: impl Iterator<Item = u8>) -> impl Iterator<Item = usize> {
    bytes
        .enumerate()
        .filter(|(_, byte)| *byte != 0)
        .flat_map(|(at, byte)| {
            (0..8)
                .filter(move |bit| byte & (1 << bit) != 0)
                .map(move |bit| at * 8 + bit)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(start in 0..40_usize, pushes in 0..40_usize, cleared in prop::collection::vec(0..100_usize, 0..60)) {
            let mut bitmap = Bitmap::all(start);
            (0..pushes).for_each(|_| bitmap.push());
            let earlier = bitmap.clone();
            let mut set: BTreeSet<usize> = (0..start + pushes).collect();
            for row in &cleared {
                prop_assert_eq!(bitmap.clear(*row), set.remove(row));
            }
            prop_assert_eq!(bitmap.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((bitmap.live(), bitmap.rows()), (set.len(), start + pushes));
            prop_assert_eq!(bitmap.selection().is_none(), set.len() == start + pushes);
            let died: BTreeSet<usize> = bitmap.died_since(&earlier).collect();
            prop_assert_eq!(died, earlier.iter().filter(|row| !set.contains(row)).collect());
            prop_assert!((0..120).all(|row| bitmap.contains(row) == set.contains(&row)));
        }
    }
}
