//! Assigning vectors to lists and coding what is left of them, by FAISS's k-means and product quantizer.
//!
//! Invariant: nothing that FAISS holds refers to memory of ours after a call has returned, and an
//! [`Encoder`] is never changed once made.

use super::{LibraryError, check};
use std::ffi::{c_char, c_int, c_void};
use std::ptr::{NonNull, null_mut};

unsafe extern "C" {
    fn vectide_faiss_train(
        dimension: usize,
        lists: usize,
        subquantizers: usize,
        iterations: c_int,
        codebook_rows_max: usize,
        rows: usize,
        vectors: *const f32,
        centroids: *mut f32,
        codebook: *mut f32,
    ) -> *mut c_char;
    fn vectide_faiss_encoder_new(
        dimension: usize,
        lists: usize,
        subquantizers: usize,
        centroids: *const f32,
        codebook: *const f32,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn vectide_faiss_encoder_free(handle: *mut c_void);
    fn vectide_faiss_encode(
        handle: *const c_void,
        rows: usize,
        vectors: *const f32,
        lists: *mut i64,
        codes: *mut u8,
    ) -> *mut c_char;
}

/// Values of a code: 4 bits.
pub(crate) const CODE_VALUES: usize = 16;

/// The sizes of an encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Components of a vector.
    pub(crate) dimension: usize,
    /// Lists.
    pub(crate) lists: usize,
    /// Parts that a vector is coded in; divides the dimension.
    pub(crate) subquantizers: usize,
}

impl Shape {
    /// Numbers in all centroids.
    pub(crate) fn centroid_numbers(self) -> usize {
        self.lists * self.dimension
    }

    /// Numbers in the codebook: 16 values for each part.
    pub(crate) fn codebook_numbers(self) -> usize {
        CODE_VALUES * self.dimension
    }

    /// Bytes of a row's code.
    pub(crate) fn code_bytes(self) -> usize {
        self.subquantizers.div_ceil(2)
    }

    fn is_usable(self) -> bool {
        self.dimension > 0
            && self.lists > 0
            && self.subquantizers > 0
            && self.dimension.is_multiple_of(self.subquantizers)
    }
}

/// How much work training is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrainingLimits {
    /// Rounds of k-means.
    pub(crate) iterations: u8,
    /// Rows that the codebook is made from.
    pub(crate) codebook_rows_max: usize,
}

/// Trains on rows that lie one after the other in `vectors`: centroids (lists x dimension) and codebook
/// (subquantizers x 16 x dimension / subquantizers).
pub(crate) fn train(
    shape: Shape,
    limits: TrainingLimits,
    vectors: &[f32],
) -> Result<(Vec<f32>, Vec<f32>), LibraryError> {
    if !shape.is_usable() || vectors.len() < shape.dimension {
        return Err(LibraryError(format!("{shape:?} can't be trained")));
    }
    let mut centroids = vec![0.0; shape.centroid_numbers()];
    let mut codebook = vec![0.0; shape.codebook_numbers()];
    // SAFETY: `vectors` holds that many whole rows; the results have room for what the shape says, which
    // is what is written; all are used during the call only.
    let message = unsafe {
        vectide_faiss_train(
            shape.dimension,
            shape.lists,
            shape.subquantizers,
            c_int::from(limits.iterations),
            limits.codebook_rows_max,
            vectors.len() / shape.dimension,
            vectors.as_ptr(),
            centroids.as_mut_ptr(),
            codebook.as_mut_ptr(),
        )
    };
    check(message)?;
    Ok((centroids, codebook))
}

/// Centroids and codebook, ready to code rows.
#[derive(Debug)]
pub(crate) struct Encoder {
    handle: NonNull<c_void>,
    shape: Shape,
}

// SAFETY: the handle owns a heap object without thread affinity that no call changes.
unsafe impl Send for Encoder {}
// SAFETY: as above: coding only reads it.
unsafe impl Sync for Encoder {}

impl Drop for Encoder {
    fn drop(&mut self) {
        // SAFETY: the handle came from the shim, is owned by this value alone and not used again.
        unsafe { vectide_faiss_encoder_free(self.handle.as_ptr()) }
    }
}

impl Encoder {
    /// Of what [`train`] gave, which is copied.
    pub(crate) fn new(
        shape: Shape,
        centroids: &[f32],
        codebook: &[f32],
    ) -> Result<Self, LibraryError> {
        let fits = centroids.len() == shape.centroid_numbers()
            && codebook.len() == shape.codebook_numbers();
        if !shape.is_usable() || !fits {
            return Err(LibraryError(format!("{shape:?} is of other sizes")));
        }
        let mut out = null_mut();
        // SAFETY: both slices have the lengths that the shape says, as was just checked, and are read
        // during the call only; `out` is writable.
        let message = unsafe {
            vectide_faiss_encoder_new(
                shape.dimension,
                shape.lists,
                shape.subquantizers,
                centroids.as_ptr(),
                codebook.as_ptr(),
                &mut out,
            )
        };
        check(message)?;
        let handle = NonNull::new(out).ok_or_else(|| LibraryError("no encoder was made".into()))?;
        Ok(Self { handle, shape })
    }

    /// The list of each row, and the codes one after the other: [`Shape::code_bytes`] a row, the first
    /// part in the low half of the first byte.
    pub(crate) fn encode(&self, vectors: &[f32]) -> Result<(Vec<u32>, Vec<u8>), LibraryError> {
        let rows = vectors.len() / self.shape.dimension;
        let mut lists = vec![0_i64; rows];
        let mut codes = vec![0_u8; rows * self.shape.code_bytes()];
        // SAFETY: `vectors` holds `rows` whole rows; the results have room for a list and a code of each;
        // all are used during the call only.
        let message = unsafe {
            vectide_faiss_encode(
                self.handle.as_ptr(),
                rows,
                vectors.as_ptr(),
                lists.as_mut_ptr(),
                codes.as_mut_ptr(),
            )
        };
        check(message)?;
        let in_range = |list: i64| {
            u32::try_from(list)
                .ok()
                .filter(|list| (*list as usize) < self.shape.lists)
        };
        // A vector that is not finite is near to no centroid; none is stored.
        let lists = lists.into_iter().map(|list| in_range(list).unwrap_or(0));
        Ok((lists.collect(), codes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a part of a code.
    fn value(codes: &[u8], part: usize) -> usize {
        usize::from(codes[part / 2] >> (part % 2 * 4) & 15)
    }

    #[test]
    fn a_row_is_coded_by_its_nearest_centroid_and_values() {
        let shape = Shape {
            dimension: 6,
            lists: 5,
            subquantizers: 3,
        };
        let number = |at: usize| (at * 7919 % 101) as f32 / 50.0 - 1.0;
        let rows: Vec<f32> = (0..200 * 6).map(number).collect();
        let limits = TrainingLimits {
            iterations: 5,
            codebook_rows_max: 100,
        };
        let (centroids, codebook) = train(shape, limits, &rows).unwrap();
        let encoder = Encoder::new(shape, &centroids, &codebook).unwrap();
        let (lists, codes) = encoder.encode(&rows).unwrap();
        let distance =
            |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum() };
        let nearest = |vector: &[f32], among: &[f32]| {
            let among = among.chunks(vector.len()).map(|it| distance(vector, it));
            among.fold(f32::MAX, f32::min)
        };
        for ((row, list), code) in rows.chunks(6).zip(lists).zip(codes.chunks(2)) {
            let centroid = &centroids[list as usize * 6..][..6];
            assert!(distance(row, centroid) <= nearest(row, &centroids) + 1e-5);
            for part in 0..3 {
                let span = part * 2..part * 2 + 2;
                let left: Vec<f32> = span.map(|at| row[at] - centroid[at]).collect();
                let values = &codebook[part * CODE_VALUES * 2..][..CODE_VALUES * 2];
                let chosen = &values[value(code, part) * 2..][..2];
                assert!(distance(&left, chosen) <= nearest(&left, values) + 1e-5);
            }
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let shape = |dimension, lists, subquantizers| Shape {
            dimension,
            lists,
            subquantizers,
        };
        let limits = TrainingLimits {
            iterations: 1,
            codebook_rows_max: 1,
        };
        for bad in [shape(6, 0, 3), shape(6, 2, 4), shape(0, 1, 1)] {
            assert!(train(bad, limits, &[0.0; 60]).is_err(), "{bad:?}");
            assert!(Encoder::new(bad, &[0.0; 12], &[0.0; 96]).is_err());
        }
        assert!(train(shape(6, 2, 3), limits, &[]).is_err());
        assert!(Encoder::new(shape(6, 2, 3), &[0.0; 11], &[0.0; 96]).is_err());
        // More lists than rows is an error of the library, not the end of the process.
        assert!(train(shape(6, 50, 3), limits, &[0.5; 60]).is_err());
    }
}
