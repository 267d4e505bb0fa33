//! The pieces of a vocabulary as a tree of bytes in one array, to find all that a text begins with.
//!
//! It is a double array: the children of a node lie at its base, each at the exclusive or with its byte,
//! and each says who its parent is, so a step is one look into the array. Children of one node share a
//! block of 256 places; a node's base is sought in the last few blocks only, a whole block at a time, and
//! an only child fills the first gap there is. So the array is built in time linear in the bytes of the
//! pieces.
//!
//! Invariant: a node is reached by exactly the bytes that some piece begins with, and has that piece's
//! id where these are all of them.

/// Places of a block: one for each byte.
const BLOCK: usize = 256;
/// Blocks in which a place for several children is sought: XLM-RoBERTa's 250,000 pieces then fill
/// nine tenths of the array.
const BLOCKS_TRIED: usize = 8;
/// Blocks of an array at most, 100 MB: thrice what three megabytes of pieces need.
const BLOCKS_MAX: usize = 1 << 15;
/// No parent, and no piece.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Unit {
    base: u32,
    parent: u32,
    piece: u32,
}

const FREE: Unit = Unit {
    base: 0,
    parent: NONE,
    piece: NONE,
};

/// A node of the tree.
#[derive(Clone, Copy)]
pub(super) struct Node {
    place: u32,
    base: u32,
    piece: u32,
}

impl Node {
    /// The piece that ends here.
    #[inline(always)]
    pub(super) fn piece(self) -> Option<u32> {
        (self.piece != NONE).then_some(self.piece)
    }
}

/// The tree.
pub(super) struct PieceTree {
    units: Box<[Unit]>,
}

impl PieceTree {
    /// Builds it of pieces and their ids; of pieces that are equal the last one counts. `None` when the
    /// array would be too large.
    pub(super) fn new(mut pieces: Vec<(&[u8], u32)>) -> Option<Self> {
        pieces.sort();
        // The later of two is in the place that is kept.
        pieces.dedup_by(|next, kept| {
            let is_same = next.0 == kept.0;
            if is_same {
                kept.1 = next.1;
            }
            is_same
        });
        let mut array = Builder::new();
        let mut nodes = vec![(&pieces[..], 0, 0)];
        while let Some((mut below, depth, place)) = nodes.pop() {
            if let Some(((piece, id), others)) = below.split_first()
                && piece.len() == depth
            {
                array.units[place].piece = *id;
                below = others;
            }
            let children: Vec<_> = below.chunk_by(|a, b| a.0[depth] == b.0[depth]).collect();
            if children.is_empty() {
                continue;
            }
            let labels: Vec<u8> = children.iter().map(|child| child[0].0[depth]).collect();
            let base = array.base_for(&labels)?;
            array.units[place].base = base as u32;
            for (label, child) in labels.iter().zip(children) {
                let child_place = base ^ usize::from(*label);
                array.take(child_place, place);
                nodes.push((child, depth + 1, child_place));
            }
        }
        Some(Self {
            units: array.units.into(),
        })
    }

    #[inline(always)]
    pub(super) fn root(&self) -> Node {
        let unit = self.units[0];
        Node {
            place: 0,
            base: unit.base,
            piece: unit.piece,
        }
    }

    /// The node that a byte leads to.
    #[inline(always)]
    pub(super) fn step(&self, from: Node, byte: u8) -> Option<Node> {
        let place = from.base ^ u32::from(byte);
        let unit = self.units.get(place as usize)?;
        (unit.parent == from.place).then_some(Node {
            place,
            base: unit.base,
            piece: unit.piece,
        })
    }

    /// The id of the piece of these bytes.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        let step = |node, byte: &u8| self.step(node, *byte);
        bytes.iter().try_fold(self.root(), step)?.piece()
    }
}

/// The array while it grows.
struct Builder {
    units: Vec<Unit>,
    /// A bit for each place that is taken, by blocks.
    taken: Vec<[u64; 4]>,
    /// Blocks before this one are full.
    first_gap: usize,
}

impl Builder {
    /// One with the root in the first place.
    fn new() -> Self {
        Self {
            units: vec![FREE; BLOCK],
            taken: vec![[1, 0, 0, 0]],
            first_gap: 0,
        }
    }

    fn take(&mut self, place: usize, parent: usize) {
        self.units[place].parent = parent as u32;
        let (block, within) = (place / BLOCK, place % BLOCK);
        self.taken[block][within / 64] |= 1 << (within % 64);
    }

    /// A base at which there is a place for each of these children.
    fn base_for(&mut self, labels: &[u8]) -> Option<usize> {
        if let [only] = labels {
            while self.taken.get(self.first_gap) == Some(&[u64::MAX; 4]) {
                self.first_gap += 1;
            }
            if let Some(gap) = self.taken.get(self.first_gap).and_then(first_zero) {
                return Some((self.first_gap * BLOCK + gap) ^ usize::from(*only));
            }
        }
        let tried = self.taken.len().saturating_sub(BLOCKS_TRIED);
        for (block, taken) in self.taken.iter().enumerate().skip(tried) {
            let mut barred = [0; 4];
            for label in labels {
                let moved = moved(taken, *label);
                barred.iter_mut().zip(moved).for_each(|(to, it)| *to |= it);
            }
            if let Some(base) = first_zero(&barred) {
                return Some(block * BLOCK + base);
            }
        }
        if self.taken.len() == BLOCKS_MAX {
            return None;
        }
        self.units.resize(self.units.len() + BLOCK, FREE);
        self.taken.push([0; 4]);
        Some((self.taken.len() - 1) * BLOCK)
    }
}

fn first_zero(bits: &[u64; 4]) -> Option<usize> {
    let word = bits.iter().position(|word| *word != u64::MAX)?;
    Some(word * 64 + bits[word].trailing_ones() as usize)
}

/// Bits of which each is the one at the exclusive or of its place with the label.
fn moved(bits: &[u64; 4], label: u8) -> [u64; 4] {
    const HALVES: [u64; 6] = [
        0x5555_5555_5555_5555,
        0x3333_3333_3333_3333,
        0x0F0F_0F0F_0F0F_0F0F,
        0x00FF_00FF_00FF_00FF,
        0x0000_FFFF_0000_FFFF,
        0x0000_0000_FFFF_FFFF,
    ];
    std::array::from_fn(|word| {
        let mut moved = bits[word ^ usize::from(label >> 6)];
        for (bit, half) in HALVES.iter().enumerate() {
            if label >> bit & 1 == 1 {
                let width = 1 << bit;
                moved = (moved >> width & half) | (moved & half) << width;
            }
        }
        moved
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn bits_move_by_the_exclusive_or() {
        let bits = [
            0x0123_4567_89AB_CDEF,
            0xFEDC_BA98,
            1 << 63,
            0x8000_0001_0000_0000,
        ];
        let bit = |bits: &[u64; 4], at: usize| bits[at / 64] >> (at % 64) & 1;
        for label in 0..=255_u8 {
            let moved = moved(&bits, label);
            for at in 0..BLOCK {
                assert_eq!(bit(&moved, at), bit(&bits, at ^ usize::from(label)));
            }
        }
    }

    #[test]
    fn of_equal_pieces_the_last_one_counts() {
        let tree = PieceTree::new(vec![(b"a", 5), (b"ab", 1), (b"a", 2), (b"a", 7)]).unwrap();
        assert_eq!(tree.find(b"a"), Some(7));
        assert_eq!(tree.find(b"ab"), Some(1));
        assert_eq!(tree.find(b""), None);
        assert_eq!(tree.find(b"b"), None);
        assert_eq!(PieceTree::new(vec![]).unwrap().find(b"a"), None);
        assert_eq!(PieceTree::new(vec![(b"", 3)]).unwrap().find(b""), Some(3));
    }

    proptest! {
        #[test]
        fn pieces_are_found_and_others_are_not(
            pieces in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..6), 0..400),
            others in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..7), 0..100),
        ) {
            let ids = pieces.iter().map(Vec::as_slice).zip(0..);
            let tree = PieceTree::new(ids.clone().collect()).unwrap();
            let map: BTreeMap<&[u8], u32> = ids.collect();
            for text in pieces.iter().chain(&others) {
                assert_eq!(tree.find(text), map.get(&text[..]).copied());
            }
        }
    }
}
