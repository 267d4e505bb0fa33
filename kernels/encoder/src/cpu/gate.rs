//! The middle of a gated feed-forward network: one half of each row, bent, times the other half.
//!
//! Invariant: a row of the output depends on its row of the input alone, bit for bit.

#![allow(unsafe_code)]

use super::architecture::FeedForward;
use super::functions::{gelu, silu};
use super::lanes::{Kernel, Lanes};

/// Where the network is gated, `[bent|other]` becomes `f(bent) * other`, row by row in place: the output's rows of `width` stand
/// one after the other at the start of `values`.
pub(crate) struct Gate<'a> {
    pub(crate) feed_forward: FeedForward,
    pub(crate) rows: usize,
    /// Floats in a half; a multiple of every vector's width.
    pub(crate) width: usize,
    /// `[rows][2 * width]`
    pub(crate) values: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            match self.feed_forward {
                FeedForward::Gelu => {}
                FeedForward::GatedGelu => self.bend::<V>(|x| gelu(x)),
                FeedForward::GatedSilu => self.bend::<V>(|x| silu(x)),
            }
        }
    }
}

impl Gate<'_> {
    /// # Safety
    /// The processor must have the instruction set of `V`.
    #[inline(always)]
    unsafe fn bend<V: Lanes>(self, function: impl Fn(V) -> V) {
        let width = self.width;
        assert!(width.is_multiple_of(V::WIDTH) && self.values.len() >= self.rows * 2 * width);
        let values = self.values.as_mut_ptr();
        for row in 0..self.rows {
            for at in (0..width).step_by(V::WIDTH) {
                // SAFETY: this function's contract; both halves of a row lie inside the values, whose
                // length was checked. The output never lies beyond what is read in the same step, so
                // that nothing is overwritten before it was read.
                unsafe {
                    let bent = V::load(values.add(row * 2 * width + at));
                    let other = V::load(values.add(row * 2 * width + width + at));
                    function(bent)
                        .mul(other)
                        .store(values.add(row * width + at));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Backend;
    use super::super::testing::Noise;
    use super::*;

    #[test]
    fn it_equals_the_definition_in_f64() {
        let (rows, width) = (5, 96);
        let input: Vec<f32> = Noise::new(4).floats(rows * 2 * width);
        let input: Vec<f32> = input.iter().map(|x| x * 20.0).collect();
        for backend in Backend::available() {
            let mut out = input.clone();
            backend.run(Gate {
                feed_forward: FeedForward::GatedSilu,
                rows,
                width,
                values: &mut out,
            });
            for (at, out) in out.iter().enumerate().take(rows * width) {
                let place = at / width * 2 * width + at % width;
                let (x, y) = (f64::from(input[place]), f64::from(input[place + width]));
                let expected = x / (1.0 + (-x).exp()) * y;
                let error = (f64::from(*out) - expected).abs();
                assert!(error < 1e-4, "{backend:?} {at}: {error:e}");
            }
            let mut out = input.clone();
            backend.run(Gate {
                feed_forward: FeedForward::GatedGelu,
                rows,
                width,
                values: &mut out,
            });
            for (at, out) in out.iter().enumerate().take(rows * width) {
                let place = at / width * 2 * width + at % width;
                let (x, y) = (f64::from(input[place]), f64::from(input[place + width]));
                // The tanh form is within 1e-3 of GELU: this only tells it from others.
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                let rough = 0.5 * x * (1.0 + inner.tanh()) * y;
                assert!((f64::from(*out) - rough).abs() < 2e-2, "{backend:?} {at}");
            }
        }
    }

    #[test]
    fn far_inputs_stay_finite_and_faults_show() {
        for backend in Backend::available() {
            let mut values = vec![1.0; 64];
            values[..4].copy_from_slice(&[-1e30, 1e30, f32::NAN, f32::INFINITY]);
            backend.run(Gate {
                feed_forward: FeedForward::GatedSilu,
                rows: 1,
                width: 32,
                values: &mut values,
            });
            assert!(values[0].abs() < 1e-3, "{backend:?}: {}", values[0]);
            assert_eq!(values[1], 1e30, "{backend:?}");
            assert!(
                !values[2].is_finite() && !values[3].is_finite(),
                "{backend:?}"
            );
        }
    }
}
