//! Which segments to merge next.
//!
//! Segments fall into tiers by their live rows, each tier [`FAN_IN`] times the size of the one
//! below. A tier that has filled up is merged into one segment of the next, so that each row is
//! written once a tier; a segment with many dead rows or of an earlier generation is written anew; and a
//! shard with too many segments merges its smallest. A shard that has stopped changing merges those of near
//! sizes, too: a query looks into each. Segments whose keys (values that are filtered by, or terms) would not fit in
//! one file are never merged.
//!
//! Invariant: with no new rows, planning and merging ends, at no more than [`SEGMENTS_MAX`] segments, unless their
//! keys stand against it, and none with [`DEAD_SHARE_MAX`] dead rows or more.

use crate::postings::KEY_BYTES_MAX;

/// Segments of one tier that are merged: of 1M rows each is then written 3 or 4 times.
pub(crate) const FAN_IN: usize = 4;
/// Segments of one tier merged at once when merging lags behind, as in a bulk load.
const MERGED_AT_ONCE_MAX: usize = 32;
/// Segments a shard should have: a query searches each.
pub(crate) const SEGMENTS_MAX: usize = 8;
/// Dead rows of 100 that make a segment worth writing anew: they cost time in every search.
pub(crate) const DEAD_SHARE_MAX: usize = 20;

/// How many times as large as all smaller ones together a segment may be to be merged with them when nothing
/// changes: a row is written anew only when a quarter as many have come.
const IDLE_GROWTH: usize = 4;

/// What the plan depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Rows, dead ones included.
    pub(crate) rows: usize,
    /// Live rows.
    pub(crate) live: usize,
    /// Bytes of its keys; those of a merged segment are as many as of all its inputs at most.
    pub(crate) key_bytes: u64,
    /// Whether it is of an earlier generation than the newest.
    pub(crate) is_stale: bool,
}

impl Size {
    fn tier(self, head_rows_max: usize) -> u32 {
        (self.live / head_rows_max).max(1).ilog(FAN_IN)
    }

    fn is_worn(self) -> bool {
        (self.rows - self.live) * 100 >= self.rows * DEAD_SHARE_MAX
    }
}

/// As many of these, from the first on, as have keys that fit in one file.
fn fitting<'a>(order: &'a [usize], sizes: &[Size]) -> &'a [usize] {
    let bytes = order.iter().scan(0_u64, |sum, at| {
        *sum = sum.saturating_add(sizes[*at].key_bytes);
        Some(*sum)
    });
    &order[..bytes.take_while(|sum| *sum <= KEY_BYTES_MAX).count()]
}

/// The numbers of segments, the smallest first: they cost least and help queries as much.
fn by_live(sizes: &[Size]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|at| (sizes[*at].live, *at));
    order
}

/// The smallest segments, to begin a new generation with.
pub(crate) fn first(sizes: &[Size]) -> Vec<usize> {
    let order = by_live(sizes);
    fitting(&order[..order.len().min(FAN_IN)], sizes).to_vec()
}

/// The segments to build one new segment from, by their number; `None` when all is well.
pub(crate) fn plan(sizes: &[Size], head_rows_max: usize) -> Option<Vec<usize>> {
    let order = by_live(sizes);
    let tiers =
        order.chunk_by(|a, b| sizes[*a].tier(head_rows_max) == sizes[*b].tier(head_rows_max));
    for tier in tiers {
        let fitting = fitting(&tier[..tier.len().min(MERGED_AT_ONCE_MAX)], sizes);
        if tier.len() >= FAN_IN && fitting.len() > 1 {
            return Some(fitting.to_vec());
        }
    }
    let is_due = |at: &&usize| sizes[**at].is_worn() || sizes[**at].is_stale;
    if let Some(due) = order.iter().find(is_due) {
        return Some(vec![*due]);
    }
    let first = first(sizes);
    (sizes.len() > SEGMENTS_MAX && first.len() > 1).then_some(first)
}

/// The segments to build one of when there is nothing else to do and nothing changes: the smallest, as many as
/// are not too large for those before them.
pub(crate) fn plan_idle(sizes: &[Size]) -> Option<Vec<usize>> {
    let mut order = by_live(sizes);
    let (mut smaller, mut chosen) = (0, 0);
    for (at, number) in fitting(&order, sizes).iter().enumerate() {
        let live = sizes[*number].live;
        if at > 0 && live <= smaller * IDLE_GROWTH {
            chosen = at + 1;
        }
        smaller += live;
    }
    order.truncate(chosen);
    (chosen > 0).then_some(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn merge(sizes: &mut Vec<Size>, chosen: &[usize]) -> usize {
        let live = chosen.iter().map(|at| sizes[*at].live).sum();
        let key_bytes = chosen.iter().map(|at| sizes[*at].key_bytes).sum();
        assert!(key_bytes <= KEY_BYTES_MAX, "{sizes:?}");
        let mut chosen = chosen.to_vec();
        chosen.sort_unstable();
        for at in chosen.into_iter().rev() {
            sizes.remove(at);
        }
        sizes.push(Size {
            rows: live,
            live,
            key_bytes,
            is_stale: false,
        });
        live
    }

    #[test]
    fn a_million_rows_end_in_few_segments_written_few_times() {
        let head = 8192;
        let (mut sizes, mut written, mut most) = (Vec::new(), 0, 0);
        for _ in 0..123 {
            sizes.push(Size {
                rows: head,
                live: head,
                key_bytes: 0,
                is_stale: false,
            });
            while let Some(chosen) = plan(&sizes, head) {
                written += merge(&mut sizes, &chosen);
            }
            most = most.max(sizes.len());
        }
        assert!(most <= SEGMENTS_MAX, "{most} segments");
        let rows: usize = sizes.iter().map(|size| size.rows).sum();
        assert_eq!(rows, 123 * head);
        assert!(
            written <= 4 * rows,
            "each row merged {} times",
            written as f64 / rows as f64
        );
    }

    /// Four segments of 1.2 GiB of keys each were merged for hours, which failed and was begun again.
    #[test]
    fn segments_whose_keys_do_not_fit_in_one_are_not_merged() {
        let size = |rows: usize, key_bytes: u64| Size {
            rows,
            live: rows,
            key_bytes,
            is_stale: false,
        };
        let quarter = KEY_BYTES_MAX / 4;
        let plan = |sizes: &[Size]| plan(sizes, 1000);
        assert_eq!(plan(&[size(5000, quarter); 4]), Some(vec![0, 1, 2, 3]));
        assert_eq!(plan(&[size(5000, quarter + 1); 4]), Some(vec![0, 1, 2]));
        assert_eq!(plan(&[size(5000, quarter * 3); 4]), None);
        assert_eq!(plan_idle(&[size(5000, quarter * 3); 4]), None);
        assert_eq!(plan(&[size(5000, quarter * 3); 30]), None);
        // What is worn or of an earlier generation is written anew all the same.
        let mut sizes = [size(5000, quarter * 3); 4];
        (sizes[1].live, sizes[3].is_stale) = (2000, true);
        assert_eq!(plan(&sizes), Some(vec![1]));
        sizes[1] = size(2000, quarter * 3);
        assert_eq!(plan(&sizes), Some(vec![3]));
        assert_eq!(first(&sizes), [1]);
    }

    proptest! {
        #[test]
        fn planning_ends(
            given in prop::collection::vec((1..200_000_usize, 0..100_usize, any::<bool>()), 0..60),
            // Up to a quarter of what fits in all, or far beyond it.
            row_key_bytes in prop::sample::select(vec![0, 64, 200, 20_000]),
        ) {
            let mut sizes: Vec<Size> = given
                .iter()
                .map(|(rows, dead, is_stale)| Size {
                    rows: *rows,
                    live: (rows * (100 - dead) / 100).max(1),
                    key_bytes: (*rows as u64 * row_key_bytes).min(KEY_BYTES_MAX),
                    is_stale: *is_stale,
                })
                .collect();
            let all: u64 = sizes.iter().map(|size| size.key_bytes).sum();
            let do_fit = all <= KEY_BYTES_MAX;
            let mut steps = 0;
            while let Some(chosen) = plan(&sizes, 1000) {
                merge(&mut sizes, &chosen);
                steps += 1;
                prop_assert!(steps < 200, "{sizes:?}");
            }
            prop_assert!(!do_fit || sizes.len() <= SEGMENTS_MAX);
            prop_assert!(sizes.iter().all(|size| !size.is_worn() && !size.is_stale));
            while let Some(chosen) = plan_idle(&sizes) {
                prop_assert!(chosen.len() > 1);
                merge(&mut sizes, &chosen);
            }
            sizes.sort_by_key(|size| size.live);
            let grows = |pair: &[Size]| pair[1].live > pair[0].live * IDLE_GROWTH;
            prop_assert!(!do_fit || sizes.windows(2).all(grows), "{sizes:?}");
            prop_assert!(!do_fit || plan(&sizes, 1000).is_none());
        }
    }
}
