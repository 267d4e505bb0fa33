//! The postings file of a segment: for each key, the rows that have it.
//!
//! Layout, little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | `VECTPOST` |
//! | 8..12 | format version, 1 |
//! | 12..16 | 1 if rows have counts, else 0 |
//! | 16..24 | rows of the segment |
//! | 24..32 | keys |
//! | 32..40 | bytes of postings |
//! | 40..48 | bytes of keys |
//! | 48..64 | zero |
//! | 64.. | postings, see below |
//! | then | an entry of 16 bytes a key, ascending by key: where its bytes end (4), rows that have it (4), its place (8) |
//! | then | the bytes of the keys, one after the other |
//!
//! Of a key of one row the place is the row, with its count above bit 32. Otherwise it is an offset in the
//! postings: without counts and from a sixteenth of the rows on to a bit a row; else to blocks of 128 rows,
//! bit-packed by their distances, each behind its two widths, and a rest of variable-length numbers.
//!
//! Invariant: keys ascend strictly, and so do the rows of a key, all below the rows of the segment. The file
//! is read in place.

mod merge;
mod write;

pub(crate) use merge::{Keyed, KeyedRows, NO_ROW, merge};
pub(crate) use write::PostingsWriter;

use crate::files::damaged;
use crate::header::{HEADER_BYTES, Header, Kind};
use bitpacking::{BitPacker, BitPacker4x};
use memmap2::Mmap;
use std::ops::Range;
use std::path::Path;
use std::slice::from_ref;
use vectide_model::IndexError;

const KIND: Kind = Kind {
    magic: b"VECTPOST",
    version: 1,
    name: "a postings file",
};
const ENTRY_BYTES: usize = 16;
/// Rows of a bit-packed block.
const BLOCK: usize = BitPacker4x::BLOCK_LEN;
/// From one row in so many on, a bit a row takes no more room than packed distances, and is read at once.
const DENSE_SHARE: usize = 16;
/// Bits of a word of a set of rows.
pub(crate) const WORD: usize = u64::BITS as usize;

/// Words that hold a bit for each of so many rows.
pub(crate) fn words_of(rows: usize) -> usize {
    rows.div_ceil(WORD)
}

/// What keys of rows are kept, each kind in a file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// What filters look at.
    Attributes,
    /// What keyword search looks at, with counts, and under [`LENGTHS_KEY`] the lengths of rows.
    Terms,
}

/// Bytes of all keys of a file together at most: where each ends is told in 32 bits.
pub(crate) const KEY_BYTES_MAX: u64 = u32::MAX as u64;

/// The key, before all terms, under which the length of each row with terms is counted.
pub(crate) const LENGTHS_KEY: &[u8] = &[];

/// A row that has a key, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Posting {
    /// The row.
    pub(crate) row: u32,
    /// How often it has the key; 1 where that is not counted.
    pub(crate) count: u32,
}

/// An entry of the dictionary.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key_end: u32,
    rows: u32,
    place: u64,
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..4].copy_from_slice(&self.key_end.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.rows.to_le_bytes());
        bytes[8..].copy_from_slice(&self.place.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let number = |range: Range<usize>| {
            let bytes = bytes[range].iter().rev();
            bytes.fold(0, |all, byte| all << 8 | u64::from(*byte))
        };
        Self {
            key_end: number(0..4) as u32,
            rows: number(4..8) as u32,
            place: number(8..16),
        }
    }

    fn single(self) -> Posting {
        Posting {
            row: self.place as u32,
            count: (self.place >> 32) as u32,
        }
    }
}

/// A postings file, mapped.
#[derive(Debug)]
pub(crate) struct Postings {
    map: Mmap,
    has_counts: bool,
    rows: usize,
    keys: usize,
    entries_start: usize,
    keys_start: usize,
}

impl Postings {
    /// Reads a file whose checksum has been verified; `path` is for messages.
    pub(crate) fn new(map: Mmap, path: &Path, rows: usize) -> Result<Self, IndexError> {
        let header = Header::read(&KIND, &map, path)?;
        let [held, keys, postings_bytes, key_bytes] =
            [16, 24, 32, 40].map(|at| usize::try_from(header.u64(at)).unwrap_or(usize::MAX));
        if held != rows {
            return Err(damaged(path, format_args!("is of {held} rows, not {rows}")));
        }
        let entries_start = HEADER_BYTES.checked_add(postings_bytes);
        let keys_start = keys
            .checked_mul(ENTRY_BYTES)
            .and_then(|bytes| entries_start?.checked_add(bytes));
        let end = keys_start.and_then(|start| start.checked_add(key_bytes));
        let (Some(entries_start), Some(keys_start)) = (entries_start, keys_start) else {
            return Err(damaged(path, "has sizes that no file has"));
        };
        if end != Some(map.len()) {
            return Err(damaged(path, "has another length than its header says"));
        }
        let postings = Self {
            has_counts: header.u32(12) != 0,
            map,
            rows,
            keys,
            entries_start,
            keys_start,
        };
        postings.check(path, key_bytes)?;
        Ok(postings)
    }

    fn check(&self, path: &Path, key_bytes: usize) -> Result<(), IndexError> {
        let mut end = 0;
        for at in 0..self.keys {
            let entry = self.entry(at);
            let next = entry.key_end as usize;
            let is_placed = match entry.rows {
                0 => false,
                1 => (entry.single().row as usize) < self.rows,
                _ => entry.place < (self.entries_start - HEADER_BYTES) as u64,
            };
            if next < end || next > key_bytes || !is_placed || entry.rows as usize > self.rows {
                return Err(damaged(path, "has a key that can't be"));
            }
            end = next;
        }
        let is_ordered = (1..self.keys).all(|at| self.key(at - 1) < self.key(at));
        if end != key_bytes || !is_ordered {
            return Err(damaged(path, "has keys out of order"));
        }
        Ok(())
    }

    fn entry(&self, at: usize) -> Entry {
        Entry::from_bytes(&self.map[self.entries_start + at * ENTRY_BYTES..][..ENTRY_BYTES])
    }

    /// How many keys there are.
    pub(crate) fn keys(&self) -> usize {
        self.keys
    }

    /// Bytes of all keys together.
    pub(crate) fn key_bytes(&self) -> u64 {
        (self.map.len() - self.keys_start) as u64
    }

    /// The key of a number.
    pub(crate) fn key(&self, at: usize) -> &[u8] {
        let start = match at {
            0 => 0,
            at => self.entry(at - 1).key_end as usize,
        };
        &self.map[self.keys_start + start..self.keys_start + self.entry(at).key_end as usize]
    }

    /// The number of the first key that is not less.
    fn first_from(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.keys);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The numbers of the keys from one up to another, which is not among them.
    pub(crate) fn between(&self, from: &[u8], to: &[u8]) -> Range<usize> {
        let first = self.first_from(from);
        first..self.first_from(to).max(first)
    }

    /// The number of a key.
    pub(crate) fn find(&self, key: &[u8]) -> Option<usize> {
        let at = self.first_from(key);
        (at < self.keys && self.key(at) == key).then_some(at)
    }

    fn postings(&self, place: u64) -> &[u8] {
        &self.map[HEADER_BYTES + place as usize..self.entries_start]
    }

    fn is_dense(&self, rows: u32) -> bool {
        is_dense(self.has_counts, rows as usize, self.rows)
    }

    /// Adds the rows of a key to a set that has a bit for each row.
    pub(crate) fn add_to(&self, at: usize, set: &mut [u64]) {
        let entry = self.entry(at);
        if entry.rows > 1 && self.is_dense(entry.rows) {
            let bytes = self.postings(entry.place).chunks_exact(8);
            for (word, bytes) in set.iter_mut().zip(bytes) {
                let bytes = bytes.iter().rev();
                *word |= bytes.fold(0, |all, byte| all << 8 | u64::from(*byte));
            }
            return;
        }
        self.each_of(at, &mut |rows, _| {
            for row in rows {
                set[*row as usize / WORD] |= 1 << (row % WORD as u32);
            }
        });
    }

    /// Gives the rows of a key in order, some at a time, with their counts; those are missing where nothing
    /// is counted.
    pub(crate) fn each_of(&self, at: usize, give: &mut dyn FnMut(&[u32], &[u32])) {
        let entry = self.entry(at);
        if entry.rows == 1 {
            let Posting { row, count } = entry.single();
            give(
                &[row],
                if self.has_counts {
                    from_ref(&count)
                } else {
                    &[]
                },
            );
        } else if self.is_dense(entry.rows) {
            let mut set = vec![0; words_of(self.rows)];
            self.add_to(at, &mut set);
            let rows: Vec<u32> = rows_of(&set).collect();
            give(&rows, &[]);
        } else {
            self.each_packed(entry, give);
        }
    }

    fn each_packed(&self, entry: Entry, give: &mut dyn FnMut(&[u32], &[u32])) {
        let packer = BitPacker4x::new();
        let mut bytes = self.postings(entry.place);
        let (mut left, mut last) = (entry.rows as usize, 0);
        let (mut rows, mut counts) = ([0; BLOCK], [1; BLOCK]);
        while left >= BLOCK {
            let (row_bits, count_bits) = (bytes[0], bytes[1]);
            bytes = &bytes[2..];
            let read = packer.decompress_sorted(last, bytes, &mut rows, row_bits);
            bytes = &bytes[read..];
            if self.has_counts {
                let read = packer.decompress(bytes, &mut counts, count_bits);
                bytes = &bytes[read..];
            }
            last = rows[BLOCK - 1];
            give(&rows, if self.has_counts { &counts } else { &[] });
            left -= BLOCK;
        }
        for at in 0..left {
            last += take_number(&mut bytes);
            rows[at] = last;
            if self.has_counts {
                counts[at] = take_number(&mut bytes);
            }
        }
        let counts = if self.has_counts {
            &counts[..left]
        } else {
            &[]
        };
        give(&rows[..left], counts);
    }
}

/// Whether rows of a key are a bit each.
fn is_dense(has_counts: bool, rows_of_key: usize, rows: usize) -> bool {
    !has_counts && rows_of_key >= rows / DENSE_SHARE
}

/// The rows of a set, in order.
pub(crate) fn rows_of(set: &[u64]) -> impl Iterator<Item = u32> + '_ {
    crate::bitmap::set_bits(set.iter().copied()).map(|row| row as u32)
}

/// A number in groups of seven bits, the lowest first, each but the last marked.
fn put_number(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> u32 {
    let (mut number, mut shift) = (0, 0);
    while let Some((byte, rest)) = bytes.split_first() {
        *bytes = rest;
        number |= u32::from(byte & 0x7f).wrapping_shl(shift);
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

#[cfg(test)]
mod tests;
