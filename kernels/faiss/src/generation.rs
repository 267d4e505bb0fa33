//! What the coded segments of a shard have in common: the centroids of their lists and the codebook.
//!
//! A generation is trained once on a sample of the shard's rows and never changes. Its segments can be
//! searched with one table and one choice of lists, and merged without coding a row again. When the shard
//! has grown, or its rows have moved, a new generation is trained and takes the segments over one by one.
//!
//! Each segment names the file among its own, as a hard link where the file system has them: so segments
//! come and go by themselves, and the bytes are there once.
//!
//! Layout of the file, little-endian: `VECTGENE`, format version 1 (4 bytes), dimension (4), lists (4),
//! parts (4), number (8), rows it was trained for (8), mean length of what the centroids leave (f32, 4),
//! zero up to 64; then centroids and codebook in f32.
//!
//! Invariant: two generations of a shard have different numbers, the later the greater one.

use crate::dot::Query;
use crate::files::{damaged, io_error};
use crate::header::{HEADER_BYTES, Header, Kind};
use crate::library::{Encoder, LibraryError, Shape, TrainingLimits, train};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use vectide_model::IndexError;

const KIND: Kind = Kind {
    magic: b"VECTGENE",
    version: 1,
    name: "a generation's file",
};

/// Components that one value of a code stands for, where the dimension allows: 4 bits for 4 components.
const PART_WIDTH: usize = 4;
/// Rounds of k-means: the inertia hardly moves after them.
const ITERATIONS: u8 = 8;
/// Training rows a list; FAISS's own lower bound for a good clustering is 39.
const TRAINING_ROWS_PER_LIST: usize = 40;
/// Training rows at most: 100 MB of f32 at 384 dimensions.
const TRAINING_ROWS_MAX: usize = 65_536;
/// Rows that the codebook is made from: 1,024 for each of its 16 values.
const CODEBOOK_ROWS_MAX: usize = 16_384;

/// Rows of a batch at which it is looked how well they are fitted.
const FIT_ROWS: usize = 256;

/// How many times the mean residual of training makes a batch strange. Batches of 256 sentences from the
/// corpora that a generation was trained on lie at 0.99 to 1.05 times, those from another corpus at 1.16 to
/// 1.39 (SciFact against the OpenTelemetry documents, all-MiniLM-L6-v2).
const STRANGE_RESIDUAL: f32 = 1.08;

/// How many times the rows it was trained for a shard may have before the next generation.
pub(crate) const GROWTH: usize = 4;

/// Centroids and codebook of the segments trained together.
#[derive(Debug)]
pub(crate) struct Generation {
    number: u64,
    shape: Shape,
    /// Live rows of the shard when it was trained.
    rows: usize,
    /// Mean length of a row less its centroid, in training.
    residual: f32,
    /// For queries: half the memory to read, and scores of lists need no more.
    centroids: Box<[f16]>,
    exact_centroids: Box<[f32]>,
    codebook: Box<[f32]>,
    encoder: OnceLock<Result<Encoder, LibraryError>>,
    /// Rows that were coded since, in batches which it fits worse than those it was trained on.
    strangers: AtomicUsize,
    /// A file that holds it, if none has removed it since.
    file: Mutex<Option<PathBuf>>,
}

/// Lists for a shard that has `rows` rows now and may grow to [`GROWTH`] times as many.
fn lists_for(rows: usize) -> usize {
    (((rows * GROWTH / 2) as f64).sqrt() * 2.0) as usize
}

/// Parts of a vector: of 4 components, or of as many as divide the dimension.
fn parts_for(dimension: usize) -> usize {
    let widths = (1..=PART_WIDTH).rev();
    let width = widths
        .into_iter()
        .find(|width| dimension.is_multiple_of(*width));
    dimension / width.unwrap_or(1)
}

impl Generation {
    /// How many rows training takes of a shard of so many.
    pub(crate) fn sample_rows(rows: usize) -> usize {
        (lists_for(rows) * TRAINING_ROWS_PER_LIST)
            .min(TRAINING_ROWS_MAX)
            .min(rows)
    }

    /// Trains on a sample of a shard's `rows` rows.
    pub(crate) fn train(
        number: u64,
        dimension: usize,
        rows: usize,
        sample: &[f32],
    ) -> Result<Self, LibraryError> {
        let sampled = sample.len() / dimension.max(1);
        let shape = Shape {
            dimension,
            // No more than there are rows to put them at.
            lists: lists_for(rows).min(sampled / 2).max(1),
            subquantizers: parts_for(dimension),
        };
        let limits = TrainingLimits {
            iterations: ITERATIONS,
            codebook_rows_max: CODEBOOK_ROWS_MAX,
        };
        let (centroids, codebook) = train(shape, limits, sample)?;
        let mut generation = Self::of(number, shape, rows, 0.0, centroids, codebook);
        let first = &sample[..sample.len().min(1000 * dimension)];
        let (lists, _) = generation.encode(first)?;
        generation.residual = generation.residual_of(first, &lists);
        Ok(generation)
    }

    fn of(
        number: u64,
        shape: Shape,
        rows: usize,
        residual: f32,
        centroids: Vec<f32>,
        codebook: Vec<f32>,
    ) -> Self {
        let mut halves = vec![f16::ZERO; centroids.len()];
        halves.convert_from_f32_slice(&centroids);
        Self {
            number,
            shape,
            rows,
            residual,
            centroids: halves.into(),
            exact_centroids: centroids.into(),
            codebook: codebook.into(),
            encoder: OnceLock::new(),
            strangers: AtomicUsize::new(0),
            file: Mutex::new(None),
        }
    }

    /// The mean length of what the centroids of their lists leave of rows.
    fn residual_of(&self, rows: &[f32], lists: &[u32]) -> f32 {
        let length = |(row, list): (&[f32], &u32)| {
            let centroid = &self.exact_centroids[*list as usize * row.len()..][..row.len()];
            let squares = row.iter().zip(centroid).map(|(x, y)| (x - y) * (x - y));
            squares.sum::<f32>().sqrt()
        };
        let lengths = rows.chunks_exact(self.shape.dimension).zip(lists);
        lengths.map(length).sum::<f32>() / lists.len().max(1) as f32
    }

    /// Which of a shard's generations.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Live rows of the shard when it was trained.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Lists.
    pub(crate) fn lists(&self) -> usize {
        self.shape.lists
    }

    /// Parts of a code.
    pub(crate) fn parts(&self) -> usize {
        self.shape.subquantizers
    }

    /// Bytes of a row's code.
    pub(crate) fn code_bytes(&self) -> usize {
        self.shape.code_bytes()
    }

    /// Notes how well it fits the rows of a batch, which lie in `vectors` and were coded into `lists`.
    pub(crate) fn note_fit(&self, vectors: &[f32], lists: &[u32]) {
        let first = &lists[..lists.len().min(FIT_ROWS)];
        if self.residual_of(vectors, first) > self.residual * STRANGE_RESIDUAL {
            self.strangers.fetch_add(lists.len(), Ordering::Relaxed);
        }
    }

    /// Rows that it fits badly: since it was opened, not for ever, since a start that finds few of them has
    /// no hurry.
    pub(crate) fn strangers(&self) -> usize {
        self.strangers.load(Ordering::Relaxed)
    }

    /// The codebook: parts x 16 x width.
    pub(crate) fn codebook(&self) -> &[f32] {
        &self.codebook
    }

    /// The inner product of a query with each centroid.
    pub(crate) fn list_scores(&self, query: &Query<'_>) -> Vec<f32> {
        let centroids = self.centroids.chunks_exact(self.shape.dimension);
        centroids.map(|centroid| query.dot(centroid)).collect()
    }

    /// The list and the code of each row that lies in `vectors`.
    pub(crate) fn encode(&self, vectors: &[f32]) -> Result<(Vec<u32>, Vec<u8>), LibraryError> {
        // Made when the first row is coded: readers need none.
        let make = || Encoder::new(self.shape, &self.exact_centroids, &self.codebook);
        match self.encoder.get_or_init(make) {
            Ok(encoder) => encoder.encode(vectors),
            Err(error) => Err(error.clone()),
        }
    }

    /// Makes the file at `path`, which will be renamed to `target`: as a link to one that there is already,
    /// if that still exists and the file system has links.
    pub(crate) fn link(&self, path: &Path, target: &Path) -> Result<(), IndexError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // What a build that was ended left there would be in the way of a link.
        let _ = fs::remove_file(path);
        let is_linked = file
            .as_ref()
            .is_some_and(|file| fs::hard_link(file, path).is_ok());
        if !is_linked {
            self.write(path)?;
        }
        *file = Some(target.into());
        Ok(())
    }

    /// Writes the file. It is not synced.
    fn write(&self, path: &Path) -> Result<(), IndexError> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.exact_centroids.len() * 4);
        bytes.extend(KIND.magic);
        let sizes = [
            self.shape.dimension,
            self.shape.lists,
            self.shape.subquantizers,
        ];
        bytes.extend(KIND.version.to_le_bytes());
        bytes.extend(sizes.iter().flat_map(|size| (*size as u32).to_le_bytes()));
        bytes.extend(self.number.to_le_bytes());
        bytes.extend((self.rows as u64).to_le_bytes());
        bytes.extend(self.residual.to_le_bytes());
        bytes.resize(HEADER_BYTES, 0);
        let numbers = self.exact_centroids.iter().chain(&self.codebook);
        bytes.extend(numbers.flat_map(|number| number.to_le_bytes()));
        fs::write(path, bytes).map_err(|error| io_error("writing", path, &error))
    }

    /// Reads what [`Generation::write`] wrote; the bytes were verified before.
    pub(crate) fn read(bytes: &[u8], path: &Path, dimension: usize) -> Result<Self, IndexError> {
        let header = Header::read(&KIND, bytes, path)?;
        let shape = Shape {
            dimension: header.u32(12) as usize,
            lists: header.u32(16) as usize,
            subquantizers: header.u32(20) as usize,
        };
        if shape.dimension != dimension {
            let detail = format!("has {} dimensions, the index {dimension}", shape.dimension);
            return Err(damaged(path, detail));
        }
        let (words, rest) = bytes[HEADER_BYTES..].as_chunks::<4>();
        let is_whole = words.len() == shape.centroid_numbers() + shape.codebook_numbers();
        let is_usable = shape.subquantizers == parts_for(dimension) && shape.lists > 0;
        if !rest.is_empty() || !is_whole || !is_usable {
            return Err(damaged(path, "has another length than its header says"));
        }
        let mut numbers: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        let codebook = numbers.split_off(shape.centroid_numbers());
        let residual = f32::from_bits(header.u32(40));
        let rows = header.u64(32) as usize;
        let generation = Self::of(header.u64(24), shape, rows, residual, numbers, codebook);
        *generation
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(path.into());
        Ok(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rows: usize, dimension: usize) -> Vec<f32> {
        let number = |at: usize| (at * 7919 % 1009) as f32 / 500.0 - 1.0;
        (0..rows * dimension).map(number).collect()
    }

    #[test]
    fn a_file_comes_back_and_codes_alike() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("generation");
        let sample = sample(300, 24);
        let generation = Generation::train(7, 24, 1000, &sample).unwrap();
        generation.write(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let again = Generation::read(&bytes, &path, 24).unwrap();
        assert_eq!((again.number(), again.rows()), (7, 1000));
        assert_eq!((again.lists(), again.parts()), (generation.lists(), 6));
        assert_eq!(again.residual, generation.residual);
        assert!(again.residual > 0.0);
        assert_eq!(
            again.encode(&sample).unwrap(),
            generation.encode(&sample).unwrap()
        );
        let query = Query::new(&sample[..24]);
        assert_eq!(again.list_scores(&query), generation.list_scores(&query));

        let fact = |bytes: &[u8], dimension| {
            let read = Generation::read(bytes, &path, dimension);
            read.unwrap_err().fact
        };
        assert!(fact(&bytes, 23).contains("has 24 dimensions, the index 23"));
        assert!(fact(&bytes[..20], 24).contains("no header"));
        assert!(fact(&bytes[..bytes.len() - 4], 24).contains("another length"));
        let mut other = bytes.clone();
        other[8] = 2;
        assert!(fact(&other, 24).contains("format version 2"));
        other[0] = 0;
        assert!(fact(&other, 24).contains("is not a generation's file"));
    }

    #[test]
    fn any_dimension_has_parts() {
        let parts = |dimension| parts_for(dimension);
        assert_eq!([384, 3, 2, 1, 10, 7].map(parts), [96, 1, 1, 1, 5, 7]);
        for dimension in [1, 3, 7, 10] {
            let generation = Generation::train(1, dimension, 50, &sample(50, dimension)).unwrap();
            let (lists, codes) = generation.encode(&sample(5, dimension)).unwrap();
            assert_eq!((lists.len(), codes.len()), (5, 5 * generation.code_bytes()));
        }
    }
}
