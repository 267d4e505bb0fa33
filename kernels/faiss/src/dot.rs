//! The inner product of an f32 query with a stored fp16 vector: the one score that is ever shown.
//!
//! Invariant: on one machine the same query and the same stored bits give the same score, bit for
//! bit, wherever the row lies; FAISS's own scores only choose candidates.

use crate::instructions::Instructions;
use half::f16;

/// A query made ready: knows which instructions this machine has.
pub(crate) struct Query<'a> {
    components: &'a [f32],
    instructions: Instructions,
}

impl<'a> Query<'a> {
    /// Takes a query of finite components.
    pub(crate) fn new(components: &'a [f32]) -> Self {
        Self {
            components,
            instructions: Instructions::of_this_machine(),
        }
    }

    /// Its components.
    pub(crate) fn components(&self) -> &'a [f32] {
        self.components
    }

    /// The inner product with a stored vector of the same dimension; components beyond the shorter
    /// one count as zero.
    #[inline]
    pub(crate) fn dot(&self, vector: &[f16]) -> f32 {
        match self.instructions {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor was asked for AVX-512F.
            Instructions::Avx512 => unsafe { wide::dot_512(self.components, vector) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor was asked for AVX2, FMA and F16C.
            Instructions::Avx2 => unsafe { wide::dot_256(self.components, vector) },
            Instructions::Portable => portable_dot(self.components, vector),
        }
    }
}

/// Lanes that are summed apart, so that the compiler can use whatever vectors there are.
const LANES: usize = 8;

fn portable_dot(query: &[f32], vector: &[f16]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (queries, vectors) = (query.chunks_exact(LANES), vector.chunks_exact(LANES));
    let rest: f32 = queries
        .remainder()
        .iter()
        .zip(&vector[query.len().min(vector.len()) / LANES * LANES..])
        .map(|(x, y)| x * y.to_f32())
        .sum();
    for (xs, ys) in queries.zip(vectors) {
        for lane in 0..LANES {
            sums[lane] += xs[lane] * ys[lane].to_f32();
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(target_arch = "x86_64")]
mod wide {
    //! The same for processors with AVX2, FMA and F16C, or AVX-512F.

    use half::f16;
    use std::arch::x86_64::{
        __m128i, __m256, __m256i, __m512, _mm_loadu_si128, _mm256_add_ps, _mm256_cvtph_ps,
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_setzero_ps, _mm256_storeu_ps,
        _mm512_add_ps, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_reduce_add_ps,
        _mm512_setzero_ps,
    };

    /// Components of one register.
    const WIDTH: usize = 8;
    /// Sums kept apart: enough to hide the four cycles of a fused multiply-add at two a cycle.
    const SUMS: usize = 4;

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn dot_256(query: &[f32], vector: &[f16]) -> f32 {
        let length = query.len().min(vector.len());
        let (query, vector) = (&query[..length], &vector[..length]);
        let mut sums = [_mm256_setzero_ps(); SUMS];
        let mut at = 0;
        while at + WIDTH * SUMS <= length {
            for (lane, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `at + WIDTH * SUMS <= length`, so all loads stay inside both slices.
                *sum = unsafe { step(query, vector, at + lane * WIDTH, *sum) };
            }
            at += WIDTH * SUMS;
        }
        while at + WIDTH <= length {
            // SAFETY: `at + WIDTH <= length`.
            sums[0] = unsafe { step(query, vector, at, sums[0]) };
            at += WIDTH;
        }
        let total = _mm256_add_ps(
            _mm256_add_ps(sums[0], sums[1]),
            _mm256_add_ps(sums[2], sums[3]),
        );
        let mut lanes = [0.0_f32; WIDTH];
        // SAFETY: the array has room for the eight floats of the register.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), total) };
        let rest = query[at..].iter().zip(&vector[at..]);
        lanes.iter().sum::<f32>() + rest.map(|(x, y)| x * y.to_f32()).sum::<f32>()
    }

    /// Components of one register.
    const WIDTH_512: usize = 16;

    #[target_feature(enable = "avx512f")]
    pub(super) fn dot_512(query: &[f32], vector: &[f16]) -> f32 {
        let length = query.len().min(vector.len());
        let (query, vector) = (&query[..length], &vector[..length]);
        let mut sums = [_mm512_setzero_ps(); SUMS];
        let mut at = 0;
        while at + WIDTH_512 * SUMS <= length {
            for (lane, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `at + WIDTH_512 * SUMS <= length`, so all loads stay inside both slices.
                *sum = unsafe { step_512(query, vector, at + lane * WIDTH_512, *sum) };
            }
            at += WIDTH_512 * SUMS;
        }
        while at + WIDTH_512 <= length {
            // SAFETY: `at + WIDTH_512 <= length`.
            sums[0] = unsafe { step_512(query, vector, at, sums[0]) };
            at += WIDTH_512;
        }
        let total = _mm512_add_ps(
            _mm512_add_ps(sums[0], sums[1]),
            _mm512_add_ps(sums[2], sums[3]),
        );
        let rest = query[at..].iter().zip(&vector[at..]);
        _mm512_reduce_add_ps(total) + rest.map(|(x, y)| x * y.to_f32()).sum::<f32>()
    }

    /// Adds sixteen products to `sum`.
    ///
    /// # Safety
    /// Both slices must have sixteen components from `at` on.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn step_512(query: &[f32], vector: &[f16], at: usize, sum: __m512) -> __m512 {
        // SAFETY: the caller promises sixteen components from `at` on; the loads need no alignment,
        // and `f16` is a transparent `u16`.
        unsafe {
            let halves = _mm256_loadu_si256(vector.as_ptr().add(at).cast::<__m256i>());
            let floats = _mm512_loadu_ps(query.as_ptr().add(at));
            _mm512_fmadd_ps(floats, _mm512_cvtph_ps(halves), sum)
        }
    }

    /// Adds eight products to `sum`.
    ///
    /// # Safety
    /// Both slices must have eight components from `at` on.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn step(query: &[f32], vector: &[f16], at: usize, sum: __m256) -> __m256 {
        // SAFETY: the caller promises eight components from `at` on; the loads need no alignment,
        // and `f16` is a transparent `u16`.
        unsafe {
            let halves = _mm_loadu_si128(vector.as_ptr().add(at).cast::<__m128i>());
            let floats = _mm256_loadu_ps(query.as_ptr().add(at));
            _mm256_fmadd_ps(floats, _mm256_cvtph_ps(halves), sum)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_ways_agree_with_double_precision(
            pairs in prop::collection::vec((-2.0_f32..2.0, -2.0_f32..2.0), 0..200),
        ) {
            let query: Vec<f32> = pairs.iter().map(|pair| pair.0).collect();
            let vector: Vec<f16> = pairs.iter().map(|pair| f16::from_f32(pair.1)).collect();
            let wanted: f64 = query
                .iter()
                .zip(&vector)
                .map(|(x, y)| f64::from(*x) * y.to_f64())
                .sum();
            for instructions in Instructions::all_here() {
                let query = Query { components: &query, instructions };
                let got = query.dot(&vector);
                prop_assert!((f64::from(got) - wanted).abs() < 1e-3, "{got} for {wanted}");
            }
        }
    }

    #[test]
    fn unequal_lengths_are_cut() {
        let query = Query::new(&[1.0; 19]);
        for length in [0, 3, 8, 16, 19, 40] {
            let vector = vec![f16::ONE; length];
            assert_eq!(query.dot(&vector), length.min(19) as f32);
            assert_eq!(portable_dot(&[1.0; 19], &vector), length.min(19) as f32);
        }
    }
}
