//! The pieces of a vocabulary as a tree of bytes in one array, to find all that a text begins with.
//!
//! A walk waits for memory more than for anything else, so the array is small: a double array of eight
//! bytes a node, with what is asked of each piece on the way. The children of a node lie at its base, each at
//! the exclusive or with its byte, and each says that byte. As no two nodes have one base, it is the
//! child's of no other.
//!
//! Children of one node share a block of 256 places; a base is sought in a few blocks only, a whole block
//! at a time. So the array is built in time linear in the bytes of the pieces.
//!
//! Invariant: a node is reached by exactly the bytes that some piece begins with, and has that piece's
//! value where these are all of them.

/// Places of a block: one for each byte.
const BLOCK: usize = 256;
/// Blocks in which places for children are sought: large vocabularies then fill nearly all of the array.
const BLOCKS_TRIED: usize = 8;
/// Blocks of an array at most, 50 MB: there are no more bases, of which the last block's mean that there
/// are no children.
const BLOCKS_MAX: usize = (1 << 14) - 1;
const NO_CHILDREN: u32 = (1 << 22) - 1;

/// A node: 22 bits of its base, one whether a piece ends here, nine of the byte that leads to it and that it
/// is there; and 32 bits of its piece's value.
#[derive(Clone, Copy)]
struct Unit {
    links: u32,
    value: u32,
}

/// What stands beside the byte of a node that is there.
const IS_THERE: u32 = 0x100;

const FREE: Unit = Unit {
    links: NO_CHILDREN << 10,
    value: 0,
};

impl Unit {
    fn new(label: u32) -> Self {
        Self {
            links: FREE.links | label,
            value: 0,
        }
    }

    fn set_base(&mut self, base: usize) {
        self.links = (base as u32) << 10 | self.links & 0x3FF;
    }

    fn set_value(&mut self, value: u32) {
        self.links |= 0x200;
        self.value = value;
    }

    #[inline(always)]
    fn base(self) -> u32 {
        self.links >> 10
    }

    #[inline(always)]
    fn label(self) -> u32 {
        self.links & 0x1FF
    }
}

/// A node of the tree.
#[derive(Clone, Copy)]
pub(super) struct Node {
    place: u32,
    unit: Unit,
}

impl Node {
    /// The value of the piece that ends here.
    #[inline(always)]
    pub(super) fn value(self) -> Option<u32> {
        (self.unit.links & 0x200 != 0).then_some(self.unit.value)
    }

    /// A number by which the piece that ends here is found again ([`PieceTree::id_at`]).
    #[inline(always)]
    pub(super) fn place(self) -> u32 {
        self.place
    }
}

/// One piece of those that a tree is built of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Piece<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) id: u32,
    /// What is wanted of it on the way.
    pub(super) value: u32,
}

/// The tree.
pub(super) struct PieceTree {
    units: Box<[Unit]>,
    /// Ids of pieces, by the places of their last bytes.
    ids: Box<[u32]>,
}

impl PieceTree {
    /// Builds it; of pieces with equal bytes the one of the largest id counts. `None` when the array
    /// would be too large.
    pub(super) fn new(mut pieces: Vec<Piece<'_>>) -> Option<Self> {
        pieces.sort();
        // The later of two is in the place that is kept.
        pieces.dedup_by(|next, kept| {
            let is_same = next.bytes == kept.bytes;
            if is_same {
                *kept = *next;
            }
            is_same
        });
        let mut array = Builder::new();
        let mut nodes = vec![(&pieces[..], 0, 0)];
        while let Some((mut below, depth, place)) = nodes.pop() {
            if let Some((piece, others)) = below.split_first()
                && piece.bytes.len() == depth
            {
                array.units[place].set_value(piece.value);
                array.ids[place] = piece.id;
                below = others;
            }
            let children: Vec<_> = below
                .chunk_by(|a, b| a.bytes[depth] == b.bytes[depth])
                .collect();
            if children.is_empty() {
                continue;
            }
            let labels: Vec<u8> = children.iter().map(|it| it[0].bytes[depth]).collect();
            let base = array.base_for(&labels)?;
            array.units[place].set_base(base);
            for (label, child) in labels.iter().zip(children) {
                let child_place = base ^ usize::from(*label);
                array.take(child_place, *label);
                nodes.push((child, depth + 1, child_place));
            }
        }
        Some(Self {
            units: array.units.into(),
            ids: array.ids.into(),
        })
    }

    #[inline(always)]
    pub(super) fn root(&self) -> Node {
        Node {
            place: 0,
            unit: self.units[0],
        }
    }

    /// The node that a byte leads to.
    #[inline(always)]
    pub(super) fn step(&self, from: Node, byte: u8) -> Option<Node> {
        let place = from.unit.base() ^ u32::from(byte);
        let unit = *self.units.get(place as usize)?;
        (unit.label() == IS_THERE | u32::from(byte)).then_some(Node { place, unit })
    }

    /// The id of the piece that ends at a place.
    pub(super) fn id_at(&self, place: u32) -> Option<u32> {
        self.ids.get(place as usize).copied()
    }

    /// The id of the piece of these bytes.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        let step = |node, byte: &u8| self.step(node, *byte);
        let node = bytes.iter().try_fold(self.root(), step)?;
        node.value().and_then(|_| self.id_at(node.place))
    }
}

/// The array while it grows.
struct Builder {
    units: Vec<Unit>,
    ids: Vec<u32>,
    /// A bit for each place that is taken, by blocks, and for each base.
    taken: Vec<[u64; 4]>,
    bases: Vec<[u64; 4]>,
    /// In blocks before this one no only child finds a place.
    first_gap: usize,
}

impl Builder {
    /// One with the root in the first place, where no byte leads.
    fn new() -> Self {
        let mut array = Self {
            units: Vec::new(),
            ids: Vec::new(),
            taken: Vec::new(),
            bases: Vec::new(),
            first_gap: 0,
        };
        array.add_block();
        array.taken[0][0] = 1;
        array
    }

    fn add_block(&mut self) {
        self.units.resize(self.units.len() + BLOCK, FREE);
        self.ids.resize(self.ids.len() + BLOCK, 0);
        self.taken.push([0; 4]);
        self.bases.push([0; 4]);
    }

    fn take(&mut self, place: usize, label: u8) {
        self.units[place] = Unit::new(IS_THERE | u32::from(label));
        set(&mut self.taken, place);
    }

    /// Takes a base at which there is a place for each of these children.
    fn base_for(&mut self, labels: &[u8]) -> Option<usize> {
        let last = self.taken.len().saturating_sub(BLOCKS_TRIED);
        if labels.len() == 1 {
            while self.first_gap < last {
                if let Some(base) = self.base_in(self.first_gap, labels) {
                    return Some(base);
                }
                self.first_gap += 1;
            }
        }
        let found = (last..self.taken.len()).find_map(|block| self.base_in(block, labels));
        if found.is_some() {
            return found;
        }
        if self.taken.len() == BLOCKS_MAX {
            return None;
        }
        self.add_block();
        self.base_in(self.taken.len() - 1, labels)
    }

    /// As [`Builder::base_for`], in one block.
    fn base_in(&mut self, block: usize, labels: &[u8]) -> Option<usize> {
        let mut barred = self.bases[block];
        for label in labels {
            let moved = moved(&self.taken[block], *label);
            barred.iter_mut().zip(moved).for_each(|(to, it)| *to |= it);
        }
        let base = block * BLOCK + first_zero(&barred)?;
        set(&mut self.bases, base);
        Some(base)
    }
}

fn set(bits: &mut [[u64; 4]], place: usize) {
    let (block, within) = (place / BLOCK, place % BLOCK);
    bits[block][within / 64] |= 1 << (within % 64);
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

    fn tree(pieces: &[(&[u8], u32)]) -> PieceTree {
        let pieces = pieces.iter().map(|(bytes, id)| Piece {
            bytes,
            id: *id,
            value: *id ^ 5,
        });
        PieceTree::new(pieces.collect()).unwrap()
    }

    #[test]
    fn of_equal_pieces_the_last_one_counts() {
        let found = tree(&[(b"a", 5), (b"ab", 1), (b"a", 2), (b"a", 7)]);
        assert_eq!(found.find(b"a"), Some(7));
        assert_eq!(found.find(b"ab"), Some(1));
        assert_eq!(found.find(b""), None);
        assert_eq!(found.find(b"b"), None);
        assert_eq!(found.find(b"\0"), None);
        assert_eq!(tree(&[]).find(b"a"), None);
        assert_eq!(tree(&[(b"", 3)]).find(b""), Some(3));
        assert_eq!(tree(&[(b"\0\0", 3)]).find(b"\0\0"), Some(3));
        assert_eq!(tree(&[(b"\0\0", 3)]).find(b"\0"), None);
    }

    /// All texts of two bytes are as many nodes as there are places in 257 blocks.
    #[test]
    fn a_full_tree_fills_its_array() {
        let bytes: Vec<[u8; 2]> = (0..=u16::MAX).map(u16::to_be_bytes).collect();
        let pieces: Vec<_> = bytes.iter().map(|it| &it[..]).zip(0..).collect();
        let tree = tree(&pieces);
        assert!(tree.units.len() <= 258 * BLOCK);
        assert!(pieces.iter().all(|(it, id)| tree.find(it) == Some(*id)));
    }

    proptest! {
        #[test]
        fn pieces_are_found_and_others_are_not(
            pieces in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..6), 0..400),
            others in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..7), 0..100),
        ) {
            let numbered: Vec<_> = pieces.iter().map(Vec::as_slice).zip(0..).collect();
            let tree = tree(&numbered);
            let map: BTreeMap<&[u8], u32> = numbered.into_iter().collect();
            for text in pieces.iter().chain(&others) {
                let id = map.get(&text[..]).copied();
                assert_eq!(tree.find(text), id);
                let step = |node, byte: &u8| tree.step(node, *byte);
                let node = text.iter().try_fold(tree.root(), step);
                assert_eq!(node.and_then(Node::value), id.map(|id| id ^ 5));
            }
        }
    }
}
