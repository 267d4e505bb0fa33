//! A sealed segment: immutable rows, and FAISS's inverted lists over them if they are many.
//!
//! Row numbers of the rows file and of the FAISS index are the same. FAISS names candidates; their
//! scores are computed from the rows file, by the same code that scans the head.
//!
//! Invariant: what is served was read back from the very files that the manifest names.

use crate::bitmap::Bitmap;
use crate::dot::Query;
use crate::files::{self, Part, damaged};
use crate::library::{Index, LibraryError, Recipe};
use crate::rows::{self, Rows, RowsInOrder};
use crate::top::Top;
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use vectide_model::{ChunkId, IndexError, ScoredChunk, SegmentId, SegmentManifest};

/// Rounds of k-means: the inertia hardly moves after them.
const TRAINING_ITERATIONS: u8 = 8;
/// Training rows a list; FAISS's own lower bound for a good clustering is 39.
const TRAINING_ROWS_PER_LIST: usize = 48;
/// Training rows at most: 100 MB of f32 at 384 dimensions.
const TRAINING_ROWS_MAX: usize = 65_536;
/// Rows that are widened to f32 at a time when adding: 6 MB at 384 dimensions.
const ADD_ROWS: usize = 4096;
/// Lists probed at least, measured with lists as [`lists_for`] makes them on MiniLM embeddings of
/// sentences of SciFact abstracts with claims as queries: recall@10 of 0.98 takes 54 to 72 lists of
/// 181 at 8k rows, 90 of 362 at 33k and 79 of 529 at 70k. Synthetic clusters need a third of that.
const PROBES_MIN: usize = 90;
/// One list in so many is probed at least.
const PROBE_SHARE: usize = 16;
/// Rows looked at for each hit asked for, at least.
const ROWS_PER_HIT: usize = 16;
/// Candidates asked for beyond `k`: room for ties at the end, which FAISS breaks otherwise than we.
const DEPTH_MARGIN: usize = 16;
/// Candidates up to which ties at the end are followed. Beyond it, of more than this many rows with
/// the very same score, an arbitrary choice is shown.
const TIE_DEPTH_MAX: usize = 4096;
/// How far FAISS's order may differ from ours by rounding, in units of a score of 1.
const ROUNDING: f32 = 1e-5;

/// A sealed segment, open.
#[derive(Debug)]
pub(crate) struct Segment {
    manifest: SegmentManifest,
    rows: Rows,
    /// None for a segment that is scanned whole.
    index: Option<Index>,
}

/// Lists for a number of rows: more would make training and comparing with the centroids the greater
/// part of the work, fewer the scan.
fn lists_for(rows: usize) -> usize {
    (((rows as f64).sqrt() * 2.0) as usize).max(1)
}

/// What a segment is built to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Components of a vector.
    pub(crate) dimension: usize,
    /// Rows up to which a segment has no lists and is scanned whole.
    pub(crate) flat_rows_max: usize,
}

/// Why a build gave no segment.
#[derive(Debug)]
pub(crate) enum Unbuilt {
    /// The shard it was for is closed.
    Cancelled,
    /// It failed.
    Failed(IndexError),
}

impl From<IndexError> for Unbuilt {
    fn from(error: IndexError) -> Self {
        Self::Failed(error)
    }
}

impl Segment {
    /// Builds and writes a segment of `source`'s rows (at least one); its files are synced and under
    /// their final names when this returns.
    pub(crate) fn build(
        directory: &Path,
        id: SegmentId,
        plan: Plan,
        source: &dyn RowsInOrder,
        cancelled: &AtomicBool,
    ) -> Result<Self, Unbuilt> {
        let dimension = plan.dimension;
        let rows_name = files::rows_name(id);
        let rows_part = Part::new(directory, &rows_name);
        rows::write(rows_part.path(), dimension, source)?;
        let mut parts = vec![(rows_name, rows_part)];
        if source.rows() > plan.flat_rows_max {
            let name = files::index_name(id);
            let part = Part::new(directory, &name);
            build_index(&part, dimension, source, cancelled).map_err(|error| {
                Unbuilt::Failed(IndexError {
                    fact: format!("building segment {:016x} failed: {}", id.0, error.0),
                    hint: "this is a shortage of memory or disk, or a defect: the committed state \
                           is intact, start again"
                        .into(),
                })
            })?;
            parts.push((name, part));
        }
        if cancelled.load(Ordering::Relaxed) {
            return Err(Unbuilt::Cancelled);
        }
        let (mut files, mut maps) = (Vec::new(), Vec::new());
        for (name, part) in parts {
            let (map, checksum) = part.publish()?;
            files.push((name, map.len() as u64, checksum));
            maps.push(map);
        }
        files::sync_directory(directory)?;
        let manifest = SegmentManifest {
            id,
            rows: source.rows() as u32,
            files,
        };
        Ok(Self::assemble(directory, manifest, dimension, maps)?)
    }

    /// Opens a committed segment, verifying its files.
    pub(crate) fn open(
        directory: &Path,
        manifest: SegmentManifest,
        dimension: usize,
    ) -> Result<Self, IndexError> {
        let mut names = vec![files::rows_name(manifest.id)];
        let index_name = files::index_name(manifest.id);
        if manifest.files.iter().any(|file| file.0 == index_name) {
            names.push(index_name);
        }
        let mut maps = Vec::new();
        for name in names {
            let (path, length, checksum) = files::manifest_entry(directory, &manifest, &name)?;
            maps.push(files::map_verified(&path, length, checksum)?);
        }
        Self::assemble(directory, manifest, dimension, maps)
    }

    /// Reads the mapped rows file and, if there is one, index file.
    fn assemble(
        directory: &Path,
        manifest: SegmentManifest,
        dimension: usize,
        maps: Vec<Mmap>,
    ) -> Result<Self, IndexError> {
        let mut maps = maps.into_iter();
        let rows_path = directory.join(files::rows_name(manifest.id));
        let rows_map = maps
            .next()
            .ok_or_else(|| damaged(&rows_path, "was not read"))?;
        let rows = Rows::new(rows_map, &rows_path, dimension)?;
        if rows.rows() != manifest.rows as usize {
            let detail = format!("has {} rows, the manifest {}", rows.rows(), manifest.rows);
            return Err(damaged(&rows_path, detail));
        }
        let index_path = directory.join(files::index_name(manifest.id));
        let index = maps
            .next()
            .map(|map| read_index(&map, &index_path, &rows, dimension));
        Ok(Self {
            manifest,
            rows,
            index: index.transpose()?,
        })
    }

    /// Identity.
    pub(crate) fn id(&self) -> SegmentId {
        self.manifest.id
    }

    /// What the commit records.
    pub(crate) fn manifest(&self) -> &SegmentManifest {
        &self.manifest
    }

    /// Rows, dead ones included.
    pub(crate) fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// The chunk of a row.
    pub(crate) fn chunk(&self, row: usize) -> ChunkId {
        self.rows.chunk(row)
    }

    /// The row of a chunk, live or not.
    pub(crate) fn row_of(&self, chunk: &ChunkId) -> Option<usize> {
        self.rows.row_of(chunk)
    }

    /// The vector of a row.
    pub(crate) fn vector(&self, row: usize) -> &[f16] {
        self.rows.vector(row)
    }

    /// Lists to probe for `k` hits.
    fn probes(lists: usize, k: usize, live: usize) -> usize {
        let for_recall = PROBES_MIN.max(lists.div_ceil(PROBE_SHARE));
        let rows_wanted = k.saturating_mul(ROWS_PER_HIT).min(live);
        let for_hits = (lists * rows_wanted).div_ceil(live.max(1));
        for_recall.max(for_hits).min(lists)
    }

    /// Offers the best `k` of the live rows, and perhaps others.
    pub(crate) fn search(&self, query: &Query<'_>, k: usize, live: &Bitmap, top: &mut Top) {
        let k = k.min(live.live());
        let Some(index) = &self.index else {
            return self.scan(query, live, top);
        };
        let probes = Self::probes(index.lists(), k, live.live());
        if probes >= index.lists() {
            return self.scan(query, live, top);
        }
        match self.candidates(index, query, k, probes, live) {
            Ok(hits) => hits.iter().for_each(|hit| top.offer(hit.chunk, hit.score)),
            Err(error) => {
                let segment = self.manifest.id.0;
                tracing::error!(
                    segment,
                    error = error.0,
                    "searching all rows instead of lists"
                );
                self.scan(query, live, top);
            }
        }
    }

    /// All live rows, exactly.
    fn scan(&self, query: &Query<'_>, live: &Bitmap, top: &mut Top) {
        for row in live.iter() {
            top.offer(self.rows.chunk(row), query.dot(self.rows.vector(row)));
        }
    }

    /// FAISS's candidates with exact scores: deep enough that no row which ties with the `k`-th is
    /// left out because of FAISS's order.
    fn candidates(
        &self,
        index: &Index,
        query: &Query<'_>,
        k: usize,
        probes: usize,
        live: &Bitmap,
    ) -> Result<Vec<ScoredChunk>, LibraryError> {
        let mut depth = k + DEPTH_MARGIN;
        loop {
            let found = index.search(query.components(), depth, probes, live.selection())?;
            let is_cut = found.len() >= depth;
            let tied = found.last().zip(found.get(k - 1));
            let is_tied =
                tied.is_some_and(|(last, kth)| last.1 >= kth.1 - ROUNDING * kth.1.abs().max(1.0));
            if is_cut && is_tied && depth < TIE_DEPTH_MAX {
                depth *= 4;
                continue;
            }
            let score = |(row, _): (u32, f32)| ScoredChunk {
                chunk: self.rows.chunk(row as usize),
                score: query.dot(self.rows.vector(row as usize)),
            };
            return Ok(found.into_iter().map(score).collect());
        }
    }
}

fn build_index(
    part: &Part,
    dimension: usize,
    source: &dyn RowsInOrder,
    cancelled: &AtomicBool,
) -> Result<(), LibraryError> {
    let index = train(dimension, source)?;
    let index = add_all(index, source, cancelled)?;
    index.write(part.path())
}

fn read_index(
    bytes: &[u8],
    path: &Path,
    rows: &Rows,
    dimension: usize,
) -> Result<Index, IndexError> {
    let index = Index::read(bytes)
        .map_err(|error| damaged(path, format_args!("is refused: {}", error.0)))?;
    if (index.rows(), index.dimension()) != (rows.rows(), dimension) {
        let detail = format!(
            "holds {} rows of {} dimensions, its rows file {} of {dimension}",
            index.rows(),
            index.dimension(),
            rows.rows(),
        );
        return Err(damaged(path, detail));
    }
    Ok(index)
}

fn widen(source: &dyn RowsInOrder, rows: impl Iterator<Item = usize>, into: &mut Vec<f32>) {
    into.clear();
    for row in rows {
        let vector = source.vector(row);
        let start = into.len();
        into.resize(start + vector.len(), 0.0);
        vector.convert_to_f32_slice(&mut into[start..]);
    }
}

/// Trains on rows spread evenly over the segment; ids are hashes, so their order is no order of the
/// vectors.
fn train(dimension: usize, source: &dyn RowsInOrder) -> Result<Index, LibraryError> {
    let (rows, lists) = (source.rows(), lists_for(source.rows()));
    let wanted = (lists * TRAINING_ROWS_PER_LIST)
        .clamp(1, TRAINING_ROWS_MAX)
        .min(rows);
    let mut training = Vec::new();
    widen(
        source,
        (0..wanted).map(|at| at * rows / wanted),
        &mut training,
    );
    let description = format!("IVF{lists},SQfp16");
    let recipe = Recipe {
        dimension,
        description: &description,
        iterations: TRAINING_ITERATIONS,
        points_per_list_max: u16::MAX,
    };
    Index::build(&recipe, &training)
}

fn add_all(
    mut index: Index,
    source: &dyn RowsInOrder,
    cancelled: &AtomicBool,
) -> Result<Index, LibraryError> {
    let mut batch = Vec::new();
    for start in (0..source.rows()).step_by(ADD_ROWS) {
        if cancelled.load(Ordering::Relaxed) {
            break;
        }
        widen(
            source,
            start..(start + ADD_ROWS).min(source.rows()),
            &mut batch,
        );
        index.add(&batch)?;
    }
    Ok(index)
}
