//! The codes file of a segment: its rows by the lists of a generation, coded for the scan.
//!
//! Layout, little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | `VECTCODE` |
//! | 8..12 | format version, 1 |
//! | 12..16 | parts of a code |
//! | 16..24 | rows |
//! | 24..32 | lists |
//! | 32..64 | zero |
//! | 64.. | where each list starts, in rows, 4 bytes each; one more for the end |
//! | then | the row of each code, in the order of the lists, 4 bytes each |
//! | at the next multiple of 64 | blocks of 32 rows, as [`crate::scan`] says; each list begins a new one |
//!
//! Invariant: every row of the segment is in one list, and its number is below the segment's rows. The file
//! is read in place: a row takes memory only as pages of the mapping.

use crate::files::{damaged, io_error};
use crate::header::{HEADER_BYTES, Header, Kind};
use crate::scan::{self, BLOCK_ROWS, block_bytes};
use memmap2::Mmap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use vectide_model::IndexError;

const KIND: Kind = Kind {
    magic: b"VECTCODE",
    version: 1,
    name: "a codes file",
};
const NUMBER_BYTES: usize = 4;

/// The list and the code of each row, by row.
#[derive(Debug, Default)]
pub(crate) struct RowCodes {
    /// Lists.
    pub(crate) lists: Vec<u32>,
    /// Codes, one after the other.
    pub(crate) codes: Vec<u8>,
}

/// The sizes of a codes file.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    parts: usize,
    rows: usize,
    lists: usize,
}

impl Sizes {
    fn numbers_start(self) -> usize {
        HEADER_BYTES + (self.lists + 1) * NUMBER_BYTES
    }

    fn blocks_start(self) -> usize {
        (self.numbers_start() + self.rows * NUMBER_BYTES).next_multiple_of(64)
    }
}

/// Writes a codes file. It is not synced.
pub(crate) fn write(
    path: &Path,
    parts: usize,
    lists: usize,
    rows: &RowCodes,
) -> Result<(), IndexError> {
    write_bytes(path, parts, lists, rows).map_err(|error| io_error("writing", path, &error))
}

fn write_bytes(path: &Path, parts: usize, lists: usize, rows: &RowCodes) -> io::Result<()> {
    let sizes = Sizes {
        parts,
        rows: rows.lists.len(),
        lists,
    };
    let starts = starts_of(lists, &rows.lists);
    let order = order_of(&starts, &rows.lists);
    let mut out = BufWriter::with_capacity(256 * 1024, File::create(path)?);
    out.write_all(KIND.magic)?;
    out.write_all(&KIND.version.to_le_bytes())?;
    out.write_all(&(parts as u32).to_le_bytes())?;
    out.write_all(&(sizes.rows as u64).to_le_bytes())?;
    out.write_all(&(lists as u64).to_le_bytes())?;
    out.write_all(&[0; HEADER_BYTES - 32])?;
    for number in starts.iter().chain(&order) {
        out.write_all(&number.to_le_bytes())?;
    }
    let padding = sizes.blocks_start() - sizes.numbers_start() - sizes.rows * NUMBER_BYTES;
    out.write_all(&[0; 64][..padding])?;
    let code_bytes = parts.div_ceil(2);
    let mut block = vec![0; block_bytes(parts)];
    for list in starts.windows(2) {
        let of_list = &order[list[0] as usize..list[1] as usize];
        for rows_of_block in of_list.chunks(BLOCK_ROWS) {
            block.fill(0);
            for (at, row) in rows_of_block.iter().enumerate() {
                let code = &rows.codes[*row as usize * code_bytes..][..code_bytes];
                scan::put(&mut block, at, parts, code);
            }
            out.write_all(&block)?;
        }
    }
    out.flush()
}

/// Where each list starts when rows are put in the order of their lists, and the end.
fn starts_of(lists: usize, list_of_row: &[u32]) -> Vec<u32> {
    let mut starts = vec![0; lists + 1];
    for list in list_of_row {
        starts[*list as usize + 1] += 1;
    }
    for list in 0..lists {
        starts[list + 1] += starts[list];
    }
    starts
}

fn order_of(starts: &[u32], list_of_row: &[u32]) -> Vec<u32> {
    let mut next = starts.to_vec();
    let mut order = vec![0; list_of_row.len()];
    for (list, row) in list_of_row.iter().zip(0..) {
        let at = &mut next[*list as usize];
        order[*at as usize] = row;
        *at += 1;
    }
    order
}

/// A mapped codes file.
#[derive(Debug)]
pub(crate) struct Codes {
    map: Mmap,
    sizes: Sizes,
    /// The first block of each list.
    first_blocks: Vec<u32>,
}

impl Codes {
    /// Reads the header and the lists; the bytes were verified before.
    pub(crate) fn new(map: Mmap, path: &Path) -> Result<Self, IndexError> {
        let header = Header::read(&KIND, &map, path)?;
        let sizes = (u32::try_from(header.u64(16)), u32::try_from(header.u64(24)));
        let (Ok(rows), Ok(lists)) = sizes else {
            return Err(damaged(path, "has sizes that no file has"));
        };
        let sizes = Sizes {
            parts: header.u32(12) as usize,
            rows: rows as usize,
            lists: lists as usize,
        };
        let mut codes = Self {
            map,
            sizes,
            first_blocks: Vec::new(),
        };
        codes.find_blocks(path)?;
        Ok(codes)
    }

    fn find_blocks(&mut self, path: &Path) -> Result<(), IndexError> {
        let Sizes { rows, lists, parts } = self.sizes;
        if self.map.len() < self.sizes.blocks_start() {
            return Err(damaged(path, "is shorter than its header says"));
        }
        let mut blocks = 0;
        let mut first_blocks = Vec::with_capacity(lists);
        for list in 0..lists {
            let (start, end) = (self.start(list), self.start(list + 1));
            if start > end {
                return Err(damaged(path, "has lists out of order"));
            }
            first_blocks.push(blocks);
            blocks += (end - start).div_ceil(BLOCK_ROWS) as u32;
        }
        let length = self.sizes.blocks_start() + blocks as usize * block_bytes(parts);
        if (self.start(0), self.start(lists), self.map.len()) != (0, rows, length) {
            return Err(damaged(path, "has another length than its header says"));
        }
        if (0..rows).any(|at| self.row(at) >= rows) {
            return Err(damaged(path, "names a row that there is not"));
        }
        self.first_blocks = first_blocks;
        Ok(())
    }

    fn number(&self, at: usize) -> usize {
        let bytes = &self.map[at..at + NUMBER_BYTES];
        bytes
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | usize::from(*byte))
    }

    fn start(&self, list: usize) -> usize {
        self.number(HEADER_BYTES + list * NUMBER_BYTES)
    }

    /// The row of a code, by its place in the order of the lists.
    pub(crate) fn row(&self, at: usize) -> usize {
        self.number(self.sizes.numbers_start() + at * NUMBER_BYTES)
    }

    /// Rows.
    pub(crate) fn rows(&self) -> usize {
        self.sizes.rows
    }

    /// Lists.
    pub(crate) fn lists(&self) -> usize {
        self.sizes.lists
    }

    /// Parts of a code.
    pub(crate) fn parts(&self) -> usize {
        self.sizes.parts
    }

    /// The places of a list's codes, and their blocks.
    pub(crate) fn list(&self, list: usize) -> (std::ops::Range<usize>, &[u8]) {
        let places = self.start(list)..self.start(list + 1);
        let block = block_bytes(self.sizes.parts);
        let start = self.sizes.blocks_start() + self.first_blocks[list] as usize * block;
        let bytes = places.len().div_ceil(BLOCK_ROWS) * block;
        (places, &self.map[start..start + bytes])
    }

    /// The list and the code of each row, by row: what a merge takes over.
    pub(crate) fn by_row(&self) -> RowCodes {
        let Sizes { parts, rows, lists } = self.sizes;
        let code_bytes = parts.div_ceil(2);
        let mut by_row = RowCodes {
            lists: vec![0; rows],
            codes: vec![0; rows * code_bytes],
        };
        for list in 0..lists {
            let (places, blocks) = self.list(list);
            let first = places.start;
            for at in places {
                let row = self.row(at);
                let block = &blocks[(at - first) / BLOCK_ROWS * block_bytes(parts)..];
                let code = &mut by_row.codes[row * code_bytes..][..code_bytes];
                scan::take(block, (at - first) % BLOCK_ROWS, parts, code);
                by_row.lists[row] = list as u32;
            }
        }
        by_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::map;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn rows_come_back(
            parts in 1..9_usize,
            lists in 1..6_u32,
            rows in prop::collection::vec((any::<u32>(), prop::array::uniform4(any::<u8>())), 0..200),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("codes");
            let code_bytes = parts.div_ceil(2);
            let mut given = RowCodes::default();
            for (list, code) in &rows {
                given.lists.push(list % lists);
                let mut code = [*code, [0; 4]].concat();
                code.truncate(code_bytes);
                if parts % 2 == 1 {
                    code[code_bytes - 1] &= 15;
                }
                given.codes.extend(code);
            }
            write(&path, parts, lists as usize, &given).unwrap();
            let codes = Codes::new(map(&path), &path).unwrap();
            prop_assert_eq!((codes.rows(), codes.lists(), codes.parts()), (rows.len(), lists as usize, parts));
            let again = codes.by_row();
            prop_assert_eq!(&again.lists, &given.lists);
            prop_assert_eq!(&again.codes, &given.codes);
        }
    }

    #[test]
    fn what_is_not_a_codes_file_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("codes");
        let given = RowCodes {
            lists: vec![1, 0, 1],
            codes: vec![7; 6],
        };
        write(&path, 4, 2, &given).unwrap();
        let good = std::fs::read(&path).unwrap();
        let fact = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
            Codes::new(map(&path), &path).unwrap_err().fact
        };
        assert!(fact(&|bytes| bytes.truncate(9)).contains("no header"));
        assert!(fact(&|bytes| bytes[0] = 0).contains("is not a codes file"));
        assert!(fact(&|bytes| bytes[8] = 2).contains("format version 2"));
        assert!(fact(&|bytes| bytes[23] = 1).contains("sizes that no file has"));
        assert!(fact(&|bytes| bytes[18] = 1).contains("shorter"));
        assert!(fact(&|bytes| bytes.push(0)).contains("another length"));
        assert!(fact(&|bytes| bytes[68] = 9).contains("out of order"));
        assert!(fact(&|bytes| bytes[76] = 3).contains("a row that there is not"));
    }
}
