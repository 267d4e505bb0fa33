//! Which fixed size a short batch is filled up to, so that its launches can be replayed at once.
//!
//! A short text is some forty kernels of a few microseconds each: launching them one by one takes
//! longer than they run. Recorded launches have fixed sizes, so there is a recording for each of a few
//! sizes, and a batch takes the least that holds it.
//!
//! Invariant: a batch is filled up by at most half of its rows, or to the least size there is.

use crate::batch::BatchSize;

/// Rows of the sizes, each at most one and a half times the one before.
const ROWS: [usize; 11] = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];
/// Texts of the sizes: one query, or the few that come at once. Texts cost blocks of attention and
/// pooling, so a single one does not pay for eight.
const TEXTS: [usize; 2] = [1, 8];

/// All sizes that a slot of at most `largest` may record.
pub fn all(largest: BatchSize) -> impl Iterator<Item = BatchSize> {
    ROWS.into_iter()
        .flat_map(|rows| TEXTS.map(|texts| BatchSize::of_at_most(rows, texts)))
        .filter(move |size| largest.holds(*size))
}

/// The least size that holds a batch, if a slot of at most `largest` has one.
pub fn choose(batch: BatchSize, largest: BatchSize) -> Option<BatchSize> {
    all(largest).find(|size| size.holds(batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: BatchSize = BatchSize {
        rows: 512,
        texts: 64,
        tiles: 72,
    };

    fn chosen(rows: usize, texts: usize) -> Option<(usize, usize)> {
        let size = choose(BatchSize::of_at_most(rows, texts), LARGEST)?;
        Some((size.rows, size.texts))
    }

    #[test]
    fn the_least_size_is_taken() {
        assert_eq!(chosen(1, 1), Some((16, 1)));
        assert_eq!(chosen(12, 1), Some((16, 1)));
        assert_eq!(chosen(17, 1), Some((24, 1)));
        assert_eq!(chosen(512, 1), Some((512, 1)));
        assert_eq!(chosen(40, 3), Some((48, 8)));
        assert_eq!(chosen(513, 1), None);
        assert_eq!(chosen(40, 9), None);
    }

    #[test]
    fn no_more_than_half_is_filled_up() {
        for rows in 16..=512 {
            for texts in 1..=8 {
                let (filled, _) = chosen(rows, texts).unwrap();
                assert!(filled <= rows + rows / 2, "{rows} to {filled}");
            }
        }
    }

    #[test]
    fn a_small_slot_has_fewer() {
        let small = BatchSize::of_at_most(64, 8);
        assert!(all(small).all(|size| size.rows <= 64));
        assert_eq!(choose(BatchSize::of_at_most(65, 1), small), None);
    }
}
