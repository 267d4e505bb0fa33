//! Rotary positions: queries and keys are turned, pair of dimensions by pair, by angles that follow
//! the token's place, so that a score depends on the distance of two tokens.
//!
//! Invariant: a row's turn depends on its place in its own text alone; values are not turned.

#![allow(unsafe_code)]

use super::attention::AttentionShape;
use super::buffer::AlignedBuffer;
use super::lanes::{Kernel, Lanes};

/// Cosines and sines of every place.
pub(crate) struct Rotation {
    /// `[places][head size]`: cosines of half a head's dimensions, then their sines.
    turns: AlignedBuffer,
    head_size: usize,
}

impl Rotation {
    /// Angles of `places` places: in the first dimension one radian a token, in the last about one in
    /// `base` tokens.
    pub(crate) fn new(places: usize, head_size: usize, base: f32) -> Self {
        let half = head_size / 2;
        let mut turns = AlignedBuffer::zeroed(places * head_size);
        // The angle is rounded to 32 bits, as it was while the models learned.
        let speeds: Vec<f32> = (0..half)
            .map(|pair| 1.0 / base.powf(2.0 * pair as f32 / head_size as f32))
            .collect();
        for (place, row) in turns.chunks_exact_mut(head_size).take(places).enumerate() {
            for (pair, speed) in speeds.iter().enumerate() {
                let (sine, cosine) = f64::from(place as f32 * speed).sin_cos();
                row[pair] = cosine as f32;
                row[half + pair] = sine as f32;
            }
        }
        Self { turns, head_size }
    }
}

/// Turns the queries and keys of one text in place.
pub(crate) struct Rotate<'a> {
    pub(crate) shape: AttentionShape,
    pub(crate) rotation: &'a Rotation,
    pub(crate) tokens: usize,
    /// `[tokens][3 * width]`
    pub(crate) queries_keys_values: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (size, width) = (self.shape.head_size, self.shape.width());
        let half = size / 2;
        assert!(self.rotation.head_size == size && half.is_multiple_of(V::WIDTH));
        assert!(self.rotation.turns.len() >= self.tokens * size);
        let rows = self.queries_keys_values.chunks_exact_mut(3 * width);
        let turns = self.rotation.turns.chunks_exact(size);
        for (row, turns) in rows.zip(turns).take(self.tokens) {
            // Heads of queries, then heads of keys.
            for head in row[..2 * width].chunks_exact_mut(size) {
                for at in (0..half).step_by(V::WIDTH) {
                    // SAFETY: the caller vouches for the instruction set; `head` and `turns` have
                    // `size` floats, and at + half + V::WIDTH is at most that.
                    unsafe {
                        let (low, high) =
                            (head.as_mut_ptr().add(at), head.as_mut_ptr().add(half + at));
                        let cosine = V::load(turns.as_ptr().add(at));
                        let sine = V::load(turns.as_ptr().add(half + at));
                        let (x, y) = (V::load(low), V::load(high));
                        x.mul(cosine).sub(y.mul(sine)).store(low);
                        y.mul(cosine).add(x.mul(sine)).store(high);
                    }
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
        for (head_size, base) in [(32, 10_000.0), (64, 160_000.0), (96, 1000.0)] {
            let shape = AttentionShape {
                heads: 2,
                head_size,
            };
            let (width, half, tokens) = (shape.width(), head_size / 2, 37);
            let rotation = Rotation::new(40, head_size, base);
            let input = Noise::new(9).floats(tokens * 3 * width);
            for backend in Backend::available() {
                let mut out = input.clone();
                backend.run(Rotate {
                    shape,
                    rotation: &rotation,
                    tokens,
                    queries_keys_values: &mut out,
                });
                for (at, value) in out.iter().enumerate() {
                    let (place, column) = (at / (3 * width), at % (3 * width));
                    let dimension = column % head_size;
                    let power = 2.0 * (dimension % half) as f64 / head_size as f64;
                    let angle = place as f64 / f64::from(base).powf(power);
                    let this = f64::from(input[at]);
                    let expected = if column >= 2 * width {
                        this
                    } else if dimension < half {
                        this * angle.cos() - f64::from(input[at + half]) * angle.sin()
                    } else {
                        this * angle.cos() + f64::from(input[at - half]) * angle.sin()
                    };
                    let error = (f64::from(*value) - expected).abs();
                    assert!(
                        error < 1e-5,
                        "{backend:?} {head_size} {place} {column}: {error:e}"
                    );
                }
            }
        }
    }
}
