//! The register tile of products of bfloat16, and what makes floats into them.
//!
//! `vdpbf16ps` multiplies pairs of 16-bit floats and adds both products to a 32-bit sum, twice what a
//! 32-bit multiplication does in the same time. So everything stands in pairs along the depth.
//!
//! Where the processor has a matrix unit ([`super::amx`]) that makes the sums, and what is here begins and
//! ends them.
//!
//! Invariant: each output's sums are made in the same order whatever the number of rows in the tile:
//! vectors begin with the start and add the pairs' products in the order of the depth; the matrix unit
//! adds to its sum, for one step of the depth after the other, that of the products of the pairs' first
//! halves and that of their second halves, and the start is added last.
//! Nothing here runs unless the processor was asked for it.

#![allow(unsafe_code)]

use super::amx::{PairUnit, Sums, TileProduct};
use super::functions::gelu;
use super::tile::{Finish, Start};
use super::x86::Avx512;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Columns of a panel: two vectors of sums.
pub(crate) const PANEL_WIDTH: usize = 32;
/// Rows of a tile: 24 vectors of sums, 2 of weights and one of input fill the register file.
pub(crate) const TILE_ROWS: usize = 12;

/// Two bfloat16; the first is in the low half.
pub(crate) type Pair = u32;

/// Whether this processor has the instruction.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
}

/// Pointers and strides of one tile: [`PANEL_WIDTH`] columns wide, `depth` pairs deep.
#[derive(Clone, Copy)]
pub(crate) struct PairTile {
    /// First row's first pair of input.
    pub(crate) input: *const Pair,
    /// From one row of the input to the next.
    pub(crate) input_stride: usize,
    /// First row of the panel, whose rows follow each other.
    pub(crate) panel: *const Pair,
    /// Pairs a sum.
    pub(crate) depth: usize,
    /// First row's first output.
    pub(crate) out: *mut f32,
    /// From one row of the output to the next.
    pub(crate) out_stride: usize,
    /// Where sums begin.
    pub(crate) start: Start,
    /// How they end.
    pub(crate) finish: Finish,
}

/// Rounds whole vectors of `input` to pairs, to the nearest, ties to even.
///
/// # Safety
/// The processor must have the instruction set, and `rounded` room for half as many pairs.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(crate) unsafe fn round(input: &[f32], rounded: &mut [Pair]) {
    for (values, pairs) in input.chunks_exact(32).zip(rounded.chunks_exact_mut(16)) {
        // SAFETY: a chunk has 32 floats, and its pairs are 64 bytes.
        unsafe {
            let low = _mm512_loadu_ps(values.as_ptr());
            let high = _mm512_loadu_ps(values.as_ptr().add(16));
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(pairs.as_mut_ptr().cast(), both);
        }
    }
}

impl PairTile {
    /// Computes a tile of `rows` rows, at most the unit's.
    ///
    /// # Safety
    /// The processor must have the instruction set, and a session of the unit have begun; `input` must be
    /// valid for `rows` rows of `depth` pairs, `panel` for `depth` rows and `out` for `rows` rows of
    /// PANEL_WIDTH, as must the bias. For tiles the depth is a multiple of the unit's, not 0, and the input
    /// readable for 16 rows, or 32 where there are more than 16.
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    #[inline]
    pub(crate) unsafe fn compute(self, unit: PairUnit, rows: usize) {
        debug_assert!(rows <= unit.tile_rows());
        // SAFETY: this function's contract.
        unsafe {
            match unit {
                PairUnit::Vectors => self.compute_vectors(rows),
                _ => self.compute_tiles(unit, rows),
            }
        }
    }

    /// Lets tiles make the sums, and adds what they start from.
    ///
    /// # Safety
    /// As for [`PairTile::compute`].
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    #[inline]
    unsafe fn compute_tiles(self, unit: PairUnit, rows: usize) {
        let mut sums = MaybeUninit::<Sums>::uninit();
        let sums = sums.as_mut_ptr();
        // SAFETY: this function's contract; the product has written the rows of `sums` that are read, two
        // vectors each.
        unsafe {
            TileProduct::of(&self, rows).compute(unit, sums);
            for row in 0..rows {
                let sum = sums.cast::<f32>().add(row * PANEL_WIDTH);
                let out = self.out.wrapping_add(row.wrapping_mul(self.out_stride));
                for half in [0, 16] {
                    let sum = _mm512_load_ps(sum.add(half));
                    let sum = match self.start {
                        Start::Zero => sum,
                        Start::Bias(bias) => _mm512_add_ps(_mm512_loadu_ps(bias.add(half)), sum),
                        Start::Output => _mm512_add_ps(_mm512_loadu_ps(out.add(half)), sum),
                    };
                    _mm512_storeu_ps(out.add(half), finished(sum, self.finish));
                }
            }
        }
    }

    /// # Safety
    /// As for [`PairTile::compute`], with at most [`TILE_ROWS`] rows.
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    #[inline]
    unsafe fn compute_vectors(self, rows: usize) {
        // SAFETY: this function's contract.
        unsafe {
            match rows {
                1 => self.compute_rows::<1>(),
                2 => self.compute_rows::<2>(),
                3 => self.compute_rows::<3>(),
                4 => self.compute_rows::<4>(),
                5 => self.compute_rows::<5>(),
                6 => self.compute_rows::<6>(),
                7 => self.compute_rows::<7>(),
                8 => self.compute_rows::<8>(),
                9 => self.compute_rows::<9>(),
                10 => self.compute_rows::<10>(),
                11 => self.compute_rows::<11>(),
                12 => self.compute_rows::<12>(),
                _ => {}
            }
        }
    }

    /// # Safety
    /// As for `compute_vectors`.
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    #[inline]
    unsafe fn compute_rows<const ROWS: usize>(self) {
        // SAFETY: every pointer is one that the contract covers: row < ROWS, pair < depth, and two
        // vectors are PANEL_WIDTH sums. Vectors of pairs and of integers have the same bits.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            // Pointers move by wrapping steps: a checked addition here would cost a branch for each
            // product, and a step past the last row is never followed.
            for (row, sum) in sums.iter_mut().enumerate() {
                let from = match self.start {
                    Start::Zero => continue,
                    Start::Bias(bias) => bias,
                    Start::Output => self.out.wrapping_add(row.wrapping_mul(self.out_stride)),
                };
                sum[0] = _mm512_loadu_ps(from);
                sum[1] = _mm512_loadu_ps(from.wrapping_add(16));
            }
            let rows: [usize; ROWS] =
                std::array::from_fn(|row| row.wrapping_mul(self.input_stride));
            let (mut input, mut panel) = (self.input, self.panel);
            for _ in 0..self.depth {
                let left = pairs(_mm512_loadu_si512(panel.cast()));
                let right = pairs(_mm512_loadu_si512(panel.wrapping_add(16).cast()));
                for (row, sum) in rows.iter().zip(&mut sums) {
                    let value = *input.wrapping_add(*row);
                    let value = pairs(_mm512_set1_epi32(value.cast_signed()));
                    sum[0] = _mm512_dpbf16_ps(sum[0], value, left);
                    sum[1] = _mm512_dpbf16_ps(sum[1], value, right);
                }
                input = input.wrapping_add(1);
                panel = panel.wrapping_add(PANEL_WIDTH);
            }
            for (row, [left, right]) in sums.into_iter().enumerate() {
                let out = self.out.wrapping_add(row.wrapping_mul(self.out_stride));
                _mm512_storeu_ps(out, finished(left, self.finish));
                _mm512_storeu_ps(out.wrapping_add(16), finished(right, self.finish));
            }
        }
    }
}

/// What becomes of finished sums.
///
/// # Safety
/// The processor must have the instruction set.
#[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
#[inline]
unsafe fn finished(sums: __m512, finish: Finish) -> __m512 {
    match finish {
        Finish::Store => sums,
        // SAFETY: this function's contract.
        Finish::Gelu => unsafe { gelu(Avx512(sums)).0 },
    }
}

/// The same bits as pairs.
///
/// # Safety
/// The processor must have the instruction set.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes in which every pattern of bits is a value.
    unsafe { std::mem::transmute(bits) }
}
