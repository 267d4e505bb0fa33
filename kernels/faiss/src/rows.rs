//! The rows file of a segment: chunk ids and fp16 vectors, the truth that FAISS's index only finds
//! its way through.
//!
//! Layout, little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | `VECTROWS` |
//! | 8..12 | format version, 1 |
//! | 12..16 | dimension |
//! | 16..24 | rows |
//! | 24..64 | zero |
//! | 64.. | chunk ids, 16 bytes each, ascending |
//! | at the next multiple of 64 | vectors, 2 bytes a component |
//! | last 32 | BLAKE3 of everything before |
//!
//! Invariant: ids ascend strictly, so a row is found by search and no map of ids is kept in memory.

use crate::bitmap::Bitmap;
use crate::budget::Budget;
use crate::dot::Query;
use crate::files::{Counting, damaged, io_error};
use crate::header::{HEADER_BYTES, Header, Kind};
use crate::postings::{KeyKind, KeyedRows};
use crate::top::Top;
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use vectide_model::{ChunkId, IndexError};

#[cfg(target_endian = "big")]
compile_error!("rows files are read in place and little-endian");

const KIND: Kind = Kind {
    magic: b"VECTROWS",
    version: 1,
    name: "a rows file",
};
const CHUNK_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 32;
/// Rows a bucket of the fan-out table should hold: ids are hashes, so a lookup then touches one or
/// two cache lines of ids, at a quarter of a byte a row.
const BUCKET_ROWS: usize = 16;

/// How far ahead rows are asked for when few of a segment are scanned, and how few these are.
const ROWS_AHEAD: usize = 4;
const SPARSE_SHARE: usize = 2;

/// Rows scanned between two looks at the clock.
const ROWS_BETWEEN_LOOKS: usize = 128;

/// Where the vectors start.
fn vectors_start(rows: usize) -> usize {
    (HEADER_BYTES + rows * CHUNK_BYTES).next_multiple_of(64)
}

/// Rows to be written: by number, ascending by chunk id.
pub(crate) trait RowsInOrder {
    /// How many.
    fn rows(&self) -> usize;
    /// The chunk of a row.
    fn chunk(&self, row: usize) -> ChunkId;
    /// The vector of a row.
    fn vector(&self, row: usize) -> &[f16];
    /// The list and the code of a row, where it has been coded for the generation it is written for.
    fn code(&self, _row: usize) -> Option<(u32, &[u8])> {
        None
    }
    /// Whether a row came after the generation that it is coded by was trained.
    fn is_new(&self, _row: usize) -> bool {
        false
    }
    /// Gives the rows' keys of a kind, ascending, each with the rows that have it.
    fn keys(&self, _of: KeyKind, _give: &mut KeyedRows<'_, io::Error>) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a rows file. It is not synced.
pub(crate) fn write(
    path: &Path,
    dimension: usize,
    rows: &dyn RowsInOrder,
) -> Result<(), IndexError> {
    write_bytes(path, dimension, rows).map_err(|error| io_error("writing", path, &error))
}

/// Hashes what goes through.
struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write_bytes(path: &Path, dimension: usize, rows: &dyn RowsInOrder) -> io::Result<()> {
    let count = rows.rows();
    let hashing = Hashing {
        inner: File::create(path)?,
        hasher: blake3::Hasher::new(),
    };
    let mut out = Counting {
        // As large as BLAKE3 likes its input.
        inner: BufWriter::with_capacity(256 * 1024, hashing),
        written: 0,
    };
    out.write_all(KIND.magic)?;
    out.write_all(&KIND.version.to_le_bytes())?;
    out.write_all(&(dimension as u32).to_le_bytes())?;
    out.write_all(&(count as u64).to_le_bytes())?;
    out.write_all(&[0; HEADER_BYTES - 24])?;
    for row in 0..count {
        out.write_all(&rows.chunk(row).0)?;
    }
    let padding = vectors_start(count) - out.written;
    out.write_all(&vec![0; padding])?;
    let mut bytes = Vec::with_capacity(dimension * 2);
    for row in 0..count {
        bytes.clear();
        let components = rows.vector(row).reinterpret_cast();
        bytes.extend(components.iter().flat_map(|bits| bits.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    out.flush()?;
    let mut hashing = out
        .inner
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    let checksum = *hashing.hasher.finalize().as_bytes();
    hashing.inner.write_all(&checksum)
}

/// A rows file, mapped.
#[derive(Debug)]
pub(crate) struct Rows {
    map: Mmap,
    dimension: usize,
    rows: usize,
    /// First row of each bucket of ids, by the leading bits of the id, and the end.
    fan_out: Vec<u32>,
    bucket_shift: u32,
}

impl Rows {
    /// Reads a file whose checksum has been verified; `path` is for messages.
    pub(crate) fn new(map: Mmap, path: &Path, dimension: usize) -> Result<Self, IndexError> {
        let header = Header::read(&KIND, &map, path)?;
        if header.u32(12) as usize != dimension {
            let detail = format!("has {} dimensions, the index {dimension}", header.u32(12));
            return Err(damaged(path, detail));
        }
        let length = u32::try_from(header.u64(16)).ok().map(|rows| {
            let rows = rows as usize;
            (
                rows,
                vectors_start(rows) + rows * dimension * 2 + CHECKSUM_BYTES,
            )
        });
        match length {
            Some((rows, length)) if length == map.len() => {
                let mut file = Self {
                    map,
                    dimension,
                    rows,
                    fan_out: Vec::new(),
                    bucket_shift: 64,
                };
                file.index_ids(path)?;
                Ok(file)
            }
            _ => Err(damaged(path, "has another length than its header says")),
        }
    }

    /// Fills the fan-out table and checks that the ids ascend.
    fn index_ids(&mut self, path: &Path) -> Result<(), IndexError> {
        let bits = (self.rows / BUCKET_ROWS).max(1).ilog2();
        let mut fan_out = Vec::with_capacity((1 << bits) + 1);
        self.bucket_shift = 64 - bits;
        let mut last: Option<&[u8]> = None;
        for (row, id) in self.ids().chunks_exact(CHUNK_BYTES).enumerate() {
            if last.is_some_and(|last| last >= id) {
                return Err(damaged(path, "has chunk ids out of order"));
            }
            last = Some(id);
            while fan_out.len() <= self.bucket(id) {
                fan_out.push(row as u32);
            }
        }
        fan_out.resize((1 << bits) + 1, self.rows as u32);
        self.fan_out = fan_out;
        Ok(())
    }

    fn bucket(&self, id: &[u8]) -> usize {
        let leading = id[..8]
            .iter()
            .fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
        leading.checked_shr(self.bucket_shift).unwrap_or(0) as usize
    }

    fn ids(&self) -> &[u8] {
        &self.map[HEADER_BYTES..][..self.rows * CHUNK_BYTES]
    }

    /// Rows, dead ones included.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The chunk of a row.
    pub(crate) fn chunk(&self, row: usize) -> ChunkId {
        let mut id = [0; CHUNK_BYTES];
        id.copy_from_slice(&self.ids()[row * CHUNK_BYTES..][..CHUNK_BYTES]);
        ChunkId(id)
    }

    /// The row of a chunk, dead or alive.
    pub(crate) fn row_of(&self, chunk: &ChunkId) -> Option<usize> {
        let bucket = self.bucket(&chunk.0);
        let (mut low, mut high) = (
            self.fan_out[bucket] as usize,
            self.fan_out[bucket + 1] as usize,
        );
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.ids()[middle * CHUNK_BYTES..][..CHUNK_BYTES] < chunk.0[..] {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low < self.rows && self.chunk(low) == *chunk).then_some(low)
    }

    /// Offers every live row to each query; a row is read from memory once for all of them.
    pub(crate) fn scan(
        &self,
        queries: &[Query<'_>],
        live: &Bitmap,
        tops: &mut [Top],
        budget: &mut Budget,
    ) {
        let mut ahead = live.iter().skip(ROWS_AHEAD);
        // Neighbours come by themselves.
        let is_sparse = live.live() * SPARSE_SHARE < live.rows();
        for (count, row) in live.iter().enumerate() {
            if is_sparse && let Some(next) = ahead.next() {
                self.prefetch(next);
            }
            if count.is_multiple_of(ROWS_BETWEEN_LOOKS) && budget.is_over() {
                return;
            }
            let vector = self.vector(row);
            for (query, top) in queries.iter().zip(&mut *tops) {
                top.offer_row(query.dot(vector), || self.chunk(row));
            }
        }
    }

    /// Asks for the vector of a row that will be read soon: it lies anywhere in the mapping, and waiting for
    /// memory once a row is what scoring candidates takes most of its time for.
    pub(crate) fn prefetch(&self, row: usize) {
        #[cfg(target_arch = "x86_64")]
        for line in self.vector(row).chunks(32) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint that reads nothing; the address is one of the mapping.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast::<i8>()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = row;
    }

    /// The vector of a row.
    pub(crate) fn vector(&self, row: usize) -> &[f16] {
        let start = vectors_start(self.rows) + row * self.dimension * 2;
        let bytes = &self.map[start..][..self.dimension * 2];
        // SAFETY: every bit pattern is an `f16`, a transparent `u16`; `align_to` itself splits off
        // what is not aligned, which is nothing: a mapping starts at a page, the vectors at a
        // multiple of 64, and each has an even length.
        let (before, vector, after) = unsafe { bytes.align_to::<f16>() };
        debug_assert!(before.is_empty() && after.is_empty());
        vector
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::map;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    struct Given(Vec<(ChunkId, Vec<f16>)>);

    impl RowsInOrder for Given {
        fn rows(&self) -> usize {
            self.0.len()
        }
        fn chunk(&self, row: usize) -> ChunkId {
            self.0[row].0
        }
        fn vector(&self, row: usize) -> &[f16] {
            &self.0[row].1
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn every_row_is_found_again(
            ids in prop::collection::btree_set(prop_oneof![any::<[u8; 16]>(), (0..4_u8).prop_map(|x| [x; 16])], 0..300),
            strangers in prop::collection::vec(any::<[u8; 16]>(), 20),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("rows");
            let rows: Vec<_> = ids
                .iter()
                .zip(0_u16..)
                .map(|(id, at)| (ChunkId(*id), vec![f16::from_bits(at); 5]))
                .collect();
            write(&path, 5, &Given(rows.clone())).unwrap();
            let file = Rows::new(map(&path), &path, 5).unwrap();
            let map: BTreeMap<_, _> = rows.iter().map(|row| row.0).zip(0..).collect();
            prop_assert_eq!(file.rows(), rows.len());
            for (chunk, row) in &map {
                prop_assert_eq!(file.row_of(chunk), Some(*row));
                prop_assert_eq!(file.chunk(*row), *chunk);
                prop_assert_eq!(file.vector(*row), &rows[*row].1[..]);
            }
            for id in strangers {
                prop_assert_eq!(file.row_of(&ChunkId(id)), map.get(&ChunkId(id)).copied());
            }
        }
    }

    #[test]
    fn what_is_not_a_rows_file_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows");
        let rows = |ids: &[u8]| {
            Given(
                ids.iter()
                    .map(|id| (ChunkId([*id; 16]), vec![f16::ONE; 4]))
                    .collect(),
            )
        };
        let fact = |bytes: &[u8], dimension| {
            std::fs::write(&path, bytes).unwrap();
            Rows::new(map(&path), &path, dimension).unwrap_err().fact
        };
        write(&path, 4, &rows(&[1, 2, 3])).unwrap();
        let good = std::fs::read(&path).unwrap();
        assert!(Rows::new(map(&path), &path, 4).is_ok());
        assert!(fact(&good, 5).contains("has 4 dimensions, the index 5"));
        assert!(fact(&good[..20], 4).contains("no header"));
        assert!(fact(&good[..good.len() - 8], 4).contains("another length"));
        let mut other = good.clone();
        other[8] = 9;
        assert!(fact(&other, 4).contains("format version 9"));
        other[0] = b'X';
        assert!(fact(&other, 4).contains("not a rows file"));
        write(&path, 4, &rows(&[2, 1])).unwrap();
        assert!(fact(&std::fs::read(&path).unwrap(), 4).contains("out of order"));
    }
}
