//! Writing a postings file, key by key.
//!
//! Invariant: whatever is held in memory is of the keys, never of the rows.

use super::{BLOCK, ENTRY_BYTES, Entry, KIND, Posting, WORD, is_dense, put_number, words_of};
use crate::header::HEADER_BYTES;
use bitpacking::{BitPacker, BitPacker4x};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// A postings file being written. It is not synced.
pub(crate) struct PostingsWriter {
    out: BufWriter<File>,
    rows: usize,
    has_counts: bool,
    postings_bytes: u64,
    entries: Vec<Entry>,
    keys: Vec<u8>,
    buffer: Vec<u8>,
}

impl PostingsWriter {
    /// Starts a file of a segment of so many rows.
    pub(crate) fn create(path: &Path, rows: usize, has_counts: bool) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(256 * 1024, File::create(path)?);
        // The sizes are known at the end.
        out.write_all(&[0; HEADER_BYTES])?;
        Ok(Self {
            out,
            rows,
            has_counts,
            postings_bytes: 0,
            entries: Vec::new(),
            keys: Vec::new(),
            buffer: Vec::new(),
        })
    }

    /// Adds a key, greater than all before it, with the rows that have it, ascending; one at least.
    pub(crate) fn push(&mut self, key: &[u8], postings: &[Posting]) -> io::Result<()> {
        self.keys.extend_from_slice(key);
        let key_end = u32::try_from(self.keys.len()).map_err(|_| {
            let detail = "the keys of a segment take more than 4 GiB";
            io::Error::new(io::ErrorKind::InvalidInput, detail)
        })?;
        let place = match postings {
            [one] => u64::from(one.row) | u64::from(one.count) << 32,
            _ => self.put(postings)?,
        };
        self.entries.push(Entry {
            key_end,
            rows: postings.len() as u32,
            place,
        });
        Ok(())
    }

    /// Writes rows; says where.
    fn put(&mut self, postings: &[Posting]) -> io::Result<u64> {
        self.buffer.clear();
        if is_dense(self.has_counts, postings.len(), self.rows) {
            self.pack_dense(postings);
        } else {
            self.pack(postings);
        }
        self.out.write_all(&self.buffer)?;
        let place = self.postings_bytes;
        self.postings_bytes += self.buffer.len() as u64;
        Ok(place)
    }

    fn pack_dense(&mut self, postings: &[Posting]) {
        let mut words = vec![0_u64; words_of(self.rows)];
        for posting in postings {
            words[posting.row as usize / WORD] |= 1 << (posting.row % WORD as u32);
        }
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        self.buffer.extend(bytes);
    }

    fn pack(&mut self, postings: &[Posting]) {
        let packer = BitPacker4x::new();
        let mut last = 0;
        let blocks = postings.chunks_exact(BLOCK);
        let rest = blocks.remainder();
        for block in blocks {
            let rows: [u32; BLOCK] = std::array::from_fn(|at| block[at].row);
            let counts: [u32; BLOCK] = std::array::from_fn(|at| block[at].count);
            let row_bits = packer.num_bits_sorted(last, &rows);
            let count_bits = packer.num_bits(&counts);
            self.buffer.extend([row_bits, count_bits]);
            let packed = self.room(row_bits);
            packer.compress_sorted(last, &rows, packed, row_bits);
            if self.has_counts {
                let packed = self.room(count_bits);
                packer.compress(&counts, packed, count_bits);
            }
            last = rows[BLOCK - 1];
        }
        for posting in rest {
            put_number(&mut self.buffer, posting.row - last);
            last = posting.row;
            if self.has_counts {
                put_number(&mut self.buffer, posting.count);
            }
        }
    }

    /// Room for a block of numbers of so many bits.
    fn room(&mut self, bits: u8) -> &mut [u8] {
        let start = self.buffer.len();
        let bytes = BitPacker4x::compressed_block_size(bits);
        self.buffer.resize(start + bytes, 0);
        &mut self.buffer[start..]
    }

    /// Writes what is left.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let mut entries = Vec::with_capacity(self.entries.len() * ENTRY_BYTES);
        for entry in &self.entries {
            entries.extend(entry.to_bytes());
        }
        self.out.write_all(&entries)?;
        self.out.write_all(&self.keys)?;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(KIND.magic);
        header.extend(KIND.version.to_le_bytes());
        header.extend(u32::from(self.has_counts).to_le_bytes());
        for size in [
            self.rows as u64,
            self.entries.len() as u64,
            self.postings_bytes,
            self.keys.len() as u64,
        ] {
            header.extend(size.to_le_bytes());
        }
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header)?;
        self.out.flush()
    }
}
