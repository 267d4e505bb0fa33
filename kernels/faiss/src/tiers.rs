//! Which segments to merge next.
//!
//! Segments fall into tiers by their live rows, each tier [`FAN_IN`] times the size of the one
//! below. A tier that has filled up is merged into one segment of the next, so that each row is
//! written once a tier; a segment with many dead rows or of an earlier generation is written anew; and a
//! shard with too many segments merges its smallest. A shard that has stopped changing merges those of near
//! sizes, too: a query looks into each.
//!
//! Invariant: with no new rows, planning and merging ends, at no more than [`SEGMENTS_MAX`] segments
//! and none with [`DEAD_SHARE_MAX`] dead rows or more.

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

/// The segments to build one new segment from, by their number; `None` when all is well.
pub(crate) fn plan(sizes: &[Size], head_rows_max: usize) -> Option<Vec<usize>> {
    // Small ones first: they cost least and help queries as much.
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|at| (sizes[*at].live, *at));
    let tiers =
        order.chunk_by(|a, b| sizes[*a].tier(head_rows_max) == sizes[*b].tier(head_rows_max));
    for tier in tiers {
        if tier.len() >= FAN_IN {
            return Some(tier.iter().copied().take(MERGED_AT_ONCE_MAX).collect());
        }
    }
    let is_due = |at: &&usize| sizes[**at].is_worn() || sizes[**at].is_stale;
    if let Some(due) = order.iter().find(is_due) {
        return Some(vec![*due]);
    }
    (sizes.len() > SEGMENTS_MAX).then(|| order[..FAN_IN].to_vec())
}

/// The segments to build one of when there is nothing else to do and nothing changes: the smallest, as many as
/// are not too large for those before them.
pub(crate) fn plan_idle(sizes: &[Size]) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|at| (sizes[*at].live, *at));
    let (mut smaller, mut chosen) = (0, 0);
    for (at, number) in order.iter().enumerate() {
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
        let mut chosen = chosen.to_vec();
        chosen.sort_unstable();
        for at in chosen.into_iter().rev() {
            sizes.remove(at);
        }
        sizes.push(Size {
            rows: live,
            live,
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

    proptest! {
        #[test]
        fn planning_ends(given in prop::collection::vec((1..200_000_usize, 0..100_usize, any::<bool>()), 0..60)) {
            let mut sizes: Vec<Size> = given
                .iter()
                .map(|(rows, dead, is_stale)| Size {
                    rows: *rows,
                    live: (rows * (100 - dead) / 100).max(1),
                    is_stale: *is_stale,
                })
                .collect();
            let mut steps = 0;
            while let Some(chosen) = plan(&sizes, 1000) {
                merge(&mut sizes, &chosen);
                steps += 1;
                prop_assert!(steps < 200, "{sizes:?}");
            }
            prop_assert!(sizes.len() <= SEGMENTS_MAX);
            prop_assert!(sizes.iter().all(|size| !size.is_worn() && !size.is_stale));
            while let Some(chosen) = plan_idle(&sizes) {
                prop_assert!(chosen.len() > 1);
                merge(&mut sizes, &chosen);
            }
            sizes.sort_by_key(|size| size.live);
            let grows = |pair: &[Size]| pair[1].live > pair[0].live * IDLE_GROWTH;
            prop_assert!(sizes.windows(2).all(grows), "{sizes:?}");
            prop_assert_eq!(plan(&sizes, 1000), None);
        }
    }
}
