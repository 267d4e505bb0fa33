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
//! Whether rows have moved is judged by those that come after training, against rows that training had but did
//! not see: k-means fits the rows it sees better than any others, the more so the fewer they are a list, and a
//! generation that were judged by rows it was trained for would soon be found unfit by them, and the next one, too.
//!
//! Invariant: two generations of a shard have different numbers, the later the greater one; a row tells at most once
//! how a generation fits, and only if it is newer.

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

/// Rows that training leaves out at most, and one in so many, to see how well it fits others.
const HELD_OUT_ROWS_MAX: usize = 1024;
const HELD_OUT_SHARE: usize = 16;

/// Rows of a batch at which it is looked how well they are fitted.
const FIT_ROWS: usize = 1024;

/// How many times the mean residual of the rows held out makes a batch strange. Batches of 256 sentences from
/// the corpora that a generation was trained on lay at 0.99 to 1.05 times that of rows trained on, those from
/// another corpus at 1.16 to 1.39 (SciFact against the OpenTelemetry documents, all-MiniLM-L6-v2); rows held out
/// lie at about 1.02 times.
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
    /// Mean length of a row less its centroid, of rows held out of training.
    residual: f32,
    /// For queries: half the memory to read, and scores of lists need no more.
    centroids: Box<[f16]>,
    exact_centroids: Box<[f32]>,
    codebook: Box<[f32]>,
    encoder: OnceLock<Result<Encoder, LibraryError>>,
    /// Rows that came since, in batches which it fits worse than those it was trained for.
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

/// Rows of a shard to train a generation on, and rows apart from them.
pub(crate) struct Sample {
    dimension: usize,
    /// Rows of the shard.
    rows: usize,
    /// How many it takes, and how many of them are held out.
    wanted: usize,
    held_out_wanted: usize,
    /// How many it has.
    taken: usize,
    training: Vec<f32>,
    held_out: Vec<f32>,
}

impl Sample {
    /// For a shard of so many rows.
    pub(crate) fn of(rows: usize, dimension: usize) -> Self {
        let training = (lists_for(rows) * TRAINING_ROWS_PER_LIST).min(TRAINING_ROWS_MAX);
        let held_out = |rows: usize| (rows / HELD_OUT_SHARE).min(HELD_OUT_ROWS_MAX);
        let wanted = (training + held_out(training)).min(rows);
        let held_out_wanted = held_out(wanted);
        Self {
            dimension,
            rows,
            wanted,
            held_out_wanted,
            taken: 0,
            training: Vec::with_capacity((wanted - held_out_wanted) * dimension),
            held_out: Vec::with_capacity(held_out_wanted * dimension),
        }
    }

    /// Is offered each of the shard's rows, of which it takes some spread evenly over all, and holds some of these
    /// out, spread as evenly.
    pub(crate) fn offer<'a>(&mut self, number: usize, vector: impl FnOnce() -> &'a [f16]) {
        if self.taken == self.wanted || number != self.taken * self.rows / self.wanted {
            return;
        }
        let held_out_of = |taken: usize| taken * self.held_out_wanted / self.wanted;
        let is_held_out = held_out_of(self.taken + 1) > held_out_of(self.taken);
        let into = if is_held_out {
            &mut self.held_out
        } else {
            &mut self.training
        };
        let start = into.len();
        into.resize(start + self.dimension, 0.0);
        vector().convert_to_f32_slice(&mut into[start..]);
        self.taken += 1;
    }
}

impl Generation {
    /// Trains on a sample.
    pub(crate) fn train(number: u64, sample: &Sample) -> Result<Self, LibraryError> {
        let (dimension, rows) = (sample.dimension, sample.rows);
        let sampled = sample.training.len() / dimension.max(1);
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
        let (centroids, codebook) = train(shape, limits, &sample.training)?;
        let mut generation = Self::of(number, shape, rows, 0.0, centroids, codebook);
        // Of a handful of rows none can be spared.
        let judged: &[f32] = match &sample.held_out[..] {
            [] => &sample.training,
            held_out => held_out,
        };
        let (lists, _) = generation.encode(judged)?;
        generation.residual = generation.residual_of(judged, &lists);
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

    /// Notes how well it fits the rows of a batch, which lie in `vectors` and were coded into `lists`. They have to
    /// be newer than it is.
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
    use std::slice::from_ref;

    fn vectors(rows: usize, dimension: usize) -> Vec<f32> {
        let number = |at: usize| (at * 7919 % 1009) as f32 / 500.0 - 1.0;
        (0..rows * dimension).map(number).collect()
    }

    /// Trained on rows of a shard.
    fn trained(number: u64, dimension: usize, rows: &[f32]) -> Generation {
        let mut halves = vec![f16::ZERO; rows.len()];
        halves.convert_from_f32_slice(rows);
        let mut sample = Sample::of(rows.len() / dimension, dimension);
        for (number, vector) in halves.chunks_exact(dimension).enumerate() {
            sample.offer(number, || vector);
        }
        Generation::train(number, &sample).unwrap()
    }

    #[test]
    fn a_sample_and_what_is_held_out_are_spread_over_all_rows() {
        let tenths: [f16; 10] = std::array::from_fn(|tenth| f16::from_f32(tenth as f32));
        for rows in [1, 15, 16, 31, 1000, 20_000, 70_000, 1_000_000] {
            let mut sample = Sample::of(rows, 1);
            for number in 0..rows {
                sample.offer(number, || from_ref(&tenths[number * 10 / rows]));
            }
            let (training, held_out) = (sample.training.len(), sample.held_out.len());
            assert_eq!(
                (training + held_out, held_out),
                (sample.wanted, sample.held_out_wanted)
            );
            assert!(training > 0 && training <= TRAINING_ROWS_MAX && held_out <= HELD_OUT_ROWS_MAX);
            for (part, of) in [(&sample.training, training), (&sample.held_out, held_out)] {
                for tenth in 0..10 {
                    let found = part.iter().filter(|it| **it == tenth as f32).count();
                    assert!(found.abs_diff(of / 10) <= 2, "{found} of {of} of {rows}");
                }
            }
        }
    }

    /// Rows that training saw lie nearer to their centroids than others of the same kind, which are no strangers for
    /// that.
    #[test]
    fn it_is_judged_by_rows_that_it_did_not_see() {
        let mut state = 1_u64;
        let mut random = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let dimension = 16;
        let rows: Vec<f32> = (0..500 * dimension).map(|_| random()).collect();
        let generation = trained(1, dimension, &rows);
        let later: Vec<f32> = (0..1_000 * dimension).map(|_| random()).collect();
        let residual = |rows: &[f32]| {
            let (lists, _) = generation.encode(rows).unwrap();
            generation.residual_of(rows, &lists)
        };
        assert!(residual(&rows) * STRANGE_RESIDUAL < residual(&later));
        let note = |rows: &[f32]| {
            let (lists, _) = generation.encode(rows).unwrap();
            generation.note_fit(rows, &lists);
            generation.strangers()
        };
        assert_eq!(note(&later), 0);
        let moved: Vec<f32> = later.iter().map(|x| x * 1.2).collect();
        assert_eq!(note(&moved), 1_000);
    }

    #[test]
    fn a_file_comes_back_and_codes_alike() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("generation");
        let sample = vectors(300, 24);
        let generation = trained(7, 24, &sample);
        generation.write(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let again = Generation::read(&bytes, &path, 24).unwrap();
        assert_eq!((again.number(), again.rows()), (7, 300));
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
            let generation = trained(1, dimension, &vectors(50, dimension));
            let (lists, codes) = generation.encode(&vectors(5, dimension)).unwrap();
            assert_eq!((lists.len(), codes.len()), (5, 5 * generation.code_bytes()));
        }
    }
}
