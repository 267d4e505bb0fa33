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
}

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
}
