//! Self-attention of one text: softmax(Q K^T) V for each head, over rows of `[query|key|value]`.
//!
//! The scale 1/sqrt(head size) is part of the packed query weights. Nothing is blocked along the text:
//! up to some 500 tokens, which is all that most models look at, a tile's scores (at most 12 rows) stay
//! in a first-level cache of 32 KiB; those of longer texts come from the second level.
//!
//! Invariant: a text's output depends on its own rows alone: it is padded inside the scratch memory
//! to whole panels, with scores that vanish in the softmax.

#![allow(unsafe_code)]

use super::buffer::AlignedBuffer;
use super::functions::exp;
use super::lanes::{Kernel, Lanes};
use super::tile::{Finish, Start, Tile, even_tiles};

/// A score that no real one comes near, and whose exponential is nothing.
pub(crate) const MASKED_SCORE: f32 = -1e30;

/// Sizes of the attention of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionShape {
    /// Heads.
    pub(crate) heads: usize,
    /// Dimensions of a head; a multiple of every panel width.
    pub(crate) head_size: usize,
}

impl AttentionShape {
    /// Dimensions of all heads together.
    pub(crate) fn width(self) -> usize {
        self.heads * self.head_size
    }
}

/// Memory that one attention needs, reused.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// `[tokens / panel width][head size][panel width]`: the keys, transposed.
    keys: AlignedBuffer,
    /// `[head size / panel width][tokens][panel width]`: the values.
    values: AlignedBuffer,
    /// `[tile rows][tokens rounded up to panels]`
    scores: AlignedBuffer,
}

impl AttentionScratch {
    /// Memory that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes() + self.scores.bytes()
    }
}

/// The attention of one text of `tokens` tokens.
pub(crate) struct Attention<'a> {
    pub(crate) shape: AttentionShape,
    pub(crate) tokens: usize,
    /// How far a token looks; `None` where at all.
    pub(crate) reach: Option<usize>,
    /// `[tokens][3 * width]`
    pub(crate) queries_keys_values: &'a [f32],
    /// `[tokens][width]`
    pub(crate) out: &'a mut [f32],
    pub(crate) scratch: &'a mut AttentionScratch,
}

impl Kernel for Attention<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(mut self) {
        let width = self.shape.width();
        assert!(self.queries_keys_values.len() >= self.tokens * 3 * width);
        assert!(self.out.len() >= self.tokens * width);
        assert!(self.shape.head_size.is_multiple_of(V::PANEL_WIDTH));
        let padded = self.tokens.next_multiple_of(V::PANEL_WIDTH);
        self.scratch.keys.grow(padded * self.shape.head_size);
        self.scratch.values.grow(padded * self.shape.head_size);
        self.scratch.scores.grow(V::TILE_ROWS * padded);
        for head in 0..self.shape.heads {
            self.pack_keys_and_values::<V>(head);
            for (row, rows) in even_tiles(self.tokens, V::TILE_ROWS) {
                // SAFETY: the caller vouches for the instruction set, and all lengths were checked
                // or made above.
                unsafe {
                    let span = Span::of(self.tokens, self.reach, (row, rows), V::PANEL_WIDTH);
                    self.score::<V>(head, row, &span);
                    let scales = self.exponentiate::<V>(&span);
                    self.mix::<V>(head, row, &span, &scales[..rows]);
                }
            }
        }
    }
}

/// The keys that the rows of a tile look at: whole panels, which a window makes fewer.
pub(crate) struct Span {
    /// Rows of the tile.
    pub(crate) rows: usize,
    /// The first key, at a panel's start.
    pub(crate) first: usize,
    /// Keys, rounded up to whole panels.
    pub(crate) keys: usize,
    /// Keys that are tokens.
    pub(crate) tokens: usize,
    /// Of each row, what it looks at, counted from `first`.
    seen: Seen,
}

#[derive(Clone, Copy)]
enum Seen {
    All,
    Near {
        /// The tile's first row, counted from the span's first key.
        row: usize,
        reach: usize,
    },
}

impl Span {
    /// Of the tile that begins at a row and has so many.
    #[inline(always)]
    pub(crate) fn of(
        tokens: usize,
        reach: Option<usize>,
        (row, rows): (usize, usize),
        panel_width: usize,
    ) -> Self {
        let Some(reach) = reach else {
            return Self {
                rows,
                first: 0,
                keys: tokens.next_multiple_of(panel_width),
                tokens,
                seen: Seen::All,
            };
        };
        let first = row.saturating_sub(reach) / panel_width * panel_width;
        let end = tokens.min((row + rows).saturating_add(reach));
        let keys = (end - first).next_multiple_of(panel_width);
        Self {
            rows,
            first,
            keys,
            tokens: keys.min(tokens - first),
            seen: Seen::Near {
                row: row - first,
                reach,
            },
        }
    }

    /// Masks what a row of scores does not look at.
    #[inline(always)]
    pub(crate) fn mask(&self, row: usize, scores: &mut [f32]) {
        scores[self.tokens..self.keys].fill(MASKED_SCORE);
        if let Seen::Near { row: first, reach } = self.seen {
            let row = first + row;
            scores[..row.saturating_sub(reach)].fill(MASKED_SCORE);
            let end = self.keys.min(row.saturating_add(reach + 1));
            scores[end..self.keys].fill(MASKED_SCORE);
        }
    }
}

/// The most rows of a tile on any instruction set.
pub(crate) const TILE_ROWS_MAX: usize = 12;

impl Attention<'_> {
    /// Copies one head's keys (transposed) and values into panels.
    #[inline(always)]
    fn pack_keys_and_values<V: Lanes>(&mut self, head: usize) {
        let (size, width) = (self.shape.head_size, self.shape.width());
        for token in 0..self.tokens {
            let row = &self.queries_keys_values[token * 3 * width..][..3 * width];
            let key = &row[width + head * size..][..size];
            let panel = token / V::PANEL_WIDTH * size * V::PANEL_WIDTH + token % V::PANEL_WIDTH;
            for (dimension, value) in key.iter().enumerate() {
                self.scratch.keys[panel + dimension * V::PANEL_WIDTH] = *value;
            }
            let value = &row[2 * width + head * size..][..size];
            for (panel, part) in value.chunks_exact(V::PANEL_WIDTH).enumerate() {
                let at = (panel * self.tokens + token) * V::PANEL_WIDTH;
                self.scratch.values[at..at + V::PANEL_WIDTH].copy_from_slice(part);
            }
        }
    }

    /// Scores of a tile's queries against the span's keys; what they do not look at is masked.
    ///
    /// # Safety
    /// The processor must have the instruction set of `V`, and `run` must have made the scratch.
    #[inline(always)]
    unsafe fn score<V: Lanes>(&mut self, head: usize, row: usize, span: &Span) {
        let (size, width) = (self.shape.head_size, self.shape.width());
        for column in (0..span.keys).step_by(V::PANEL_WIDTH) {
            // SAFETY: rows row.. exist in the input; the keys have the span's columns in panels of
            // `size` rows; the scores have room for TILE_ROWS rows of all keys.
            unsafe {
                Tile {
                    a: (self.queries_keys_values.as_ptr()).add(row * 3 * width + head * size),
                    a_stride: 3 * width,
                    b: self.scratch.keys.as_ptr().add((span.first + column) * size),
                    b_stride: V::PANEL_WIDTH,
                    depth: size,
                    out: self.scratch.scores.as_mut_ptr().add(column),
                    out_stride: span.keys,
                    start: Start::Zero,
                    finish: Finish::Store,
                }
                .compute::<V>(span.rows);
            }
        }
        let lines = self.scratch.scores.chunks_exact_mut(span.keys);
        for (row, line) in lines.take(span.rows).enumerate() {
            span.mask(row, line);
        }
    }

    /// Turns scores into e^(score - greatest), and returns one over each row's sum ([`exponentiate`]).
    ///
    /// # Safety
    /// The processor must have the instruction set of `V`.
    #[inline(always)]
    unsafe fn exponentiate<V: Lanes>(&mut self, span: &Span) -> [f32; TILE_ROWS_MAX] {
        let mut scales = [0.0; TILE_ROWS_MAX];
        let lines = self.scratch.scores.chunks_exact_mut(span.keys);
        for (scale, line) in scales.iter_mut().zip(lines).take(span.rows) {
            // SAFETY: a row is a whole number of vectors.
            *scale = unsafe { exponentiate::<V>(line) };
        }
        scales
    }

    /// The weighted mean of the values for the rows from `row` on.
    ///
    /// # Safety
    /// The processor must have the instruction set of `V`, and `run` must have made the scratch.
    #[inline(always)]
    unsafe fn mix<V: Lanes>(&mut self, head: usize, row: usize, span: &Span, scales: &[f32]) {
        let (size, width) = (self.shape.head_size, self.shape.width());
        for column in (0..size).step_by(V::PANEL_WIDTH) {
            // SAFETY: the scores have a row for each scale, the values `tokens` rows in each panel,
            // and the output the rows from `row` on.
            unsafe {
                let out = self
                    .out
                    .as_mut_ptr()
                    .add(row * width + head * size + column);
                Tile {
                    a: self.scratch.scores.as_ptr(),
                    a_stride: span.keys,
                    b: (self.scratch.values.as_ptr())
                        .add(column * self.tokens + span.first * V::PANEL_WIDTH),
                    b_stride: V::PANEL_WIDTH,
                    depth: span.tokens,
                    out,
                    out_stride: width,
                    start: Start::Zero,
                    finish: Finish::Store,
                }
                .compute::<V>(scales.len());
                for (index, scale) in scales.iter().enumerate() {
                    for half in [0, V::WIDTH] {
                        let at = out.add(index * width + half);
                        V::load(at).mul(V::splat(*scale)).store(at);
                    }
                }
            }
        }
    }
}

/// Turns one row of scores into e^(score - greatest), and returns one over their sum; NaN where a score
/// is not finite, which the maximum and the exponential would hide behind plausible weights.
///
/// # Safety
/// The processor must have the instruction set of `V`; the row must be whole vectors.
#[inline(always)]
unsafe fn exponentiate<V: Lanes>(row: &mut [f32]) -> f32 {
    // SAFETY: this function's contract.
    unsafe {
        let mut greatest = V::splat(MASKED_SCORE);
        // Zero times a finite score adds nothing, to the bit.
        let (zero, mut faults) = (V::splat(0.0), V::splat(0.0));
        for scores in row.chunks_exact(V::WIDTH) {
            let scores = V::load(scores.as_ptr());
            greatest = greatest.max(scores);
            faults = scores.mul_add(zero, faults);
        }
        let greatest = V::splat(greatest.max_lane());
        let mut sum = V::splat(0.0);
        for scores in row.chunks_exact_mut(V::WIDTH) {
            let weight = exp(V::load(scores.as_ptr()).sub(greatest));
            sum = sum.add(weight);
            weight.store(scores.as_mut_ptr());
        }
        1.0 / sum.sum_lanes() + faults.sum_lanes()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! The definition, and what must not hide behind it.

    use super::super::testing::Noise;
    use super::AttentionShape;

    /// Attention in f64.
    pub(crate) fn reference(
        shape: AttentionShape,
        tokens: usize,
        reach: Option<usize>,
        input: &[f32],
    ) -> Vec<f64> {
        let (size, width) = (shape.head_size, shape.width());
        let at = |token: usize, part: usize, head: usize, dimension: usize| {
            f64::from(input[token * 3 * width + part * width + head * size + dimension])
        };
        let mut out = vec![0.0; tokens * width];
        for head in 0..shape.heads {
            for row in 0..tokens {
                let weights: Vec<f64> = (0..tokens)
                    .map(|other| {
                        let score: f64 = (0..size)
                            .map(|d| at(row, 0, head, d) * at(other, 1, head, d))
                            .sum();
                        let is_seen = reach.is_none_or(|reach| row.abs_diff(other) <= reach);
                        if is_seen { score.exp() } else { 0.0 }
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..size {
                    let mixed: f64 = (0..tokens)
                        .map(|other| weights[other] * at(other, 2, head, d))
                        .sum();
                    out[row * width + head * size + d] = mixed / sum;
                }
            }
        }
        out
    }

    /// Queries and keys that are not finite, or whose product is not, make NaN of every row that looks
    /// at them, and of no other.
    pub(crate) fn check_faults(run: impl Fn(AttentionShape, usize, &[f32], &mut [f32])) {
        let shape = AttentionShape {
            heads: 1,
            head_size: 32,
        };
        let (width, tokens) = (shape.width(), 37);
        let clean = Noise::new(7).floats(tokens * 3 * width);
        let faulty_rows = |input: &[f32]| -> Vec<usize> {
            let mut out = vec![0.0; tokens * width];
            run(shape, tokens, input, &mut out);
            let rows = out.chunks_exact(width).enumerate();
            let rows = rows.filter(|(_, row)| row.iter().any(|value| !value.is_finite()));
            rows.map(|(row, _)| row).collect()
        };
        assert!(faulty_rows(&clean).is_empty());
        let all: Vec<usize> = (0..tokens).collect();
        for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for row in [0, 17, 36] {
                let mut input = clean.clone();
                input[row * 3 * width] = fault;
                assert_eq!(faulty_rows(&input), [row], "a query of {fault}");
                let mut input = clean.clone();
                input[row * 3 * width + width] = fault;
                assert_eq!(faulty_rows(&input), all, "a key of {fault}");
            }
        }
        let mut input = clean;
        input[5 * 3 * width] = 1e30;
        input[9 * 3 * width + width] = 1e30;
        assert_eq!(
            faulty_rows(&input),
            [5],
            "a product beyond the largest float"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::Backend;
    use super::super::testing::Noise;
    use super::testing::{check_faults, reference};
    use super::*;

    fn check(
        backend: Backend,
        shape: AttentionShape,
        reach: Option<usize>,
        scratch: &mut AttentionScratch,
    ) {
        // From long to short, so that stale scratch would show.
        for tokens in [256, 100, 33, 32, 17, 16, 13, 3, 2, 1] {
            let input = Noise::new(tokens as u64).floats(tokens * 3 * shape.width());
            let mut out = vec![f32::NAN; tokens * shape.width()];
            backend.run(Attention {
                shape,
                tokens,
                reach,
                queries_keys_values: &input,
                out: &mut out,
                scratch,
            });
            for (x, y) in out.iter().zip(reference(shape, tokens, reach, &input)) {
                assert!(
                    (f64::from(*x) - y).abs() < 1e-5,
                    "{backend:?} {tokens} tokens, {reach:?}"
                );
            }
        }
    }

    #[test]
    fn scores_that_are_not_finite_show() {
        for backend in Backend::available() {
            check_faults(|shape, tokens, input, out| {
                backend.run(Attention {
                    shape,
                    tokens,
                    reach: None,
                    queries_keys_values: input,
                    out,
                    scratch: &mut AttentionScratch::default(),
                });
            });
        }
    }

    #[test]
    fn it_equals_the_definition_in_f64() {
        for backend in Backend::available() {
            let mut scratch = AttentionScratch::default();
            for head_size in [64, 32, 96] {
                let shape = AttentionShape {
                    heads: 2,
                    head_size,
                };
                for reach in [
                    None,
                    Some(0),
                    Some(1),
                    Some(8),
                    Some(64),
                    Some(usize::MAX / 4),
                ] {
                    check(backend, shape, reach, &mut scratch);
                }
            }
        }
    }
}
