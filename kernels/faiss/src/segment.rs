//! A sealed segment: immutable rows, and a way to those near a query if they are many.
//!
//! Row numbers of the rows file and of what leads to them are the same. Codes or FAISS name candidates; their
//! scores are computed from the rows file, by the same code that scans the head.
//!
//! Invariant: what is served was read back from the very files that the manifest names.

use crate::bitmap::Bitmap;
use crate::budget::Budget;
use crate::coded::CodedSegment;
use crate::codes::{self, Codes, RowCodes};
use crate::dot::Query;
use crate::files::{self, Part, damaged};
use crate::generation::Generation;
use crate::library::{Index, LibraryError, Recipe};
use crate::passing::PassingCache;
use crate::postings::{KeyKind, LENGTHS_KEY, Postings, PostingsWriter};
use crate::rows::{self, Rows, RowsInOrder};
use crate::top::Top;
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::slice::{from_mut, from_ref};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vectide_model::{ChunkId, Filter, IndexError, ScoredChunk, SegmentId, SegmentManifest, Term};

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
    keys: Keys,
    way: Way,
}

/// How rows near a query are found.
#[derive(Debug)]
enum Way {
    /// All rows are looked at.
    Whole,
    /// FAISS's own lists, trained for this segment.
    Lists(Index),
    /// Codes by a generation.
    Coded(Arc<Generation>, Codes),
}

/// Lists for a number of rows: more would make training and comparing with the centroids the greater
/// part of the work, fewer the scan.
fn lists_for(rows: usize) -> usize {
    (((rows as f64).sqrt() * 2.0) as usize).max(1)
}

/// What a segment is built to.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// Rows alone.
    Whole,
    /// FAISS's inverted lists of this kind of code.
    Lists(&'static str),
    /// Codes by a generation.
    Coded(Arc<Generation>),
}

/// Generations that are open, by the checksum of their files: segments share them.
pub(crate) type OpenGenerations = HashMap<[u8; 32], Arc<Generation>>;

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

impl From<LibraryError> for Unbuilt {
    fn from(error: LibraryError) -> Self {
        Self::Failed(IndexError {
            fact: format!("building a segment failed: {}", error.0),
            hint: "this is a shortage of memory or disk, or a defect: the committed state is \
                   intact, start again"
                .into(),
        })
    }
}

impl Segment {
    /// Builds and writes a segment of `source`'s rows (at least one); its files are synced and under
    /// their final names when this returns.
    pub(crate) fn build(
        directory: &Path,
        id: SegmentId,
        dimension: usize,
        layout: &Layout,
        source: &dyn RowsInOrder,
        cancelled: &AtomicBool,
    ) -> Result<Self, Unbuilt> {
        let mut parts = Vec::new();
        let mut part = |name: String| {
            let part = Part::new(directory, &name);
            let path = part.path().to_owned();
            parts.push((name, part));
            path
        };
        rows::write(&part(files::rows_name(id)), dimension, source)?;
        let attributes = || part(files::attributes_name(id));
        let has_attributes = write_keys(source, KeyKind::Attributes, attributes)?;
        let has_terms = write_keys(source, KeyKind::Terms, || part(files::terms_name(id)))?;
        match layout {
            Layout::Whole => {}
            Layout::Lists(kind) => {
                let path = part(files::index_name(id));
                build_index(&path, dimension, kind, source, cancelled)?;
            }
            Layout::Coded(generation) => {
                let coded = code_all(generation, source, cancelled)?;
                let path = part(files::codes_name(id));
                codes::write(&path, generation.parts(), generation.lists(), &coded)?;
                let name = files::generation_name(id);
                generation.link(&part(name.clone()), &directory.join(name))?;
            }
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
        let mut maps = maps.into_iter();
        let rows = read_rows(directory, &manifest, dimension, maps.next())?;
        let attributes = has_attributes.then(|| maps.next()).flatten();
        let terms = has_terms.then(|| maps.next()).flatten();
        let keys = Keys::read(directory, id, rows.rows(), (attributes, terms))?;
        let way = match layout {
            Layout::Whole => Way::Whole,
            Layout::Lists(_) => read_lists(directory, id, &rows, dimension, maps.next())?,
            Layout::Coded(generation) => {
                read_codes(directory, id, &rows, generation.clone(), maps.next())?
            }
        };
        Ok(Self {
            manifest,
            rows,
            keys,
            way,
        })
    }

    /// Opens a committed segment, verifying its files.
    pub(crate) fn open(
        directory: &Path,
        manifest: SegmentManifest,
        dimension: usize,
        generations: &mut OpenGenerations,
    ) -> Result<Self, IndexError> {
        let id = manifest.id;
        let has = |name: &str| manifest.files.iter().any(|file| file.0 == name);
        let map = |name: &str| {
            let (path, length, checksum) = files::manifest_entry(directory, &manifest, name)?;
            let map = files::map_verified(&path, length, checksum)?;
            Ok::<_, IndexError>((map, *checksum))
        };
        let rows_map = map(&files::rows_name(id))?.0;
        let rows = read_rows(directory, &manifest, dimension, Some(rows_map))?;
        let map_if = |name: String| {
            let map = has(&name).then(|| map(&name)).transpose()?;
            Ok::<_, IndexError>(map.map(|(map, _)| map))
        };
        let maps = (
            map_if(files::attributes_name(id))?,
            map_if(files::terms_name(id))?,
        );
        let keys = Keys::read(directory, id, rows.rows(), maps)?;
        let (index_name, codes_name) = (files::index_name(id), files::codes_name(id));
        let way = if has(&index_name) {
            let map = map(&index_name)?.0;
            read_lists(directory, id, &rows, dimension, Some(map))?
        } else if has(&codes_name) {
            let name = files::generation_name(id);
            let (bytes, checksum) = map(&name)?;
            let generation = match generations.get(&checksum) {
                Some(generation) => generation.clone(),
                None => {
                    let path = directory.join(name);
                    let generation = Arc::new(Generation::read(&bytes, &path, dimension)?);
                    generations.insert(checksum, generation.clone());
                    generation
                }
            };
            read_codes(directory, id, &rows, generation, Some(map(&codes_name)?.0))?
        } else {
            Way::Whole
        };
        Ok(Self {
            manifest,
            rows,
            keys,
            way,
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

    /// The postings of its rows' keys of a kind, if they have any.
    pub(crate) fn keys(&self, kind: KeyKind) -> Option<&Postings> {
        match kind {
            KeyKind::Attributes => self.keys.attributes.as_ref(),
            KeyKind::Terms => self.keys.terms.as_ref().map(|it| &it.postings),
        }
    }

    /// Bytes of its rows' keys, of the kind that has most.
    pub(crate) fn key_bytes(&self) -> u64 {
        let kinds = [KeyKind::Attributes, KeyKind::Terms];
        let bytes = kinds.map(|kind| self.keys(kind).map_or(0, Postings::key_bytes));
        bytes.into_iter().max().unwrap_or(0)
    }

    /// The live rows that pass a filter.
    pub(crate) fn passing(&self, filter: &Filter, live: &Bitmap, budget: &mut Budget) -> Bitmap {
        let attributes = self.keys.attributes.as_ref();
        let cache = &self.keys.passing;
        cache.passing(filter, attributes, live, budget)
    }

    /// Terms of a row, 0 where it has none.
    pub(crate) fn length(&self, row: usize) -> u32 {
        let terms = self.keys.terms.as_ref();
        terms.map_or(0, |terms| u32::from(terms.lengths[row]))
    }

    /// Gives the rows that have a term, live or not, in order, with their counts.
    pub(crate) fn rows_with(&self, term: Term, give: &mut dyn FnMut(&[u32], &[u32])) {
        if let Some(postings) = self.keys(KeyKind::Terms) {
            let keys = postings.find(&term.0);
            keys.into_iter().for_each(|at| postings.each_of(at, give));
        }
    }

    /// The generation whose codes it has.
    pub(crate) fn generation(&self) -> Option<&Arc<Generation>> {
        match &self.way {
            Way::Coded(generation, _) => Some(generation),
            Way::Whole | Way::Lists(_) => None,
        }
    }

    /// What is searched together with the other segments of its generation; `live` are rows that a filter has
    /// left of so many.
    pub(crate) fn coded<'a>(
        &'a self,
        live: &'a Bitmap,
        narrowed_from: Option<usize>,
    ) -> Option<CodedSegment<'a>> {
        match &self.way {
            Way::Coded(_, codes) => Some(CodedSegment {
                codes,
                rows: &self.rows,
                live,
                live_unfiltered: narrowed_from.unwrap_or(live.live()),
            }),
            Way::Whole | Way::Lists(_) => None,
        }
    }

    /// The list and the code of each row.
    pub(crate) fn row_codes(&self) -> Option<RowCodes> {
        match &self.way {
            Way::Coded(_, codes) => Some(codes.by_row()),
            Way::Whole | Way::Lists(_) => None,
        }
    }

    /// Lists to probe for `k` hits.
    fn probes(lists: usize, k: usize, live: usize) -> usize {
        let for_recall = PROBES_MIN.max(lists.div_ceil(PROBE_SHARE));
        let rows_wanted = k.saturating_mul(ROWS_PER_HIT).min(live);
        let for_hits = (lists * rows_wanted).div_ceil(live.max(1));
        for_recall.max(for_hits).min(lists)
    }

    /// Offers the best `k` of the live rows, and perhaps others, by FAISS's lists; all of them where there
    /// are none.
    pub(crate) fn search(
        &self,
        query: &Query<'_>,
        k: usize,
        live: &Bitmap,
        top: &mut Top,
        budget: &mut Budget,
    ) {
        let k = k.min(live.live());
        let Way::Lists(index) = &self.way else {
            return self.scan(from_ref(query), live, from_mut(top), budget);
        };
        let probes = Self::probes(index.lists(), k, live.live());
        if probes >= index.lists() {
            return self.scan(from_ref(query), live, from_mut(top), budget);
        }
        if budget.is_over() {
            return;
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
                self.scan(from_ref(query), live, from_mut(top), budget);
            }
        }
    }

    /// All live rows, exactly.
    pub(crate) fn scan(
        &self,
        queries: &[Query<'_>],
        live: &Bitmap,
        tops: &mut [Top],
        budget: &mut Budget,
    ) {
        self.rows.scan(queries, live, tops, budget);
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
        let selection = live.selection();
        loop {
            let found = index.search(query.components(), depth, probes, selection.as_deref())?;
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
    path: &Path,
    dimension: usize,
    kind: &str,
    source: &dyn RowsInOrder,
    cancelled: &AtomicBool,
) -> Result<(), LibraryError> {
    let index = train(dimension, kind, source)?;
    let index = add_all(index, source, cancelled)?;
    index.write(path)
}

/// The codes of all rows: those that rows bring along, and new ones for the others.
fn code_all(
    generation: &Generation,
    source: &dyn RowsInOrder,
    cancelled: &AtomicBool,
) -> Result<RowCodes, LibraryError> {
    let (rows, width) = (source.rows(), generation.code_bytes());
    let mut coded = RowCodes {
        lists: vec![0; rows],
        codes: vec![0; rows * width],
    };
    let mut set = |row: usize, list: u32, code: &[u8]| {
        coded.lists[row] = list;
        coded.codes[row * width..][..width].copy_from_slice(code);
    };
    let (mut old, mut new, mut batch) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..rows {
        match source.code(row) {
            Some((list, code)) => set(row, list, code),
            None if source.is_new(row) => new.push(row),
            None => old.push(row),
        }
    }
    let old = old.chunks(ADD_ROWS).map(|rows| (rows, false));
    let new = new.chunks(ADD_ROWS).map(|rows| (rows, true));
    for (rows, are_new) in old.chain(new) {
        if cancelled.load(Ordering::Relaxed) {
            break;
        }
        widen(source, rows.iter().copied(), &mut batch);
        let (lists, codes) = generation.encode(&batch)?;
        // The generation was made for the old ones: how well it fits them says nothing of what has come since, and
        // were they counted, one retraining would call for the next.
        if are_new {
            generation.note_fit(&batch, &lists);
        }
        let codes = codes.chunks_exact(width);
        for ((row, list), code) in rows.iter().zip(lists).zip(codes) {
            set(*row, list, code);
        }
    }
    Ok(coded)
}

/// Writes the keys of a kind, where there are any, to the file that `path` begins; says whether it did.
fn write_keys(
    source: &dyn RowsInOrder,
    kind: KeyKind,
    path: impl FnOnce() -> PathBuf,
) -> Result<bool, IndexError> {
    let (mut begin, mut writer) = (Some(path), None);
    let mut written = PathBuf::new();
    let given = source.keys(kind, &mut |key, postings| {
        if let Some(path) = begin.take() {
            written = path();
            let has_counts = kind == KeyKind::Terms;
            writer = Some(PostingsWriter::create(&written, source.rows(), has_counts)?);
        }
        match &mut writer {
            Some(writer) => writer.push(key, postings),
            None => Ok(()),
        }
    });
    let is_begun = writer.is_some();
    let done = given.and_then(|()| writer.map_or(Ok(()), PostingsWriter::finish));
    done.map_err(|error| files::io_error("writing", &written, &error))?;
    Ok(is_begun)
}

/// The terms of a segment's rows.
#[derive(Debug)]
struct SegmentTerms {
    postings: Postings,
    /// Of each row.
    lengths: Vec<u16>,
}

impl SegmentTerms {
    fn new(postings: Postings, rows: usize) -> Self {
        let mut lengths = vec![0; rows];
        if let Some(at) = postings.find(LENGTHS_KEY) {
            postings.each_of(at, &mut |rows, counts| {
                for (row, count) in rows.iter().zip(counts) {
                    lengths[*row as usize] = u16::try_from(*count).unwrap_or(u16::MAX);
                }
            });
        }
        Self { postings, lengths }
    }
}

/// What rows are found by besides their vectors.
#[derive(Debug, Default)]
struct Keys {
    /// Missing where no row has one.
    attributes: Option<Postings>,
    passing: PassingCache,
    terms: Option<SegmentTerms>,
}

impl Keys {
    fn read(
        directory: &Path,
        id: SegmentId,
        rows: usize,
        (attributes, terms): (Option<Mmap>, Option<Mmap>),
    ) -> Result<Self, IndexError> {
        let read = |name: String, map: Option<Mmap>| {
            let path = directory.join(name);
            map.map(|map| Postings::new(map, &path, rows)).transpose()
        };
        let terms = read(files::terms_name(id), terms)?;
        Ok(Self {
            attributes: read(files::attributes_name(id), attributes)?,
            passing: PassingCache::default(),
            terms: terms.map(|postings| SegmentTerms::new(postings, rows)),
        })
    }
}

fn read_rows(
    directory: &Path,
    manifest: &SegmentManifest,
    dimension: usize,
    map: Option<Mmap>,
) -> Result<Rows, IndexError> {
    let path = directory.join(files::rows_name(manifest.id));
    let rows = Rows::new(given(map, &path)?, &path, dimension)?;
    if rows.rows() != manifest.rows as usize {
        let detail = format!("has {} rows, the manifest {}", rows.rows(), manifest.rows);
        return Err(damaged(&path, detail));
    }
    Ok(rows)
}

fn given(map: Option<Mmap>, path: &Path) -> Result<Mmap, IndexError> {
    map.ok_or_else(|| damaged(path, "was not read"))
}

fn read_lists(
    directory: &Path,
    id: SegmentId,
    rows: &Rows,
    dimension: usize,
    map: Option<Mmap>,
) -> Result<Way, IndexError> {
    let path = directory.join(files::index_name(id));
    let index = Index::read(&given(map, &path)?)
        .map_err(|error| damaged(&path, format_args!("is refused: {}", error.0)))?;
    if (index.rows(), index.dimension()) != (rows.rows(), dimension) {
        let detail = format!(
            "holds {} rows of {} dimensions, its rows file {} of {dimension}",
            index.rows(),
            index.dimension(),
            rows.rows(),
        );
        return Err(damaged(&path, detail));
    }
    Ok(Way::Lists(index))
}

fn read_codes(
    directory: &Path,
    id: SegmentId,
    rows: &Rows,
    generation: Arc<Generation>,
    map: Option<Mmap>,
) -> Result<Way, IndexError> {
    let path = directory.join(files::codes_name(id));
    let codes = Codes::new(given(map, &path)?, &path)?;
    let found = (codes.rows(), codes.lists(), codes.parts());
    let expected = (rows.rows(), generation.lists(), generation.parts());
    if found != expected {
        let detail = format!("has (rows, lists, parts) {found:?} where {expected:?} belong");
        return Err(damaged(&path, detail));
    }
    Ok(Way::Coded(generation, codes))
}

/// Rows as FAISS takes them, one after the other.
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
fn train(dimension: usize, kind: &str, source: &dyn RowsInOrder) -> Result<Index, LibraryError> {
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
    let description = format!("IVF{lists},{kind}");
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
