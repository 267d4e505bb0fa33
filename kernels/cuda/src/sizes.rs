//! How large the slots of a device are, given its memory.
//!
//! Weights come first, then the query lane's slots, which must hold the longest text; the bulk lane
//! takes what is left, up to what makes batches no faster.
//!
//! Invariant: everything together stays within the budget, or opening is refused with both numbers.

use crate::arena::ArenaLayout;
use crate::batch::BatchSize;
use crate::shape::BertShape;
use crate::weights::WeightLayout;

/// Bulk batches: large enough to fill every multiprocessor many times over and to launch rarely; few
/// enough that rows between kernels stay near the second-level cache (8,192 rows of 384 are 6 MiB).
pub const BULK_ROWS: usize = 8192;
/// One computed, one copied in and one copied out.
pub const BULK_SLOTS: usize = 3;
/// The largest size that is replayed; queries are shorter.
const QUERY_ROWS: usize = 512;
/// A second query need not wait for the first.
pub const QUERY_SLOTS: usize = 2;
/// Tokens of a text that a slot's limit of texts counts with: shorter ones fill it by their number.
const TOKENS_PER_TEXT: usize = 8;
/// A lane below this is of no use: even short texts would go one by one.
const TEXTS_MIN: usize = 8;
/// Left for the context itself, code, and what else is on the device.
const RESERVE_BYTES: usize = 256 << 20;

/// Sizes of all slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Of each slot of the query lane.
    pub query: BatchSize,
    /// Of each slot of the bulk lane.
    pub bulk: BatchSize,
    /// Bytes of the device that weights and slots take.
    pub bytes: usize,
}

/// A device that is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model needs {} MiB of GPU memory, and {} MiB may be used",
    needed_bytes >> 20,
    budget_bytes >> 20
)]
pub struct TooSmall {
    /// For the weights and the smallest slots.
    pub needed_bytes: usize,
    /// What there is.
    pub budget_bytes: usize,
}

/// A slot's size, of so many rows.
fn slot(rows: usize) -> BatchSize {
    BatchSize::of_at_most(rows, (rows / TOKENS_PER_TEXT).max(TEXTS_MIN))
}

impl Sizes {
    /// For a device with `free_bytes` of which at most `budget_bytes` may be used.
    ///
    /// # Errors
    /// When weights and the smallest slots do not fit.
    pub fn choose(
        shape: &BertShape,
        free_bytes: usize,
        budget_bytes: Option<usize>,
    ) -> Result<Self, TooSmall> {
        let usable = free_bytes.saturating_sub(RESERVE_BYTES);
        let budget = budget_bytes.map_or(usable, |limit| limit.min(usable));
        let arena = |rows: usize| ArenaLayout::of(shape, slot(rows)).bytes;
        let least = shape.tokens_max();
        let query_rows = QUERY_ROWS.max(least);
        let fixed = WeightLayout::of(shape).bytes + QUERY_SLOTS * arena(query_rows);
        let mut rows = BULK_ROWS.max(least);
        // Halving is fine enough: twice the rows never are twice as fast.
        while fixed + BULK_SLOTS * arena(rows) > budget && rows > least {
            rows = (rows / 2).max(least);
        }
        let bytes = fixed + BULK_SLOTS * arena(rows);
        if bytes > budget {
            return Err(TooSmall {
                needed_bytes: bytes,
                budget_bytes: budget,
            });
        }
        Ok(Self {
            query: slot(query_rows),
            bulk: slot(rows),
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_device_has_the_best_sizes() {
        let sizes = Sizes::choose(&BertShape::MINILM_L6, 80 << 30, None).unwrap();
        assert_eq!(sizes.bulk.rows, BULK_ROWS);
        assert_eq!(sizes.query.rows, QUERY_ROWS);
        assert!(sizes.bytes < 256 << 20, "{}", sizes.bytes);
    }

    #[test]
    fn a_budget_makes_bulk_batches_smaller_and_then_is_refused() {
        let shape = BertShape::BGE_BASE;
        let mut rows_before = usize::MAX;
        for budget_mib in [1024, 400, 300, 280, 250] {
            let Ok(sizes) = Sizes::choose(&shape, 80 << 30, Some(budget_mib << 20)) else {
                assert!(budget_mib < 280);
                continue;
            };
            assert!(sizes.bytes <= budget_mib << 20 && sizes.bulk.rows <= rows_before);
            assert!(sizes.bulk.rows >= shape.tokens_max());
            rows_before = sizes.bulk.rows;
        }
        let error = Sizes::choose(&shape, 300 << 20, None).unwrap_err();
        assert!(error.to_string().contains("44 MiB may be used"), "{error}");
    }
}
