//! What is done row by row: adding and normalising, and pooling a text's rows.
//!
//! Invariant: sums run in one order that depends on the row's length and the lanes only.

#![allow(unsafe_code)]

use super::buffer::AlignedBuffer;
use super::lanes::{Kernel, Lanes};

/// Added to nothing but a vector of length 0, which no encoder gives: keeps the division defined.
const LENGTH_MIN: f32 = 1e-12;

/// Scale and shift of a layer normalisation.
pub(crate) struct LayerNorm {
    pub(crate) scale: AlignedBuffer,
    pub(crate) shift: AlignedBuffer,
    /// Added to the variance.
    pub(crate) variance_floor: f32,
}

/// How the rows of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first of them, that of the token `[CLS]`.
    First,
}

/// `rows = normalise(rows + added)`, row by row, in place; with sums that are kept, `sums += added` and
/// `rows = normalise(sums)`.
pub(crate) struct AddAndNormalise<'a> {
    pub(crate) norm: &'a LayerNorm,
    /// Floats in a row; a multiple of every vector's width.
    pub(crate) width: usize,
    pub(crate) rows: &'a mut [f32],
    pub(crate) added: &'a [f32],
    /// The rows before they were normalised, where an architecture goes on adding to those.
    pub(crate) sums: Option<&'a mut [f32]>,
}

impl Kernel for AddAndNormalise<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let width = self.width;
        assert!(width.is_multiple_of(V::WIDTH) && self.rows.len() == self.added.len());
        assert!(self.norm.scale.len() >= width && self.norm.shift.len() >= width);
        let kept = self
            .sums
            .as_ref()
            .map_or(self.rows.len(), |sums| sums.len());
        assert_eq!(kept, self.rows.len());
        let pairs = self
            .rows
            .chunks_exact_mut(width)
            .zip(self.added.chunks_exact(width));
        let mut sums = self.sums.map(|sums| sums.chunks_exact_mut(width));
        for (row, added) in pairs {
            let kept = sums.as_mut().and_then(Iterator::next);
            // SAFETY: the caller vouches for the instruction set; all five pointers are valid for
            // `width` floats, which is a whole number of vectors.
            unsafe {
                let (row, added) = (row.as_mut_ptr(), added.as_ptr());
                if let Some(kept) = kept {
                    for at in (0..width).step_by(V::WIDTH) {
                        // The row is made of what is kept, which becomes the sum that follows.
                        let value = V::load(kept.as_ptr().add(at));
                        value.store(row.add(at));
                        let sum = value.add(V::load(added.add(at)));
                        sum.store(kept.as_mut_ptr().add(at));
                    }
                }
                let mut sum = V::splat(0.0);
                for at in (0..width).step_by(V::WIDTH) {
                    let value = V::load(row.add(at)).add(V::load(added.add(at)));
                    value.store(row.add(at));
                    sum = sum.add(value);
                }
                let mean = V::splat(sum.sum_lanes() / width as f32);
                let mut squares = V::splat(0.0);
                for at in (0..width).step_by(V::WIDTH) {
                    let centred = V::load(row.add(at)).sub(mean);
                    squares = centred.mul_add(centred, squares);
                }
                let variance = squares.sum_lanes() / width as f32;
                let factor = V::splat(1.0 / (variance + self.norm.variance_floor).sqrt());
                for at in (0..width).step_by(V::WIDTH) {
                    let scaled = V::load(row.add(at)).sub(mean).mul(factor);
                    let scale = V::load(self.norm.scale.as_ptr().add(at));
                    let shift = V::load(self.norm.shift.as_ptr().add(at));
                    scaled.mul_add(scale, shift).store(row.add(at));
                }
            }
        }
    }
}

/// One vector of length 1 for a text: its rows pooled, then their first dimensions as far as `out`
/// goes (a Matryoshka model is trained to be cut there).
pub(crate) struct PoolRows<'a> {
    pub(crate) pooling: Pooling,
    /// Floats in a row.
    pub(crate) width: usize,
    /// Whole rows, at least one.
    pub(crate) rows: &'a [f32],
    pub(crate) out: &'a mut [f32],
}

impl Kernel for PoolRows<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let pooled = match self.pooling {
            Pooling::Mean => self.rows,
            Pooling::First => &self.rows[..self.width],
        };
        let tokens = (pooled.len() / self.width).max(1);
        self.out.fill(0.0);
        for row in pooled.chunks_exact(self.width) {
            for (out, value) in self.out.iter_mut().zip(row) {
                *out += *value;
            }
        }
        let mut length = 0.0;
        for out in self.out.iter_mut() {
            *out /= tokens as f32;
            length += *out * *out;
        }
        let factor = 1.0 / length.sqrt().max(LENGTH_MIN);
        self.out.iter_mut().for_each(|value| *value *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Backend;
    use super::super::testing::Noise;
    use super::*;

    #[test]
    fn normalising_equals_the_definition_in_f64() {
        let width = 96;
        for backend in Backend::available() {
            let mut noise = Noise::new(3);
            let rows = noise.floats(5 * width);
            let added = noise.floats(5 * width);
            let norm = LayerNorm {
                scale: AlignedBuffer::copy_of(&noise.floats(width)),
                shift: AlignedBuffer::copy_of(&noise.floats(width)),
                variance_floor: 1e-3,
            };
            let mut out = rows.clone();
            backend.run(AddAndNormalise {
                norm: &norm,
                width,
                rows: &mut out,
                added: &added,
                sums: None,
            });
            for row in 0..5 {
                let values: Vec<f64> = (row * width..(row + 1) * width)
                    .map(|i| f64::from(rows[i]) + f64::from(added[i]))
                    .collect();
                let mean = values.iter().sum::<f64>() / width as f64;
                let variance =
                    values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                for (i, x) in values.iter().enumerate() {
                    let expected = (x - mean) / (variance + 1e-3).sqrt() * f64::from(norm.scale[i])
                        + f64::from(norm.shift[i]);
                    let error = (f64::from(out[row * width + i]) - expected).abs();
                    assert!(error < 1e-5, "{backend:?} {error:e}");
                }
            }
        }
    }

    #[test]
    fn sums_that_are_kept_are_added_to_and_not_normalised() {
        let width = 96;
        for backend in Backend::available() {
            let mut noise = Noise::new(6);
            let mut sums = noise.floats(3 * width);
            let added = noise.floats(3 * width);
            let norm = LayerNorm {
                scale: AlignedBuffer::copy_of(&noise.floats(width)),
                shift: AlignedBuffer::zeroed(width),
                variance_floor: 1e-5,
            };
            let mut expected = sums.clone();
            let mut rows = vec![f32::NAN; 3 * width];
            let run = |rows: &mut [f32], sums: Option<&mut [f32]>| {
                backend.run(AddAndNormalise {
                    norm: &norm,
                    width,
                    rows,
                    added: &added,
                    sums,
                });
            };
            let total: Vec<f32> = sums.iter().zip(&added).map(|(x, y)| x + y).collect();
            run(&mut rows, Some(&mut sums));
            run(&mut expected, None);
            assert!(rows == expected && sums == total, "{backend:?}");
        }
    }

    #[test]
    fn pooled_vectors_have_length_one() {
        let check = |pooling, expected: &[f32]| {
            for backend in Backend::available() {
                let mut out = vec![0.0; expected.len()];
                backend.run(PoolRows {
                    pooling,
                    width: 3,
                    rows: &[1.0, 5.0, 0.0, 3.0, 3.0, 0.0, 5.0, 4.0, 1.5],
                    out: &mut out,
                });
                for (x, y) in out.iter().zip(expected) {
                    assert!((x - y).abs() < 1e-6, "{backend:?} {pooling:?}: {out:?}");
                }
            }
        };
        check(Pooling::Mean, &[0.6, 0.8]);
        let length = (9.0_f32 + 16.0 + 0.25).sqrt();
        check(Pooling::Mean, &[3.0 / length, 4.0 / length, 0.5 / length]);
        check(Pooling::First, &[1.0]);
        check(Pooling::First, &[0.196_116_13, 0.980_580_7, 0.0]);
    }
}
