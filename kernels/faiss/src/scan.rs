//! Which coded rows may be near a query: sums of table entries, 32 rows at a time.
//!
//! A row's code names one of 16 values for each part of its vector; the query's inner product with each of
//! them is in a table, scaled to a byte. A row's sum is then its inner product with the query, but for the
//! centroid's, coarsely rounded: enough to choose candidates from.
//!
//! The layout of codes and the sums in registers are those of André, Kermarrec, Le Scouarnec, "Cache
//! locality is not enough: high-performance nearest neighbor search with product quantization fast scan",
//! VLDB 2015. FAISS has the same scan; this one reads codes in place from a mapped file, so that they cost
//! no memory and no time at start, takes one table for all segments of a generation, and asks for the
//! live bits only of rows that are good enough.
//!
//! A block holds 32 rows: for each part 16 bytes, of which byte `i` has the value of row `i` in its low
//! half and of row `i + 16` in its high half. Parts are filled up to a multiple of [`PARTS_TOGETHER`] by
//! such with entries of zero.
//!
//! Invariant: all ways of summing give the same numbers, which fit into 16 bits.

use crate::instructions::Instructions;

/// Rows of a block.
pub(crate) const BLOCK_ROWS: usize = 32;
/// Values of a part.
const VALUES: usize = 16;
/// Parts that the widest registers take at once.
const PARTS_TOGETHER: usize = 4;

/// Bytes of a block of rows that are coded in so many parts.
pub(crate) fn block_bytes(parts: usize) -> usize {
    parts.next_multiple_of(PARTS_TOGETHER) * VALUES
}

/// Puts a row's code (two parts a byte, the first in the low half) into a block of zeros.
pub(crate) fn put(block: &mut [u8], row: usize, parts: usize, code: &[u8]) {
    let shift = row / VALUES * 4;
    for part in 0..parts {
        let value = code[part / 2] >> (part % 2 * 4) & 15;
        block[part * VALUES + row % VALUES] |= value << shift;
    }
}

/// A row's code as [`put`] takes it.
pub(crate) fn take(block: &[u8], row: usize, parts: usize, code: &mut [u8]) {
    let shift = row / VALUES * 4;
    code.fill(0);
    for part in 0..parts {
        let value = block[part * VALUES + row % VALUES] >> shift & 15;
        code[part / 2] |= value << (part % 2 * 4);
    }
}

/// The inner products of a query with a codebook, in bytes.
pub(crate) struct Table {
    /// Parts, filled up, x 16.
    entries: Vec<u8>,
    /// Units of a sum for an inner product of 1.
    units: f32,
    instructions: Instructions,
}

impl Table {
    /// Of a query and a codebook of `parts` x 16 x (dimension / parts).
    pub(crate) fn new(query: &[f32], codebook: &[f32], parts: usize) -> Self {
        let width = query.len() / parts;
        let products: Vec<f32> = query
            .chunks_exact(width)
            .zip(codebook.chunks_exact(width * VALUES))
            .flat_map(|(part, values)| values.chunks_exact(width).map(move |it| product(part, it)))
            .collect();
        let range = |values: &[f32]| {
            let least = values.iter().copied().fold(f32::MAX, f32::min);
            (
                least,
                values.iter().copied().fold(f32::MIN, f32::max) - least,
            )
        };
        let ranges: Vec<(f32, f32)> = products.chunks_exact(VALUES).map(range).collect();
        let widest = ranges
            .iter()
            .map(|it| it.1)
            .fold(f32::MIN_POSITIVE, f32::max);
        let total: f32 = ranges.iter().map(|it| it.1).sum();
        let units = (f32::from(u8::MAX) / widest).min(SUM_MAX / total.max(f32::MIN_POSITIVE));
        let mut entries = vec![0; block_bytes(parts)];
        for (at, product) in products.iter().enumerate() {
            // Rounding adds up to half a unit a part: below `SUM_MAX` by far.
            entries[at] = ((product - ranges[at / VALUES].0) * units).round() as u8;
        }
        Self {
            entries,
            units,
            instructions: Instructions::of_this_machine(),
        }
    }

    /// A difference of inner products in units of the sums.
    pub(crate) fn units_of(&self, difference: f32) -> i32 {
        (difference * self.units).round() as i32
    }

    /// Offers position and sum of each of `rows` rows whose sum is `floor` or more.
    #[inline]
    pub(crate) fn scan(
        &self,
        blocks: &[u8],
        rows: usize,
        floor: i32,
        offer: &mut impl FnMut(usize, u16),
    ) {
        let Ok(floor) = u16::try_from(floor.max(0)) else {
            return;
        };
        match self.instructions {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor was asked for AVX-512F and AVX-512BW.
            Instructions::Avx512 => unsafe {
                wide::scan_512(&self.entries, blocks, rows, floor, offer);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor was asked for AVX2.
            Instructions::Avx2 => unsafe {
                wide::scan_256(&self.entries, blocks, rows, floor, offer);
            },
            Instructions::Portable => portable_scan(&self.entries, blocks, rows, floor, offer),
        }
    }
}

/// What a sum may come to.
const SUM_MAX: f32 = 60_000.0;

fn product(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Of the rows of block `number`, those there are, as bits.
#[inline]
fn rows_of_block(number: usize, rows: usize) -> u32 {
    match rows - number * BLOCK_ROWS {
        left @ 0..BLOCK_ROWS => (1 << left) - 1,
        _ => u32::MAX,
    }
}

#[inline]
fn offer_bits(
    mut bits: u32,
    number: usize,
    sums: &[u16; BLOCK_ROWS],
    offer: &mut impl FnMut(usize, u16),
) {
    while bits != 0 {
        let row = bits.trailing_zeros() as usize;
        offer(number * BLOCK_ROWS + row, sums[row]);
        bits &= bits - 1;
    }
}

fn portable_scan(
    entries: &[u8],
    blocks: &[u8],
    rows: usize,
    floor: u16,
    offer: &mut impl FnMut(usize, u16),
) {
    for (number, block) in blocks.chunks_exact(entries.len()).enumerate() {
        let mut sums = [0_u16; BLOCK_ROWS];
        for (table, codes) in entries.chunks_exact(VALUES).zip(block.chunks_exact(VALUES)) {
            for (at, byte) in codes.iter().enumerate() {
                sums[at] += u16::from(table[usize::from(byte & 15)]);
                sums[at + VALUES] += u16::from(table[usize::from(byte >> 4)]);
            }
        }
        let good = |bits, row: usize| bits | u32::from(sums[row] >= floor) << row;
        let bits = (0..BLOCK_ROWS).fold(0, good) & rows_of_block(number, rows);
        offer_bits(bits, number, &sums, offer);
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    //! The same in registers. Bytes are summed as 16-bit words twice: once as they are, which holds even
    //! bytes plus 256 times odd ones, and once shifted down, which holds odd ones; the first less 256 times
    //! the second is the sum of even ones, as all of it is modulo 2^16.

    use super::{BLOCK_ROWS, offer_bits, rows_of_block};
    use std::arch::x86_64::{
        __m128i, __m256i, __m512i, _mm_add_epi16, _mm_cmpeq_epi16, _mm_max_epu16,
        _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16, _mm_storeu_si128, _mm_unpackhi_epi16,
        _mm_unpacklo_epi16, _mm256_add_epi16, _mm256_and_si256, _mm256_castsi256_si128,
        _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_set1_epi8, _mm256_setzero_si256,
        _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srli_epi16, _mm256_sub_epi16,
        _mm512_add_epi16, _mm512_and_si512, _mm512_castsi512_si256, _mm512_extracti64x4_epi64,
        _mm512_loadu_si512, _mm512_set1_epi8, _mm512_setzero_si512, _mm512_shuffle_epi8,
        _mm512_slli_epi16, _mm512_srli_epi16, _mm512_sub_epi16,
    };

    /// Sums of a block's rows: 0..8, 8..16, 16..24, 24..32.
    type Sums = [__m128i; 4];

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn scan_512(
        entries: &[u8],
        blocks: &[u8],
        rows: usize,
        floor: u16,
        offer: &mut impl FnMut(usize, u16),
    ) {
        for (number, block) in blocks.chunks_exact(entries.len()).enumerate() {
            let sums = sums_512(entries, block);
            finish(sums, number, rows, floor, offer);
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn scan_256(
        entries: &[u8],
        blocks: &[u8],
        rows: usize,
        floor: u16,
        offer: &mut impl FnMut(usize, u16),
    ) {
        for (number, block) in blocks.chunks_exact(entries.len()).enumerate() {
            let sums = sums_256(entries, block);
            finish(sums, number, rows, floor, offer);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn sums_512(entries: &[u8], block: &[u8]) -> Sums {
        let low = _mm512_set1_epi8(15);
        let mut sums = [_mm512_setzero_si512(); 4];
        let (tables, _) = entries.as_chunks::<64>();
        let (codes, _) = block.as_chunks::<64>();
        for (table, codes) in tables.iter().zip(codes) {
            // SAFETY: both are references to 64 bytes; the loads need no alignment.
            let (table, codes) = unsafe {
                (
                    _mm512_loadu_si512(table.as_ptr().cast::<__m512i>()),
                    _mm512_loadu_si512(codes.as_ptr().cast::<__m512i>()),
                )
            };
            let first = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low));
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low);
            let second = _mm512_shuffle_epi8(table, high);
            sums[0] = _mm512_add_epi16(sums[0], first);
            sums[1] = _mm512_add_epi16(sums[1], _mm512_srli_epi16::<8>(first));
            sums[2] = _mm512_add_epi16(sums[2], second);
            sums[3] = _mm512_add_epi16(sums[3], _mm512_srli_epi16::<8>(second));
        }
        sums[0] = _mm512_sub_epi16(sums[0], _mm512_slli_epi16::<8>(sums[1]));
        sums[2] = _mm512_sub_epi16(sums[2], _mm512_slli_epi16::<8>(sums[3]));
        interleave(sums.map(|sum| {
            fold(_mm256_add_epi16(
                _mm512_castsi512_si256(sum),
                _mm512_extracti64x4_epi64::<1>(sum),
            ))
        }))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn sums_256(entries: &[u8], block: &[u8]) -> Sums {
        let low = _mm256_set1_epi8(15);
        let mut sums = [_mm256_setzero_si256(); 4];
        let (tables, _) = entries.as_chunks::<32>();
        let (codes, _) = block.as_chunks::<32>();
        for (table, codes) in tables.iter().zip(codes) {
            // SAFETY: both are references to 32 bytes; the loads need no alignment.
            let (table, codes) = unsafe {
                (
                    _mm256_loadu_si256(table.as_ptr().cast::<__m256i>()),
                    _mm256_loadu_si256(codes.as_ptr().cast::<__m256i>()),
                )
            };
            let first = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low));
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
            let second = _mm256_shuffle_epi8(table, high);
            sums[0] = _mm256_add_epi16(sums[0], first);
            sums[1] = _mm256_add_epi16(sums[1], _mm256_srli_epi16::<8>(first));
            sums[2] = _mm256_add_epi16(sums[2], second);
            sums[3] = _mm256_add_epi16(sums[3], _mm256_srli_epi16::<8>(second));
        }
        sums[0] = _mm256_sub_epi16(sums[0], _mm256_slli_epi16::<8>(sums[1]));
        sums[2] = _mm256_sub_epi16(sums[2], _mm256_slli_epi16::<8>(sums[3]));
        interleave(sums.map(|sum| fold(sum)))
    }

    /// The sum of both halves: of two parts.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn fold(sum: __m256i) -> __m128i {
        _mm_add_epi16(
            _mm256_castsi256_si128(sum),
            _mm256_extracti128_si256::<1>(sum),
        )
    }

    /// Even and odd rows of the first and of the second half, in order.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn interleave([even, odd, later_even, later_odd]: [__m128i; 4]) -> Sums {
        [
            _mm_unpacklo_epi16(even, odd),
            _mm_unpackhi_epi16(even, odd),
            _mm_unpacklo_epi16(later_even, later_odd),
            _mm_unpackhi_epi16(later_even, later_odd),
        ]
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn finish(
        sums: Sums,
        number: usize,
        rows: usize,
        floor: u16,
        offer: &mut impl FnMut(usize, u16),
    ) {
        let floor = _mm_set1_epi16(floor as i16);
        let is_good = sums.map(|sum| _mm_cmpeq_epi16(_mm_max_epu16(sum, floor), sum));
        let first = _mm_movemask_epi8(_mm_packs_epi16(is_good[0], is_good[1])) as u32;
        let second = _mm_movemask_epi8(_mm_packs_epi16(is_good[2], is_good[3])) as u32;
        let bits = (first | second << 16) & rows_of_block(number, rows);
        if bits == 0 {
            return;
        }
        let mut stored = [0_u16; BLOCK_ROWS];
        for (eight, sum) in stored.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
            // SAFETY: eight numbers of two bytes are what the register holds; no alignment is needed.
            unsafe { _mm_storeu_si128(eight.as_mut_ptr().cast::<__m128i>(), sum) };
        }
        offer_bits(bits, number, &stored, offer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_way_sums_what_the_codes_say(
            parts in 1..40_usize,
            codes in prop::collection::vec(prop::collection::vec(any::<u8>(), 20), 0..100),
            entries in prop::collection::vec(any::<u8>(), 40 * VALUES),
            floor in 0..6000_i32,
        ) {
            let bytes = block_bytes(parts);
            let mut blocks = vec![0; codes.len().div_ceil(BLOCK_ROWS) * bytes];
            for (row, code) in codes.iter().enumerate() {
                let block = &mut blocks[row / BLOCK_ROWS * bytes..][..bytes];
                put(block, row % BLOCK_ROWS, parts, code);
            }
            let mut padded = vec![0; bytes];
            padded[..parts * VALUES].copy_from_slice(&entries[..parts * VALUES]);
            let value = |code: &[u8], part: usize| usize::from(code[part / 2] >> (part % 2 * 4) & 15);
            let sum = |code: &Vec<u8>| -> i32 {
                (0..parts).map(|part| i32::from(padded[part * VALUES + value(code, part)])).sum()
            };
            let expected: Vec<(usize, i32)> =
                codes.iter().map(sum).enumerate().filter(|(_, sum)| *sum >= floor).collect();
            for instructions in Instructions::all_here() {
                let table = Table { entries: padded.clone(), units: 1.0, instructions };
                let mut found = Vec::new();
                table.scan(&blocks, codes.len(), floor, &mut |row, sum| found.push((row, i32::from(sum))));
                prop_assert_eq!(&found, &expected, "{:?}", instructions);
            }
            for (row, code) in codes.iter().enumerate() {
                let mut again = vec![0xff; parts.div_ceil(2)];
                let block = &blocks[row / BLOCK_ROWS * bytes..][..bytes];
                take(block, row % BLOCK_ROWS, parts, &mut again);
                prop_assert!((0..parts).all(|part| value(&again, part) == value(code, part)));
            }
        }

        #[test]
        fn sums_follow_inner_products(
            query in prop::collection::vec(-1.0_f32..1.0, 24),
            codebook in prop::collection::vec(-1.0_f32..1.0, 24 * VALUES),
            code in prop::collection::vec(any::<u8>(), 6),
            other in prop::collection::vec(any::<u8>(), 6),
        ) {
            let parts = 12;
            let table = Table::new(&query, &codebook, parts);
            let mut block = vec![0; block_bytes(parts)];
            put(&mut block, 0, parts, &code);
            put(&mut block, 1, parts, &other);
            let mut sums = Vec::new();
            table.scan(&block, 2, 0, &mut |_, sum| sums.push(i32::from(sum)));
            let exact = |code: &[u8]| -> f32 {
                (0..parts).map(|part| {
                    let value = usize::from(code[part / 2] >> (part % 2 * 4) & 15);
                    product(&query[part * 2..][..2], &codebook[(part * VALUES + value) * 2..][..2])
                }).sum()
            };
            let difference = table.units_of(exact(&code) - exact(&other));
            // Half a unit for each part of both, and of the difference.
            prop_assert!((sums[0] - sums[1] - difference).abs() <= parts as i32 + 1);
        }
    }

    #[test]
    fn many_parts_do_not_overflow() {
        let parts = 600;
        let query = vec![1.0; parts];
        let codebook: Vec<f32> = (0..parts * VALUES).map(|at| (at % VALUES) as f32).collect();
        let table = Table::new(&query, &codebook, parts);
        let mut block = vec![0; block_bytes(parts)];
        put(&mut block, 31, parts, &vec![0xff; parts / 2]);
        let mut sums = Vec::new();
        table.scan(&block, BLOCK_ROWS, 1, &mut |row, sum| sums.push((row, sum)));
        assert_eq!(sums.len(), 1);
        assert!(sums[0].0 == 31 && sums[0].1 > 50_000, "{sums:?}");
        assert!(table.units_of(f32::MAX) > 0);
    }
}
