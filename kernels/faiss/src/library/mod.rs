//! The boundary to FAISS: an owned index that can be built, searched, written and read.
//!
//! Invariant: an [`Index`] is only changed through `&mut self`, and nothing that FAISS holds refers
//! to memory of ours after a call has returned: vectors are copied in, bitmaps live for one search.

mod encoder;

pub(crate) use encoder::{Encoder, Shape, TrainingLimits, train};

// The library itself: linked because this crate names it.
use faiss_sys as _;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};

unsafe extern "C" {
    fn vectide_faiss_free_message(message: *mut c_char);
    fn vectide_faiss_free_index(index: *mut c_void);
    #[cfg(test)]
    fn vectide_faiss_threads_max() -> c_int;
    fn vectide_faiss_build(
        dimension: c_int,
        description: *const c_char,
        iterations: c_int,
        points_per_list_max: c_int,
        training_rows: usize,
        training: *const f32,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn vectide_faiss_add(index: *mut c_void, rows: usize, vectors: *const f32) -> *mut c_char;
    fn vectide_faiss_search(
        index: *const c_void,
        query: *const f32,
        k: usize,
        nprobe: usize,
        live: *const u8,
        live_bytes: usize,
        scores: *mut f32,
        rows: *mut i64,
    ) -> *mut c_char;
    fn vectide_faiss_shape(
        index: *const c_void,
        dimension: *mut usize,
        rows: *mut usize,
        lists: *mut usize,
    );
    fn vectide_faiss_write(index: *const c_void, path: *const c_char) -> *mut c_char;
    fn vectide_faiss_read(bytes: *const u8, length: usize, out: *mut *mut c_void) -> *mut c_char;
}

/// What FAISS said was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LibraryError(pub(crate) String);

/// How an index is made.
pub(crate) struct Recipe<'a> {
    /// Components of a vector.
    pub(crate) dimension: usize,
    /// FAISS's factory string.
    pub(crate) description: &'a str,
    /// Rounds of k-means.
    pub(crate) iterations: u8,
    /// Training rows used for each list at most.
    pub(crate) points_per_list_max: u16,
}

/// An index in FAISS.
#[derive(Debug)]
pub(crate) struct Index {
    handle: NonNull<c_void>,
    dimension: usize,
    rows: usize,
    lists: usize,
}

// SAFETY: the handle owns a heap object without thread affinity; FAISS documents searching beside
// searching as safe, and the shim gives each search its own parameters and statistics. Everything
// that changes the index takes `&mut self`.
unsafe impl Send for Index {}
// SAFETY: as above: `&self` gives only searches, writing to a file and the shape.
unsafe impl Sync for Index {}

impl Drop for Index {
    fn drop(&mut self) {
        // SAFETY: the handle came from the shim, is owned by this value alone and not used again.
        unsafe { vectide_faiss_free_index(self.handle.as_ptr()) }
    }
}

impl Index {
    /// Makes an index and trains it on rows that lie one after the other in `training`.
    pub(crate) fn build(recipe: &Recipe<'_>, training: &[f32]) -> Result<Self, LibraryError> {
        let dimension = c_int::try_from(recipe.dimension)
            .ok()
            .filter(|dimension| *dimension > 0)
            .ok_or_else(|| LibraryError(format!("dimension {} is not usable", recipe.dimension)))?;
        let description = c_string(recipe.description.as_bytes())?;
        let mut out = null_mut();
        // SAFETY: `training` holds `training_rows` whole rows of `dimension` floats; the string ends
        // with a zero byte; `out` is writable. All are only used during the call.
        let message = unsafe {
            vectide_faiss_build(
                dimension,
                description.as_ptr(),
                c_int::from(recipe.iterations),
                c_int::from(recipe.points_per_list_max),
                training.len() / recipe.dimension,
                training.as_ptr(),
                &mut out,
            )
        };
        check(message)?;
        Self::own(out)
    }

    /// Reads what [`Index::write`] wrote. The bytes must have been verified before: FAISS trusts
    /// the lengths it reads.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, LibraryError> {
        let mut out = null_mut();
        // SAFETY: the pointer and length are of one slice, read during the call only.
        let message = unsafe { vectide_faiss_read(bytes.as_ptr(), bytes.len(), &mut out) };
        check(message)?;
        Self::own(out)
    }

    fn own(handle: *mut c_void) -> Result<Self, LibraryError> {
        let handle =
            NonNull::new(handle).ok_or_else(|| LibraryError("no index was made".into()))?;
        let mut index = Self {
            handle,
            dimension: 0,
            rows: 0,
            lists: 0,
        };
        index.refresh_shape();
        Ok(index)
    }

    fn refresh_shape(&mut self) {
        // SAFETY: the handle is a live index; the three targets are writable.
        unsafe {
            vectide_faiss_shape(
                self.handle.as_ptr(),
                &mut self.dimension,
                &mut self.rows,
                &mut self.lists,
            )
        }
    }

    /// Appends rows that lie one after the other in `vectors`.
    pub(crate) fn add(&mut self, vectors: &[f32]) -> Result<(), LibraryError> {
        let rows = vectors.len() / self.dimension;
        // SAFETY: `vectors` holds `rows` whole rows of the index's dimension, copied by the call.
        let message = unsafe { vectide_faiss_add(self.handle.as_ptr(), rows, vectors.as_ptr()) };
        check(message)?;
        self.refresh_shape();
        Ok(())
    }

    /// Components of a vector.
    pub(crate) fn dimension(&self) -> usize {
        self.dimension
    }

    /// Rows added.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Inverted lists; 1 for a flat index.
    pub(crate) fn lists(&self) -> usize {
        self.lists
    }

    /// The best `k` rows with their approximate scores, best first. Of rows at a bit that is not
    /// set in `live` (one bit a row, lowest bit first) none is found.
    pub(crate) fn search(
        &self,
        query: &[f32],
        k: usize,
        nprobe: usize,
        live: Option<&[u8]>,
    ) -> Result<Vec<(u32, f32)>, LibraryError> {
        if query.len() != self.dimension {
            return Err(LibraryError(format!(
                "a query of {} components against an index of {}",
                query.len(),
                self.dimension
            )));
        }
        let k = k.min(self.rows);
        if k == 0 {
            return Ok(Vec::new());
        }
        let (mut scores, mut rows) = (vec![0.0; k], vec![-1; k]);
        let (bitmap, bitmap_bytes) = live.map_or((null(), 0), |bits| (bits.as_ptr(), bits.len()));
        // SAFETY: the query has the index's dimension; both results have room for `k` entries; the
        // bitmap is null or has the given length, and FAISS treats rows beyond it as dead.
        let message = unsafe {
            vectide_faiss_search(
                self.handle.as_ptr(),
                query.as_ptr(),
                k,
                nprobe,
                bitmap,
                bitmap_bytes,
                scores.as_mut_ptr(),
                rows.as_mut_ptr(),
            )
        };
        check(message)?;
        Ok(rows
            .into_iter()
            .zip(scores)
            .filter_map(|(row, score)| Some((u32::try_from(row).ok()?, score)))
            .collect())
    }

    /// Writes the index to a new file. It is not synced.
    pub(crate) fn write(&self, path: &Path) -> Result<(), LibraryError> {
        let path = c_string(path.as_os_str().as_bytes())?;
        // SAFETY: the handle is a live index and the path ends with a zero byte.
        check(unsafe { vectide_faiss_write(self.handle.as_ptr(), path.as_ptr()) })
    }
}

fn c_string(bytes: &[u8]) -> Result<CString, LibraryError> {
    CString::new(bytes).map_err(|_| LibraryError("a name contains a zero byte".into()))
}

fn check(message: *mut c_char) -> Result<(), LibraryError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim gives null or a zero-terminated string that is ours to free, once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        vectide_faiss_free_message(message);
        text
    };
    Err(LibraryError(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMENSION: usize = 16;

    fn vectors(rows: usize) -> Vec<f32> {
        let mut seed = 1_u64;
        let mut next = || {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            half::f16::from_f32((seed >> 40) as f32 / (1 << 24) as f32 - 0.5).to_f32()
        };
        (0..rows * DIMENSION).map(|_| next()).collect()
    }

    fn build(description: &str, rows: usize) -> Index {
        let data = vectors(rows);
        let recipe = Recipe {
            dimension: DIMENSION,
            description,
            iterations: 4,
            points_per_list_max: 64,
        };
        let mut index = Index::build(&recipe, &data).unwrap();
        index.add(&data).unwrap();
        index
    }

    /// All rows by brute force, best first.
    fn exact(query: &[f32], rows: usize) -> Vec<u32> {
        let data = vectors(rows);
        let mut order: Vec<(f32, u32)> = data
            .chunks(DIMENSION)
            .zip(0..)
            .map(|(row, at)| (row.iter().zip(query).map(|(x, y)| x * y).sum(), at))
            .collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        order.into_iter().map(|(_, at)| at).collect()
    }

    #[test]
    fn searching_all_lists_is_exact_and_honours_the_bitmap() {
        for description in ["IVF8,SQfp16", "SQfp16"] {
            let index = build(description, 500);
            let query = &vectors(501)[500 * DIMENSION..];
            let found = index.search(query, 20, 8, None).unwrap();
            let wanted = exact(query, 500);
            assert_eq!(
                found.iter().map(|hit| hit.0).collect::<Vec<_>>(),
                wanted[..20]
            );

            let mut live = vec![0xff; 500_usize.div_ceil(8)];
            for row in &wanted[..10] {
                live[*row as usize / 8] &= !(1 << (row % 8));
            }
            let found = index.search(query, 20, 8, Some(&live)).unwrap();
            assert_eq!(
                found.iter().map(|hit| hit.0).collect::<Vec<_>>(),
                wanted[10..30]
            );
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let index = build("IVF4,SQfp16", 300);
        index.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let again = Index::read(&bytes).unwrap();
        assert_eq!(
            (again.rows(), again.dimension(), again.lists()),
            (300, DIMENSION, 4)
        );
        let query = &vectors(1);
        assert_eq!(
            again.search(query, 5, 4, None),
            index.search(query, 5, 4, None)
        );
        assert!(Index::read(&bytes[..bytes.len() / 2]).is_err(), "cut short");
        assert!(Index::read(&[]).is_err());
    }

    #[test]
    fn faults_are_messages() {
        let recipe = |description| Recipe {
            dimension: DIMENSION,
            description,
            iterations: 1,
            points_per_list_max: 1,
        };
        let error = Index::build(&recipe("NoSuchIndex"), &vectors(1)).unwrap_err();
        assert!(error.0.contains("NoSuchIndex"), "{error:?}");
        assert!(Index::build(&recipe("IVF100,SQfp16"), &vectors(2)).is_err());
        let index = build("SQfp16", 3);
        assert!(index.write(Path::new("/nonexistent/folder/file")).is_err());
        assert!(index.search(&[0.0; 3], 1, 1, None).is_err());
    }

    /// OpenMP's setting belongs to the calling thread, so each call must make it.
    #[test]
    fn openmp_has_one_thread_on_every_thread_that_calls() {
        let index = build("IVF8,SQfp16", 500);
        let threads_of_a_new_thread = |call: fn(&Index)| {
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| {
                    call(&index);
                    // SAFETY: only asks the OpenMP runtime for a number.
                    unsafe { vectide_faiss_threads_max() }
                });
                asked.join().unwrap()
            })
        };
        let untouched = threads_of_a_new_thread(|_| ());
        let cores = std::thread::available_parallelism().unwrap().get();
        if cores > 1 && std::env::var_os("OMP_NUM_THREADS").is_none() {
            assert!(untouched > 1, "the test would see a pool");
        }
        let search = |index: &Index| drop(index.search(&vectors(1), 3, 8, None).unwrap());
        assert_eq!(threads_of_a_new_thread(search), 1);
        assert_eq!(
            threads_of_a_new_thread(|_| drop(build("IVF8,SQfp16", 300))),
            1
        );
    }
}
