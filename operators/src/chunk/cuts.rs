//! Which cuts to make: the set of cuts whose prices, together with the prices of the chunks' sizes,
//! have the smallest sum.
//!
//! Packing a text from the top moves every later cut when a line is added. Cutting at whatever place
//! looks good locally keeps cuts still but makes chunks of all sizes. Here every set of cuts has a
//! price (see `marks` for the places; sizes cost the more the further they are from the ideal), and
//! dynamic programming finds the cheapest set, in one pass. Prices know nothing of offsets, so the
//! cheapest sets before and after an edit agree as soon as they share one cut behind the edit, and
//! the differences in price between places make them share one soon.
//!
//! Invariant: no chunk weighs more than the limit unless it is a single piece; equal input gives
//! equal output on every machine (integers only).

use super::pieces::Piece;
use std::ops::Range;

/// At most so many pieces make a chunk. Each weighs a token or more, so this binds only where chunks
/// of more tokens are asked for; it bounds the work for a text of tiny lines.
const PIECES_A_CHUNK_MAX: usize = 1024;

/// What a chunk of no tokens costs, and one of twice the ideal size: the square of the distance from
/// the ideal in between. Prices of places are in thousandths of half of this.
const SIZE_COST: i64 = 2000;

/// What a chunk below the minimum costs on top of that, growing to this as it gets smaller.
const TINY_CHUNK_COST: i64 = 4000;

/// The sizes to aim for, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Smaller chunks are avoided at almost any price.
    pub(super) min: u32,
    /// The size that costs nothing.
    pub(super) ideal: u32,
    /// No chunk is larger.
    pub(super) limit: u32,
}

impl Sizes {
    /// What a chunk of each weight costs, from 0 to the limit.
    fn costs(self) -> Vec<i64> {
        let (min, ideal) = (i64::from(self.min), i64::from(self.ideal));
        (0..=i64::from(self.limit))
            .map(|weight| {
                let missing = (min - weight).max(0);
                let gap = weight - ideal;
                TINY_CHUNK_COST * missing / min.max(1)
                    + SIZE_COST * gap * gap / (ideal * ideal).max(1)
            })
            .collect()
    }
}

/// Cuts pieces into chunks: ranges of piece numbers, in order, covering all of them.
pub(super) fn choose(pieces: &[Piece], sizes: Sizes) -> Vec<Range<usize>> {
    let size_costs = sizes.costs();
    // The cheapest way to cut the pieces before each, and where its last chunk begins.
    let mut cheapest: Vec<i64> = Vec::with_capacity(pieces.len() + 1);
    let mut begins: Vec<usize> = Vec::with_capacity(pieces.len() + 1);
    cheapest.push(0);
    begins.push(0);
    for end in 1..=pieces.len() {
        let mut weight = 0_u32;
        let mut best = (i64::MAX, end - 1);
        for begin in (end.saturating_sub(PIECES_A_CHUNK_MAX)..end).rev() {
            weight = weight.saturating_add(pieces[begin].weight);
            let too_heavy = weight > sizes.limit;
            if too_heavy && begin + 1 < end {
                break;
            }
            let size = size_costs[weight.min(sizes.limit) as usize];
            let cut = if begin == 0 {
                0
            } else {
                i64::from(pieces[begin].cost)
            };
            let total = cheapest[begin] + cut + size;
            if total < best.0 {
                best = (total, begin);
            }
            if too_heavy {
                break;
            }
        }
        cheapest.push(best.0);
        begins.push(best.1);
    }
    let mut chunks = Vec::new();
    let mut end = pieces.len();
    while end > 0 {
        let begin = begins[end];
        chunks.push(begin..end);
        end = begin;
    }
    chunks.reverse();
    chunks
}

#[cfg(test)]
mod tests {
    use super::super::pieces::Seam;
    use super::*;
    use proptest::prelude::*;

    fn piece(weight: u32, cost: i32) -> Piece {
        Piece {
            range: 0..0,
            weight,
            cost,
            seam: Seam::BetweenWords,
        }
    }

    /// The price of a set of cuts; `None` when a chunk of several pieces is too heavy.
    fn price(pieces: &[Piece], chunks: &[Range<usize>], sizes: Sizes) -> Option<i64> {
        let costs = sizes.costs();
        chunks.iter().try_fold(0, |sum, chunk| {
            let weight: u32 = pieces[chunk.clone()].iter().map(|piece| piece.weight).sum();
            let cut = if chunk.start == 0 {
                0
            } else {
                pieces[chunk.start].cost
            };
            let fits = weight <= sizes.limit || chunk.len() == 1;
            fits.then(|| sum + i64::from(cut) + costs[weight.min(sizes.limit) as usize])
        })
    }

    fn all_ways(pieces: usize) -> Vec<Vec<Range<usize>>> {
        (0..1_u32 << (pieces - 1))
            .map(|cuts| {
                let inner = (1..pieces).filter(|at| cuts >> (at - 1) & 1 == 1);
                let edges: Vec<usize> = [0].into_iter().chain(inner).chain([pieces]).collect();
                edges.windows(2).map(|edge| edge[0]..edge[1]).collect()
            })
            .collect()
    }

    proptest! {
        /// The reference tries every set of cuts.
        #[test]
        fn no_other_cuts_are_cheaper(
            given in proptest::collection::vec((1_u32..60, -1000_i32..4000), 1..11),
        ) {
            let pieces: Vec<Piece> = given.iter().map(|(weight, cost)| piece(*weight, *cost)).collect();
            let sizes = Sizes { min: 10, ideal: 40, limit: 50 };
            let chosen = choose(&pieces, sizes);
            let found = price(&pieces, &chosen, sizes);
            let best = all_ways(pieces.len()).iter().filter_map(|way| price(&pieces, way, sizes)).min();
            prop_assert_eq!(found, best);
        }
    }

    #[test]
    fn nothing_gives_nothing() {
        assert!(
            choose(
                &[],
                Sizes {
                    min: 1,
                    ideal: 2,
                    limit: 3
                }
            )
            .is_empty()
        );
    }
}
