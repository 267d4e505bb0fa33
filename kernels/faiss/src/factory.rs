//! Opening shards.
//!
//! Invariant: a shard opens to exactly the rows of its committed state, or not at all.

use crate::bitmap::Bitmap;
use crate::builder::Builder;
use crate::files;
use crate::head::Head;
use crate::read::{Held, ShardRead};
use crate::segment::{OpenGenerations, Segment};
use crate::shard::{Shard, check_dimension};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use vectide_model::{
    IndexError, SegmentId, ShardState, VectorIndex, VectorIndexFactory, VectorIndexRead,
};

/// Limits of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaissOptions {
    /// Rows of a head (1 to 65,536): a scan of 8192 rows of 384 dimensions takes a fraction of a
    /// millisecond, and fewer would make more and smaller segments.
    pub head_rows_max: usize,
    /// Full heads that may wait to be sealed (at least 1) before [`VectorIndex::insert`] waits for
    /// the builder. They are scanned by every query, and each takes 6 MiB at 384 dimensions.
    pub frozen_heads_max: usize,
    /// Rows up to which a shard has no codes and its segments are scanned whole: training pays from some
    /// thousand rows on.
    pub flat_rows_max: usize,
    /// How sealed rows are found.
    pub quantization: Quantization,
}

/// How rows of sealed segments are found. Scores are computed from the stored vectors in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// Inverted lists of 4-bit product codes, 48 bytes a row at 384 dimensions, read in place.
    #[default]
    Pq,
    /// FAISS's inverted lists of bytes: a byte a component in memory, trained for each segment.
    Sq8,
    /// FAISS's inverted lists of the vectors themselves: two bytes a component in memory.
    Fp16,
    /// Every query looks at every row.
    Flat,
}

impl FaissOptions {
    /// Rows up to which a segment of a shard that has codes is scanned whole: as long as choosing lists
    /// takes.
    pub(crate) fn whole_rows_max(self) -> usize {
        self.flat_rows_max.min(1024)
    }
}

impl Default for FaissOptions {
    fn default() -> Self {
        Self {
            head_rows_max: 8192,
            frozen_heads_max: 8,
            flat_rows_max: 10_000,
            quantization: Quantization::Pq,
        }
    }
}

/// Largest head: slots are counted in 32 bits, and beyond this a scan takes milliseconds.
const HEAD_ROWS_LIMIT: usize = 65_536;

/// Opens FAISS shards. The background threads, three for all its shards, start with the first one and
/// end when the factory and all its shards are dropped.
#[derive(Debug, Default)]
pub struct FaissFactory {
    options: FaissOptions,
    builder: Mutex<Option<Arc<Builder>>>,
}

impl FaissFactory {
    /// A factory of shards with these limits; values out of range are brought into it.
    pub fn new(options: FaissOptions) -> Self {
        Self {
            options: FaissOptions {
                head_rows_max: options.head_rows_max.clamp(1, HEAD_ROWS_LIMIT),
                frozen_heads_max: options.frozen_heads_max.max(1),
                ..options
            },
            builder: Mutex::new(None),
        }
    }

    fn builder(&self) -> Result<Arc<Builder>, IndexError> {
        let mut builder = self.builder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(builder) = &*builder {
            return Ok(builder.clone());
        }
        Ok(builder.insert(Arc::new(Builder::start()?)).clone())
    }
}

impl VectorIndexFactory for FaissFactory {
    fn open(
        &self,
        directory: &Path,
        dimension: usize,
        state: ShardState,
    ) -> Result<Box<dyn VectorIndex>, IndexError> {
        check_processor()?;
        let shard = open_shard(directory, dimension, state, self.options, self.builder()?)?;
        Ok(Box::new(shard))
    }

    fn read(
        &self,
        directory: &Path,
        dimension: usize,
        state: ShardState,
    ) -> Result<Arc<dyn VectorIndexRead>, IndexError> {
        check_processor()?;
        let read = read_shard(directory, dimension, &state, self.options)?;
        Ok(Arc::new(read))
    }
}

/// Opens a shard whose segments are built by `builder`.
pub(crate) fn open_shard(
    directory: &Path,
    dimension: usize,
    state: ShardState,
    options: FaissOptions,
    builder: Arc<Builder>,
) -> Result<Shard, IndexError> {
    files::sweep(directory, &state.segments)?;
    let next_id = next_id(&state);
    let segments = open_segments(directory, dimension, &state)?;
    let mut shard = Shard::new(
        directory.into(),
        dimension,
        options,
        builder,
        segments,
        next_id,
    );
    for row in &state.head {
        shard.restore(row)?;
    }
    Ok(shard)
}

/// The rows of a committed state. There is no writer: one that restores more rows than a head holds
/// would begin to build segments.
fn read_shard(
    directory: &Path,
    dimension: usize,
    state: &ShardState,
    options: FaissOptions,
) -> Result<ShardRead, IndexError> {
    let segments = open_segments(directory, dimension, state)?;
    let mut heads = Vec::new();
    for rows in state.head.chunks(options.head_rows_max) {
        let mut head = Head::new(dimension, options.head_rows_max);
        for row in rows {
            check_dimension(&row.vector, dimension)?;
            head.push(row.chunk, &row.vector.0, row.fields.clone());
        }
        heads.push(head.view().clone());
    }
    Ok(ShardRead {
        dimension,
        heads,
        segments,
        is_renewal_wanted: Arc::default(),
        news: Arc::default(),
        merges_postponed: 0,
    })
}

/// FAISS is compiled for AVX2 on x86-64; without it the first search would be an illegal
/// instruction.
fn check_processor() -> Result<(), IndexError> {
    #[cfg(target_arch = "x86_64")]
    if !crate::instructions::Instructions::has_avx2() {
        return Err(IndexError {
            fact: "this processor lacks AVX2, FMA or F16C, which FAISS was compiled for".into(),
            hint:
                "build without CXXFLAGS_x86_64_unknown_linux_gnu in .cargo/config.toml, or use a \
                   processor made since 2013"
                    .into(),
        });
    }
    Ok(())
}

/// Segment ids are never used again, also across restarts and after all segments are gone: they
/// count up from the time of opening in microseconds, or from the greatest known one if the clock
/// went back.
fn next_id(state: &ShardState) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_us = now.map_or(0, |since| since.as_micros() as u64);
    let known = state
        .segments
        .iter()
        .map(|manifest| manifest.id.0.saturating_add(1))
        .max();
    now_us.max(known.unwrap_or(0))
}

fn open_segments(
    directory: &Path,
    dimension: usize,
    state: &ShardState,
) -> Result<Vec<Held>, IndexError> {
    let mut segments = Vec::with_capacity(state.segments.len());
    let mut generations = OpenGenerations::new();
    for manifest in &state.segments {
        let segment = Segment::open(directory, manifest.clone(), dimension, &mut generations)?;
        let mut live = Bitmap::all(segment.rows());
        let rows = state.tombstones.iter().filter(|(id, _)| *id == manifest.id);
        for (_, row) in rows {
            if *row >= manifest.rows {
                return Err(foreign_tombstone(manifest.id, *row));
            }
            live.clear(*row as usize);
        }
        segments.push(Held::new(segment, live));
    }
    let known = |id: SegmentId| state.segments.iter().any(|manifest| manifest.id == id);
    match state.tombstones.iter().find(|(id, _)| !known(*id)) {
        Some((id, row)) => Err(foreign_tombstone(*id, *row)),
        None => Ok(segments),
    }
}

fn foreign_tombstone(id: SegmentId, row: u32) -> IndexError {
    IndexError {
        fact: format!(
            "the committed state marks row {row} of segment {:016x} dead, which it does not have",
            id.0
        ),
        hint: "this is a defect or a damaged state: restore the state folder from a copy, or \
               remove it so that the index is built anew from its sources"
            .into(),
    }
}
