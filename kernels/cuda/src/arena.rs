//! The device's memory of one batch under way: what is uploaded, computed in between, and read back.
//!
//! One allocation, made once for the largest batch; smaller ones use the beginning of each region.
//! What lives at different times shares its place: queries, keys, values and heads are done with when
//! the feed-forward network expands, and both take four times the width as models usually have it.
//!
//! Invariant: regions whose contents are needed at the same time do not overlap.

use crate::batch::{BatchSize, ImageLayout};
use crate::shape::BertShape;

/// Regions begin where any load may, and on lines of the second-level cache of their own.
const REGION_ALIGNMENT: usize = 256;
const HALF_BYTES: usize = 2;

/// Offsets of the regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaLayout {
    /// The batch's image.
    pub image: usize,
    /// fp16 rows between layers.
    pub hidden: usize,
    /// fp16 rows of queries, keys and values.
    pub packed: usize,
    /// fp16 rows of all heads.
    pub heads: usize,
    /// fp16 rows inside of the feed-forward network; shares its place with `packed` and `heads`.
    pub expanded: usize,
    /// fp32, a vector a text.
    pub vectors: usize,
    /// Bytes of all.
    pub bytes: usize,
}

impl ArenaLayout {
    /// For batches up to `size`.
    pub fn of(shape: &BertShape, size: BatchSize) -> Self {
        let mut end = 0_usize;
        let mut region = |bytes: usize| {
            let start = end;
            end = (start + bytes).next_multiple_of(REGION_ALIGNMENT);
            start
        };
        let row = HALF_BYTES * shape.width();
        let image = region(ImageLayout::of(size).bytes());
        let hidden = region(size.rows * row);
        let packed = region(size.rows * 3 * row);
        let heads = region(size.rows * row);
        // Grows the region of the heads where the network is wider than usual.
        let attention_bytes = heads + size.rows * row - packed;
        let expanded_bytes = size.rows * HALF_BYTES * shape.intermediate;
        region(expanded_bytes.saturating_sub(attention_bytes));
        let vectors = region(4 * size.texts * shape.dimensions);
        Self {
            image,
            hidden,
            packed,
            heads,
            expanded: packed,
            vectors,
            bytes: end,
        }
    }

    /// The most rows of a batch of which `arenas` arenas fit into `bytes`, texts being as many as
    /// there are rows at worst; none where not one row does.
    pub fn rows_within(shape: &BertShape, bytes: usize, arenas: usize) -> Option<usize> {
        let fits = |rows: usize| {
            let size = BatchSize::of_at_most(rows, rows);
            Self::of(shape, size).bytes.saturating_mul(arenas) <= bytes
        };
        let (mut low, mut high) = (0_usize, 1_usize);
        while fits(high) && high < ROWS_MAX {
            low = high;
            high *= 2;
        }
        while high - low > 1 {
            let middle = low.midpoint(high);
            if fits(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        (low > 0).then_some(low)
    }
}

/// More rows than this in one batch keep no device busier; twice a batch of 32k tokens.
const ROWS_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn regions_do_not_overlap(rows in 1..5000_usize, texts in 1..500_usize, wide in 1..80_usize) {
            let shape = BertShape { intermediate: 64 * wide, ..BertShape::MINILM_L6 };
            let size = BatchSize::of_at_most(rows, texts);
            let arena = ArenaLayout::of(&shape, size);
            let row = 2 * shape.width();
            let mut regions = vec![
                (arena.image, ImageLayout::of(size).bytes()),
                (arena.hidden, rows * row),
                (arena.packed, rows * 3 * row),
                (arena.heads, rows * row),
                (arena.vectors, texts * 4 * shape.dimensions),
            ];
            regions.sort_unstable();
            for pair in regions.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0);
            }
            prop_assert!(arena.expanded + rows * 2 * shape.intermediate <= arena.vectors);
            prop_assert!(arena.vectors + texts * 4 * shape.dimensions <= arena.bytes);
            for (start, _) in regions {
                prop_assert_eq!(start % REGION_ALIGNMENT, 0);
            }
        }
    }

    #[test]
    fn rows_follow_the_budget() {
        let shape = BertShape::MINILM_L6;
        assert_eq!(ArenaLayout::rows_within(&shape, 1000, 1), None);
        let one = ArenaLayout::rows_within(&shape, 64 << 20, 1).unwrap();
        let three = ArenaLayout::rows_within(&shape, 64 << 20, 3).unwrap();
        assert!((2 * three..=4 * three).contains(&one), "{one} {three}");
        let bytes = |rows| ArenaLayout::of(&shape, BatchSize::of_at_most(rows, rows)).bytes;
        assert!(bytes(one) <= 64 << 20 && bytes(one + 1) > 64 << 20);
        let all = ArenaLayout::rows_within(&shape, usize::MAX, 3).unwrap();
        assert!((ROWS_MAX / 2..=ROWS_MAX).contains(&all));
    }
}
