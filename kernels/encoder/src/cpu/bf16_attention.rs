//! Self-attention of one text in bfloat16 on AVX-512: both products are of 16-bit floats, the softmax
//! between them stays in 32 bits.
//!
//! A head's queries are rounded to pairs of dimensions, its keys to panels of tokens of such pairs,
//! its values to pairs of tokens. Softmax's weights are rounded once, unscaled: the greatest is 1, and the
//! scale is applied to the 32-bit result.
//!
//! Invariant: a text's output depends on its own rows alone: padding inside the scratch memory has
//! scores that vanish in the softmax and values of zero.

#![allow(unsafe_code)]

use super::amx::{self, PairUnit, Session};
use super::attention::{AttentionShape, MASKED_SCORE, Span};
use super::bf16_tile::{PANEL_WIDTH, Pair, PairTile, is_available, round};
use super::buffer::AlignedBuffer;
use super::tile::{Finish, Start};
use std::arch::x86_64::*;

/// Most rows of any unit's tile.
const TILE_ROWS_MAX: usize = amx::TILE_ROWS;

/// Memory that one attention needs, reused.
#[derive(Default)]
pub(crate) struct Bf16AttentionScratch {
    /// `[tokens][head size / 2]`
    queries: AlignedBuffer<Pair>,
    /// `[tokens / PANEL_WIDTH][head size / 2][PANEL_WIDTH]`
    keys: AlignedBuffer<Pair>,
    /// `[head size / PANEL_WIDTH][tokens / 2, as many as the unit's steps need][PANEL_WIDTH]`
    values: AlignedBuffer<Pair>,
    /// `[tile rows][tokens rounded up to panels]`
    scores: AlignedBuffer,
    /// `[tile rows][half of that]`
    weights: AlignedBuffer<Pair>,
}

impl Bf16AttentionScratch {
    /// Memory that it holds.
    pub(crate) fn bytes(&self) -> usize {
        let pairs = [&self.queries, &self.keys, &self.values, &self.weights];
        let of_pairs: usize = pairs.iter().map(|buffer| buffer.bytes()).sum();
        of_pairs + self.scores.bytes()
    }
}

/// The attention of one text of `tokens` tokens.
pub(crate) struct Bf16Attention<'a> {
    pub(crate) unit: PairUnit,
    pub(crate) shape: AttentionShape,
    pub(crate) tokens: usize,
    /// How far a token looks; `None` where at all.
    pub(crate) reach: Option<usize>,
    /// `[tokens][3 * width]`
    pub(crate) queries_keys_values: &'a [f32],
    /// `[tokens][width]`
    pub(crate) out: &'a mut [f32],
    pub(crate) scratch: &'a mut Bf16AttentionScratch,
}

impl Bf16Attention<'_> {
    /// Computes it.
    ///
    /// # Panics
    /// When the processor lacks the instruction: running it would be undefined.
    pub(crate) fn run(mut self) {
        assert!(is_available(), "bfloat16 products are not available");
        let (size, width) = (self.shape.head_size, self.shape.width());
        assert!(self.queries_keys_values.len() >= self.tokens * 3 * width);
        assert!(self.out.len() >= self.tokens * width);
        assert!(size.is_multiple_of(PANEL_WIDTH));
        let padded = self.padded();
        let rows = self.unit.tile_rows();
        // A unit reads whole tiles of rows.
        let queries = self.tokens.next_multiple_of(rows);
        self.scratch.queries.grow(queries * size / 2);
        self.scratch.keys.grow(padded * size / 2);
        self.scratch.values.grow(padded * size / 2);
        self.scratch.scores.grow(rows * padded);
        self.scratch.weights.grow(rows * padded / 2);
        let _session = Session::begin(self.unit);
        for head in 0..self.shape.heads {
            // SAFETY: the instruction set has just been seen, and all lengths were checked or made.
            unsafe { self.run_head(head) }
        }
    }

    /// Pairs of so many tokens, rounded up to the unit's steps; zeros are beyond the last.
    fn pairs(&self, tokens: usize) -> usize {
        tokens.div_ceil(2).next_multiple_of(self.unit.step_pairs())
    }

    fn padded(&self) -> usize {
        self.tokens.next_multiple_of(PANEL_WIDTH)
    }

    /// # Safety
    /// The processor must have the instruction set, and `run` must have checked and made all lengths.
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    unsafe fn run_head(&mut self, head: usize) {
        // SAFETY: this function's contract.
        unsafe {
            self.pack_queries_and_keys(head);
            self.pack_values(head);
            for (row, rows) in self.unit.tiles(self.tokens) {
                let span = Span::of(self.tokens, self.reach, (row, rows), PANEL_WIDTH);
                self.score(row, &span);
                let scales = self.weigh(&span);
                self.mix(head, row, &span, &scales[..rows]);
            }
        }
    }

    /// Rounds one head's queries and keys; the keys go into panels of tokens.
    ///
    /// # Safety
    /// As for `run_head`.
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    unsafe fn pack_queries_and_keys(&mut self, head: usize) {
        let (size, width) = (self.shape.head_size, self.shape.width());
        let mut key = [0; 16];
        for token in 0..self.tokens {
            let row = &self.queries_keys_values[token * 3 * width..][..3 * width];
            let query = &mut self.scratch.queries[token * size / 2..][..size / 2];
            // SAFETY: the instruction set is there; a head has whole vectors of 32 floats, which are
            // 16 pairs.
            unsafe { round(&row[head * size..][..size], query) };
            let panel = token / PANEL_WIDTH * size / 2 * PANEL_WIDTH + token % PANEL_WIDTH;
            let keys = row[width + head * size..][..size].chunks_exact(32);
            for (part, values) in keys.enumerate() {
                // SAFETY: as above.
                unsafe { round(values, &mut key) };
                for (pair, value) in key.iter().enumerate() {
                    self.scratch.keys[panel + (part * 16 + pair) * PANEL_WIDTH] = *value;
                }
            }
        }
    }

    /// Rounds one head's values to pairs of tokens; a token without another is paired with zeros.
    ///
    /// # Safety
    /// As for `run_head`.
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    unsafe fn pack_values(&mut self, head: usize) {
        let (size, width) = (self.shape.head_size, self.shape.width());
        let pairs = self.pairs(self.tokens);
        for pair in 0..pairs {
            let value = |token: usize| {
                let row = self.queries_keys_values.get(token * 3 * width..);
                row.filter(|_| token < self.tokens)
                    .map(|row| &row[2 * width + head * size..][..size])
            };
            let (first, second) = (value(2 * pair), value(2 * pair + 1));
            for dimension in (0..size).step_by(16) {
                let panel = dimension / PANEL_WIDTH * pairs + pair;
                let at = panel * PANEL_WIDTH + dimension % PANEL_WIDTH;
                let to = &mut self.scratch.values[at..at + 16];
                // SAFETY: the instruction set is there; 16 floats follow each dimension that is
                // looked at, and `to` has 16 pairs.
                unsafe {
                    let low = widened(first, dimension);
                    let high = _mm512_slli_epi32::<16>(widened(second, dimension));
                    _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_or_si512(low, high));
                }
            }
        }
    }

    /// Scores of a tile's queries against the span's keys; what they do not look at is masked.
    ///
    /// # Safety
    /// As for `run_head`.
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    unsafe fn score(&mut self, row: usize, span: &Span) {
        let depth = self.shape.head_size / 2;
        for column in (0..span.keys).step_by(PANEL_WIDTH) {
            // SAFETY: rows row.. exist in the queries; the keys have the span's columns in panels of
            // `depth` rows; the scores have room for a tile's rows of all keys.
            unsafe {
                PairTile {
                    input: self.scratch.queries.as_ptr().add(row * depth),
                    input_stride: depth,
                    panel: (self.scratch.keys.as_ptr()).add((span.first + column) * depth),
                    depth,
                    out: self.scratch.scores.as_mut_ptr().add(column),
                    out_stride: span.keys,
                    start: Start::Zero,
                    finish: Finish::Store,
                }
                .compute(self.unit, span.rows);
            }
        }
        let lines = self.scratch.scores.chunks_exact_mut(span.keys);
        for (row, line) in lines.take(span.rows).enumerate() {
            span.mask(row, line);
        }
    }

    /// Turns scores into weights, and returns one over each row's sum.
    ///
    /// # Safety
    /// As for `run_head`.
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    unsafe fn weigh(&mut self, span: &Span) -> [f32; TILE_ROWS_MAX] {
        let mut scales = [0.0; TILE_ROWS_MAX];
        let scores = self.scratch.scores.chunks_exact_mut(span.keys);
        let weights = self.scratch.weights.chunks_exact_mut(span.keys / 2);
        let rows = scales.iter_mut().zip(scores).zip(weights);
        for ((scale, scores), weights) in rows.take(span.rows) {
            // SAFETY: the instruction set is there, and a row is whole panels, two vectors each.
            *scale = unsafe { exponentiate(scores, weights) };
        }
        scales
    }

    /// The weighted mean of the values for the rows from `row` on.
    ///
    /// # Safety
    /// As for `run_head`.
    #[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
    unsafe fn mix(&mut self, head: usize, row: usize, span: &Span, scales: &[f32]) {
        let (size, width) = (self.shape.head_size, self.shape.width());
        let pairs = self.pairs(self.tokens);
        for column in (0..size).step_by(PANEL_WIDTH) {
            // SAFETY: the weights have a row for each scale, the values `pairs` rows in each panel,
            // and the output the rows from `row` on.
            unsafe {
                let out = self
                    .out
                    .as_mut_ptr()
                    .add(row * width + head * size + column);
                PairTile {
                    input: self.scratch.weights.as_ptr(),
                    input_stride: span.keys / 2,
                    panel: (self.scratch.values.as_ptr())
                        .add(column * pairs + span.first / 2 * PANEL_WIDTH),
                    depth: self.pairs(span.tokens),
                    out,
                    out_stride: width,
                    start: Start::Zero,
                    finish: Finish::Store,
                }
                .compute(self.unit, scales.len());
                for (index, scale) in scales.iter().enumerate() {
                    for half in [0, 16] {
                        let at = out.add(index * width + half);
                        let scaled = _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_set1_ps(*scale));
                        _mm512_storeu_ps(at, scaled);
                    }
                }
            }
        }
    }
}

/// 2^x for 0 <= x < 1, highest power first: the polynomial with the least greatest relative error, 2.6e-6,
/// found by weighted least squares (Lawson's algorithm). Weights keep eight bits, 3.9e-3.
const POWER_POLYNOMIAL: [f32; 5] = [
    0.013_534_171,
    0.052_011_464,
    0.241_442_75,
    0.693_003_83,
    1.000_002_6,
];

/// Turns one row of scores into e^(score - greatest), rounded to pairs, and returns one over the sum
/// of what was not rounded yet; NaN where a score is not finite, which the maximum and the exponential would
/// hide behind plausible weights.
///
/// # Safety
/// The processor must have the instruction set; the row must be whole pairs of vectors, and the weights
/// half as many.
#[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
#[inline]
unsafe fn exponentiate(scores: &[f32], weights: &mut [Pair]) -> f32 {
    let mut greatest = _mm512_set1_ps(MASKED_SCORE);
    // Zero times a finite score adds nothing, to the bit.
    let mut faults = _mm512_setzero_ps();
    for scores in scores.chunks_exact(16) {
        // SAFETY: a chunk has sixteen floats.
        let scores = unsafe { _mm512_loadu_ps(scores.as_ptr()) };
        greatest = _mm512_max_ps(greatest, scores);
        faults = _mm512_fmadd_ps(scores, _mm512_setzero_ps(), faults);
    }
    let greatest = _mm512_set1_ps(_mm512_reduce_max_ps(greatest));
    let (mut low_sum, mut high_sum) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for (scores, weights) in scores.chunks_exact(32).zip(weights.chunks_exact_mut(16)) {
        // SAFETY: a chunk has 32 floats, and its pairs are 64 bytes of any bits.
        unsafe {
            let low = power(_mm512_sub_ps(_mm512_loadu_ps(scores.as_ptr()), greatest));
            let high = _mm512_loadu_ps(scores.as_ptr().add(16));
            let high = power(_mm512_sub_ps(high, greatest));
            low_sum = _mm512_add_ps(low_sum, low);
            high_sum = _mm512_add_ps(high_sum, high);
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(weights.as_mut_ptr().cast(), both);
        }
    }
    let sum = _mm512_reduce_add_ps(_mm512_add_ps(low_sum, high_sum));
    1.0 / sum + _mm512_reduce_add_ps(faults)
}

/// e to the power of `x`, to 1e-5 of the value and the rounding of `x`; 0 far below 0.
///
/// # Safety
/// The processor must have the instruction set.
#[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
#[inline]
unsafe fn power(x: __m512) -> __m512 {
    let exponent = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(exponent);
    let rest = _mm512_sub_ps(exponent, whole);
    let mut value = _mm512_set1_ps(POWER_POLYNOMIAL[0]);
    for coefficient in &POWER_POLYNOMIAL[1..] {
        value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(*coefficient));
    }
    // Takes the exponent's whole part itself.
    _mm512_scalef_ps(value, exponent)
}

/// Sixteen values from `dimension` on, rounded, each in the low half of a pair; zeros for none.
///
/// # Safety
/// The processor must have the instruction set, and sixteen floats must follow.
#[target_feature(enable = "avx512f,avx512bf16,avx2,fma")]
#[inline]
unsafe fn widened(values: Option<&[f32]>, dimension: usize) -> __m512i {
    let Some(values) = values else {
        return _mm512_setzero_si512();
    };
    // SAFETY: this function's contract; both types are 32 bytes of any bits.
    unsafe {
        let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(values[dimension..].as_ptr()));
        _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(rounded))
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::testing::{check_faults, reference};
    use super::super::testing::Noise;
    use super::*;

    fn is_skipped(test: &str) -> bool {
        if !is_available() {
            println!("skipped: {test}: this processor has no bfloat16 products");
        }
        !is_available()
    }

    #[test]
    fn scores_that_are_not_finite_show() {
        if is_skipped("scores_that_are_not_finite_show") {
            return;
        }
        check_faults(|shape, tokens, input, out| {
            let attention = Bf16Attention {
                unit: PairUnit::Vectors,
                shape,
                tokens,
                reach: None,
                queries_keys_values: input,
                out,
                scratch: &mut Bf16AttentionScratch::default(),
            };
            attention.run();
        });
    }

    fn check(
        unit: PairUnit,
        shape: AttentionShape,
        tokens: usize,
        reach: Option<usize>,
        scratch: &mut Bf16AttentionScratch,
    ) {
        let input = Noise::new(tokens as u64).floats(tokens * 3 * shape.width());
        let mut out = vec![f32::NAN; tokens * shape.width()];
        Bf16Attention {
            unit,
            shape,
            tokens,
            reach,
            queries_keys_values: &input,
            out: &mut out,
            scratch,
        }
        .run();
        // Values of half a unit at most, each rounded to 9 bits.
        for (x, y) in out.iter().zip(reference(shape, tokens, reach, &input)) {
            let error = (f64::from(*x) - y).abs();
            assert!(
                error < 4e-3,
                "{unit:?} {tokens} tokens, {reach:?}: {error:e}"
            );
        }
    }

    #[test]
    fn weights_are_near_the_exponential() {
        if is_skipped("weights_are_near_the_exponential") {
            return;
        }
        let least = -95.0;
        let scores: Vec<f32> = (0..1 << 16)
            .map(|index| 7.0 + least * index as f32 / (1 << 16) as f32)
            .collect();
        let mut weights = vec![0; scores.len() / 2];
        // SAFETY: the instruction set is there, and both are whole vectors.
        let scale = unsafe { exponentiate(&scores, &mut weights) };
        let expected: Vec<f64> = (scores.iter())
            .map(|score| (f64::from(*score) - 7.0).exp())
            .collect();
        let sum: f64 = expected.iter().sum();
        assert!((f64::from(scale) * sum - 1.0).abs() < 1e-5);
        let halves = weights.iter().flat_map(|pair| [pair << 16, pair & !0xFFFF]);
        for (weight, expected) in halves.map(f32::from_bits).zip(&expected) {
            // Eight bits, and below 1.2e-38 none.
            let error = (f64::from(weight) - expected).abs();
            assert!(
                error < expected * 3.92e-3 + 1.2e-38,
                "{weight:e} {expected:e}"
            );
        }
        assert_eq!(weights[0] & 0xFFFF, 0x3F80, "the greatest is 1");
        let mut masked = [0; 16];
        let mut scores = [MASKED_SCORE; 32];
        scores[3] = -4e9;
        // SAFETY: as above.
        let scale = unsafe { exponentiate(&scores, &mut masked) };
        assert!((scale - 1.0).abs() < 1e-5);
        assert_eq!(
            masked.map(|pair| pair != 0),
            std::array::from_fn(|at| at == 1)
        );
    }

    #[test]
    fn it_is_near_the_definition_in_f64() {
        if is_skipped("it_is_near_the_definition_in_f64") {
            return;
        }
        let mut scratch = Bf16AttentionScratch::default();
        for head_size in [64, 32, 96] {
            let shape = AttentionShape {
                heads: 2,
                head_size,
            };
            // From long to short, so that stale scratch would show.
            for tokens in [256, 100, 33, 32, 17, 16, 13, 3, 2, 1] {
                for reach in [
                    None,
                    Some(0),
                    Some(1),
                    Some(8),
                    Some(64),
                    Some(usize::MAX / 4),
                ] {
                    check(PairUnit::Vectors, shape, tokens, reach, &mut scratch);
                    check(PairUnit::EmulatedTiles, shape, tokens, reach, &mut scratch);
                    check(PairUnit::best(), shape, tokens, reach, &mut scratch);
                }
            }
        }
    }
}
